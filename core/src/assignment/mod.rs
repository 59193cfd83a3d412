//! The leader's index of assignments, connected warmers and running pulls. Takes events and returns
//! [`Effect`]s; synchronous, without I/O and without a clock (`now` is monotonic, in milliseconds).

mod awaiting_credentials;
mod budget;
mod messages;
mod sizes;
mod stream_end;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::api::{CachedImageWarm, ConditionStatus, Reason};
use crate::demand::PullIdentity;
use crate::demand::pull_context::PullContext;
use crate::image::{Credential, Reference};
use crate::protocol::from_controller::Message as ToWarmer;
use crate::protocol::from_warmer::Message as FromWarmer;
use crate::protocol::{self, Hello, PROTOCOL_VERSION, Synced, Welcome, Withdraw};
use crate::report::status::{
    NodeRuntime, Outcome, PROGRESS_EVERY_MS, QUEUED_QUIET_MS, QUIET_MS, Report,
};
use crate::throttle::canary::{self, Answer, Canaries, Released};
use crate::throttle::registry::{Limits, RegistryBudgets};
pub use stream_end::StreamEnd;

use awaiting_credentials::{AwaitingCredentials, CredentialSet};
use messages::{grant, identity_mark, needs_resend, ready};
use sizes::Sizes;

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
    /// Resolve them again for these assignments, and call [`Index::looked_again`].
    LookAgain(CredentialRequest, Vec<String>),
    /// Write the report to the ImageWarm's status.
    Status(String, Arc<CachedImageWarm>, Report),
}

/// A request to resolve the credentials of one pull.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialRequest {
    /// Uid of the assignment.
    pub uid: String,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Limits for each registry.
    pub registry: Limits,
    /// The first node pulls an image before the others do.
    pub canary: canary::Settings,
}

