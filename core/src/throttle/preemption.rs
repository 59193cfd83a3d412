//! Preemption: while a Pod waits for its image, pulls that warm other nodes do not take the registry's
//! bandwidth from it. Whether they do is measured and not assumed:
//!
//! ```text
//!   a Pod waits          the rate of its node         kept up, or the sum grew: four times as many
//!  ───────────► Alone ──────────────────────► Probing ───────────────────────► … ──► Unlimited
//!               no other node pulls           one other node pulls      all of them run
//!                                                │ fell, since others took it
//!                                                ▼
//!                                              Alone, until no Pod waits any more
//! ```
//!
//! The result holds for the registry's next Pods, for a while. Pure; `now` is monotonic, in milliseconds.

mod rates;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::rates::Rates;
use crate::api::names::{NodeName, Uid};

/// After other pulls were suspended or began, nothing is measured for this long: connections have to
/// slow down, and to speed up.
const SETTLE_ALONE_MS: i64 = 300;
const SETTLE_PROBING_MS: i64 = 700;
/// Of the rate alone, what a node must keep for others to go on. On a shared link one other node takes a
/// half of it, or less where the Pod's node downloads several layers at once.
const KEPT: f64 = 0.85;
/// Where it kept less, others go on all the same if all nodes, and the Pod's among them, get this part of
/// the rate alone on average: then there is no link that they share. With one other on a shared link it is
/// a half. The rate of one node also falls for other reasons, such as the end of a large layer.
const ON_AVERAGE: f64 = 0.7;
/// Each step lets so many times as many nodes pull.
const WIDENING: usize = 4;
/// Up to so many other nodes report their bytes as often as that of a Pod; of more, what they report anyway
/// is enough.
const PROBES_MAX: usize = 16;
/// Pulls that have run for longer are not suspended to find something out: containerd would begin them again
/// from zero.
const YOUNG_MS: i64 = 20_000;
/// A Pod that shows no bytes for this long does not wait for the network, or not for this registry.
const STALLED_MS: i64 = 3_000;
/// How long a Pod's node may be alone that reports no bytes at all, as CRI-O's.
const UNMEASURED_MS: i64 = 30_000;
/// The longest time for one Pod.
const LONGEST_MS: i64 = 600_000;
/// How long a result holds.
const RESULT_MS: i64 = 600_000;
/// The longest time in one period for which the Pods of one namespace suspend the pulls of others.
const NAMESPACE_SHARE_MS: i64 = 600_000;
const NAMESPACE_PERIOD_MS: i64 = 1_800_000;
/// Pods that are followed; those beyond wait as they would without preemption.
const PODS_MAX: usize = 10_000;

/// A Pod whose kubelet pulls its image, by the assignment of that image and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingPod {
    /// Uid of the assignment.
    pub uid: Uid,
    /// The node.
    pub node: NodeName,
    /// The image's registry.
    pub registry: String,
    /// The namespace.
    pub namespace: String,
}

/// What pulls of a registry are limited to while Pods wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The nodes of these Pods, which are not limited.
    pub nodes: BTreeSet<NodeName>,
    /// How many pulls of other nodes may run.
    pub others: usize,
}

/// How many pulls of other nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// That run.
    pub running: usize,
    /// That wait for a permit.
    pub waiting: usize,
    /// How long the first of those that run has been running.
    pub longest_ms: i64,
}

impl Others {
    fn all(self) -> usize {
        self.running + self.waiting
    }
}

#[derive(Debug)]
struct Pod {
    pod: WaitingPod,
    since: i64,
    downloaded: u64,
    /// When bytes last arrived.
    moved_at: Option<i64>,
}

impl Pod {
    fn is_over(&self, now: i64) -> bool {
        let stalled = match self.moved_at {
            Some(at) => now - at > STALLED_MS,
            None => now - self.since > UNMEASURED_MS,
        };
        stalled || now - self.since > LONGEST_MS
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// No other node pulls. To be measured, or the result is known.
    Alone { measure: bool },
    /// So many other nodes pull, beside this rate alone.
    Probing { others: usize, alone: f64 },
    /// All may pull.
    Unlimited,
}

impl Step {
    fn settling_ms(self) -> i64 {
        match self {
            Step::Alone { .. } => SETTLE_ALONE_MS,
            Step::Probing { .. } | Step::Unlimited => SETTLE_PROBING_MS,
        }
    }
}

/// What the last measurement showed.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// How many other nodes took nothing; 0 when one did.
    others: usize,
    until: i64,
}

