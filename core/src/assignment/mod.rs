//! The leader's index of assignments, connected warmers and running pulls. Takes events and returns
//! [`Effect`]s; synchronous, without I/O and without a clock (`now` is monotonic, in milliseconds).

mod awaiting_credentials;
mod budget;
mod messages;
mod needs;
mod outages;
mod preemption;
mod reports;
mod sessions;
mod sizes;
mod stream_end;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::api::names::{NodeName, Uid};
use crate::api::{CachedImageWarm, ConditionStatus, Reason};
use crate::demand::PullIdentity;
use crate::demand::pull_context::PullContext;
use crate::image::{Credential, Reference};
use crate::protocol::from_controller::Message as ToWarmer;
use crate::protocol::from_warmer::Message as FromWarmer;
use crate::protocol::{self, Assign, Hello, PROTOCOL_VERSION, Synced, Welcome, Withdraw};
use crate::report::status::{
    NodeRuntime, Outcome, PROGRESS_EVERY_MS, QUEUED_QUIET_MS, QUIET_MS, Report,
};
use crate::throttle::canary::{self, Canaries, Key};
use crate::throttle::limits::{Limits, RegistryLimits};
use crate::throttle::preemption::Preemption;
use crate::throttle::registry::{self, RegistryBudgets};
pub use stream_end::StreamEnd;

use awaiting_credentials::{AwaitingCredentials, CredentialSet};
use messages::{account_mark, grant, identity_mark, needs_resend, ready};
use needs::{Need, Needs};
use outages::Outages;
use sizes::Sizes;

/// Pulls that a warmer can be set to run at the same time.
const RUNNING_MAX: usize = 64;
/// Pulls that a node may have running or waiting.
const OUTSTANDING_MAX: usize = 2 * RUNNING_MAX;
/// Credentials granted to one node in one period: a warmer whose pulls all fail is far below.
const GRANTS: usize = 200;
const GRANTS_PER_ASSIGNMENT: usize = 30;
const GRANTS_PERIOD_MS: i64 = 600_000;

/// Identifies one stream for the lifetime of this process.
pub type SessionId = u64;

/// An action that the caller has to take.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Send a message on a stream.
    Send(SessionId, ToWarmer),
    /// Close a stream.
    Close(SessionId, StreamEnd),
    /// Resolve the credentials, and call [`Index::resolved`].
    Resolve(CredentialRequest),
    /// Resolve them again for these assignments, and call [`Index::rechecked`].
    RecheckCredentials(CredentialRequest, Vec<Uid>),
    /// Write the report to the ImageWarm's status.
    Status(Uid, Arc<CachedImageWarm>, Report),
}

/// A request to resolve the credentials of one pull.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialRequest {
    /// Uid of the assignment.
    pub uid: Uid,
    /// The stream that requested the pull.
    pub session: SessionId,
    /// Namespace of the Secrets.
    pub namespace: String,
    /// The pull identities whose credentials apply, in order.
    pub identities: Vec<PullIdentity>,
    /// The image.
    pub image: Reference,
}

/// Why no credentials were granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The typed reason.
    pub reason: Reason,
    /// The human-readable message.
    pub message: String,
}

/// Limits on the requests of all nodes together to registries.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Limits for each registry.
    pub registry: RegistryLimits,
    /// The first node pulls an image before the others do.
    pub canary: canary::Settings,
}

impl Budget {
    /// At most this many concurrent pulls for each registry, and no other limit.
    pub fn of_pulls(pulls: usize) -> Self {
        Budget {
            registry: Limits { pulls, per_second: 0 }.into(),
            canary: canary::Settings { nodes: 0, timeout_ms: 0 },
        }
    }
}

#[derive(Debug)]
struct Assignment {
    warm: Arc<CachedImageWarm>,
    image: Reference,
    pull_context: Arc<PullContext>,
    /// Changes when the credentials that apply to the pull may have changed.
    identity_mark: u64,
    /// The same for pulls with the same credentials.
    account_mark: u64,
    known_size_bytes: u64,
    /// The credentials of the last pull.
    credential_set: CredentialSet,
    /// How often the pull became worth another attempt at once.
    urgent_retries: u64,
    /// Its node reported last that it does not hold the image; the status may not say so yet.
    reported_absent: bool,
    /// Set while a pull waits or runs: most assignments are settled.
    pull: Option<Box<Pull>>,
}

/// A pull that waits or runs. Times are from the leader's clock, not the node's.
#[derive(Debug, Default)]
struct Pull {
    queued_since: Option<i64>,
    running_since: Option<i64>,
    progress_written: Option<i64>,
    downloaded_bytes: u64,
    /// The stream that waits for credentials. Repeated requests resolve them only once.
    resolving_for: Option<SessionId>,
}

