//! Admits pulls: canaries first, then the limits of the registries.

use super::*;
use crate::image::retry_after_ms;
use crate::throttle::canary::{Key, Released, Verdict};

impl Index {
    /// Requests a permit of the registry for a pull that waits for no canary.
    pub(super) fn admit(&mut self, uid: &Uid, now: i64) {
        let Some(assignment) = self.assignments.get(uid) else { return };
        if self.budgets.request(assignment.permit(uid), now) {
            self.start_next(uid, now);
        }
    }

    /// Starts a pull that has a permit, if its node is still connected.
    pub(super) fn start_next(&mut self, uid: &Uid, now: i64) {
        let Some(assignment) = self.assignments.get(uid) else { return };
        let is_probe = self.preemption.is_probing(assignment.image.domain());
        let node = self.nodes.get(&*assignment.warm.node_name);
        if let Some((session, _)) = node.and_then(|node| node.session) {
            self.start(uid, session, now);
            if is_probe {
                self.follow_progress(uid, session);
            }
        }
    }

    /// Admits or refuses the pulls whose canary has ended.
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

    /// A pull was authorized: the others no longer wait for a canary of this image.
    pub(super) fn release_all(&mut self, key: &Key, now: i64) {
        for uid in self.canaries.opened(key, now) {
            self.admit(&uid, now);
        }
    }

    /// Applies the outcome of a pull to its registry, and to the pulls that wait for it.
    pub(super) fn record_outcome(
        &mut self,
        uid: &Uid,
        key: &Key,
        present: bool,
        (reason, message): (Reason, &str),
        now: i64,
    ) {
        if present {
            self.budgets.served(uid);
            self.release_all(key, now);
            return;
        }
        if reason == Reason::RateLimited {
            let retry_after = retry_after_ms(message, &key.1).map(|ms| ms as i64);
            self.backoffs += u64::from(self.budgets.back_off(uid, retry_after, now));
        }
        let node = self.assignments.get(uid).map(|assignment| assignment.warm.node_name.clone());
        let released = match (reason, node) {
            // A provider that fails is the fault of one node.
            (Reason::CredentialProviderFailed, _) => self.canaries.ended(key, uid),
            (reason, Some(node)) if reason.is_refusal() => {
                let verdict = Verdict { node, uid: uid.clone(), reason, message: message.into() };
                self.canaries.failed(key, verdict, now)
            }
            _ => self.canaries.ended(key, uid),
        };
        self.release(released, now);
    }

    /// Starts waiting pulls that have become due, and suspends what takes from Pods that wait.
    pub fn begin_waiting(&mut self, now: i64) {
        self.preempt(now);
        for uid in self.canaries.tick(now) {
            self.admit(&uid, now);
        }
        for uid in self.budgets.tick(now) {
            self.start_next(&uid, now);
        }
    }

    /// Refuses a pull with the failure of the canary.
    pub(super) fn refuse(&mut self, uid: &Uid, verdict: &Verdict) {
        let canary = self.assignments.get(&verdict.uid);
        let credential_set = canary.map_or(CredentialSet::Unknown, |canary| canary.credential_set);
        let Some(assignment) = self.assignments.get_mut(uid) else { return };
        // A change of the credentials that helps the canary then also helps this assignment.
        assignment.credential_set = credential_set;
        let session = self.nodes.get(&*assignment.warm.node_name).and_then(|node| node.session);
        let Some((session, _)) = session else { return };
        self.refused += 1;
        let (node, message) = (&verdict.node, &verdict.message);
        let message = format!("not tried, since {node} and another node just failed: {message}");
        let refusal = Refusal { reason: verdict.reason, message };
        self.effects.push(Effect::Send(session, ToWarmer::PullGrant(grant(uid, Err(refusal)))));
    }

    /// Since the last call: back-offs of registries, and pulls refused because of a canary.
    pub fn take_savings(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.backoffs), std::mem::take(&mut self.refused))
    }

    /// Since the last call: failed pulls that were tried again for their registry's sake.
    pub fn take_retries(&mut self) -> u64 {
        std::mem::take(&mut self.retries)
    }
}