#[derive(Debug)]
struct Registry {
    pods: BTreeMap<Uid, Pod>,
    step: Step,
    /// Of this step.
    rates: Rates,
    /// Whether nothing was limited yet.
    is_new: bool,
}

impl Registry {
    fn new(step: Step, now: i64) -> Self {
        let pods = BTreeMap::new();
        Registry { pods, step, rates: Rates::from(now + step.settling_ms()), is_new: true }
    }

    fn enter(&mut self, step: Step, now: i64) {
        (self.step, self.rates) = (step, Rates::from(now + step.settling_ms()));
    }

    fn bytes(&self) -> u64 {
        self.pods.values().map(|pod| pod.downloaded).fold(0, u64::saturating_add)
    }

    /// Goes to the next step, if what was measured says so. Returns what is known from then on.
    fn advance(&mut self, others: Others, now: i64) -> Option<usize> {
        match self.step {
            // Without others nothing can be learned of them.
            Step::Alone { measure: true } if others.all() > 0 => {
                let alone = self.rates.of_pods().filter(|rate| *rate > 0.0)?;
                self.enter(Step::Probing { others: 1, alone }, now);
            }
            Step::Probing { others: limit, alone } => {
                if others.running < limit.min(others.all()) || others.all() == 0 {
                    // They have not begun yet: what is measured until then says nothing.
                    let step = self.step;
                    self.enter(step, now);
                    return None;
                }
                let rate = self.rates.of_pods()?;
                if rate < KEPT * alone && self.is_shared(rate, others.running, alone)? {
                    self.enter(Step::Alone { measure: false }, now);
                    return Some(0);
                }
                if others.all() <= limit {
                    self.enter(Step::Unlimited, now);
                    // Without a rate alone nothing new was learned.
                    return (alone > 0.0).then_some(limit);
                }
                let step = Step::Probing { others: limit * WIDENING, alone: alone.max(rate) };
                self.enter(step, now);
            }
            Step::Alone { .. } | Step::Unlimited => {}
        }
        None
    }

    /// Whether so many others take what the nodes with Pods no longer get, as far as that is known.
    fn is_shared(&self, rate: f64, others: usize, alone: f64) -> Option<bool> {
        let all = rate + self.rates.of_one_other()? * others as f64;
        Some(all < ON_AVERAGE * alone * (others as f64 + 1.0))
    }

    fn limit(&self) -> Option<usize> {
        match self.step {
            Step::Alone { .. } => Some(0),
            Step::Probing { others, .. } => Some(others),
            Step::Unlimited => None,
        }
    }
}

/// How long Pods of a namespace have suspended the pulls of others, in the current period.
#[derive(Debug)]
struct Share {
    since: i64,
    used: i64,
}

/// The Pods that wait, and what pulls of other nodes take from them.
#[derive(Debug, Default)]
pub struct Preemption {
    registries: BTreeMap<String, Registry>,
    known: HashMap<String, Known>,
    shares: HashMap<String, Share>,
    pods: HashMap<Uid, String>,
    ticked_at: Option<i64>,
}

impl Preemption {
    /// A Pod waits for its image: its kubelet has begun to pull it. Whether that is new.
    pub fn pod_waits(&mut self, pod: WaitingPod, now: i64) -> bool {
        let is_known = self.pods.contains_key(&pod.uid);
        if is_known || self.pods.len() >= PODS_MAX || !self.has_share(&pod.namespace, now) {
            return false;
        }
        let first = match self.known.get(&pod.registry).filter(|known| now < known.until) {
            Some(Known { others: 0, .. }) => Step::Alone { measure: false },
            Some(Known { others, .. }) => Step::Probing { others: others * WIDENING, alone: 0.0 },
            None => Step::Alone { measure: true },
        };
        self.pods.insert(pod.uid.clone(), pod.registry.clone());
        let registry = self
            .registries
            .entry(pod.registry.clone())
            .or_insert_with(|| Registry::new(first, now));
        // The bytes of one Pod more or less would be taken for a change of the rate.
        let step = registry.step;
        registry.enter(step, now);
        let uid = pod.uid.clone();
        registry.pods.insert(uid, Pod { pod, since: now, downloaded: 0, moved_at: None });
        true
    }

    /// The Pod waits no longer: its container starts, or its pull has ended.
    pub fn ended(&mut self, uid: &str, now: i64) {
        let Some(name) = self.pods.remove(uid) else { return };
        let Some(registry) = self.registries.get_mut(&name) else { return };
        registry.pods.remove(uid);
        if registry.pods.is_empty() {
            self.registries.remove(&name);
            // Time without Pods counts for nobody.
            self.ticked_at = self.ticked_at.filter(|_| !self.registries.is_empty());
        } else {
            let step = registry.step;
            registry.enter(step, now);
        }
    }