impl Pull {
    /// Notes the bytes that are downloaded; whether they are more than before.
    fn moved(&mut self, downloaded_bytes: u64) -> bool {
        let has_moved = downloaded_bytes > self.downloaded_bytes;
        self.downloaded_bytes = self.downloaded_bytes.max(downloaded_bytes);
        has_moved
    }
}

impl Assignment {
    fn pull(&mut self) -> &mut Pull {
        self.pull.get_or_insert_default()
    }

    fn key(&self) -> canary::Key {
        (self.warm.namespace.to_string(), self.image.clone())
    }

    /// How soon Pods need the image.
    fn need(&self, uid: &str, needs: &Needs, now: i64) -> Need {
        let resolved = self.pull_context.resolved.as_deref();
        needs.of(uid, &self.warm.namespace, &self.image, resolved, now)
    }

    /// Whether something may have to be pulled: the image is not on the node, or its tag is to be
    /// checked.
    fn needs_pull(&self) -> bool {
        ready(&self.warm) != ConditionStatus::True
            || self.reported_absent
            || self.pull_context.check_for.is_some()
    }

    /// The request for a permit of its registry.
    fn permit(&self, uid: &Uid) -> registry::Pull {
        registry::Pull {
            uid: uid.clone(),
            node: self.warm.node_name.clone(),
            registry: self.image.domain().to_owned(),
            account: registry::Account {
                namespace: self.warm.namespace.to_string(),
                identities: self.account_mark,
            },
            priority: self.pull_context.priority,
        }
    }

    fn credential_request(&self, uid: &Uid, session: SessionId) -> CredentialRequest {
        CredentialRequest {
            uid: uid.clone(),
            session,
            namespace: self.warm.namespace.to_string(),
            identities: self.pull_context.identities.clone(),
            image: self.image.clone(),
        }
    }
}

#[derive(Debug)]
struct Node {
    assignments: BTreeSet<Uid>,
    session: Option<(SessionId, u64)>,
    runtime: NodeRuntime,
    /// When to say that it has no warmer, if it has no stream until then.
    missing_at: i64,
    /// Whether `WaitingForWarmer` may still have to be written for assignments of this node.
    absence_unreported: bool,
    grants: Grants,
}

/// Credentials that were granted to a node, in the current period.
#[derive(Debug, Default)]
struct Grants {
    since: i64,
    count: usize,
}

