//! The node's own credentials: runs the kubelet's credential provider plugins. Which one for which image,
//! and when, is decided in [`imagewarm_core::image::credential_provider`].
//!
//! A call belongs to the provider, not to the pull that needed it first: others may wait for the same
//! answer, and a pull may be cancelled at any time.

mod files;
mod metrics;
mod plugin;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Clock;
pub use files::CredentialProviderError;
use imagewarm_core::image::Reference;
use imagewarm_core::image::credential_provider::{
    Answer, CallId, Calls, CredentialProvider, Decision, Ended, NodeCredentials, ProviderFailure,
    Response,
};
pub use metrics::CredentialProviderMetrics;
use plugin::Plugin;

/// The kubelet's.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A pull waits for so many calls at most: for one whose answer turns out to be for other images, and for one
/// of its own.
const CALLS_AWAITED: u32 = 2;

/// The credential providers of a node; none where none are configured. Cheap to clone.
#[derive(Clone, Default)]
pub struct CredentialProviders(Arc<[Arc<Provider>]>);

impl fmt::Debug for CredentialProviders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|provider| &provider.plugin.config.name)).finish()
    }
}

impl CredentialProviders {
    /// Reads the configuration, a file or a folder of files, as the kubelet does at its start.
    pub fn load(
        config: Option<&Path>,
        bin_dir: Option<&Path>,
        metrics: &CredentialProviderMetrics,
    ) -> Result<Self, CredentialProviderError> {
        let Some((configs, bin_dir)) = files::load(config, bin_dir)? else {
            return Ok(CredentialProviders::default());
        };
        let new = |config| Arc::new(Provider::new(config, bin_dir, TIMEOUT, metrics.clone()));
        let providers = CredentialProviders(configs.into_iter().map(new).collect());
        tracing::info!(?providers, "credential providers configured");
        Ok(providers)
    }

    /// What the providers answer for this image. Takes two minutes at most.
    pub async fn lookup(&self, image: &Reference) -> NodeCredentials {
        if self.0.is_empty() {
            return NodeCredentials::default();
        }
        let matching = self.0.iter().filter(|provider| provider.plugin.config.matches(image));
        let answers = matching.map(|provider| async {
            (provider.plugin.config.name.clone(), provider.answer(image).await)
        });
        NodeCredentials::merge(image, join_all(answers).await)
    }

    /// Stops the calls that run.
    pub async fn shutdown(&self) {
        for provider in self.0.iter() {
            let mut tasks = std::mem::take(&mut provider.shared().tasks);
            tasks.shutdown().await;
        }
    }
}

/// One provider: its plugin, and who waits for which call of it.
struct Provider {
    plugin: Arc<Plugin>,
    clock: Clock,
    metrics: CredentialProviderMetrics,
    shared: Mutex<Shared>,
}

struct Shared {
    calls: Calls,
    ends: HashMap<CallId, watch::Receiver<Option<Ended>>>,
    tasks: JoinSet<()>,
}

/// What an image gets: at once, or when a call ends.
enum Next {
    Known(Result<Answer, ProviderFailure>),
    After(CallId, watch::Receiver<Option<Ended>>),
}

impl Provider {
    fn new(
        config: CredentialProvider,
        bin_dir: &Path,
        timeout: Duration,
        metrics: CredentialProviderMetrics,
    ) -> Self {
        let calls = Calls::new(config.default_cache_duration);
        let program = bin_dir.join(&config.name);
        Provider {
            plugin: Arc::new(Plugin { program, timeout, config }),
            clock: Clock::start(),
            metrics,
            shared: Mutex::new(Shared { calls, ends: HashMap::new(), tasks: JoinSet::new() }),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer for an image that the provider matches. Dropping the future stops no call.
    async fn answer(self: &Arc<Self>, image: &Reference) -> Result<Answer, ProviderFailure> {
        let limit = self.plugin.timeout * CALLS_AWAITED;
        let answer = async {
            loop {
                let (id, mut end) = match self.next(image) {
                    Next::Known(result) => return result,
                    Next::After(id, end) => (id, end),
                };
                match end.wait_for(Option::is_some).await {
                    Ok(ended) => {
                        if let Some(result) = ended.as_ref().and_then(|it| it.for_image(image)) {
                            return result;
                        }
                    }
                    // Its task panicked, or the warmer is terminating.
                    Err(_) => {
                        self.abandon(id);
                        return Err(ProviderFailure::Abandoned);
                    }
                }
            }
        };
        let timed_out = |_| Err(ProviderFailure::TimedOut(limit.as_secs()));
        tokio::time::timeout(limit, answer).await.unwrap_or_else(timed_out)
    }

    fn next(self: &Arc<Self>, image: &Reference) -> Next {
        let mut shared = self.shared();
        match shared.calls.decide(image, self.clock.monotonic_ms()) {
            Decision::Cached(answer) => Next::Known(Ok(answer)),
            Decision::Failed(failure) => Next::Known(Err(failure)),
            Decision::Join(id) => match shared.ends.get(&id) {
                Some(end) => Next::After(id, end.clone()),
                None => {
                    shared.calls.abandoned(id);
                    Next::Known(Err(ProviderFailure::Abandoned))
                }
            },
            Decision::Call(id) => {
                let (sender, end) = watch::channel(None);
                shared.ends.insert(id, end.clone());
                while shared.tasks.try_join_next().is_some() {}
                shared.tasks.spawn(run(
                    Arc::downgrade(self),
                    self.plugin.clone(),
                    image.clone(),
                    id,
                    sender,
                ));
                Next::After(id, end)
            }
        }
    }

    fn ended(&self, id: CallId, result: Result<Response, ProviderFailure>) -> Option<Ended> {
        let mut shared = self.shared();
        shared.ends.remove(&id);
        shared.calls.ended(id, result, self.clock.monotonic_ms())
    }

    fn abandon(&self, id: CallId) {
        let mut shared = self.shared();
        shared.ends.remove(&id);
        shared.calls.abandoned(id);
    }
}

/// Makes one call. Holds its provider weakly: dropping that ends the call, and with it the plugin.
async fn run(
    provider: Weak<Provider>,
    plugin: Arc<Plugin>,
    image: Reference,
    id: CallId,
    sender: watch::Sender<Option<Ended>>,
) {
    let began = Instant::now();
    let result = plugin.call(&image).await;
    let Some(provider) = provider.upgrade() else { return };
    let name = &plugin.config.name;
    provider.metrics.called(result.as_ref().err(), began.elapsed());
    match &result {
        Ok(_) => tracing::debug!(provider = name, "credential provider answered"),
        Err(failure) => {
            let kind = failure.result().as_str();
            tracing::warn!(provider = name, kind, error = %failure, "credential provider failed");
        }
    }
    let ended = provider.ended(id, result);
    sender.send_replace(ended);
}

#[cfg(test)]
mod tests;
