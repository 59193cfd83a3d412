//! Keeps the served certificate good: loads it, looks at it by wall clock every so often (another
//! replica may have replaced it, a person may have deleted it), and publishes the CA.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::check::BundleError;
use crate::rotate::Policy;
use crate::secret::{Publication, SecretStore, StoreError};
use crate::serve::Resolver;

/// The first wait after a failure; it doubles up to the interval of checks.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// What a keeper keeps.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DNS names (or IP addresses) that the serving certificate must be good for.
    pub names: Vec<String>,
    /// When certificates are made, used and given up.
    pub policy: Policy,
    /// How often the Secret is looked at.
    pub check_interval: Duration,
}

/// What is being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The CA (or CAs) that clients have to trust.
    pub ca_cert_pem: Arc<str>,
    /// End of the serving certificate.
    pub not_after: Timestamp,
    /// End of the CA that signed it.
    pub ca_not_after: Timestamp,
}

/// Loads, renews and swaps; see [`Keeper::run`].
pub struct Keeper {
    store: SecretStore,
    settings: Settings,
    resolver: Arc<Resolver>,
    served: watch::Sender<Option<Served>>,
    /// `tls.crt` as last swapped in.
    certificate: String,
    publication: Publication,
    on_fault: Box<dyn Fn(&BundleError) + Send + Sync>,
}

impl Keeper {
    /// Does nothing yet.
    pub fn new(store: SecretStore, settings: Settings) -> Self {
        Keeper {
            store,
            settings,
            resolver: Arc::default(),
            served: watch::Sender::new(None),
            certificate: String::new(),
            publication: Publication::default(),
            on_fault: Box::new(|_| ()),
        }
    }

    /// The next CA waits until it is seen among those that clients were told to trust (PEM).
    pub fn wait_for_publication(&mut self, seen: watch::Receiver<Option<Arc<str>>>) {
        self.publication = Publication::watch(seen);
    }

    /// Called for each bad bundle that was replaced; for metrics.
    pub fn on_fault(&mut self, told: impl Fn(&BundleError) + Send + Sync + 'static) {
        self.on_fault = Box::new(told);
    }

    /// For the TLS server.
    pub fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// What is being served; `None` until the first load. Changes only when the content does.
    pub fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        self.served.subscribe()
    }

    /// One look at the Secret. After an error the previous certificate stays in service.
    pub async fn check(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let Settings { names, policy, .. } = &self.settings;
        let settled = self.store.settle(names, policy, now, &mut self.publication).await?;
        if let Some(fault) = &settled.fault {
            (self.on_fault)(fault);
        }
        let (bundle, validity) = (settled.state.bundle, settled.validity);
        if bundle.cert_pem != self.certificate {
            let key = bundle.certified_key().map_err(StoreError::Unusable)?;
            self.resolver.swap(key);
            info!(not_after = %validity.not_after, "serving a new certificate");
        }
        let served = Served {
            ca_cert_pem: Arc::from(bundle.ca_cert_pem.as_str()),
            not_after: validity.not_after,
            ca_not_after: validity.ca_not_after,
        };
        self.certificate = bundle.cert_pem;
        self.served.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&served);
            *current = Some(served);
            changed
        });
        Ok(())
    }

    /// Checks for ever; drop the future to stop.
    pub async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let wait = match self.check(Timestamp::now()).await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    self.settings.check_interval
                }
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%error, source, retry_in = ?retry, "certificates could not be checked");
                    let wait = retry;
                    retry = (retry * 2).min(self.settings.check_interval);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}
