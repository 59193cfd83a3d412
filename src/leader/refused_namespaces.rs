//! Namespaces in which nothing can be made: a namespace that refused one ImageWarm is left alone
//! for a while, longer each time, so that no refusal is asked for again and again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After the first refusal; doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);

/// Which namespaces are left alone, and until when.
#[derive(Default)]
pub(super) struct RefusedNamespaces {
    by_name: HashMap<String, Refused>,
}

struct Refused {
    until: Instant,
    pause: Duration,
}

impl RefusedNamespaces {
    /// Whether nothing is to be tried in the namespace at `now`.
    pub(super) fn holds(&self, namespace: &str, now: Instant) -> bool {
        self.by_name.get(namespace).is_some_and(|refused| refused.until > now)
    }

    /// The namespace refused something: says for how long it is left alone, and `None` when it was
    /// already known to (what was under way when it refused for the first time).
    pub(super) fn refused(&mut self, namespace: &str, now: Instant) -> Option<Duration> {
        if self.holds(namespace, now) {
            return None;
        }
        let before = self.by_name.get(namespace).map(|refused| refused.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.by_name.insert(namespace.to_owned(), Refused { until: now + pause, pause });
        Some(pause)
    }

    /// Something was made there after all.
    pub(super) fn accepted(&mut self, namespace: &str) {
        self.by_name.remove(namespace);
    }

    /// Forgets namespaces that are gone.
    pub(super) fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| exists(name));
    }

    /// When the next namespace may be tried again.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.by_name.values().map(|refused| refused.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_doubles_the_pause_up_to_a_limit() {
        let mut refused = RefusedNamespaces::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(!refused.holds("team", now));
            let pause = refused.refused("team", now);
            assert_eq!(refused.refused("team", now), None, "told once");
            assert!(refused.holds("team", now) && !refused.holds("other", now));
            pauses.push(pause.map_or(0, |pause| pause.as_secs()));
            assert_eq!(refused.next(now), pause.map(|pause| now + pause));
            now += pause.unwrap_or_default();
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1800, 1800, 1800]);
        refused.accepted("team");
        assert_eq!(refused.refused("team", now), Some(FIRST_PAUSE));
        refused.keep(|name| name != "team");
        assert_eq!(refused.next(now), None);
    }
}
