//! Keeps the served certificate good: loads it, looks at it by wall clock every so often (another
//! replica may have replaced it, a person may have deleted it), and publishes the CA.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::issue::Lifetimes;
use crate::secret::{SecretStore, StoreError};
use crate::serve::Resolver;

/// The first wait after a failure; it doubles up to the interval of checks.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// What a keeper keeps.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DNS names (or IP addresses) that the serving certificate must be good for.
    pub names: Vec<String>,
    /// How long new certificates live.
    pub lifetimes: Lifetimes,
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
}

/// Loads, renews and swaps; see [`Keeper::run`].
pub struct Keeper {
    store: SecretStore,
    settings: Settings,
    resolver: Arc<Resolver>,
    served: watch::Sender<Option<Served>>,
    /// `tls.crt` as last swapped in.
    certificate: String,
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
        }
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
        let Settings { names, lifetimes, .. } = &self.settings;
        let (bundle, validity) = self.store.settle(names, *lifetimes, now).await?;
        if bundle.cert_pem != self.certificate {
            let key = bundle.certified_key().map_err(StoreError::Unusable)?;
            self.resolver.swap(key);
            info!(not_after = %validity.not_after, "serving a new certificate");
        }
        let served = Served {
            ca_cert_pem: Arc::from(bundle.ca_cert_pem.as_str()),
            not_after: validity.not_after,
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
