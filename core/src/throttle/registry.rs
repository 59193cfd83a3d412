//! The cluster-wide budget of each registry: how many pulls may run at the same time, how many may
//! begin in a second, and which one is next. Places go round by namespace, and a part of them is kept
//! free for namespaces and nodes that have none yet. A rate limit concerns the account that the
//! registry counted: for its pulls alone none begins for a back-off, and then fewer run at the same
//! time. Pure; `now` is monotonic, in milliseconds.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::limits::{Limits, RegistryLimits};
use super::preemption::{Limit, Others};
use crate::api::names::{NodeName, Uid};

/// The first back-off after a rate limit; each further one is twice as long.
const FIRST_BACKOFF_MS: i64 = 1_000;
const LONGEST_BACKOFF_MS: i64 = 30_000;
/// The longest `Retry-After` that all nodes honour; the node that received it honours more.
const LONGEST_RETRY_AFTER_MS: i64 = 300_000;
/// Two nodes must report a rate limit within this time.
const CONFIRMATION_WINDOW_MS: i64 = 60_000;
/// A permit ends after this time without progress: longer than a warmer lets a pull run that shows
/// none.
const IDLE_PERMIT_MS: i64 = 65 * 60_000;
/// A permit ends after this time whatever the node reports.
const LONGEST_PERMIT_MS: i64 = 150 * 60_000;
/// Interval between two searches for permits that have ended.
const EXPIRY_INTERVAL_MS: i64 = 10_000;

type Turn = (Reverse<i64>, u64, Uid);

/// Of `places`, those that one namespace may take. Of three and more one in eight, at least one, stays
/// free for the others, so that a namespace whose pulls never end delays nobody else.
pub fn namespace_share(places: usize) -> usize {
    match places {
        ..3 => places,
        usize::MAX => places,
        places => places - places.div_ceil(8),
    }
}

/// Of `places`, those that one node may take: half.
fn node_share(places: usize) -> usize {
    places.div_ceil(2)
}

/// A pull that asks for a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Uid of the assignment.
    pub uid: Uid,
    /// The node that pulls.
    pub node: NodeName,
    /// The registry.
    pub registry: String,
    /// Whose credentials it uses.
    pub account: Account,
    /// The greatest goes first.
    pub priority: i64,
}

/// Pulls with the same credentials, as far as that is known before these are read: of one namespace
/// and the same pull identities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    /// The namespace.
    pub namespace: String,
    /// A mark of the pull identities.
    pub identities: u64,
}

/// The pulls of one account from one registry.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<Turn>,
    in_flight: usize,
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

impl Line {
    fn may_begin(&self, now: i64) -> bool {
        now >= self.backoff_until && self.reduced.is_none_or(|reduced| self.in_flight < reduced)
    }

    fn is_idle(&self, now: i64) -> bool {
        self.in_flight == 0 && self.waiting.is_empty() && self.backoff_until + 60_000 <= now
    }
}

#[derive(Debug)]
struct Registry {
    limits: Limits,
    lines: HashMap<Account, Line>,
    in_flight: usize,
    by_namespace: HashMap<String, usize>,
    by_node: HashMap<NodeName, usize>,
    /// The current slice of time, and pulls that began in it.
    slice: i64,
    begun: usize,
    /// Set while Pods wait.
    preempted: Option<Limit>,
}

impl Registry {
    fn new(limits: Limits) -> Self {
        Registry {
            limits,
            lines: HashMap::new(),
            in_flight: 0,
            by_namespace: HashMap::new(),
            by_node: HashMap::new(),
            slice: 0,
            begun: 0,
            preempted: None,
        }
    }

    /// Whether one more pull may run. The node of a Pod that waits needs no place: its kubelet pulls
    /// anyway.
    fn has_place(&self, node: &NodeName, now: i64) -> bool {
        match &self.preempted {
            Some(limit) if limit.nodes.contains(node) => true,
            Some(limit) if self.others(&limit.nodes) >= limit.others => false,
            _ => !self.is_full(now),
        }
    }

    fn is_full(&self, now: i64) -> bool {
        let (slice, most) = self.limits.slice(now);
        let begun = if self.slice == slice { self.begun } else { 0 };
        self.in_flight >= self.limits.pulls() || begun >= most
    }

    /// Running pulls of other nodes.
    fn others(&self, nodes: &BTreeSet<NodeName>) -> usize {
        let of = |node| self.by_node.get(node).copied().unwrap_or(0);
        self.in_flight.saturating_sub(nodes.iter().map(of).sum())
    }

