//! Keeps the certificates of a controller replica: one Secret for all replicas, the CA published
//! by the leader, and readiness only once the API server trusts us.

use std::time::Duration;

use imagewarm_webhook_certs::{Keeper, Lifetimes, SecretStore, Served, Settings};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::MANAGED_BY;
use crate::cluster::leadership::Leadership;
use crate::cluster::publish_ca::{self, CaBundles, PublishError, WebhookConfigurations};

/// Secret that holds CA and serving certificate.
pub const SECRET: &str = "imagewarm-certs";
/// ConfigMap by which warmers learn the CA.
pub const CONFIG_MAP: &str = "imagewarm-dispatch-ca";
/// Name of both webhook configurations.
pub const CONFIGURATION: &str = "imagewarm";
/// Services whose names the certificate is good for.
pub const SERVICES: [&str; 2] = ["imagewarm-webhook", "imagewarm-dispatch"];

/// How often the Secret is looked at.
const CHECK: Duration = Duration::from_secs(60);
/// How often the published CA is looked at, once it is right.
const LOOK: Duration = Duration::from_secs(10);
/// The same before that.
const LOOK_SOON: Duration = Duration::from_millis(500);

/// The keeper of this replica's certificates.
pub(super) fn keeper(client: &Client, namespace: &str) -> Keeper {
    let labels = [("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned())].into();
    let store = SecretStore::new(client.clone(), namespace, SECRET, labels);
    let names = SERVICES
        .iter()
        .flat_map(|service| {
            // The API server asks for the first, people's tools may ask for the longer one.
            [
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
            ]
        })
        .collect();
    Keeper::new(store, Settings { names, lifetimes: Lifetimes::default(), check_interval: CHECK })
}

/// Publishes the CA while this replica leads, and watches over it while it does not.
pub(super) struct Publisher {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) served: watch::Receiver<Option<Served>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// Whether the API server trusts this replica's certificate, as last seen.
    pub(super) published: watch::Sender<Option<CaBundles>>,
}

impl Publisher {
    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut said = None;
        loop {
            let served = self.served.borrow_and_update().clone();
            let mut pause = LOOK_SOON;
            if let Some(served) = served {
                match self.publish(&served.ca_cert_pem).await {
                    Ok(bundles) => {
                        let right = bundles.are_right();
                        self.published.send_replace(Some(bundles));
                        if right {
                            pause = LOOK;
                        }
                        if said != Some(bundles) {
                            tracing::info!(
                                mutating = ?bundles.mutating,
                                validating = ?bundles.validating,
                                "looked at the CA in the webhook configurations"
                            );
                            said = Some(bundles);
                        }
                    }
                    Err(error) => {
                        pause = Duration::from_secs(2);
                        tracing::warn!(error = %ErrorChain(&error), "could not publish the CA");
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

    async fn publish(&self, ca_pem: &str) -> Result<CaBundles, PublishError> {
        let names = WebhookConfigurations {
            mutating: CONFIGURATION.into(),
            validating: CONFIGURATION.into(),
        };
        if !self.leads() {
            return publish_ca::ca_bundle_is_set(&self.client, &names, ca_pem).await;
        }
        // First what the API server cannot call us without, and whatever becomes of the rest.
        let bundles = publish_ca::ensure_ca_bundle(&self.client, &names, ca_pem).await;
        if self.leads() {
            let (client, namespace) = (&self.client, &self.namespace);
            let done = publish_ca::ensure_ca_config_map(client, namespace, CONFIG_MAP, ca_pem);
            tell(done.await.map(drop), "could not publish the CA for warmers");
        }
        if self.leads() {
            let done = publish_ca::ensure_owner(&self.client, &names, &self.namespace);
            tell(done.await, "could not set the owner of the webhook configurations");
        }
        bundles
    }

    /// Asked before each write: leadership may end between two.
    fn leads(&self) -> bool {
        self.leadership.borrow().leading
    }
}

fn tell(done: Result<(), PublishError>, what: &'static str) {
    if let Err(error) = done {
        tracing::warn!(error = %ErrorChain(&error), "{what}");
    }
}

/// An error with its causes, in one line.
struct ErrorChain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::cluster::publish_ca::tests::{Cluster, MUTATING, VALIDATING, client, configuration};

    fn publisher(cluster: &Arc<Mutex<Cluster>>, leading: bool) -> Publisher {
        let leadership = Leadership { leading, ..Leadership::default() };
        Publisher {
            client: client(cluster),
            namespace: "ns".into(),
            served: watch::channel(None).1,
            leadership: watch::channel(leadership).1,
            published: watch::Sender::default(),
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
        assert!(!publisher(&cluster, false).publish("CA").await.unwrap().are_right());
        assert!(cluster.lock().unwrap().patches.is_empty(), "only the leader writes");
        assert!(publisher(&cluster, true).publish("CA").await.unwrap().are_right());
        assert_eq!(cluster.lock().unwrap().patches.len(), 2);
    }
}
