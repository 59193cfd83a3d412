//! Publishes the CA: for the API server in the webhook configurations, for warmers in a ConfigMap.
//! The replica is ready once the API server trusts its certificate.

use std::sync::Arc;
use std::time::Duration;

use imagewarm_webhook_certs::Served;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::ca_bundles::{self, CaBundles, PublishError, WebhookConfigurations};
use crate::kubernetes::leadership::Leadership;
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

/// Publishes the CA while this replica leads; checks that it is published while it does not.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// Whether the API server trusts this replica's certificate, as last seen.
    pub(crate) published: watch::Sender<Option<CaBundles>>,
    /// The CAs that were last seen in both webhook configurations.
    pub(crate) trusted: watch::Sender<Option<Arc<str>>>,
    /// Whether it is the leader's part to set `caBundle`.
    pub(crate) sets_ca_bundle: bool,
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
                    Ok(bundles) => {
                        let trusted = bundles.are_current();
                        self.published.send_replace(Some(bundles));
                        self.trusted.send_replace(trusted.then(|| served.ca_cert_pem.clone()));
                        if trusted {
                            pause = CHECK_INTERVAL;
                        }
                        if logged.replace(bundles) != Some(bundles) {
                            tracing::info!(
                                mutating = ?bundles.mutating,
                                validating = ?bundles.validating,
                                "CA in the webhook configurations checked"
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

    async fn publish(&self, ca_pem: &str) -> Result<CaBundles, PublishError> {
        let names = WebhookConfigurations {
            mutating: CONFIGURATION.into(),
            validating: CONFIGURATION.into(),
        };
        if !self.leads() {
            return ca_bundles::ca_bundle_is_set(&self.client, &names, ca_pem).await;
        }
        // First what the API server cannot call us without, and whatever becomes of the rest.
        let bundles = if self.sets_ca_bundle {
            ca_bundles::ensure_ca_bundle(&self.client, &names, ca_pem).await
        } else {
            ca_bundles::ca_bundle_is_set(&self.client, &names, ca_pem).await
        };
        if self.leads() {
            let (client, namespace) = (&self.client, &self.namespace);
            let done = ca_bundles::ensure_ca_config_map(client, namespace, CONFIG_MAP, ca_pem);
            log_failure(done.await.map(drop), "cannot publish the CA for warmers");
        }
        if self.leads() {
            let done = ca_bundles::ensure_owner(&self.client, &names, &self.namespace);
            log_failure(done.await, "cannot set the owner of the webhook configurations");
        }
        bundles
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

    use serde_json::Value;

    use super::*;
    use crate::kubernetes::ca_bundles::tests::{
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
            sets_ca_bundle: true,
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
        let other = Publisher { sets_ca_bundle: false, ..publisher(&cluster, true) };
        assert!(!other.publish("CA").await.unwrap().are_current());
        let configurations = |(path, _): &(String, Value)| path.contains("webhookconfigurations");
        let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
        assert!(!patches.iter().any(configurations), "caBundle is somebody else's");
        cluster.lock().unwrap().objects.retain(|path, _| !path.contains("configmaps"));
        assert!(publisher(&cluster, true).publish("CA").await.unwrap().are_current());
        let patches = &cluster.lock().unwrap().patches;
        assert_eq!(patches.iter().filter(|patch| configurations(patch)).count(), 2);
    }
}