    /// Whether the shares of namespace and node, and the account's back-off, let the pull begin.
    fn may_begin(&self, account: &Account, node: &NodeName, now: i64) -> bool {
        let pulls = self.limits.pulls();
        self.of_namespace(&account.namespace) < namespace_share(pulls)
            && self.by_node.get(node).copied().unwrap_or(0) < node_share(pulls)
            && self.lines.get(account).is_none_or(|line| line.may_begin(now))
    }

    fn of_namespace(&self, namespace: &str) -> usize {
        self.by_namespace.get(namespace).copied().unwrap_or(0)
    }

    fn begin(&mut self, account: &Account, node: &NodeName, now: i64) {
        let (slice, _) = self.limits.slice(now);
        if self.slice != slice {
            (self.slice, self.begun) = (slice, 0);
        }
        self.begun += 1;
        self.hold(account, node);
    }

    fn hold(&mut self, account: &Account, node: &NodeName) {
        self.in_flight += 1;
        *self.by_namespace.entry(account.namespace.clone()).or_default() += 1;
        *self.by_node.entry(node.clone()).or_default() += 1;
        self.lines.entry(account.clone()).or_default().in_flight += 1;
    }

    fn release(&mut self, account: &Account, node: &NodeName) {
        self.in_flight = self.in_flight.saturating_sub(1);
        take_one(&mut self.by_namespace, account.namespace.as_str());
        take_one(&mut self.by_node, &**node);
        if let Some(line) = self.lines.get_mut(account) {
            line.in_flight = line.in_flight.saturating_sub(1);
        }
    }

    /// The next pull that may begin: of the namespace with the fewest, the one with the greatest
    /// priority, then the first that came.
    fn next(&self, places: &HashMap<Uid, Held>, now: i64) -> Option<Turn> {
        if self.preempted.is_none() && self.is_full(now) {
            return None;
        }
        let firsts = self.lines.iter().filter_map(|(account, line)| {
            // Few are skipped: those of nodes that have their share. While Pods wait it may be all of
            // them.
            let mut turns = line.waiting.iter();
            let first = turns.find(|(_, _, uid)| {
                let node = places.get(uid).map(|held| &held.pull.node);
                node.is_some_and(|node| {
                    self.has_place(node, now) && self.may_begin(account, node, now)
                })
            })?;
            Some((self.of_namespace(&account.namespace), first))
        });
        firsts.min().map(|(_, turn)| turn.clone())
    }
}

fn take_one<K: std::borrow::Borrow<Q> + Eq + std::hash::Hash, Q: Eq + std::hash::Hash + ?Sized>(
    counts: &mut HashMap<K, usize>,
    key: &Q,
) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[derive(Debug)]
enum Place {
    /// Since when it runs, and when it last made progress.
    InFlight {
        since: i64,
        progress: i64,
    },
    Waiting(Turn),
}

#[derive(Debug)]
struct Held {
    pull: Pull,
    place: Place,
}

/// Pulls that run, and pulls that wait for their registry.
#[derive(Debug)]
pub struct RegistryBudgets {
    limits: RegistryLimits,
    registries: HashMap<String, Registry>,
    places: HashMap<Uid, Held>,
    /// Pulls that run or wait, by node.
    by_node: HashMap<NodeName, usize>,
    arrivals: u64,
    expire_at: i64,
}

impl RegistryBudgets {
    /// Budgets with these limits for each registry.
    pub fn new(limits: impl Into<RegistryLimits>) -> Self {
        RegistryBudgets {
            limits: limits.into(),
            registries: HashMap::new(),
            places: HashMap::new(),
            by_node: HashMap::new(),
            arrivals: 0,
            expire_at: 0,
        }
    }

    /// Requests a permit; true when the pull may start now. Otherwise it waits for its turn.
    pub fn request(&mut self, pull: Pull, now: i64) -> bool {
        match self.places.get(&pull.uid) {
            Some(Held { place: Place::InFlight { .. }, .. }) => return true,
            Some(Held { place: Place::Waiting(_), .. }) => return false,
            None => {}
        }
        let Pull { uid, node, account, priority, .. } = &pull;
        let registry = registry_mut(&mut self.registries, &self.limits, &pull.registry);
        let granted = registry.has_place(node, now) && registry.may_begin(account, node, now);
        let place = if granted {
            registry.begin(account, node, now);
            Place::InFlight { since: now, progress: now }
        } else {
            self.arrivals += 1;
            let turn = (Reverse(*priority), self.arrivals, uid.clone());
            let line = registry.lines.entry(account.clone()).or_default();
            line.waiting.insert(turn.clone());
            Place::Waiting(turn)
        };
        *self.by_node.entry(node.clone()).or_default() += 1;
        self.places.insert(uid.clone(), Held { pull, place });
        granted
    }

