//! When the plugin of one provider is called: its cached answers, the calls that run, and the failures
//! of the last ones. Plain data: the caller starts what is decided, and reports how it ended.
//!
//! The kubelet calls a plugin once for each image that is asked for at the same time, since it cannot know
//! for which images an answer will be. Here the answers before are taken as a sign: a plugin that answers for
//! its registry is called once for all images of the registry, and one that has not answered yet is called
//! for one image first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::failure::ProviderFailure;
use super::response::{CacheKeyType, Response};
use crate::image::{Credential, Reference};

/// Answers, and failures, that one provider keeps at most.
const LONGEST_CACHE: usize = 1_000;
/// A failure is remembered for as long as its call took, but not longer: while a plugin hangs, the pulls
/// of a node wait for it half of the time at most.
const LONGEST_FAILURE_MS: i64 = 60_000;

/// Credentials of an answer by the names of their registries, shared without copying.
pub type Answer = Arc<Vec<(String, Credential)>>;

/// Identifies a call of one provider's plugin.
pub type CallId = u64;

/// Which images an answer, or a call, is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Image(String),
    Registry(String),
    Global,
}

impl Scope {
    fn of(image: &Reference, key_type: CacheKeyType) -> Self {
        match key_type {
            CacheKeyType::Image => Scope::Image(image.repository().to_owned()),
            CacheKeyType::Registry => Scope::Registry(image.domain().to_owned()),
            CacheKeyType::Global => Scope::Global,
        }
    }

    /// Narrowest first, as the kubelet searches its cache.
    fn all_of(image: &Reference) -> [Self; 3] {
        [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global]
            .map(|key_type| Scope::of(image, key_type))
    }

    fn covers(&self, image: &Reference) -> bool {
        Scope::all_of(image).contains(self)
    }
}

/// What to do for an image.
#[derive(Debug)]
pub enum Decision {
    /// An answer holds.
    Cached(Answer),
    /// A call has just failed, and is not repeated yet.
    Failed(ProviderFailure),
    /// Wait for this call, which runs.
    Join(CallId),
    /// Make this call. It runs until [`Calls::ended`] or [`Calls::abandoned`].
    Call(CallId),
}

/// How a call ended, for those that wait for it. Its Debug prints no secret.
#[derive(Clone, Debug)]
pub struct Ended {
    scope: Scope,
    result: Result<Hidden, ProviderFailure>,
}

#[derive(Clone)]
struct Hidden(Answer);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("redacted")
    }
}

impl Ended {
    /// What the call means for this image; `None` if its answer is for other images.
    pub fn for_image(&self, image: &Reference) -> Option<Result<Answer, ProviderFailure>> {
        match &self.result {
            Ok(Hidden(answer)) => self.scope.covers(image).then(|| Ok(answer.clone())),
            Err(failure) => Some(Err(failure.clone())),
        }
    }
}

struct Kept<T> {
    value: T,
    /// Monotonic, in milliseconds; holds up to here.
    until: i64,
}

struct Running {
    id: CallId,
    scope: Scope,
    image: Reference,
    began: i64,
}

/// The calls of one provider's plugin.
pub struct Calls {
    default_cache_duration: Duration,
    answers: HashMap<Scope, Kept<Answer>>,
    failures: HashMap<Scope, Kept<ProviderFailure>>,
    running: Vec<Running>,
    last_id: CallId,
    /// For which images the last answer was.
    key_type: Option<CacheKeyType>,
}

impl Calls {
    /// Without any answer yet.
    pub fn new(default_cache_duration: Duration) -> Self {
        Calls {
            default_cache_duration,
            answers: HashMap::new(),
            failures: HashMap::new(),
            running: Vec::new(),
            last_id: 0,
            key_type: None,
        }
    }

    /// What to do for an image that the provider matches. `now` is monotonic, in milliseconds.
    pub fn decide(&mut self, image: &Reference, now: i64) -> Decision {
        let scopes = Scope::all_of(image);
        let mut answers = scopes.iter().filter_map(|scope| self.answers.get(scope));
        if let Some(kept) = answers.find(|kept| now <= kept.until) {
            return Decision::Cached(kept.value.clone());
        }
        if let Some(running) = self.running.iter().find(|running| running.scope.covers(image)) {
            return Decision::Join(running.id);
        }
        let mut failures = scopes.iter().filter_map(|scope| self.failures.get(scope));
        if let Some(kept) = failures.find(|kept| now < kept.until) {
            return Decision::Failed(kept.value.clone());
        }
        self.last_id += 1;
        let scope = Scope::of(image, self.key_type.unwrap_or(CacheKeyType::Global));
        let id = self.last_id;
        self.running.push(Running { id, scope, image: image.clone(), began: now });
        Decision::Call(id)
    }

    /// A call ended. `None` if it was given up before.
    pub fn ended(
        &mut self,
        id: CallId,
        result: Result<Response, ProviderFailure>,
        now: i64,
    ) -> Option<Ended> {
        let at = self.running.iter().position(|running| running.id == id)?;
        let Running { scope, image, began, .. } = self.running.swap_remove(at);
        match result {
            Ok(response) => {
                let scope = Scope::of(&image, response.cache_key_type);
                self.key_type = Some(response.cache_key_type);
                self.failures.clear();
                let duration = response.cache_duration.unwrap_or(self.default_cache_duration);
                let answer: Answer = Arc::new(response.entries);
                if !duration.is_zero() {
                    let duration = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
                    let until = now.saturating_add(duration);
                    keep(
                        &mut self.answers,
                        scope.clone(),
                        Kept { value: answer.clone(), until },
                        now,
                    );
                }
                Some(Ended { scope, result: Ok(Hidden(answer)) })
            }
            Err(failure) => {
                let until = now + (now - began).clamp(0, LONGEST_FAILURE_MS);
                let kept = Kept { value: failure.clone(), until };
                keep(&mut self.failures, scope.clone(), kept, now);
                Some(Ended { scope, result: Err(failure) })
            }
        }
    }

    /// A call will never end: the next image that needs it makes another.
    pub fn abandoned(&mut self, id: CallId) {
        self.running.retain(|running| running.id != id);
    }
}

/// Keeps one more; where there are too many, without what has expired or expires first.
fn keep<T>(kept: &mut HashMap<Scope, Kept<T>>, scope: Scope, one: Kept<T>, now: i64) {
    kept.remove(&scope);
    if kept.len() >= LONGEST_CACHE {
        kept.retain(|_, kept| now <= kept.until);
    }
    if kept.len() >= LONGEST_CACHE
        && let Some(first) = kept.iter().min_by_key(|(_, kept)| kept.until)
    {
        let first = first.0.clone();
        kept.remove(&first);
    }
    kept.insert(scope, one);
}

#[cfg(test)]
mod tests;
