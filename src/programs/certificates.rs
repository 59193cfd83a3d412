//! Keeps the certificates of a controller replica: one Secret for all replicas, the CA published
//! by the leader, and readiness only once the API server trusts us.

mod settings;

use std::sync::Arc;
use std::time::Duration;

use imagewarm_webhook_certs::{Keeper, Mounted, Resolver, SecretStore, Served, Settings};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::ca_bundles::{self, CaBundles, PublishError, WebhookConfigurations};
use crate::kubernetes::leadership::Leadership;
use imagewarm_core::api::MANAGED_BY;

pub use settings::{CertificateArgs, CertificateArgsError, CertificateMetrics};

/// Secret that holds CA and serving certificate.
pub const SECRET: &str = "imagewarm-certs";
/// ConfigMap by which warmers learn the CA.
pub const CONFIG_MAP: &str = "imagewarm-dispatch-ca";
/// Name of both webhook configurations.
pub const CONFIGURATION: &str = "imagewarm";
/// Services whose names the certificate is good for.
pub const SERVICES: [&str; 2] = ["imagewarm-webhook", "imagewarm-dispatch"];

/// How often the published CA is looked at, once it is right.
const LOOK: Duration = Duration::from_secs(10);
/// The same before that.
const LOOK_SOON: Duration = Duration::from_millis(500);

/// Where this replica's certificates come from.
pub(super) enum Source {
    /// Made by the replicas themselves.
    Secret(Box<Keeper>),
    /// Made by somebody else and mounted.
    Files(Mounted),
}

impl Source {
    /// By the flags. `trusted` tells which CAs the API server has been told to trust.
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        args: &CertificateArgs,
        metrics: &CertificateMetrics,
        trusted: watch::Receiver<Option<Arc<str>>>,
    ) -> Result<Self, CertificateArgsError> {
        // What the API server and the warmers ask for.
        let names = SERVICES.iter().map(|service| format!("{service}.{namespace}.svc"));
        let check_interval = args.certificate_check_interval;
        let metrics = metrics.clone();
        if let Some(folder) = &args.tls_cert_dir {
            let mut mounted = Mounted::new(folder, names.collect(), check_interval);
            mounted.on_fault(move |fault| metrics.fault(fault.into()));
            return Ok(Source::Files(mounted));
        }
        let labels = [("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned())].into();
        let store = SecretStore::new(client.clone(), namespace, SECRET, labels);
        let policy = args.policy()?;
        // People's tools may ask for the longer ones, which differ where a cluster has its own domain.
        let names =
            names.flat_map(|name| [name.clone(), format!("{name}.cluster.local")]).collect();
        let mut keeper = Keeper::new(store, Settings { names, policy, check_interval });
        keeper.wait_for_publication(trusted);
        keeper.on_fault(move |fault| metrics.fault(fault.into()));
        Ok(Source::Secret(Box::new(keeper)))
    }

    pub(super) fn resolver(&self) -> Arc<Resolver> {
        match self {
            Source::Secret(keeper) => keeper.resolver(),
            Source::Files(mounted) => mounted.resolver(),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        match self {
            Source::Secret(keeper) => keeper.subscribe(),
            Source::Files(mounted) => mounted.subscribe(),
        }
    }

    /// Checks for ever; drop the future to stop.
    pub(super) async fn run(self) {
        match self {
            Source::Secret(keeper) => keeper.run().await,
            Source::Files(mounted) => mounted.run().await,
        }
    }
}

/// Publishes the CA while this replica leads, and watches over it while it does not.
pub(super) struct Publisher {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) served: watch::Receiver<Option<Served>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// Whether the API server trusts this replica's certificate, as last seen.
    pub(super) published: watch::Sender<Option<CaBundles>>,
    /// The CAs that were last seen in both webhook configurations.
    pub(super) trusted: watch::Sender<Option<Arc<str>>>,
    /// Whether it is the leader's part to set `caBundle`.
    pub(super) sets_ca_bundle: bool,
    pub(super) metrics: CertificateMetrics,
}

impl Publisher {
    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut said = None;
        loop {
            let served = self.served.borrow_and_update().clone();
            let mut pause = LOOK_SOON;
            if let Some(served) = served {
                self.metrics.served(&served);
                match self.publish(&served.ca_cert_pem).await {
                    Ok(bundles) => {
                        let right = bundles.are_right();
                        self.published.send_replace(Some(bundles));
                        self.trusted.send_replace(right.then(|| served.ca_cert_pem.clone()));
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
            tell(done.await.map(drop), "could not publish the CA for warmers");
        }
        if self.leads() {
            let done = ca_bundles::ensure_owner(&self.client, &names, &self.namespace);
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
        assert!(!publisher(&cluster, false).publish("CA").await.unwrap().are_right());
        assert!(cluster.lock().unwrap().patches.is_empty(), "only the leader writes");
        let other = Publisher { sets_ca_bundle: false, ..publisher(&cluster, true) };
        assert!(!other.publish("CA").await.unwrap().are_right());
        let configurations = |(path, _): &(String, Value)| path.contains("webhookconfigurations");
        let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
        assert!(!patches.iter().any(configurations), "caBundle is somebody else's");
        cluster.lock().unwrap().objects.retain(|path, _| !path.contains("configmaps"));
        assert!(publisher(&cluster, true).publish("CA").await.unwrap().are_right());
        let patches = &cluster.lock().unwrap().patches;
        assert_eq!(patches.iter().filter(|patch| configurations(patch)).count(), 2);
    }
}
