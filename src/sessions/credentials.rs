//! Finds the credentials for a pull: one look at the API server for all that ask for the same at
//! once, kept for a few seconds, and no longer.

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

/// Long enough for one fan-out to many nodes, short enough that a mended Secret counts soon.
const KEPT_FOR: Duration = Duration::from_secs(5);
const IN_FLIGHT: usize = 16;
const TRIES: u32 = 3;
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(300);

/// A future of a [`CredentialSource`].
pub type CredentialFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Credential>, Refusal>> + Send + 'a>>;

/// Where credentials come from.
pub trait CredentialSource: Send + Sync + 'static {
    /// Credentials for `image`, in the order in which they are to be tried.
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        identities: &'a [PullIdentity],
        image: &'a Reference,
    ) -> CredentialFuture<'a>;
}

/// Secrets of the API server. While it cannot be read the question is asked a few times.
pub struct ApiServerCredentials {
    client: Client,
}

impl ApiServerCredentials {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
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
                let look = secrets::resolve(&self.client, namespace, identities, image);
                let refusal = match tokio::time::timeout(TRY_TIMEOUT, look).await {
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
                        message: "pull secrets could not be read: no answer in time".into(),
                    },
                };
                if tries >= TRIES {
                    return Err(refusal);
                }
                tokio::time::sleep(PAUSE * tries).await;
            }
        })
    }
}

type Key = (String, Vec<PullIdentity>, Reference);
/// Shared without copying; `Arc` so that a secret exists once in memory.
type Answer = Arc<Result<Vec<Credential>, Refusal>>;
type Question = Shared<BoxFuture<'static, Answer>>;

/// Answers [`CredentialRequest`]s. Cheap to clone.
#[derive(Clone)]
pub struct CredentialResolver {
    source: Arc<dyn CredentialSource>,
    places: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<Key, (Instant, Question)>>>,
}

impl CredentialResolver {
    /// A credentials that looks up in `source`.
    pub fn new(source: Arc<dyn CredentialSource>) -> Self {
        CredentialResolver {
            source,
            places: Arc::new(Semaphore::new(IN_FLIGHT)),
            known: Arc::default(),
        }
    }

    /// Credentials for the job, in the order in which they are to be tried.
    pub async fn answer(&self, job: &CredentialRequest) -> Result<Vec<Credential>, Refusal> {
        let key = (job.namespace.clone(), job.identities.clone(), job.image.clone());
        let question = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, (asked, _)| asked.elapsed() < KEPT_FOR);
            let (_, question) = known.entry(key.clone()).or_insert_with(|| {
                let (source, places) = (self.source.clone(), self.places.clone());
                let look = async move {
                    // The semaphore is never closed.
                    let _place = places.acquire().await.ok();
                    let (namespace, identities, image) = &key;
                    Arc::new(source.resolve(namespace, identities, image).await)
                };
                (Instant::now(), look.boxed().shared())
            });
            question.clone()
        };
        (*question.await).clone()
    }

    /// Forgets what is older than a few seconds; to be called now and then.
    pub fn sweep(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (asked, _)| asked.elapsed() < KEPT_FOR);
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
    async fn many_that_ask_for_the_same_cost_one_look() {
        let source = Arc::new(Slow(AtomicUsize::new(0)));
        let credentials = CredentialResolver::new(source.clone());
        let job = |image: &str| CredentialRequest {
            uid: "u".into(),
            session: 1,
            namespace: "n".into(),
            identities: vec![],
            image: Reference::parse(image).unwrap(),
        };
        let (app, refused) = (job("r.test/app"), job("r.test/refused"));
        let answers = futures::future::join_all((0..50).map(|_| credentials.answer(&app))).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(credentials.answer(&refused).await.unwrap_err().message, "gone");
        assert_eq!(source.0.load(Ordering::SeqCst), 2);
    }
}
