//! Lets a Pod's node pull at once, and suspends pulls that take the registry's bandwidth from it.

use super::*;
use crate::protocol::{ReportProgress, SuspendPull};
use crate::report::pod_image::PodImage;
use crate::throttle::preemption::WaitingPod;

/// How often the node of a Pod that waits reports the bytes of its image, and others beside it.
const PROGRESS_INTERVAL_MS: u32 = 250;

impl Index {
    /// A kubelet has begun to pull an image that its node is to hold.
    pub fn pod_waits(&mut self, image: &PodImage, now: i64) {
        let Some(uid) = self.assignment_of(image) else { return };
        let Some(assignment) = self.assignments.get(&uid) else { return };
        // With imagePullPolicy Always a kubelet says it of every container.
        if ready(&assignment.warm) == ConditionStatus::True && !assignment.reported_absent {
            return;
        }
        if self.needs.waits(&uid, now) {
            self.assign_again(&uid, now);
        }
        let Some(assignment) = self.assignments.get(&uid) else { return };
        let pod = WaitingPod {
            uid: uid.clone(),
            node: image.node.clone(),
            registry: assignment.image.domain().to_owned(),
            namespace: image.namespace.clone(),
        };
        if !self.preemption.pod_waits(pod, now) {
            return;
        }
        let session = self.nodes.get(&image.node).and_then(|node| node.session);
        if let Some((session, _)) = session {
            self.follow_progress(&uid, session);
        }
        if self.canaries.is_waiting(&uid)
            && let Some(key) = self.assignments.get(&uid).map(Assignment::key)
        {
            let released = self.canaries.ended(&key, &uid);
            self.release(released, now);
            self.admit(&uid, now);
        }
        self.begin_waiting(now);
    }

    /// A container starts, its image is on the node.
    pub fn pod_started(&mut self, image: &PodImage, now: i64) {
        if let Some(uid) = self.assignment_of(image) {
            self.preemption.ended(&uid, now);
            self.needs.forget(&uid);
            self.needs.started(image, now);
        }
    }

    /// A Pod that needs these images fits no node: they come first on those that do not hold them.
    pub fn pod_pending(&mut self, namespace: &str, images: &[Reference], now: i64) {
        let mut is_new = false;
        for image in images {
            is_new |= self.needs.pending(namespace, image, now);
        }
        if !is_new {
            return;
        }
        let is_of = |one: &&Assignment| *one.warm.namespace == *namespace && one.needs_pull();
        let unsettled = self.assignments.iter().filter(|(_, one)| is_of(one));
        let waited_for = unsettled.filter(|(uid, one)| one.need(uid, &self.needs, now).pod_waits);
        let uids: Vec<Uid> = waited_for.map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.assign_again(uid, now));
    }

    /// Number of images that Pods wait for that fit no node.
    pub fn pending_images(&self) -> usize {
        self.needs.pending_images()
    }

    /// Sends an assignment to its node once more, with what has changed of the need for it.
    fn assign_again(&mut self, uid: &Uid, now: i64) {
        let node = self.assignments.get(uid).map(|one| &one.warm.node_name);
        let session = node.and_then(|node| self.nodes.get(node)?.session);
        if let Some((session, _)) = session
            && let Some(assign) = self.assign(uid, now)
        {
            self.effects.push(Effect::Send(session, ToWarmer::Assign(assign)));
        }
    }

    /// The message that assigns an image to its node.
    pub(super) fn assign(&self, uid: &Uid, now: i64) -> Option<Assign> {
        let assignment = self.assignments.get(uid)?;
        Some(assignment.assign(assignment.need(uid, &self.needs, now)))
    }

    /// Number of Pods that wait for an image that is being warmed.
    pub fn waiting_pods(&self) -> usize {
        self.preemption.pods()
    }

    /// Since the last call: pulls that were suspended because a Pod waits.
    pub fn take_suspended(&mut self) -> u64 {
        std::mem::take(&mut self.suspended)
    }

    /// Suspends what takes from Pods that wait, and lifts the limits of registries that none waits for.
    pub(super) fn preempt(&mut self, now: i64) {
        let budgets = &self.budgets;
        let limits = self.preemption.tick(|name, nodes| budgets.others(name, nodes, now), now);
        for uid in self.budgets.preempt(limits) {
            self.suspend(&uid, now);
        }
    }

    /// Asks a warmer to report the bytes of an image often.
    pub(super) fn follow_progress(&mut self, uid: &Uid, session: SessionId) {
        let message = ReportProgress { uid: uid.to_string(), interval_ms: PROGRESS_INTERVAL_MS };
        self.effects.push(Effect::Send(session, ToWarmer::ReportProgress(message)));
    }

    /// Ends a running pull. Its warmer asks for another permit at once, and waits for it.
    fn suspend(&mut self, uid: &Uid, now: i64) {
        let node = self.assignments.get(uid).map(|assignment| &assignment.warm.node_name);
        let session = node.and_then(|node| self.nodes.get(node)?.session);
        if let Some((session, _)) = session {
            self.suspended += 1;
            let message = ToWarmer::SuspendPull(SuspendPull { uid: uid.to_string() });
            self.effects.push(Effect::Send(session, message));
        }
        self.end_pull(uid, now);
    }

    /// The assignment of a Pod's image to its node.
    fn assignment_of(&self, image: &PodImage) -> Option<Uid> {
        let uids = &self.nodes.get(&image.node)?.assignments;
        let found = uids.iter().find(|uid| {
            self.assignments.get(*uid).is_some_and(|one| {
                *one.warm.namespace == *image.namespace && image.may_be_of(&one.image)
            })
        });
        found.cloned()
    }
}