impl Budget {
    /// At most this many concurrent pulls for each registry, and no other limit.
    pub fn of_pulls(pulls: usize) -> Self {
        Budget {
            registry: Limits { pulls, per_second: 0 },
            canary: canary::Settings { nodes: 0, patience_ms: 0 },
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
    known_size_bytes: u64,
    /// The credentials of the last pull, and how often they have changed since.
    credential_set: CredentialSet,
    credential_changes: u64,
    /// Set while a pull waits or runs: most assignments are settled.
    pull: Option<Box<Pull>>,
}

/// A pull that waits or runs. Times are from the leader's clock, not the node's.
#[derive(Debug, Default)]
struct Pull {
    queued_since: Option<i64>,
    running_since: Option<i64>,
    progress_written: Option<i64>,
    /// The stream that waits for credentials. Repeated requests resolve them only once.
    resolving_for: Option<SessionId>,
}

impl Assignment {
    fn pull(&mut self) -> &mut Pull {
        self.pull.get_or_insert_default()
    }

    fn key(&self) -> canary::Key {
        (self.warm.namespace.to_string(), self.image.clone())
    }

    fn credential_request(&self, uid: &str, session: SessionId) -> CredentialRequest {
        CredentialRequest {
            uid: uid.to_owned(),
            session,
            namespace: self.warm.namespace.to_string(),
            identities: self.pull_context.identities.clone(),
            image: self.image.clone(),
        }
    }
}

#[derive(Debug)]
struct Node {
    assignments: BTreeSet<Arc<str>>,
    session: Option<(SessionId, u64)>,
    runtime: NodeRuntime,
    absent_since: i64,
    /// Whether `WaitingForWarmer` may still have to be written for assignments of this node.
    absence_unreported: bool,
}

/// The leader's index of assignments, nodes and streams.
#[derive(Debug)]
pub struct Index {
    assignments: HashMap<Arc<str>, Assignment>,
    nodes: HashMap<String, Node>,
    sessions: HashMap<SessionId, String>,
    budgets: RegistryBudgets,
    canaries: Canaries,
    awaiting_credentials: AwaitingCredentials,
    sizes: Sizes,
    grace_ms: i64,
    effects: Vec<Effect>,
    ignored: u64,
    backoffs: u64,
    refused: u64,
}

impl Index {
    /// An empty index: pulls stay within `budget`, and a node without a stream counts as one
    /// without a warmer after `grace_ms`.
    pub fn new(budget: Budget, grace_ms: i64) -> Self {
        Index {
            assignments: HashMap::new(),
            nodes: HashMap::new(),
            sessions: HashMap::new(),
            budgets: RegistryBudgets::new(budget.registry),
            canaries: Canaries::new(budget.canary),
            awaiting_credentials: AwaitingCredentials::default(),
            sizes: Sizes::default(),
            grace_ms,
            effects: Vec::new(),
            ignored: 0,
            backoffs: 0,
            refused: 0,
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

    /// Nodes with an open stream.
    pub fn connected(&self) -> BTreeSet<String> {
        self.sessions.values().cloned().collect()
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

    /// Uids of all assignments, for comparison with a new list.
    pub fn uids(&self) -> Vec<Arc<str>> {
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
                self.effects.push(Effect::Status(uid.to_string(), warm, report));
                return;
            }
        };
        let mut old = self.assignments.remove(&uid);
        let pull = old.as_mut().and_then(|old| old.pull.take());
        let (image, known_size_bytes) = self.sizes.note(image, &warm, old.is_none());
        let credential_changes = old.as_ref().map_or(0, |old| old.credential_changes);
        let identity_mark = identity_mark(&warm, &pull_context).wrapping_add(credential_changes);
        self.awaiting_credentials.note(&uid, warm.reason(), now);
        let key = (warm.namespace.to_string(), image.clone());
        match &old {
            Some(old) if old.image == image => {
                if old.identity_mark != identity_mark {
                    self.canaries.forget(&key);
                }
            }
            // The image of an ImageWarm is immutable, but nothing here relies on it.
            Some(old) => {
                let released = self.canaries.withdrawn(&old.key(), &uid, now);
                self.release(released, now);
                self.canaries.assigned(key);
            }
            None => self.canaries.assigned(key),
        }
        let assignment = Assignment {
            warm,
            image,
            pull_context,
            identity_mark,
            known_size_bytes,
            credential_set: old.as_ref().map_or(CredentialSet::Unknown, |old| old.credential_set),
            pull,
            credential_changes,
        };
        let node = self.node(&assignment.warm.node_name, now);
        if node.assignments.insert(uid.clone()) {
            node.absence_unreported = true;
        }
        if let Some((session, _)) = node.session
            && old.as_ref().is_none_or(|old| needs_resend(old, &assignment))
        {
            self.effects.push(Effect::Send(session, ToWarmer::Assign(assignment.assign())));
        }
        self.assignments.insert(uid, assignment);
    }

    /// Removes an ImageWarm that was deleted or is terminating.
    pub fn delete(&mut self, uid: &str, now: i64) {
        let Some(assignment) = self.assignments.remove(uid) else { return };
        self.awaiting_credentials.forget(uid);
        self.sizes.forget(&assignment.image);
        let released = self.canaries.withdrawn(&assignment.key(), uid, now);
        self.release(released, now);
        self.end_pull(uid, now);
        let name = &*assignment.warm.node_name;
        if let Some(node) = self.nodes.get_mut(name) {
            node.assignments.remove(uid);
            if let Some((session, _)) = node.session {
                let withdraw = ToWarmer::Withdraw(Withdraw { uid: uid.to_owned() });
                self.effects.push(Effect::Send(session, withdraw));
            } else if node.assignments.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Registers the stream of the warmer on node `name`, after its `Hello`.
    pub fn open(&mut self, session: SessionId, name: &str, hello: &Hello, now: i64) {
        let node = self.node(name, now);
        if let Some((older, epoch)) = node.session {
            if epoch > hello.epoch {
                self.effects.push(Effect::Close(session, StreamEnd::Replaced));
                return;
            }
            self.sessions.remove(&older);
            self.effects.push(Effect::Close(older, StreamEnd::Replaced));
        }
        let node = self.node(name, now);
        node.session = Some((session, hello.epoch));
        node.runtime = NodeRuntime::from(hello);
        let uids: Vec<Arc<str>> = node.assignments.iter().cloned().collect();
        self.sessions.insert(session, name.to_owned());
        let welcome = Welcome {
            protocol_version: PROTOCOL_VERSION,
            controller_version: env!("CARGO_PKG_VERSION").into(),
            node_name: name.into(),
            ..Welcome::default()
        };
        self.effects.push(Effect::Send(session, ToWarmer::Welcome(welcome)));
        let pulling: HashSet<&str> = hello.pulling.iter().map(String::as_str).collect();
        for uid in &uids {
            if pulling.contains(&**uid) {
                if let Some(assignment) = self.assignments.get_mut(uid) {
                    assignment.pull().running_since.get_or_insert(now);
                    self.budgets.hold(uid, assignment.image.domain());
                    let key = assignment.key();
                    self.release_all(&key, now);
                }
            } else {
                self.end_pull(uid, now);
            }
        }
        for uid in uids {
            if let Some(assignment) = self.assignments.get(&uid) {
                let assign = ToWarmer::Assign(assignment.assign());
                self.effects.push(Effect::Send(session, assign));
            }
        }
        self.effects.push(Effect::Send(session, ToWarmer::Synced(Synced {})));
    }

    /// Removes a closed stream. What the node holds or pulls does not change.
    pub fn close(&mut self, session: SessionId, now: i64) {
        let Some(name) = self.sessions.remove(&session) else { return };
        let Some(node) = self.nodes.get_mut(&name) else { return };
        if node.session.is_none_or(|(current, _)| current != session) {
            return;
        }
        (node.session, node.absent_since, node.absence_unreported) = (None, now, true);
        let uids: Vec<Arc<str>> = node.assignments.iter().cloned().collect();
        if uids.is_empty() {
            self.nodes.remove(&name);
        }
        // Running pulls keep their permits until the warmer reconnects or its grace period ends.
        for uid in uids {
            if self.budgets.is_waiting(&uid) || self.canaries.is_waiting(&uid) {
                self.end_pull(&uid, now);
            }
        }
    }

    /// Handles a message of a warmer. Messages about assignments of other nodes are ignored.
    pub fn message(&mut self, session: SessionId, message: &FromWarmer, now: i64) {
        let uid = match message {
            FromWarmer::Hello(_) => {
                self.ignored += 1;
                return;
            }
            FromWarmer::Progress(progress) => &progress.uid,
            FromWarmer::Outcome(outcome) => &outcome.uid,
            FromWarmer::PullRequest(request) => &request.uid,
        };
        let node = self.sessions.get(&session).map(String::as_str);
        let Some(assignment) = self
            .assignments
            .get_mut(uid.as_str())
            .filter(|assignment| node.is_some_and(|node| node == &*assignment.warm.node_name))
        else {
            self.ignored += 1;
            // Only the assignment's own node receives its uid: the sender is not an honest warmer.
            if node.is_some() && self.assignments.contains_key(uid.as_str()) {
                self.effects.push(Effect::Close(session, StreamEnd::Misbehaved));
            }
            return;
        };
        match message {
            FromWarmer::PullRequest(_) => {
                if assignment.pull.as_ref().is_some_and(|pull| pull.resolving_for == Some(session))
                {
                    return;
                }
                let key = assignment.key();
                match self.canaries.request(&key, uid, now) {
                    Answer::Go => self.admit(uid, now),
                    Answer::Wait => {}
                    Answer::Refused(verdict) => self.refuse(uid, &verdict),
                }
            }
            FromWarmer::Progress(progress) => {
                if is_due(assignment, progress, now) {
                    let report = Report::from(progress);
                    self.effects.push(Effect::Status(uid.clone(), assignment.warm.clone(), report));
                }
                // A registry that sends bytes has authorized the pull.
                if progress.downloaded_bytes > 0 && self.budgets.is_in_flight(uid) {
                    let key = assignment.key();
                    self.release_all(&key, now);
                }
            }
            FromWarmer::Outcome(reported) => {
                let mut outcome = Outcome::from(reported);
                let requested = assignment.pull_context.check_for.as_ref();
                outcome.checked_for = outcome.checked_for.filter(|token| Some(token) == requested);
                let node = self.nodes.get(&*assignment.warm.node_name);
                outcome.runtime = node.map(|node| node.runtime.clone()).unwrap_or_default();
                let (key, reason, present) = (assignment.key(), outcome.reason, outcome.present);
                let message = outcome.message.clone();
                let report = Report::Outcome(outcome);
                self.effects.push(Effect::Status(uid.clone(), assignment.warm.clone(), report));
                let uid = uid.clone();
                if self.budgets.is_in_flight(&uid) {
                    self.record_outcome(&uid, &key, present, (reason, &message), now);
                }
                self.end_pull(&uid, now);
            }
            FromWarmer::Hello(_) => {}
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
        if let Some(assignment) = self.assignments.get_mut(job.uid.as_str()) {
            assignment.credential_set = self.awaiting_credentials.credential_set(&found);
            if let Some(pull) = &mut assignment.pull {
                pull.resolving_for.take_if(|session| *session == job.session);
            }
        }
        if self.assignments.contains_key(job.uid.as_str())
            && self.sessions.contains_key(&job.session)
            && self.budgets.is_in_flight(&job.uid)
        {
            let grant = grant(&job.uid, found);
            self.effects.push(Effect::Send(job.session, ToWarmer::PullGrant(grant)));
            if refused {
                self.end_pull(&job.uid, now);
            }
        }
    }

    /// The node of an open stream.
    pub fn node_of(&self, session: SessionId) -> Option<&str> {
        self.sessions.get(&session).map(String::as_str)
    }

    /// Handles timeouts. Call about once a second.
    pub fn tick(&mut self, now: i64) {
        let mut ended = Vec::new();
        for node in self.nodes.values_mut() {
            if !node.absence_unreported
                || node.session.is_some()
                || now - node.absent_since < self.grace_ms
            {
                continue;
            }
            node.absence_unreported = false;
            for uid in &node.assignments {
                let Some(assignment) = self.assignments.get(uid) else { continue };
                if ready(&assignment.warm) == ConditionStatus::Unknown {
                    let report = Report::WaitingForWarmer;
                    self.effects.push(Effect::Status(
                        uid.to_string(),
                        assignment.warm.clone(),
                        report,
                    ));
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
    }

    fn node(&mut self, name: &str, now: i64) -> &mut Node {
        self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            assignments: BTreeSet::new(),
            session: None,
            runtime: NodeRuntime::default(),
            absent_since: now,
            absence_unreported: true,
        })
    }

    /// The pull has a permit: resolve its credentials.
    fn start(&mut self, uid: &str, session: SessionId, now: i64) {
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        let pull = assignment.pull();
        (pull.running_since, pull.resolving_for) = (Some(now), Some(session));
        let job = assignment.credential_request(uid, session);
        self.effects.push(Effect::Resolve(job));
    }

    /// The pull ended or was not started: its permit passes to the next waiting pull.
    fn end_pull(&mut self, uid: &str, now: i64) {
        if let Some(assignment) = self.assignments.get_mut(uid) {
            assignment.pull = None;
            let released = self.canaries.ended(&assignment.key(), uid, None, now);
            self.release(released, now);
        }
        for next in self.budgets.end(uid, now) {
            self.start_next(&next, now);
        }
    }
}

/// Whether this progress is to be written to the status.
fn is_due(assignment: &mut Assignment, progress: &protocol::Progress, now: i64) -> bool {
    let is_recorded = progress.queued && assignment.warm.reason() == Some(Reason::Queued);
    let pull = assignment.pull();
    let (since, quiet) = match progress.queued {
        true => (&mut pull.queued_since, QUEUED_QUIET_MS),
        false => (&mut pull.running_since, QUIET_MS),
    };
    let since = *since.get_or_insert(now);
    if is_recorded {
        return false;
    }
    let due = now - since >= quiet
        && pull.progress_written.is_none_or(|last| now - last >= PROGRESS_EVERY_MS);
    if due {
        pull.progress_written = Some(now);
    }
    due
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
        runtime: NodeRuntime::default(),
    })
}

#[cfg(test)]
mod tests;
