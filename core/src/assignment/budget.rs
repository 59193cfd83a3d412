//! Who may pull now: canaries first, then the registries' limits.

use super::*;
use crate::image::retry_after_ms;
use crate::throttle::canary::{Key, Verdict};

impl Index {
    /// No canary is in the way: pull as soon as the registry has a place.
    pub(super) fn admit(&mut self, uid: &str, now: i64) {
        let Some(assignment) = self.assignments.get(uid) else { return };
        let (domain, priority) = (assignment.image.domain(), assignment.pull_context.priority);
        if self.budgets.request(uid, domain, priority, now) {
            self.start_next(uid, now);
        }
    }

    /// It has a place: start, if its node is still there.
    pub(super) fn start_next(&mut self, uid: &str, now: i64) {
        let node = self.assignments.get(uid).map(|assignment| &*assignment.warm.node_name);
        let session = node.and_then(|node| self.nodes.get(node)?.session);
        if let Some((session, _)) = session {
            self.start(uid, session, now);
        }
    }

    /// Those whose canary has told, or is no more.
    pub(super) fn release(&mut self, released: Released, now: i64) {
        for uid in released.go {
            self.admit(&uid, now);
        }
        if let Some((uids, verdict)) = released.refused {
            for uid in uids {
                self.refuse(&uid, &verdict);
            }
        }
    }

    /// Somebody was let in: nobody waits for a canary of this image.
    pub(super) fn open_for_all(&mut self, key: &Key, now: i64) {
        for uid in self.canaries.opened(key, now) {
            self.admit(&uid, now);
        }
    }

    /// What a pull's end says about the others.
    pub(super) fn learn(
        &mut self,
        uid: &str,
        key: &Key,
        present: bool,
        (reason, message): (Reason, &str),
        now: i64,
    ) {
        let registry = key.1.domain();
        if present {
            self.budgets.served(registry);
            self.open_for_all(key, now);
            return;
        }
        if reason == Reason::RateLimited {
            let asked_for = retry_after_ms(message).map(|asked| asked as i64);
            let node =
                self.assignments.get(uid).map_or("", |assignment| &*assignment.warm.node_name);
            self.backoffs += u64::from(self.budgets.slow_down(registry, node, asked_for, now));
        }
        let released = self.canaries.ended(key, uid, Some((reason, message)), now);
        self.release(released, now);
    }

    /// Starts what waited, once it may.
    pub fn begin_waiting(&mut self, now: i64) {
        for uid in self.canaries.tick(now) {
            self.admit(&uid, now);
        }
        for uid in self.budgets.tick(now) {
            self.start_next(&uid, now);
        }
    }

    /// Tells a node what its pull would end with.
    pub(super) fn refuse(&mut self, uid: &str, verdict: &Verdict) {
        let canary = self.assignments.get(verdict.uid.as_str());
        let (node, credential_set) = match canary {
            Some(canary) => (canary.warm.node_name.to_string(), canary.credential_set),
            None => ("another node".to_owned(), CredentialSet::Unknown),
        };
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        // So that what mends the canary mends this one too.
        assignment.credential_set = credential_set;
        let session = self.nodes.get(&*assignment.warm.node_name).and_then(|node| node.session);
        let Some((session, _)) = session else { return };
        self.refused += 1;
        let message = format!("not tried, since {node} has just failed: {}", verdict.message);
        let refusal = Refusal { reason: verdict.reason, message };
        self.effects.push(Effect::Send(session, ToWarmer::PullGrant(grant(uid, Err(refusal)))));
    }

    /// Since the last call: how often a registry had had enough, and pulls that a canary saved.
    pub fn take_savings(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.backoffs), std::mem::take(&mut self.refused))
    }
}
