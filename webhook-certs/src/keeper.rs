//! Loads the served certificate, checks the Secret at an interval by the wall clock (another
//! replica may have replaced it, a user may have deleted it), and publishes the CA.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::check::BundleError;
use crate::rotate::Policy;
use crate::secret::{Publication, SecretStore, StoreError};
use crate::serve::Resolver;

/// The first back-off after a failure; it doubles up to the interval of checks.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Settings of a keeper.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DNS names (or IP addresses) that the serving certificate must be valid for.
    pub names: Vec<String>,
    /// When certificates are issued, used and retired.
    pub policy: Policy,
    /// How often the Secret is checked.
    pub check_interval: Duration,
}

/// The served certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The CA (or CAs) that clients must trust.
    pub ca_cert_pem: Arc<str>,
    /// Expiry of the serving certificate.
    pub not_after: Timestamp,
    /// Expiry of the CA that signed it.
    pub ca_not_after: Timestamp,
}

/// Loads, renews and swaps certificates; see [`Keeper::run`].
pub struct Keeper {
    store: SecretStore,
    settings: Settings,
    resolver: Arc<Resolver>,
    served: watch::Sender<Option<Served>>,
    /// `tls.crt` in service.
    certificate: String,
    publication: Publication,
    on_fault: Box<dyn Fn(&BundleError) + Send + Sync>,
}

impl Keeper {
    /// A keeper; it starts with [`Keeper::run`].
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

    /// The next CA signs only once it is among the CAs that clients trust (`seen`, PEM).
    pub fn wait_for_publication(&mut self, seen: watch::Receiver<Option<Arc<str>>>) {
        self.publication = Publication::watch(seen);
    }

    /// Sets the function to call for each invalid bundle that was replaced; for metrics.
    pub fn on_fault(&mut self, on_fault: impl Fn(&BundleError) + Send + Sync + 'static) {
        self.on_fault = Box::new(on_fault);
    }

    /// The resolver for the TLS server.
    pub fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// The served certificate; `None` until the first load. Changes only when the content does.
    pub fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        self.served.subscribe()
    }

    /// Checks the Secret once. After an error the previous certificate stays in service.
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

    /// Checks until the future is dropped.
    pub async fn run(mut self) {
        let interval = self.settings.check_interval;
        let mut backoff = backoff(interval);
        loop {
            let wait = match self.check(Timestamp::now()).await {
                Ok(()) => {
                    backoff = self::backoff(interval);
                    interval
                }
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    let retry_in = backoff.next().unwrap_or(interval);
                    warn!(%error, source, ?retry_in, "certificate check failed");
                    retry_in
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// The delays after failures: from [`FIRST_BACKOFF`], doubling, at most `longest`.
fn backoff(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_BACKOFF.min(longest))
        .with_max_delay(longest)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_interval_of_checks() {
        let delays = |longest, count| -> Vec<u128> {
            backoff(Duration::from_millis(longest)).take(count).map(|d| d.as_millis()).collect()
        };
        assert_eq!(delays(3000, 5), [500, 1000, 2000, 3000, 3000]);
        assert_eq!(delays(100, 2), [100, 100]);
    }
}