    /// Counts a pull that already runs, even beyond the limit.
    pub fn hold(&mut self, pull: Pull, now: i64) {
        self.take_out(&pull.uid);
        let registry = registry_mut(&mut self.registries, &self.limits, &pull.registry);
        registry.hold(&pull.account, &pull.node);
        *self.by_node.entry(pull.node.clone()).or_default() += 1;
        let place = Place::InFlight { since: now, progress: now };
        self.places.insert(pull.uid.clone(), Held { pull, place });
    }

    /// The pull of `uid` made progress.
    pub fn progress(&mut self, uid: &str, now: i64) {
        if let Some(Held { place: Place::InFlight { progress, .. }, .. }) = self.places.get_mut(uid)
        {
            *progress = now;
        }
    }

    /// Releases the permit of `uid`; returns the pulls that may start instead.
    pub fn end(&mut self, uid: &str, now: i64) -> Vec<Uid> {
        match self.take_out(uid) {
            Some(registry) => self.begin_waiting(&registry, now),
            None => Vec::new(),
        }
    }

    /// The pull of `uid` reports that the registry limited the rate. Once a second node reports it for the
    /// account within a minute, the account is backed off, for at least the time that the registry
    /// requested, and then gets no more concurrent pulls than it sustained: one node alone may be
    /// mistaken, or lie. Has no effect without a limit of pulls. Call before the pull's
    /// [`RegistryBudgets::end`]; true when the back-off applies.
    pub fn back_off(&mut self, uid: &str, retry_after_ms: Option<i64>, now: i64) -> bool {
        let Some(Held { pull, .. }) = self.places.get(uid) else { return false };
        let registry = registry_mut(&mut self.registries, &self.limits, &pull.registry);
        if registry.limits.pulls == 0 {
            return false;
        }
        let line = registry.lines.entry(pull.account.clone()).or_default();
        let before = line.last_limited.replace((pull.node.clone(), now));
        let is_confirmed = before
            .is_some_and(|(other, at)| other != pull.node && now - at <= CONFIRMATION_WINDOW_MS);
        if !is_confirmed {
            return false;
        }
        // Refusals come at once and served pulls take a while, so the pulls still in flight are
        // those that the registry sustains.
        let sustained = line.in_flight.saturating_sub(1).max(1);
        line.reduced = Some(line.reduced.map_or(sustained, |reduced| reduced.min(sustained)));
        line.served = 0;
        // Pulls already under way report the same rate limit: that is not a new back-off.
        if line.backoff_until <= now {
            line.backoffs += 1;
            let backoff_ms = (FIRST_BACKOFF_MS << line.backoffs.min(10)) / 2;
            line.backoff_until = now + backoff_ms.min(LONGEST_BACKOFF_MS);
        }
        if let Some(retry_after_ms) = retry_after_ms {
            line.backoff_until =
                line.backoff_until.max(now + retry_after_ms.clamp(0, LONGEST_RETRY_AFTER_MS));
        }
        true
    }

    /// The pull of `uid` was served. After as many as the reduced limit, that rises by one. Call before
    /// [`RegistryBudgets::end`].
    pub fn served(&mut self, uid: &str) {
        let Some(Held { pull, .. }) = self.places.get(uid) else { return };
        let Some(registry) = self.registries.get_mut(&pull.registry) else { return };
        let limit = registry.limits.pulls;
        let Some(line) = registry.lines.get_mut(&pull.account) else { return };
        let Some(reduced) = line.reduced else { return };
        (line.backoffs, line.served) = (0, line.served + 1);
        if line.served >= reduced {
            (line.served, line.reduced) = (0, Some(reduced + 1));
        }
        if reduced + 1 >= limit {
            line.reduced = None;
        }
    }

    /// Returns the waiting pulls that may start now. Call often while pulls wait.
    pub fn tick(&mut self, now: i64) -> Vec<Uid> {
        self.expire(now);
        self.registries.retain(|_, registry| {
            registry.lines.retain(|_, line| !line.is_idle(now));
            !registry.lines.is_empty() || registry.preempted.is_some()
        });
        let has_waiting =
            |registry: &Registry| registry.lines.values().any(|line| !line.waiting.is_empty());
        let waiting = self.registries.iter().filter(|(_, registry)| has_waiting(registry));
        let registries: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
        registries.iter().flat_map(|registry| self.begin_waiting(registry, now)).collect()
    }

