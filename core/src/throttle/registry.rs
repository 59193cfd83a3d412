//! The cluster-wide budget of each registry: how many pulls may run at the same time, how many may
//! begin in a second, and which one is next. After a rate limit no pull begins for a back-off, and
//! then fewer run at the same time. Pure; `now` is monotonic, in milliseconds.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::api::names::{NodeName, Uid};

/// The first back-off after a rate limit; each further one is twice as long.
const FIRST_BACKOFF_MS: i64 = 1_000;
const LONGEST_BACKOFF_MS: i64 = 30_000;
/// The longest `Retry-After` that all nodes honour; the node that received it honours more.
const LONGEST_RETRY_AFTER_MS: i64 = 300_000;
/// Two nodes must report a rate limit within this time.
const CONFIRMATION_WINDOW_MS: i64 = 60_000;

type Turn = (Reverse<i64>, u64, Uid);

/// Limits on one registry for all nodes together; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pulls at the same time.
    pub pulls: usize,
    /// Pulls that begin in one second.
    pub per_second: usize,
}

impl Limits {
    /// The number of the slice of time at `now`, and pulls that may begin in it. Slices are short, so
    /// that no second begins with a burst; those of one second have its pulls together.
    fn slice(self, now: i64) -> (i64, usize) {
        match self.per_second {
            0 => (now / 1_000, usize::MAX),
            few @ ..10 => (now / 1_000, few),
            many => {
                let slice = now / 100;
                let of_second = usize::try_from(slice.rem_euclid(10)).unwrap_or(0);
                let until = |slices: usize| many.saturating_mul(slices) / 10;
                (slice, until(of_second + 1) - until(of_second))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Registry {
    in_flight: HashSet<Uid>,
    waiting: BTreeSet<Turn>,
    /// The current slice of time, and pulls that began in it.
    slice: i64,
    begun: usize,
    /// Nothing begins before this moment.
    backoff_until: i64,
    /// Back-offs since the last successful pull.
    backoffs: u32,
    /// Reduced limit of concurrent pulls after a rate limit, `None` without one; and the pulls
    /// served with that limit.
    reduced: Option<usize>,
    served: usize,
    /// The node that last reported a rate limit, and when.
    last_limited: Option<(NodeName, i64)>,
}

impl Registry {
    fn may_begin(&self, limits: Limits, now: i64) -> bool {
        let pulls = if limits.pulls == 0 { usize::MAX } else { limits.pulls };
        let (slice, most) = limits.slice(now);
        let begun = if self.slice == slice { self.begun } else { 0 };
        now >= self.backoff_until
            && self.in_flight.len() < self.reduced.map_or(pulls, |reduced| reduced.min(pulls))
            && begun < most
    }

    fn begin(&mut self, uid: &Uid, limits: Limits, now: i64) {
        let (slice, _) = limits.slice(now);
        if self.slice != slice {
            (self.slice, self.begun) = (slice, 0);
        }
        self.begun += 1;
        self.in_flight.insert(uid.clone());
    }

    fn is_idle(&self, now: i64) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty() && self.backoff_until + 60_000 <= now
    }
}

#[derive(Debug)]
enum Place {
    InFlight,
    Waiting(Turn),
}

/// Pulls that run, and pulls that wait for their registry.
#[derive(Debug)]
pub struct RegistryBudgets {
    limits: Limits,
    registries: HashMap<String, Registry>,
    places: HashMap<Uid, (String, Place)>,
    arrivals: u64,
}

impl RegistryBudgets {
    /// Budgets with these limits for each registry.
    pub fn new(limits: Limits) -> Self {
        RegistryBudgets { limits, registries: HashMap::new(), places: HashMap::new(), arrivals: 0 }
    }

    /// Requests a permit for the assignment `uid`; true when its pull may start now. Otherwise it
    /// waits, the greatest `priority` first, then in order of arrival.
    pub fn request(&mut self, uid: &Uid, registry: &str, priority: i64, now: i64) -> bool {
        match self.places.get(uid) {
            Some((_, Place::InFlight)) => return true,
            Some((_, Place::Waiting(_))) => return false,
            None => {}
        }
        let entry = self.registries.entry(registry.to_owned()).or_default();
        let place = if entry.may_begin(self.limits, now) {
            entry.begin(uid, self.limits, now);
            Place::InFlight
        } else {
            self.arrivals += 1;
            let turn = (Reverse(priority), self.arrivals, uid.clone());
            entry.waiting.insert(turn.clone());
            Place::Waiting(turn)
        };
        let granted = matches!(place, Place::InFlight);
        self.places.insert(uid.clone(), (registry.to_owned(), place));
        granted
    }

    /// Counts a pull that already runs, even beyond the limit.
    pub fn hold(&mut self, uid: &Uid, registry: &str) {
        self.take_out(uid);
        self.registries.entry(registry.to_owned()).or_default().in_flight.insert(uid.clone());
        self.places.insert(uid.clone(), (registry.to_owned(), Place::InFlight));
    }

    /// Releases the permit of `uid`; returns the pulls that may start instead.
    pub fn end(&mut self, uid: &str, now: i64) -> Vec<Uid> {
        match self.take_out(uid) {
            Some(registry) => self.begin_waiting(&registry, now),
            None => Vec::new(),
        }
    }

    /// `node` reports that the registry limited its rate. Once a second node reports it within a
    /// minute, the registry is backed off, for at least the time that it requested, and then serves
    /// no more concurrent pulls than it sustained: one node alone may be mistaken, or lie. Has no
    /// effect without a limit of pulls. Call before the pull's [`RegistryBudgets::end`]; true when
    /// the back-off applies.
    pub fn back_off(
        &mut self,
        registry: &str,
        node: &NodeName,
        retry_after_ms: Option<i64>,
        now: i64,
    ) -> bool {
        if self.limits.pulls == 0 {
            return false;
        }
        let entry = self.registries.entry(registry.to_owned()).or_default();
        let before = entry.last_limited.replace((node.clone(), now));
        if !before.is_some_and(|(other, at)| other != *node && now - at <= CONFIRMATION_WINDOW_MS) {
            return false;
        }
        // Refusals come at once and served pulls take a while, so the pulls still in flight are
        // those that the registry sustains.
        let sustained = entry.in_flight.len().saturating_sub(1).max(1);
        entry.reduced = Some(entry.reduced.map_or(sustained, |reduced| reduced.min(sustained)));
        entry.served = 0;
        // Pulls already under way report the same rate limit: that is not a new back-off.
        if entry.backoff_until <= now {
            entry.backoffs += 1;
            let backoff_ms = (FIRST_BACKOFF_MS << entry.backoffs.min(10)) / 2;
            entry.backoff_until = now + backoff_ms.min(LONGEST_BACKOFF_MS);
        }
        if let Some(retry_after_ms) = retry_after_ms {
            entry.backoff_until =
                entry.backoff_until.max(now + retry_after_ms.clamp(0, LONGEST_RETRY_AFTER_MS));
        }
        true
    }

    /// The registry served a pull. After as many as the reduced limit, the limit rises by one.
    pub fn served(&mut self, registry: &str) {
        let Some(entry) = self.registries.get_mut(registry) else { return };
        let Some(reduced) = entry.reduced else { return };
        (entry.backoffs, entry.served) = (0, entry.served + 1);
        if entry.served >= reduced {
            (entry.served, entry.reduced) = (0, Some(reduced + 1));
        }
        if reduced + 1 >= self.limits.pulls {
            entry.reduced = None;
        }
    }

    /// Returns the waiting pulls that may start now. Call often while pulls wait.
    pub fn tick(&mut self, now: i64) -> Vec<Uid> {
        self.registries.retain(|_, entry| !entry.is_idle(now));
        let waiting = self.registries.iter().filter(|(_, entry)| !entry.waiting.is_empty());
        let registries: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
        registries.iter().flat_map(|registry| self.begin_waiting(registry, now)).collect()
    }

    /// Whether `uid` may run now.
    pub fn is_in_flight(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some((_, Place::InFlight)))
    }

    /// Whether `uid` waits for a permit.
    pub fn is_waiting(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some((_, Place::Waiting(_))))
    }

    /// Number of running and of waiting pulls.
    pub fn counts(&self) -> (usize, usize) {
        let running = self.registries.values().map(|registry| registry.in_flight.len()).sum();
        (running, self.places.len() - running)
    }

    fn begin_waiting(&mut self, registry: &str, now: i64) -> Vec<Uid> {
        let mut started = Vec::new();
        let Some(entry) = self.registries.get_mut(registry) else { return started };
        while entry.may_begin(self.limits, now)
            && let Some((_, _, next)) = entry.waiting.pop_first()
        {
            entry.begin(&next, self.limits, now);
            self.places.insert(next.clone(), (registry.to_owned(), Place::InFlight));
            started.push(next);
        }
        started
    }

    fn take_out(&mut self, uid: &str) -> Option<String> {
        let (registry, place) = self.places.remove(uid)?;
        if let Some(entry) = self.registries.get_mut(&registry) {
            match place {
                Place::InFlight => {
                    entry.in_flight.remove(uid);
                }
                Place::Waiting(turn) => {
                    entry.waiting.remove(&turn);
                }
            }
        }
        Some(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_at_a_time() -> RegistryBudgets {
        RegistryBudgets::new(Limits { pulls: 1, per_second: 0 })
    }

    #[test]
    fn the_limit_is_for_each_registry_and_the_newest_revision_goes_first() {
        let mut grants = one_at_a_time();
        assert!(grants.request(&"a".into(), "one", 1, 0));
        assert!(grants.request(&"a".into(), "one", 1, 0), "asked again");
        assert!(grants.request(&"b".into(), "two", 1, 0), "another registry");
        assert!(!grants.request(&"c".into(), "one", 1, 0));
        assert!(!grants.request(&"d".into(), "one", 5, 0));
        assert!(!grants.request(&"e".into(), "one", 5, 0));
        assert_eq!(grants.counts(), (2, 3));
        assert_eq!(grants.end("a", 0), ["d"]);
        assert_eq!(grants.end("d", 0), ["e"]);
        assert_eq!(grants.end("unknown", 0), Vec::<Uid>::new());
        assert_eq!(grants.end("c", 0), Vec::<Uid>::new(), "gave up waiting");
        assert_eq!(grants.end("e", 0), Vec::<Uid>::new());
        assert_eq!(grants.end("b", 0), Vec::<Uid>::new());
        assert!(grants.tick(60_000).is_empty());
        assert!(grants.registries.is_empty() && grants.places.is_empty());
    }

    #[test]
    fn running_pulls_count_even_beyond_the_limit() {
        let mut grants = one_at_a_time();
        grants.hold(&"a".into(), "one");
        grants.hold(&"b".into(), "one");
        assert!(!grants.request(&"c".into(), "one", 0, 0));
        assert!(grants.end("a", 0).is_empty());
        assert_eq!(grants.end("b", 0), ["c"]);
    }

    #[test]
    fn so_many_begin_in_a_second() {
        let mut grants = RegistryBudgets::new(Limits { pulls: 0, per_second: 2 });
        let asked =
            ["a", "b", "c", "d", "e"].map(|uid| grants.request(&uid.into(), "one", 0, 5_000));
        assert_eq!(asked, [true, true, false, false, false]);
        assert!(grants.end("a", 5_100).is_empty(), "a place is not a new second");
        assert!(grants.tick(5_999).is_empty());
        assert_eq!(grants.tick(6_000), ["c", "d"]);
        assert!(grants.request(&"f".into(), "two", 0, 6_000), "another registry");
        assert_eq!(grants.tick(7_500), ["e"]);
        // Many are spread over the second.
        let mut grants = RegistryBudgets::new(Limits { pulls: 0, per_second: 50 });
        let uids: Vec<Uid> = (0..20).map(|at| format!("{at:02}").into()).collect();
        let begun = uids.iter().filter(|uid| grants.request(uid, "one", 0, 0)).count();
        let later = [99, 100, 250].map(|now| grants.tick(now).len());
        assert_eq!((begun, later), (5, [0, 5, 5]));
        // As many as were asked for, also where they do not divide evenly.
        for per_second in [1, 9, 10, 11, 19, 50, 99, 1_234] {
            let mut grants = RegistryBudgets::new(Limits { pulls: 0, per_second });
            for at in 0..3 * per_second {
                grants.request(&at.to_string().into(), "one", 0, 1_000_000);
            }
            let first = grants.registries["one"].in_flight.len();
            let begun = |grants: &mut RegistryBudgets, from: i64| -> usize {
                (from..from + 1_000).step_by(10).map(|now| grants.tick(now).len()).sum()
            };
            assert_eq!(first + begun(&mut grants, 1_000_000), per_second);
            assert_eq!(begun(&mut grants, 1_001_000), per_second);
        }
    }

    #[test]
    fn a_rate_limited_registry_gets_as_many_pulls_as_it_serves() {
        let mut grants = RegistryBudgets::new(Limits { pulls: 8, per_second: 0 });
        for uid in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            assert!(grants.request(&uid.into(), "one", 0, 0));
        }
        for uid in ["i", "j", "k", "l", "m", "n", "o"] {
            assert!(!grants.request(&uid.into(), "one", 0, 0));
        }
        // It sustains five, and limits three nodes.
        assert!(!grants.back_off("one", &"node-a".into(), None, 10), "one node's word");
        assert_eq!(grants.end("a", 10), ["i"]);
        assert!(!grants.back_off("one", &"node-a".into(), None, 10), "the same node's");
        for (uid, node) in [("b", "node-b"), ("c", "node-c"), ("i", "node-d")] {
            assert!(grants.back_off("one", &node.into(), None, 10));
            assert!(grants.end(uid, 10).is_empty(), "it is left alone");
        }
        assert_eq!(grants.registries["one"].reduced, Some(5));
        assert!(grants.tick(1_009).is_empty());
        assert!(grants.tick(1_010).is_empty(), "five run");
        for (uid, next) in [("d", "j"), ("e", "k"), ("f", "l"), ("g", "m")] {
            grants.served("one");
            assert_eq!(grants.end(uid, 1_500), [next]);
        }
        // After five that went well, one more.
        grants.served("one");
        assert_eq!(grants.end("h", 1_500), ["n", "o"]);
        (0..99).for_each(|_| grants.served("one"));
        assert_eq!(grants.registries["one"].reduced, None);
    }

    #[test]
    fn pauses_grow_until_something_is_served_and_are_as_long_as_was_asked_for() {
        let mut grants = one_at_a_time();
        let mut now = 0;
        let mut node = 0;
        let mut back_off = |grants: &mut RegistryBudgets, asked: Option<i64>, now: i64| {
            node += 1;
            grants.back_off("one", &format!("node-{node}").into(), asked, now)
        };
        back_off(&mut grants, None, now);
        for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert!(grants.request(&"a".into(), "one", 0, now));
            back_off(&mut grants, None, now);
            grants.end("a", now);
            assert_eq!(grants.registries["one"].backoff_until, now + expected);
            now += expected;
        }
        grants.served("one");
        back_off(&mut grants, Some(45_000), now);
        assert_eq!(grants.registries["one"].backoff_until, now + 45_000);
        let mut off = RegistryBudgets::new(Limits { pulls: 0, per_second: 0 });
        back_off(&mut off, Some(45_000), 0);
        back_off(&mut off, Some(45_000), 0);
        assert!(off.request(&"a".into(), "one", 0, 0), "no limit is none");
    }
}
