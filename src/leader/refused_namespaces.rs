//! Back-off from namespaces in which the API server rejects every ImageWarm, for example because of
//! a quota. The back-off doubles with each rejection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::kubernetes::apply_error::ApplyError;

/// Back-off after the first rejection; each further one doubles it.
const FIRST_BACKOFF: Duration = Duration::from_secs(60);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1800);
/// The same for a quota: tenants make room in it, by a deletion or a larger one.
const LONGEST_BACKOFF_OF_QUOTA: Duration = Duration::from_secs(300);

/// The namespaces that are backed off from, and until when.
#[derive(Default)]
pub(super) struct RefusedNamespaces {
    by_name: HashMap<String, Refused>,
}

struct Refused {
    until: Instant,
    backoff: Backoff,
}

impl RefusedNamespaces {
    /// Whether the namespace is backed off from at `now`.
    pub(super) fn contains(&self, namespace: &str, now: Instant) -> bool {
        self.by_name.get(namespace).is_some_and(|refused| refused.until > now)
    }

    /// Records a rejection. Returns the back-off, or `None` during a back-off: then the request was
    /// in flight when the first one was rejected.
    pub(super) fn refused(
        &mut self,
        namespace: &str,
        error: &ApplyError,
        now: Instant,
    ) -> Option<Duration> {
        if self.contains(namespace, now) {
            return None;
        }
        let refused = self.by_name.entry(namespace.to_owned()).or_insert_with(|| Refused {
            until: now,
            backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
        });
        let longest = match error {
            ApplyError::QuotaExceeded(_) => LONGEST_BACKOFF_OF_QUOTA,
            _ => LONGEST_BACKOFF,
        };
        let delay = refused.backoff.next_delay().min(longest);
        refused.until = now + delay;
        Some(delay)
    }

    /// Ends the back-off: an object was created in the namespace.
    pub(super) fn accepted(&mut self, namespace: &str) {
        self.by_name.remove(namespace);
    }

    /// Drops namespaces that no longer exist.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| exists(name));
    }

    /// When the next back-off ends.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.by_name.values().map(|refused| refused.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rejection_doubles_the_back_off_up_to_a_limit() {
        let forbidden = ApplyError::NamespaceForbidden(String::new());
        assert_eq!(backoffs(&forbidden), [60, 120, 240, 480, 960, 1800, 1800, 1800]);
        let quota = ApplyError::QuotaExceeded(String::new());
        assert_eq!(backoffs(&quota), [60, 120, 240, 300, 300, 300, 300, 300]);
    }

    /// In seconds, of eight rejections one after another.
    fn backoffs(error: &ApplyError) -> Vec<u64> {
        let mut refused = RefusedNamespaces::default();
        let mut now = Instant::now();
        let mut backoffs = Vec::new();
        for _ in 0..8 {
            assert!(!refused.contains("team", now));
            let backoff = refused.refused("team", error, now);
            assert_eq!(refused.refused("team", error, now), None, "reported once");
            assert!(refused.contains("team", now) && !refused.contains("other", now));
            backoffs.push(backoff.map_or(0, |backoff| backoff.as_secs()));
            assert_eq!(refused.next(now), backoff.map(|backoff| now + backoff));
            now += backoff.unwrap_or_default();
        }
        refused.accepted("team");
        assert_eq!(refused.refused("team", error, now), Some(FIRST_BACKOFF));
        refused.retain(|name| name != "team");
        assert_eq!(refused.next(now), None);
        backoffs
    }
}
