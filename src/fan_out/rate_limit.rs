//! The rate limit of the fan-out at admission, per namespace and minute. Any client that reaches
//! the port can post reviews of Revisions that never exist; this bounds what they cost.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use imagewarm_core::api::names::Namespace;

const MINUTE: Duration = Duration::from_secs(60);
/// Maximum number of namespaces counted; a cluster has fewer that deploy within one minute.
const NAMESPACES: usize = 10_000;

#[derive(Debug)]
pub(super) struct RateLimit {
    limit: usize,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    since: Option<Instant>,
    revisions: HashMap<Namespace, usize>,
}

impl RateLimit {
    pub(super) fn new(limit: usize) -> Self {
        RateLimit { limit, counted: Mutex::default() }
    }

    /// Counts one Revision of the namespace. Returns whether it may be fanned out now.
    pub(super) fn admit(&self, namespace: &Namespace, now: Instant) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE) {
            *counted = Counted { since: Some(now), revisions: HashMap::new() };
        }
        let known = counted.revisions.len();
        match counted.revisions.get_mut(namespace) {
            Some(count) if *count >= self.limit => return false,
            Some(count) => *count += 1,
            None if known >= NAMESPACES => return false,
            None => drop(counted.revisions.insert(namespace.clone(), 1)),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_limit_of_a_namespace_is_renewed_after_a_minute() {
        let (rate_limit, start) = (RateLimit::new(2), Instant::now());
        let admit = |namespace: &str, seconds| {
            rate_limit.admit(&namespace.parse().unwrap(), start + Duration::from_secs(seconds))
        };
        assert!(admit("a", 0) && admit("a", 59));
        assert!(!admit("a", 59), "the third within a minute");
        assert!(admit("b", 59), "another namespace");
        assert!(admit("a", 60), "the next minute");
    }

    #[test]
    fn forged_namespaces_take_bounded_memory() {
        let (rate_limit, now) = (RateLimit::new(2), Instant::now());
        let admitted = (0..NAMESPACES * 2)
            .filter(|n| rate_limit.admit(&n.to_string().parse().unwrap(), now))
            .count();
        assert_eq!(admitted, NAMESPACES);
        assert!(
            rate_limit.admit(&"0".parse().unwrap(), now),
            "a counted namespace is still admitted"
        );
    }
}
