//! Where the certificates of a controller replica come from: one Secret for all replicas, which
//! they maintain themselves, or a folder that another program maintains.

mod args;

use std::sync::Arc;

use imagewarm_webhook_certs::{Keeper, Mounted, Resolver, SecretStore, Served, Settings};
use kube::Client;
use tokio::sync::watch;

use crate::telemetry::certificates::CertificateMetrics;
use imagewarm_core::api::MANAGED_BY;

pub use args::{CertificateArgs, CertificateArgsError};

/// Secret that holds CA and serving certificate.
pub const SECRET: &str = "imagewarm-certs";
/// Services whose names the certificate is good for.
pub const SERVICES: [&str; 2] = ["imagewarm-webhook", "imagewarm-dispatch"];

/// Where this replica's certificates come from.
pub(super) enum Source {
    /// Made by the replicas themselves.
    Secret(Box<Keeper>),
    /// Made by somebody else and mounted.
    Files(Mounted),
}

impl Source {
    /// By the flags. `trusted` holds the CAs that the API server trusts.
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
