//! The reports that are to be written, and those that are being written: at most one for each
//! object.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{FIRST_BACKOFF, LONGEST_BACKOFF, PROGRESS_IN_FLIGHT};
use crate::backoff::Backoff;
use imagewarm_core::api::CachedImageWarm;
use imagewarm_core::api::names::Uid;
use imagewarm_core::report::status::Report;

/// A report to be written.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) warm: Arc<CachedImageWarm>,
    pub(super) report: Report,
}

/// All reports. Keys are uids of ImageWarms.
#[derive(Default)]
pub(super) struct Pending {
    /// The report to write next: so bounded by the number of ImageWarms.
    waiting: HashMap<Uid, Intent>,
    finals: Turns,
    /// Uids whose report a final one may have replaced since.
    progress: Turns,
    /// Uids that are being written.
    running: HashMap<Uid, Running>,
    /// Final reports that are not written yet.
    unwritten: HashMap<Uid, Unwritten>,
}

/// Uids that wait. Namespaces take turns: one that has many does not hold up the others.
#[derive(Default)]
struct Turns {
    of: HashMap<Arc<str>, VecDeque<Uid>>,
    order: VecDeque<Arc<str>>,
}

impl Turns {
    fn push(&mut self, namespace: &Arc<str>, uid: Uid) {
        let queue = self.of.entry(namespace.clone()).or_default();
        if queue.is_empty() {
            self.order.push_back(namespace.clone());
        }
        queue.push_back(uid);
    }

    /// Takes the first of the next namespace that has one that `is_free`.
    fn next(&mut self, is_free: impl Fn(&Uid) -> bool) -> Option<Uid> {
        for _ in 0..self.order.len() {
            let namespace = self.order.pop_front()?;
            let queue = self.of.get_mut(&namespace)?;
            let uid = queue.iter().position(&is_free).and_then(|at| queue.remove(at));
            if queue.is_empty() {
                self.of.remove(&namespace);
            } else {
                self.order.push_back(namespace);
            }
            if uid.is_some() {
                return uid;
            }
        }
        None
    }

    fn clear(&mut self) {
        *self = Turns::default();
    }
}

struct Running {
    is_final: bool,
    cancelled: CancellationToken,
}

struct Unwritten {
    since: Instant,
    backoff: Backoff,
    /// Waits for its next attempt, so it is in no queue.
    delayed: bool,
}

impl Pending {
    /// Queues a report. A final one replaces any queued one; progress never replaces a final one.
    pub(super) fn submit(&mut self, uid: &Uid, intent: Intent, now: Instant) {
        let is_final = intent.report.is_final();
        let replaced = self.waiting.get(uid).map(|waiting| waiting.report.is_final());
        if replaced == Some(true) && !is_final {
            return;
        }
        let namespace = intent.warm.namespace.clone();
        self.waiting.insert(uid.clone(), intent);
        if is_final {
            self.unwritten.entry(uid.clone()).or_insert_with(|| Unwritten {
                since: now,
                backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
                delayed: false,
            });
        }
        if replaced != Some(is_final) {
            let queue = if is_final { &mut self.finals } else { &mut self.progress };
            queue.push(&namespace, uid.clone());
        }
    }

    /// The next report to write: a final state, else progress if `progress_is_next` and fewer than
    /// `PROGRESS_IN_FLIGHT` are being written. Skips objects that are being written.
    pub(super) fn next(
        &mut self,
        progress_is_next: bool,
    ) -> Option<(Uid, Intent, CancellationToken)> {
        let in_flight = self.running.values().filter(|one| !one.is_final).count();
        let progress =
            (progress_is_next && in_flight < PROGRESS_IN_FLIGHT).then_some(&mut self.progress);
        let queues = [(true, Some(&mut self.finals)), (false, progress)];
        for (is_final, queue) in queues {
            let Some(queue) = queue else { continue };
            while let Some(uid) = queue.next(|uid| !self.running.contains_key(uid)) {
                if self.waiting.get(&uid).is_some_and(|one| one.report.is_final() == is_final) {
                    let intent = self.waiting.remove(&uid)?;
                    let cancelled = CancellationToken::new();
                    let running = Running { is_final, cancelled: cancelled.clone() };
                    self.running.insert(uid.clone(), running);
                    return Some((uid, intent, cancelled));
                }
            }
        }
        None
    }

    /// The write ended, or was given up.
    pub(super) fn done(&mut self, uid: &str) {
        let Some(running) = self.running.remove(uid) else { return };
        // A newer final state may have come in meanwhile.
        if running.is_final && !self.waiting.get(uid).is_some_and(|one| one.report.is_final()) {
            self.unwritten.remove(uid);
        }
    }

    /// The write of a final state failed. Returns after which delay to call [`Pending::retry`];
    /// `None` when a newer one is queued or the report was dropped.
    pub(super) fn failed(&mut self, uid: &Uid, intent: Intent) -> Option<std::time::Duration> {
        self.running.remove(uid)?;
        if self.waiting.get(uid).is_some_and(|newer| newer.report.is_final()) {
            return None;
        }
        // Progress that came in meanwhile is older than the final state that it would follow.
        let unwritten = self.unwritten.get_mut(uid)?;
        self.waiting.insert(uid.clone(), intent);
        unwritten.delayed = true;
        Some(unwritten.backoff.next_with_jitter())
    }

    /// The delay of a failed write is over.
    pub(super) fn retry(&mut self, uid: &Uid) {
        if let Some(unwritten) = self.unwritten.get_mut(uid)
            && std::mem::take(&mut unwritten.delayed)
            && let Some(intent) = self.waiting.get(uid)
        {
            self.finals.push(&intent.warm.namespace, uid.clone());
        }
    }

    /// Ends all delays: only a moment is left to write.
    pub(super) fn retry_all(&mut self) {
        let delayed = self.unwritten.iter().filter(|(_, one)| one.delayed);
        let uids: Vec<Uid> = delayed.map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.retry(uid));
    }

    /// Whether a final state is still to be written.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Since when the oldest final state is not written.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.unwritten.values().map(|one| one.since).min()
    }

    /// Drops what is to be written of one object, and ends what is being written.
    pub(super) fn forget(&mut self, uid: &str) {
        self.waiting.remove(uid);
        self.unwritten.remove(uid);
        if let Some(running) = self.running.get(uid) {
            running.cancelled.cancel();
        }
    }

    /// Drops everything, and ends what is being written.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.finals.clear();
        self.progress.clear();
        self.unwritten.clear();
        self.running.values().for_each(|one| one.cancelled.cancel());
    }
}
