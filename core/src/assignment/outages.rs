//! Registries that do not respond. Each node backs off by itself, so after a long outage its next
//! attempt may be minutes away. Instead one of the failed pulls of the registry is tried again every
//! few seconds; once the registry has answered any node, all of them are.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Effect, Index, SessionId};
use crate::api::Reason;
use crate::api::names::Uid;
use crate::protocol::RetryPull;
use crate::protocol::from_controller::Message as ToWarmer;

/// Interval between two attempts while the registry answers nobody. It doubles for a registry that
/// never answered: that may be a name that somebody mistyped.
const PROBE_INTERVAL_MS: i64 = 5_000;
/// Registries that are known to have answered; a cluster uses fewer.
const KNOWN_MAX: usize = 10_000;
/// Least time between two releases of one registry's failed pulls.
const RELEASE_INTERVAL_MS: i64 = 1_000;
/// A pull that fails again after its registry answered others is released no sooner than this; the
/// time doubles with each release, since the fault is then most probably the node's own.
const FIRST_DELAY_MS: i64 = 5_000;
const LONGEST_DELAY_MS: i64 = 300_000;

/// Failed pulls by registry.
#[derive(Debug, Default)]
pub(super) struct Outages {
    registries: HashMap<String, Registry>,
    failed: HashMap<Uid, Failed>,
    /// Registries that have answered, or of which a node holds an image.
    known: HashSet<String>,
    turns: u64,
}

#[derive(Debug, Default)]
struct Registry {
    /// By turn: the first is tried next.
    failed: BTreeMap<u64, Uid>,
    probes: u32,
    probe_at: i64,
    release_at: i64,
}

#[derive(Debug)]
struct Failed {
    registry: String,
    turn: u64,
    releases: u32,
    not_before: i64,
}

impl Outages {
    /// Notes what was last reported of the assignment.
    pub(super) fn note(&mut self, uid: &Uid, registry: &str, reason: Option<Reason>, now: i64) {
        match reason {
            Some(Reason::RegistryUnreachable | Reason::TimedOut) => {}
            // It runs, or will: how that ends decides.
            Some(Reason::Pulling | Reason::Queued | Reason::WaitingForWarmer) => return,
            Some(Reason::Pulled | Reason::AlreadyPresent) => {
                self.learn(registry);
                return self.forget(uid);
            }
            _ => return self.forget(uid),
        }
        if self.failed.get(uid).is_some_and(|failed| failed.registry == registry) {
            return;
        }
        self.forget(uid);
        self.turns += 1;
        let turn = self.turns;
        let failed = Failed { registry: registry.to_owned(), turn, releases: 0, not_before: now };
        self.failed.insert(uid.clone(), failed);
        let entry = self.registries.entry(registry.to_owned()).or_insert_with(|| Registry {
            probe_at: now + PROBE_INTERVAL_MS,
            ..Registry::default()
        });
        entry.failed.insert(turn, uid.clone());
    }

    /// The assignment is gone, or its pull no longer fails for the registry's sake.
    pub(super) fn forget(&mut self, uid: &str) {
        let Some(failed) = self.failed.remove(uid) else { return };
        if let Some(registry) = self.registries.get_mut(&failed.registry) {
            registry.failed.remove(&failed.turn);
            if registry.failed.is_empty() {
                self.registries.remove(&failed.registry);
            }
        }
    }

    fn learn(&mut self, registry: &str) {
        if !self.known.contains(registry) && self.known.len() < KNOWN_MAX {
            self.known.insert(registry.to_owned());
        }
    }

    /// The registry answered a node. Returns the pulls to be tried again.
    fn answered(&mut self, registry: &str, now: i64) -> Vec<Uid> {
        self.learn(registry);
        let Some(entry) = self.registries.get_mut(registry) else { return Vec::new() };
        if now < entry.release_at {
            return Vec::new();
        }
        entry.release_at = now + RELEASE_INTERVAL_MS;
        let mut released = Vec::new();
        for uid in entry.failed.values() {
            let Some(failed) = self.failed.get_mut(uid) else { continue };
            if failed.not_before <= now {
                let delay = FIRST_DELAY_MS << failed.releases.min(16);
                failed.not_before = now + delay.min(LONGEST_DELAY_MS);
                failed.releases += 1;
                released.push(uid.clone());
            }
        }
        released
    }

