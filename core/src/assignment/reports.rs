//! What warmers send: pull requests, progress and outcomes.

use super::*;
use crate::throttle::canary::{Answer, Candidate};

/// For a pull of an image that is Ready. An honest warmer reports first that the image is gone.
const READY: &str = "the image was reported as present: no credentials are granted for it";

impl Index {
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
        let Some(uid) = self.assigned(uid, session) else { return };
        match message {
            FromWarmer::PullRequest(_) => self.pull_requested(&uid, session, now),
            FromWarmer::Progress(progress) => self.progress_reported(&uid, progress, now),
            FromWarmer::Outcome(outcome) => self.outcome_reported(&uid, outcome, now),
            FromWarmer::Hello(_) => {}
        }
    }

    /// The uid of the assignment, if that belongs to the stream's node. Counts what is ignored.
    fn assigned(&mut self, uid: &str, session: SessionId) -> Option<Uid> {
        let node = self.sessions.get(&session);
        let assignment = self.assignments.get_key_value(uid);
        if let Some((uid, Assignment { warm, .. })) = assignment
            && node == Some(&warm.node_name)
        {
            return Some(uid.clone());
        }
        self.ignored += 1;
        // Only the assignment's own node receives its uid: the sender is not an honest warmer.
        if node.is_some() && assignment.is_some() {
            self.effects.push(Effect::Close(session, StreamEnd::Misbehaved));
        }
        None
    }

    fn pull_requested(&mut self, uid: &Uid, session: SessionId, now: i64) {
        let Some(assignment) = self.assignments.get(uid) else { return };
        if assignment.pull.as_ref().is_some_and(|pull| pull.resolving_for == Some(session)) {
            return;
        }
        let node = &assignment.warm.node_name;
        let runtime = self.nodes.get(node).map(|node| &node.runtime);
        let candidate = Candidate {
            uid: uid.clone(),
            node: node.clone(),
            reports_progress: runtime.is_some_and(NodeRuntime::reports_progress),
        };
        let outstanding = self.budgets.outstanding(node);
        if outstanding >= OUTSTANDING_MAX && !self.budgets.is_outstanding(uid) {
            self.effects.push(Effect::Close(session, StreamEnd::Excessive));
            return;
        }
        if !assignment.needs_pull() {
            let refusal = Refusal { reason: Reason::Removed, message: READY.to_owned() };
            let grant = grant(uid, Err(refusal));
            self.effects.push(Effect::Send(session, ToWarmer::PullGrant(grant)));
            return;
        }
        if self.preemption.is_waited_for(uid) {
            return self.admit(uid, now);
        }
        match self.canaries.request(&assignment.key(), candidate, now) {
            Answer::Go => self.admit(uid, now),
            Answer::Wait => {}
            Answer::Refused(verdict) => self.refuse(uid, &verdict),
        }
    }

    fn progress_reported(&mut self, uid: &Uid, progress: &protocol::Progress, now: i64) {
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        if !progress.queued {
            let (downloaded, total) = (progress.downloaded_bytes, progress.total_bytes);
            if self.preemption.is_waited_for(uid) {
                self.preemption.progress(uid, downloaded, total, now);
            } else if downloaded > 0 {
                let registry = assignment.image.domain();
                self.preemption.other_progress(registry, uid, downloaded, now);
            }
        }
        let pull_moved = assignment.pull().moved(progress.downloaded_bytes);
        if is_due(assignment, progress, now) {
            let report = Report::from(progress);
            self.effects.push(Effect::Status(uid.clone(), assignment.warm.clone(), report));
        }
        // A registry that sends bytes has authorized the pull.
        if progress.downloaded_bytes > 0 && self.budgets.is_in_flight(uid) {
            let key = assignment.key();
            if pull_moved {
                self.budgets.progress(uid, now);
                self.registry_answered(key.1.domain(), now);
            }
            self.release_all(&key, now);
        }
    }

    fn outcome_reported(&mut self, uid: &Uid, reported: &protocol::Outcome, now: i64) {
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        assignment.reported_absent = !reported.present;
        let mut outcome = Outcome::from(reported);
        let requested = assignment.pull_context.check_for.as_ref();
        outcome.checked_for = outcome.checked_for.filter(|token| Some(token) == requested);
        let node = self.nodes.get(&*assignment.warm.node_name);
        outcome.runtime = node.map(|node| node.runtime.clone()).unwrap_or_default();
        let (key, reason, present) = (assignment.key(), outcome.reason, outcome.present);
        let (message, unchecked) = (outcome.message.clone(), outcome.unchecked);
        let report = Report::Outcome(outcome);
        self.effects.push(Effect::Status(uid.clone(), assignment.warm.clone(), report));
        // What the registry did, which an image that is on the node anyway does not show.
        let (served, reason) = (present && unchecked.is_none(), unchecked.unwrap_or(reason));
        self.outages.note(uid, key.1.domain(), Some(reason), now);
        if present || self.budgets.is_in_flight(uid) {
            self.preemption.ended(uid, now);
        }
        if self.budgets.is_in_flight(uid) {
            self.record_outcome(uid, &key, served, (reason, &message), now);
            if served || shows_an_answer(reason) {
                self.registry_answered(key.1.domain(), now);
            }
        }
        self.end_pull(uid, now);
    }
}

/// Whether a pull can only fail for this reason when its registry answers.
fn shows_an_answer(reason: Reason) -> bool {
    reason.is_refusal() || reason == Reason::PlatformMismatch
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