    /// The Pod's node reports bytes of its image; `total` is 0 while that is not known. Once all bytes are
    /// there, the Pod no longer waits for the registry.
    pub fn progress(&mut self, uid: &str, downloaded: u64, total: u64, now: i64) {
        let Some(name) = self.pods.get(uid) else { return };
        if total > 0 && downloaded >= total {
            return self.ended(uid, now);
        }
        let Some(registry) = self.registries.get_mut(name) else { return };
        let Some(pod) = registry.pods.get_mut(uid) else { return };
        if downloaded > pod.downloaded {
            pod.moved_at = Some(now);
            pod.downloaded = downloaded;
            // A report may only repeat what the runtime showed before.
            let bytes = registry.bytes();
            registry.rates.pods(bytes, now);
        }
    }

    /// A node without a Pod reports bytes of an image of this registry.
    pub fn other_progress(&mut self, registry: &str, uid: &Uid, downloaded: u64, now: i64) {
        if let Some(registry) = self.registries.get_mut(registry) {
            registry.rates.other(uid, downloaded, now);
        }
    }

    /// Whether the pulls of this registry that begin now are those by which is measured what they take.
    pub fn is_probing(&self, registry: &str) -> bool {
        self.registries.get(registry).is_some_and(|registry| {
            matches!(registry.step, Step::Probing { others, .. } if others <= PROBES_MAX)
        })
    }

    /// Whether a Pod waits for the image of this assignment.
    pub fn is_waited_for(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Number of Pods that wait.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Goes on to the next steps, and returns the limit of each registry that has one. `others` counts the
    /// pulls of a registry by other nodes than these. Call often while Pods wait.
    pub fn tick(
        &mut self,
        others: impl Fn(&str, &BTreeSet<NodeName>) -> Others,
        now: i64,
    ) -> Vec<(String, Limit)> {
        self.drop_what_is_over(now);
        let passed = now - self.ticked_at.unwrap_or(now);
        self.ticked_at = (!self.registries.is_empty()).then_some(now);
        let mut limits = Vec::new();
        for (name, registry) in &mut self.registries {
            let nodes = registry.pods.values().map(|pod| pod.pod.node.clone()).collect();
            let counts = others(name, &nodes);
            let is_new = std::mem::take(&mut registry.is_new);
            if is_new
                && registry.step == (Step::Alone { measure: true })
                && counts.longest_ms > YOUNG_MS
            {
                registry.enter(Step::Unlimited, now);
            }
            if registry.step == (Step::Alone { measure: false }) && !self.known.contains_key(name) {
                registry.enter(Step::Alone { measure: true }, now);
            }
            if let Some(others) = registry.advance(counts, now) {
                self.known.insert(name.clone(), Known { others, until: now + RESULT_MS });
            }
            let Some(others) = registry.limit() else { continue };
            if counts.all() > 0 {
                let namespaces: BTreeSet<&str> =
                    registry.pods.values().map(|pod| pod.pod.namespace.as_str()).collect();
                for namespace in namespaces {
                    let share = self.shares.entry(namespace.to_owned());
                    share.or_insert(Share { since: now, used: 0 }).used += passed;
                }
            }
            limits.push((name.clone(), Limit { nodes, others }));
        }
        limits
    }

    fn drop_what_is_over(&mut self, now: i64) {
        self.known.retain(|_, known| now < known.until);
        self.shares.retain(|_, share| now - share.since < NAMESPACE_PERIOD_MS);
        let all = self.registries.values().flat_map(|registry| registry.pods.values());
        let over = all.filter(|pod| {
            pod.is_over(now) || self.shares.get(&pod.pod.namespace).is_some_and(Share::is_used_up)
        });
        let over: Vec<Uid> = over.map(|pod| pod.pod.uid.clone()).collect();
        for uid in over {
            self.ended(&uid, now);
        }
    }

    fn has_share(&self, namespace: &str, now: i64) -> bool {
        let share = self.shares.get(namespace);
        let share = share.filter(|share| now - share.since < NAMESPACE_PERIOD_MS);
        !share.is_some_and(Share::is_used_up)
    }
}

impl Share {
    fn is_used_up(&self) -> bool {
        self.used >= NAMESPACE_SHARE_MS
    }
}

#[cfg(test)]
mod tests;