    /// The pulls of a registry by other nodes than these.
    pub fn others(&self, registry: &str, nodes: &BTreeSet<NodeName>, now: i64) -> Others {
        let mut others = Others::default();
        let places = self
            .places
            .values()
            .filter(|held| held.pull.registry == registry && !nodes.contains(&held.pull.node));
        for held in places {
            match held.place {
                Place::InFlight { since, .. } => {
                    others.running += 1;
                    others.longest_ms = others.longest_ms.max(now - since);
                }
                Place::Waiting(_) => others.waiting += 1,
            }
        }
        others
    }

    /// Limits the registries to these, and no others, while Pods wait. Returns the running pulls that are
    /// to be suspended, those that began last; call [`RegistryBudgets::end`] for each.
    pub fn preempt(&mut self, limits: Vec<(String, Limit)>) -> Vec<Uid> {
        for registry in self.registries.values_mut() {
            registry.preempted = None;
        }
        let mut suspended = Vec::new();
        for (name, limit) in limits {
            let registry = registry_mut(&mut self.registries, &self.limits, &name);
            if registry.others(&limit.nodes) > limit.others {
                let of_others = self.places.iter().filter_map(|(uid, held)| match held.place {
                    Place::InFlight { since, .. }
                        if held.pull.registry == name && !limit.nodes.contains(&held.pull.node) =>
                    {
                        Some((since, uid))
                    }
                    _ => None,
                });
                let mut of_others: Vec<(i64, &Uid)> = of_others.collect();
                of_others.sort();
                suspended
                    .extend(of_others.into_iter().skip(limit.others).map(|(_, uid)| uid.clone()));
            }
            registry.preempted = Some(limit);
        }
        suspended
    }

    /// Whether `uid` may run now.
    pub fn is_in_flight(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some(Held { place: Place::InFlight { .. }, .. }))
    }

    /// Whether `uid` waits for a permit.
    pub fn is_waiting(&self, uid: &str) -> bool {
        matches!(self.places.get(uid), Some(Held { place: Place::Waiting(_), .. }))
    }

    /// Pulls of a node that run or wait.
    pub fn outstanding(&self, node: &str) -> usize {
        self.by_node.get(node).copied().unwrap_or(0)
    }

    /// Whether `uid` runs or waits.
    pub fn is_outstanding(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// Number of running and of waiting pulls.
    pub fn counts(&self) -> (usize, usize) {
        let running = self.registries.values().map(|registry| registry.in_flight).sum();
        (running, self.places.len() - running)
    }

    fn begin_waiting(&mut self, name: &str, now: i64) -> Vec<Uid> {
        let mut started = Vec::new();
        let Some(registry) = self.registries.get_mut(name) else { return started };
        while let Some(turn) = registry.next(&self.places, now) {
            let Some(held) = self.places.get_mut(&turn.2) else { break };
            if let Some(line) = registry.lines.get_mut(&held.pull.account) {
                line.waiting.remove(&turn);
            }
            registry.begin(&held.pull.account, &held.pull.node, now);
            held.place = Place::InFlight { since: now, progress: now };
            started.push(turn.2);
        }
        started
    }

    /// Takes back permits without progress, and those that lasted too long. The pull may go on.
    fn expire(&mut self, now: i64) {
        if now < self.expire_at {
            return;
        }
        self.expire_at = now + EXPIRY_INTERVAL_MS;
        let is_over = |held: &Held| match held.place {
            Place::InFlight { since, progress } => {
                now - progress >= IDLE_PERMIT_MS || now - since >= LONGEST_PERMIT_MS
            }
            Place::Waiting(_) => false,
        };
        let over = self.places.iter().filter(|(_, held)| is_over(held));
        let over: Vec<Uid> = over.map(|(uid, _)| uid.clone()).collect();
        for uid in over {
            self.take_out(&uid);
        }
    }

    fn take_out(&mut self, uid: &str) -> Option<String> {
        let Held { pull, place } = self.places.remove(uid)?;
        take_one(&mut self.by_node, &*pull.node);
        if let Some(registry) = self.registries.get_mut(&pull.registry) {
            match place {
                Place::InFlight { .. } => registry.release(&pull.account, &pull.node),
                Place::Waiting(turn) => {
                    if let Some(line) = registry.lines.get_mut(&pull.account) {
                        line.waiting.remove(&turn);
                    }
                }
            }
        }
        Some(pull.registry)
    }
}

fn registry_mut<'a>(
    registries: &'a mut HashMap<String, Registry>,
    limits: &RegistryLimits,
    name: &str,
) -> &'a mut Registry {
    registries.entry(name.to_owned()).or_insert_with(|| Registry::new(limits.of(name)))
}

#[cfg(test)]
mod tests;
