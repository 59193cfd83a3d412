//! Publishes the CA and the webhooks' paths: for the API server in the webhook configurations, for
//! warmers the CA in a ConfigMap. The replica is ready once the API server can call it.

use std::sync::Arc;
use std::time::Duration;

use imagewarm_webhook_certs::Served;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::webhook_configurations::{
    self, ConfigurationStates, PublishError, ReplicaPaths, Role, WebhookConfigurations,
};
use crate::telemetry::certificates::CertificateMetrics;
use imagewarm_core::error_chain::error_chain;

/// ConfigMap from which warmers read the CA.
pub const CONFIG_MAP: &str = "imagewarm-dispatch-ca";
/// Name of both webhook configurations.
pub const CONFIGURATION: &str = "imagewarm";

/// Interval between two checks of the published CA, once it is published.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The same before that.
const CHECK_INTERVAL_BEFORE: Duration = Duration::from_millis(500);
/// The same after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes CA and paths while this replica leads; reads what is published while it does not.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// Whether the API server trusts this replica's certificate, as last seen.
    pub(crate) published: watch::Sender<Option<ConfigurationStates>>,
    /// The CAs that were last seen in both webhook configurations.
    pub(crate) trusted: watch::Sender<Option<Arc<str>>>,
    /// What the leader does with the webhook configurations.
    pub(crate) leader_role: Role,
    /// The paths of the webhooks.
    pub(crate) paths: ReplicaPaths,
    pub(crate) clock: Clock,
    pub(crate) metrics: CertificateMetrics,
}

