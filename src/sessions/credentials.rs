//! The credentials of pulls: one read of the API server serves all concurrent requests for the same
//! credentials. The result is cached for a few seconds, no longer.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use kube::Client;
use tokio::sync::Semaphore;

use crate::kubernetes::secrets;
use imagewarm_core::api::Reason;
use imagewarm_core::assignment::{CredentialRequest, Refusal};
use imagewarm_core::demand::PullIdentity;
use imagewarm_core::image::{Credential, Reference};

/// Long enough for one fan-out to many nodes, short enough that a corrected Secret applies soon.
const CACHE_LIFETIME: Duration = Duration::from_secs(5);
const IN_FLIGHT: usize = 16;
const TRIES: u32 = 3;
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF: Duration = Duration::from_millis(300);

/// A future of a [`CredentialSource`].
pub(crate) type CredentialFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Credential>, Refusal>> + Send + 'a>>;

/// A source of credentials.
pub(crate) trait CredentialSource: Send + Sync + 'static {
    /// Credentials for `image`, in the order in which they are to be tried.
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        identities: &'a [PullIdentity],
        image: &'a Reference,
    ) -> CredentialFuture<'a>;
}

/// The Secrets of the API server. A read that fails is retried a few times.
pub(crate) struct ApiServerCredentials {
    client: Client,
}

impl ApiServerCredentials {
    /// Reads through `client`.
    pub(crate) fn new(client: Client) -> Self {
        ApiServerCredentials { client }
    }
}

impl CredentialSource for ApiServerCredentials {
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        identities: &'a [PullIdentity],
        image: &'a Reference,
    ) -> CredentialFuture<'a> {
        Box::pin(async move {
            let mut tries = 0;
            loop {
                tries += 1;
                let read = secrets::resolve(&self.client, namespace, identities, image);
                let refusal = match tokio::time::timeout(TRY_TIMEOUT, read).await {
                    Ok(Ok(credentials)) => return Ok(credentials),
                    Ok(Err(error)) => {
                        let refusal =
                            Refusal { reason: error.reason(), message: error.to_string() };
                        if !error.is_unreadable() {
                            return Err(refusal);
                        }
                        refusal
                    }
                    Err(_) => Refusal {
                        reason: Reason::SecretMissing,
                        message: "cannot read pull secrets: the API server did not answer in time"
                            .into(),
                    },
                };
                if tries >= TRIES {
                    return Err(refusal);
                }
                tokio::time::sleep(BACKOFF * tries).await;
            }
        })
    }
}

type Key = (String, Vec<PullIdentity>, Reference);
/// Shared without copying; `Arc` so that a secret exists once in memory.
type Resolved = Arc<Result<Vec<Credential>, Refusal>>;
type Resolution = Shared<BoxFuture<'static, Resolved>>;

/// Resolves [`CredentialRequest`]s. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CredentialResolver {
    source: Arc<dyn CredentialSource>,
    permits: Arc<Semaphore>,
    cache: Arc<Mutex<HashMap<Key, (Instant, Resolution)>>>,
}

impl CredentialResolver {
    /// A resolver that reads from `source`.
    pub(crate) fn new(source: Arc<dyn CredentialSource>) -> Self {
        CredentialResolver {
            source,
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
            cache: Arc::default(),
        }
    }

    /// Credentials for the request, in the order in which they are to be tried.
    pub(crate) async fn resolve(
        &self,
        request: &CredentialRequest,
    ) -> Result<Vec<Credential>, Refusal> {
        let key = (request.namespace.clone(), request.identities.clone(), request.image.clone());
        let resolution = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.retain(|_, (began, _)| began.elapsed() < CACHE_LIFETIME);
            let (_, resolution) = cache.entry(key.clone()).or_insert_with(|| {
                let (source, permits) = (self.source.clone(), self.permits.clone());
                let read = async move {
                    // The semaphore is never closed.
                    let _permit = permits.acquire().await.ok();
                    let (namespace, identities, image) = &key;
                    Arc::new(source.resolve(namespace, identities, image).await)
                };
                // In a task of its own: the permit is given back, whoever stops waiting.
                let task = tokio::spawn(read);
                let resolution = async move {
                    task.await.unwrap_or_else(|error| {
                        let message = format!("the pull secrets were not read: {error}");
                        Arc::new(Err(Refusal { reason: Reason::SecretMissing, message }))
                    })
                };
                (Instant::now(), resolution.boxed().shared())
            });
            resolution.clone()
        };
        (*resolution.await).clone()
    }

    /// Drops expired results. Call it from time to time: otherwise they stay until the next
    /// request.
    pub(crate) fn sweep(&self) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, (began, _)| began.elapsed() < CACHE_LIFETIME);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Slow(AtomicUsize);

    impl CredentialSource for Slow {
        fn resolve<'a>(
            &'a self,
            _: &'a str,
            _: &'a [PullIdentity],
            image: &'a Reference,
        ) -> CredentialFuture<'a> {
            Box::pin(async move {
                self.0.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                match image.path() {
                    "refused" => {
                        Err(Refusal { reason: Reason::SecretMissing, message: "gone".into() })
                    }
                    _ => Ok(vec![]),
                }
            })
        }
    }

    #[tokio::test]
    async fn concurrent_requests_for_the_same_credentials_cost_one_read() {
        let source = Arc::new(Slow(AtomicUsize::new(0)));
        let resolver = CredentialResolver::new(source.clone());
        let request = |image: &str| CredentialRequest {
            uid: "u".into(),
            session: 1,
            namespace: "n".into(),
            identities: vec![],
            image: Reference::parse(image).unwrap(),
        };
        let (app, refused) = (request("r.test/app"), request("r.test/refused"));
        let results = futures::future::join_all((0..50).map(|_| resolver.resolve(&app))).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(resolver.resolve(&refused).await.unwrap_err().message, "gone");
        assert_eq!(source.0.load(Ordering::SeqCst), 2);
    }
}