    /// One pull of each registry that is due, of those that `can_try`.
    fn probes(&mut self, can_try: impl Fn(&Uid) -> bool, now: i64) -> Vec<Uid> {
        let due = self.registries.iter_mut().filter(|(_, registry)| registry.probe_at <= now);
        let (turns, known, failed) = (&mut self.turns, &self.known, &mut self.failed);
        due.filter_map(|(name, registry)| {
            let doublings = if known.contains(name) { 0 } else { registry.probes.min(16) };
            registry.probes += 1;
            registry.probe_at = now + (PROBE_INTERVAL_MS << doublings).min(LONGEST_DELAY_MS);
            let (turn, next) = registry.failed.iter().find(|(_, uid)| can_try(uid))?;
            let (turn, next) = (*turn, next.clone());
            registry.failed.remove(&turn);
            *turns += 1;
            registry.failed.insert(*turns, next.clone());
            failed.get_mut(&next)?.turn = *turns;
            Some(next)
        })
        .collect()
    }
}

impl Index {
    /// The registry answered: tries the pulls again that failed while it did not.
    pub(super) fn registry_answered(&mut self, registry: &str, now: i64) {
        for uid in self.outages.answered(registry, now) {
            self.retry_pull(&uid);
        }
    }

    /// Tries one pull of each registry that does not respond, on a node that is connected.
    pub(super) fn probe_registries(&mut self, now: i64) {
        let mut outages = std::mem::take(&mut self.outages);
        for uid in outages.probes(|uid| self.session_of(uid).is_some(), now) {
            self.retry_pull(&uid);
        }
        self.outages = outages;
    }

    fn session_of(&self, uid: &Uid) -> Option<SessionId> {
        let assignment = self.assignments.get(uid)?;
        let (session, _) = self.nodes.get(&assignment.warm.node_name)?.session?;
        Some(session)
    }

    fn retry_pull(&mut self, uid: &Uid) {
        if let Some(session) = self.session_of(uid) {
            self.retries += 1;
            let retry = ToWarmer::RetryPull(RetryPull { uid: uid.to_string() });
            self.effects.push(Effect::Send(session, retry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable(outages: &mut Outages, uid: &str, now: i64) {
        outages.note(&uid.into(), "r.test", Some(Reason::RegistryUnreachable), now);
    }

    #[test]
    fn while_nobody_is_answered_one_after_the_other_tries() {
        let mut outages = Outages::default();
        outages.note(&"ready".into(), "r.test", Some(Reason::Pulled), 0);
        for uid in ["a", "b", "c"] {
            unreachable(&mut outages, uid, 0);
        }
        assert!(outages.probes(|_| true, PROBE_INTERVAL_MS - 1).is_empty());
        let probes: Vec<_> =
            (1..=4).map(|at| outages.probes(|_| true, at * PROBE_INTERVAL_MS)).collect();
        assert_eq!(probes, [["a"], ["b"], ["c"], ["a"]]);
        // Nodes without a warmer are passed over.
        let connected = |uid: &Uid| *uid == "a";
        assert_eq!(outages.probes(connected, 5 * PROBE_INTERVAL_MS), ["a"]);
        assert!(outages.probes(|_| false, 6 * PROBE_INTERVAL_MS).is_empty());
        assert!(outages.probes(|_| true, 6 * PROBE_INTERVAL_MS + 1).is_empty());
    }

    #[test]
    fn a_registry_that_never_answered_is_tried_ever_more_rarely() {
        let mut outages = Outages::default();
        unreachable(&mut outages, "a", 0);
        let tried: Vec<i64> = (0..1_000)
            .filter(|second| !outages.probes(|_| true, second * 1_000).is_empty())
            .collect();
        assert_eq!(tried, [5, 10, 20, 40, 80, 160, 320, 620, 920]);
    }

    #[test]
    fn one_answer_releases_all_whatever_the_length_of_the_outage() {
        let mut outages = Outages::default();
        for uid in ["a", "b", "c"] {
            unreachable(&mut outages, uid, 0);
        }
        outages.note(&"other".into(), "other.test", Some(Reason::TimedOut), 0);
        assert_eq!(outages.answered("r.test", 3_600_000), ["a", "b", "c"]);
        assert!(outages.answered("r.test", 3_600_001).is_empty(), "once");
        for uid in ["a", "b"] {
            outages.note(&uid.into(), "r.test", None, 3_600_002);
        }
        outages.forget("c");
        assert_eq!(outages.registries.len(), 1, "nothing is kept of what was healed");
        assert_eq!(outages.failed.len(), 1);
    }

    #[test]
    fn a_node_that_alone_does_not_reach_it_is_released_ever_more_rarely() {
        let mut outages = Outages::default();
        unreachable(&mut outages, "a", 0);
        let mut released = vec![];
        for second in 0..700 {
            if !outages.answered("r.test", second * 1_000).is_empty() {
                released.push(second);
            }
            // It is tried, and fails again.
            outages.note(&"a".into(), "r.test", Some(Reason::Pulling), second * 1_000);
            unreachable(&mut outages, "a", second * 1_000);
        }
        assert_eq!(released, [0, 5, 15, 35, 75, 155, 315, 615]);
    }
}