impl Publisher {
    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut logged = None;
        loop {
            let served = self.served.borrow_and_update().clone();
            let mut pause = CHECK_INTERVAL_BEFORE;
            if let Some(served) = served {
                self.metrics.served(&served);
                match self.publish(&served.ca_cert_pem).await {
                    Ok(states) => {
                        let trusted = states.are_current();
                        self.published.send_replace(Some(states));
                        self.trusted.send_replace(trusted.then(|| served.ca_cert_pem.clone()));
                        if trusted {
                            pause = CHECK_INTERVAL;
                        }
                        if logged.replace(states) != Some(states) {
                            tracing::info!(
                                mutating = ?states.mutating,
                                validating = ?states.validating,
                                "webhook configurations checked"
                            );
                        }
                    }
                    Err(error) => {
                        pause = RETRY_INTERVAL;
                        tracing::warn!(error = error_chain(&error), "cannot publish the CA");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.served.changed() => if changed.is_err() { return },
                changed = self.leadership.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    async fn publish(&mut self, ca_pem: &str) -> Result<ConfigurationStates, PublishError> {
        let names = WebhookConfigurations {
            mutating: CONFIGURATION.into(),
            validating: CONFIGURATION.into(),
        };
        let role = if self.leads() { self.leader_role } else { Role::Reads };
        // First what the API server cannot call us without, and whatever becomes of the rest.
        let now = self.clock.monotonic_ms();
        let (client, paths) = (&self.client, &mut self.paths);
        let states = webhook_configurations::sync(client, &names, ca_pem, role, paths, now).await;
        if self.leads() {
            let (client, namespace) = (&self.client, &self.namespace);
            let done =
                webhook_configurations::ensure_ca_config_map(client, namespace, CONFIG_MAP, ca_pem);
            log_failure(done.await.map(drop), "cannot publish the CA for warmers");
        }
        // A leader that publishes nothing may lack the right to change them.
        if self.leads() && self.leader_role != Role::Reads {
            let done = webhook_configurations::ensure_owner(&self.client, &names, &self.namespace);
            log_failure(done.await, "cannot set the owner of the webhook configurations");
        }
        states
    }

    /// Asked before each write: leadership may end between two.
    fn leads(&self) -> bool {
        self.leadership.borrow().leading
    }
}

fn log_failure(done: Result<(), PublishError>, what: &'static str) {
    if let Err(error) = done {
        tracing::warn!(error = error_chain(&error), "{what}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::webhook_configurations::tests::{
        Cluster, MUTATING, VALIDATING, client, configuration,
    };

    fn publisher(cluster: &Arc<Mutex<Cluster>>, leading: bool) -> Publisher {
        let leadership = Leadership { leading, ..Leadership::default() };
        Publisher {
            client: client(cluster),
            namespace: "ns".into(),
            served: watch::channel(None).1,
            leadership: watch::channel(leadership).1,
            published: watch::Sender::default(),
            trusted: watch::Sender::default(),
            leader_role: Role::Publishes { ca_bundle: true, paths: true },
            paths: ReplicaPaths::default(),
            clock: Clock::start(),
            metrics: CertificateMetrics::register(&mut Default::default()),
        }
    }

    #[tokio::test]
    async fn what_else_is_forbidden_does_not_keep_the_api_server_from_the_ca() {
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        {
            let mut cluster = cluster.lock().unwrap();
            cluster.forbidden = vec!["/api/v1/namespaces"];
            for (path, kind) in [
                (MUTATING, "MutatingWebhookConfiguration"),
                (VALIDATING, "ValidatingWebhookConfiguration"),
            ] {
                cluster.objects.insert(path.into(), configuration(kind, &[None]));
            }
        }
        assert!(!publisher(&cluster, false).publish("CA").await.unwrap().are_current());
        assert!(cluster.lock().unwrap().patches.is_empty(), "only the leader writes");
        let leader_role = Role::Publishes { ca_bundle: false, paths: true };
        let mut other = Publisher { leader_role, ..publisher(&cluster, true) };
        assert!(!other.publish("CA").await.unwrap().are_current());
        let configurations = |(path, _): &(String, Value)| path.contains("webhookconfigurations");
        let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
        let ca_bundle = |(_, patch): &(String, Value)| patch.to_string().contains("caBundle");
        assert_eq!(patches.iter().filter(|patch| configurations(patch)).count(), 2, "the paths");
        assert!(!patches.iter().any(ca_bundle), "caBundle is another program's");
        cluster.lock().unwrap().objects.retain(|path, _| !path.contains("configmaps"));
        assert!(publisher(&cluster, true).publish("CA").await.unwrap().are_current());
        let patches = &cluster.lock().unwrap().patches;
        assert_eq!(patches.iter().filter(|patch| configurations(patch)).count(), 2);
    }

    /// As it must be where the account has no right to change them.
    #[tokio::test]
    async fn a_leader_that_only_reads_changes_no_webhook_configuration() {
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        let kinds = [
            (MUTATING, "MutatingWebhookConfiguration", "/mutate/"),
            (VALIDATING, "ValidatingWebhookConfiguration", "/validate/"),
        ];
        {
            let objects = &mut cluster.lock().unwrap().objects;
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
                                   "metadata": {"name": "ns", "uid": "1"}});
            objects.insert("/api/v1/namespaces/ns".into(), namespace);
            for (path, kind, _) in kinds {
                objects.insert(path.into(), configuration(kind, &[Some("CA")]));
            }
        }
        let mut reads = Publisher { leader_role: Role::Reads, ..publisher(&cluster, true) };
        let states = reads.publish("CA").await.unwrap();
        assert!(states.check().unwrap_err().contains("does not hold its paths yet"));

        // The installer's.
        let paths = kinds.map(|(_, _, endpoint)| format!("{endpoint}{}", "0a".repeat(16)));
        for ((object, ..), path) in kinds.iter().zip(&paths) {
            let mut cluster = cluster.lock().unwrap();
            let configuration = cluster.objects.get_mut(*object).unwrap();
            configuration["webhooks"][0]["clientConfig"]["service"]["path"] = json!(path);
        }
        assert!(reads.publish("CA").await.unwrap().are_current());
        let served = reads.paths.served().borrow().clone();
        assert!(paths.iter().all(|path| served.get(path).is_some()));
        let patches = &cluster.lock().unwrap().patches;
        let patched: Vec<&str> = patches.iter().map(|(path, _)| path.as_str()).collect();
        assert!(!patched.is_empty() && patched.iter().all(|path| path.contains("configmaps")));
    }
}
