//! Rates of a registry's downloads within one step: of the nodes with Pods together, and of others on
//! average. Pure.

use std::collections::HashMap;

use crate::api::names::Uid;

/// The least time between two reports that a rate is computed of.
const MEASURE_MS: i64 = 600;
/// The same for one of the others, whose reports come between those of the Pod's node.
const MEASURE_OTHERS_MS: i64 = 200;
/// Others whose bytes are followed; they stand for all of them.
const OTHERS_MAX: usize = 64;

/// The first report of bytes, and the last.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: (i64, u64),
    last: (i64, u64),
}

impl Window {
    fn new(now: i64, bytes: u64) -> Self {
        Window { first: (now, bytes), last: (now, bytes) }
    }

    /// Bytes for each second, once the reports are so far apart.
    fn rate(&self, least_ms: i64) -> Option<f64> {
        let ((from, before), (until, after)) = (self.first, self.last);
        let seconds = (until - from) as f64 / 1_000.0;
        (until - from >= least_ms).then(|| after.saturating_sub(before) as f64 / seconds)
    }
}

/// What was reported since the step began and connections have settled.
#[derive(Debug)]
pub(super) struct Rates {
    settled_at: i64,
    pods: Option<Window>,
    others: HashMap<Uid, Window>,
}

impl Rates {
    /// From this moment on.
    pub(super) fn from(settled_at: i64) -> Self {
        Rates { settled_at, pods: None, others: HashMap::new() }
    }

    /// The nodes with Pods have so many bytes, all together.
    pub(super) fn pods(&mut self, bytes: u64, now: i64) {
        if now >= self.settled_at {
            self.pods.get_or_insert_with(|| Window::new(now, bytes)).last = (now, bytes);
        }
    }

    /// Another node has so many bytes of the image of this assignment.
    pub(super) fn other(&mut self, uid: &Uid, bytes: u64, now: i64) {
        if now < self.settled_at {
            return;
        }
        if let Some(window) = self.others.get_mut(uid) {
            window.last = (now, bytes);
        } else if self.others.len() < OTHERS_MAX {
            self.others.insert(uid.clone(), Window::new(now, bytes));
        }
    }

    /// What the nodes with Pods get, in bytes for each second, once it is known.
    pub(super) fn of_pods(&self) -> Option<f64> {
        self.pods?.rate(MEASURE_MS)
    }

    /// What one of the others gets on average, in bytes for each second; zero if they show no bytes.
    /// `None` when one that shows bytes has not yet done so for long enough, but the nodes with Pods have to
    /// be waited for no longer than twice as long.
    pub(super) fn of_one_other(&self) -> Option<f64> {
        let rates = self.others.values().map(|window| window.rate(MEASURE_OTHERS_MS));
        let known: Vec<f64> = rates.flatten().collect();
        if !known.is_empty() {
            return Some(known.iter().sum::<f64>() / known.len() as f64);
        }
        let is_late = self.pods.is_some_and(|pods| pods.rate(2 * MEASURE_MS).is_some());
        is_late.then_some(0.0)
    }
}