impl Grants {
    /// Counts one more; whether a node with so many assignments can use them all.
    fn add(&mut self, assignments: usize, now: i64) -> bool {
        if now - self.since >= GRANTS_PERIOD_MS {
            *self = Grants { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= GRANTS + GRANTS_PER_ASSIGNMENT * assignments
    }
}

/// The leader's index of assignments, nodes and streams.
#[derive(Debug)]
pub struct Index {
    assignments: HashMap<Uid, Assignment>,
    nodes: HashMap<NodeName, Node>,
    sessions: HashMap<SessionId, NodeName>,
    budgets: RegistryBudgets,
    canaries: Canaries,
    preemption: Preemption,
    needs: Needs,
    awaiting_credentials: AwaitingCredentials,
    outages: Outages,
    sizes: Sizes,
    waiting_after_ms: i64,
    /// When all warmers had the time to find this leader.
    settled_at: i64,
    effects: Vec<Effect>,
    ignored: u64,
    backoffs: u64,
    refused: u64,
    retries: u64,
    suspended: u64,
}

impl Index {
    /// The index of a replica that begins to lead: pulls stay within `budget`, and a node without a
    /// stream counts as one without a warmer after `waiting_after_ms`. A node that had no stream yet
    /// has at least four times as long, from now: warmers first have to find the new leader.
    pub fn new(budget: Budget, waiting_after_ms: i64, now: i64) -> Self {
        Index {
            assignments: HashMap::new(),
            nodes: HashMap::new(),
            sessions: HashMap::new(),
            budgets: RegistryBudgets::new(budget.registry),
            canaries: Canaries::new(budget.canary),
            preemption: Preemption::default(),
            needs: Needs::default(),
            awaiting_credentials: AwaitingCredentials::default(),
            outages: Outages::default(),
            sizes: Sizes::default(),
            waiting_after_ms,
            settled_at: now.saturating_add(waiting_after_ms.saturating_mul(4)),
            effects: Vec::new(),
            ignored: 0,
            backoffs: 0,
            refused: 0,
            retries: 0,
            suspended: 0,
        }
    }

    /// Effects since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Reports that were ignored since the last call.
    pub fn take_ignored(&mut self) -> u64 {
        std::mem::take(&mut self.ignored)
    }

    /// Number of assignments.
    pub fn assignments(&self) -> usize {
        self.assignments.len()
    }

    /// Number of assignments of one node.
    pub fn assignments_of(&self, node: &str) -> usize {
        self.nodes.get(node).map_or(0, |node| node.assignments.len())
    }

    /// Number of running pulls, and of pulls that wait for their registry or for a canary.
    pub fn pulls(&self) -> (usize, usize) {
        let (running, waiting) = self.budgets.counts();
        (running, waiting + self.canaries.waiting())
    }

    /// Whether [`Index::begin_waiting`] is to be called soon.
    pub fn has_waiting(&self) -> bool {
        self.pulls().1 > 0 || self.waiting_pods() > 0
    }

    /// The ImageWarm of an assignment.
    pub fn image_warm(&self, uid: &str) -> Option<&CachedImageWarm> {
        self.assignments.get(uid).map(|assignment| &*assignment.warm)
    }

    /// Uids of all assignments, for comparison with a new list.
    pub fn uids(&self) -> Vec<Uid> {
        self.assignments.keys().cloned().collect()
    }

    /// Applies an ImageWarm that was created or changed, or whose pull context changed.
    pub fn apply(
        &mut self,
        warm: Arc<CachedImageWarm>,
        pull_context: impl Into<Arc<PullContext>>,
        now: i64,
    ) {
        let pull_context = pull_context.into();
        let uid = warm.uid.clone();
        if uid.is_empty() {
            return;
        }
        if warm.is_terminating() {
            return self.delete(&uid, now);
        }
        let image = match Reference::parse(&warm.image) {
            Ok(image) => image,
            Err(error) => {
                let report = absent(Reason::InvalidImage, error.to_string());
                self.effects.push(Effect::Status(uid, warm, report));
                return;
            }
        };
        let mut old = self.assignments.remove(&uid);
        let pull = old.as_mut().and_then(|old| old.pull.take());
        let (image, known_size_bytes) = self.sizes.note(image, &warm, old.is_none());
        let urgent_retries = old.as_ref().map_or(0, |old| old.urgent_retries);
        let identity_mark = identity_mark(&warm, &pull_context).wrapping_add(urgent_retries);
        let account_mark = account_mark(&warm, &pull_context);
        self.awaiting_credentials.note(&uid, warm.reason(), now);
        if old.is_none() {
            self.outages.note(&uid, image.domain(), warm.reason(), now);
        }
        let key = (warm.namespace.to_string(), image.clone());
        self.follow_canary(old.as_ref(), key, identity_mark, &uid, now);
        let assignment = Assignment {
            warm,
            image,
            pull_context,
            identity_mark,
            account_mark,
            known_size_bytes,
            credential_set: old.as_ref().map_or(CredentialSet::Unknown, |old| old.credential_set),
            pull,
            urgent_retries,
            reported_absent: old.as_ref().is_some_and(|old| old.reported_absent),
        };
        let node = self.node(&assignment.warm.node_name, now);
        if node.assignments.insert(uid.clone()) {
            node.absence_unreported = true;
        }
        if let Some((session, _)) = node.session
            && old.as_ref().is_none_or(|old| needs_resend(old, &assignment))
        {
            let need = assignment.need(&uid, &self.needs, now);
            self.effects.push(Effect::Send(session, ToWarmer::Assign(assignment.assign(need))));
        }
        self.assignments.insert(uid, assignment);
    }

    /// Registers a new or changed assignment of the image `key` with its canary.
    fn follow_canary(
        &mut self,
        old: Option<&Assignment>,
        key: Key,
        identity_mark: u64,
        uid: &Uid,
        now: i64,
    ) {
        match old {
            Some(old) if old.key() == key => {
                if old.identity_mark != identity_mark {
                    self.canaries.forget(&key);
                }
            }
            // The image of an ImageWarm is immutable, but nothing here relies on it.
            Some(old) => {
                let released = self.canaries.withdrawn(&old.key(), uid);
                self.release(released, now);
                self.canaries.assigned(key);
            }
            None => self.canaries.assigned(key),
        }
    }

    /// Removes an ImageWarm that was deleted or is terminating.
    pub fn delete(&mut self, uid: &str, now: i64) {
        let Some((uid, assignment)) = self.assignments.remove_entry(uid) else { return };
        let uid = &uid;
        self.preemption.ended(uid, now);
        self.needs.forget(uid);
        self.awaiting_credentials.forget(uid);
        self.outages.forget(uid);
        self.sizes.forget(&assignment.image);
        let released = self.canaries.withdrawn(&assignment.key(), uid);
        self.release(released, now);
        self.end_pull(uid, now);
        let name = &assignment.warm.node_name;
        if let Some(node) = self.nodes.get_mut(name) {
            node.assignments.remove(uid);
            if let Some((session, _)) = node.session {
                let withdraw = ToWarmer::Withdraw(Withdraw { uid: uid.to_string() });
                self.effects.push(Effect::Send(session, withdraw));
            } else if node.assignments.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Handles the result of a [`CredentialRequest`].
    pub fn resolved(
        &mut self,
        job: &CredentialRequest,
        found: Result<Vec<Credential>, Refusal>,
        now: i64,
    ) {
        // Without a Secret the node still pulls: the image may be public.
        let refused = found.as_ref().is_err_and(|no| no.reason != Reason::SecretMissing);
        if let Some(assignment) = self.assignments.get_mut(&job.uid) {
            assignment.credential_set = self.awaiting_credentials.credential_set(&found);
            if let Some(pull) = &mut assignment.pull {
                pull.resolving_for.take_if(|session| *session == job.session);
            }
        }
        if self.assignments.contains_key(&job.uid)
            && self.sessions.contains_key(&job.session)
            && self.budgets.is_in_flight(&job.uid)
        {
            if found.as_ref().is_ok_and(|credentials| !credentials.is_empty())
                && !self.may_be_granted(job, now)
            {
                return self.effects.push(Effect::Close(job.session, StreamEnd::Excessive));
            }
            let grant = grant(&job.uid, found);
            self.effects.push(Effect::Send(job.session, ToWarmer::PullGrant(grant)));
            if refused {
                self.end_pull(&job.uid, now);
            }
        }
    }

    /// Counts credentials that are granted to a node.
    fn may_be_granted(&mut self, job: &CredentialRequest, now: i64) -> bool {
        let node = self.sessions.get(&job.session).and_then(|name| self.nodes.get_mut(name));
        node.is_none_or(|node| node.grants.add(node.assignments.len(), now))
    }

    /// Handles timeouts. Call about once a second.
    pub fn tick(&mut self, now: i64) {
        self.needs.tick(now);
        let mut ended = Vec::new();
        for node in self.nodes.values_mut() {
            if !node.absence_unreported || node.session.is_some() || now < node.missing_at {
                continue;
            }
            node.absence_unreported = false;
            for uid in &node.assignments {
                let Some(assignment) = self.assignments.get(uid) else { continue };
                if ready(&assignment.warm) == ConditionStatus::Unknown {
                    let report = Report::WaitingForWarmer;
                    self.effects.push(Effect::Status(uid.clone(), assignment.warm.clone(), report));
                }
                if self.budgets.is_in_flight(uid) {
                    ended.push(uid.clone());
                }
            }
        }
        for uid in ended {
            self.end_pull(&uid, now);
        }
        self.begin_waiting(now);
        self.recheck_credentials(now);
        self.probe_registries(now);
    }

    fn node(&mut self, name: &NodeName, now: i64) -> &mut Node {
        let missing_at = now.saturating_add(self.waiting_after_ms).max(self.settled_at);
        self.nodes.entry(name.clone()).or_insert_with(|| Node {
            assignments: BTreeSet::new(),
            session: None,
            runtime: NodeRuntime::default(),
            missing_at,
            absence_unreported: true,
            grants: Grants::default(),
        })
    }

    /// The pull has a permit: resolve its credentials.
    fn start(&mut self, uid: &Uid, session: SessionId, now: i64) {
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        let pull = assignment.pull();
        (pull.running_since, pull.resolving_for) = (Some(now), Some(session));
        let job = assignment.credential_request(uid, session);
        self.effects.push(Effect::Resolve(job));
    }

    /// The pull ended or was not started: its permit passes to the next waiting pull.
    fn end_pull(&mut self, uid: &Uid, now: i64) {
        if let Some(assignment) = self.assignments.get_mut(uid) {
            assignment.pull = None;
            let released = self.canaries.ended(&assignment.key(), uid);
            self.release(released, now);
        }
        for next in self.budgets.end(uid, now) {
            self.start_next(&next, now);
        }
    }
}

fn absent(reason: Reason, message: String) -> Report {
    Report::Outcome(Outcome {
        present: false,
        reason,
        message,
        digest: None,
        size_bytes: None,
        attempt: 0,
        started_at: None,
        finished_at: None,
        checked_for: None,
        unchecked: None,
        runtime: NodeRuntime::default(),
    })
}

#[cfg(test)]
mod tests;
