//! One row of the table for each `ImageWarm`, and the summary of all rows. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube_core::ResourceExt;

use crate::api::{ConditionStatus, ImageWarm, Progress, Reason};

/// The phase of an assignment. The order of the variants is that of the live view: running and
/// failed pulls first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The image is being pulled.
    Pulling,
    /// The pull failed, or the image was removed.
    Failed,
    /// The assignment is on the node; other pulls come first.
    Queued,
    /// The node has not received the assignment yet.
    Waiting,
    /// The node holds the image.
    Ready,
}

/// One line of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Namespace of the ImageWarm.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node.
    pub node: String,
    /// The image, as in the ImageWarm.
    pub image: String,
    /// The phase.
    pub phase: Phase,
    /// The condition's reason; empty without a condition.
    pub reason: String,
    /// The condition's message.
    pub message: String,
    /// Whether the phase does not change without user action.
    pub is_final: bool,
    /// Bytes of a running pull, where the runtime reports them.
    pub progress: Option<Progress>,
    /// Whole seconds for which the pull has been running.
    pub running_seconds: Option<i64>,
    /// Size on the node in bytes.
    pub size_bytes: Option<i64>,
    /// How long the pull took, such as `2.4s`.
    pub took: Option<String>,
    /// Digest under which the registry served the image.
    pub digest: Option<String>,
    /// Number of attempts.
    pub attempts: Option<i32>,
}

impl Row {
    /// Reads one ImageWarm.
    pub fn new(warm: &ImageWarm, now: Timestamp) -> Row {
        let condition = warm.ready();
        let reason_name = condition.map(|ready| ready.reason.as_str()).unwrap_or_default();
        let reason = Reason::from_name(reason_name);
        let phase = match (condition.map(|ready| ready.status), reason) {
            (Some(ConditionStatus::True), _) => Phase::Ready,
            (Some(ConditionStatus::False), _) => Phase::Failed,
            (_, Some(Reason::Pulling)) => Phase::Pulling,
            (_, Some(Reason::Queued)) => Phase::Queued,
            _ => Phase::Waiting,
        };
        let is_final = match phase {
            Phase::Ready => true,
            // An unknown reason may be one that is never retried.
            Phase::Failed => reason
                .is_none_or(|reason| reason.requires_user_action() || reason == Reason::NodeGone),
            _ => false,
        };
        let status = warm.status.clone().unwrap_or_default();
        let is_pulling = phase == Phase::Pulling;
        let started = status.started_at.filter(|_| is_pulling);
        Row {
            namespace: warm.namespace().unwrap_or_default(),
            name: warm.name_any(),
            node: warm.spec.node_name.clone(),
            image: warm.spec.image.clone(),
            phase,
            reason: reason_name.to_owned(),
            message: condition.map(|ready| ready.message.clone()).unwrap_or_default(),
            is_final,
            progress: status.progress.filter(|_| is_pulling),
            running_seconds: started
                .map(|at| now.as_second().saturating_sub(at.0.as_second()).max(0)),
            size_bytes: status.size_bytes,
            took: status.took.filter(|_| phase == Phase::Ready),
            digest: status.digest,
            attempts: status.attempts,
        }
    }

    /// A row for tests.
    #[cfg(any(test, feature = "samples"))]
    pub fn sample(namespace: &str, image: &str, phase: Phase, reason: &str) -> Row {
        Row {
            namespace: namespace.into(),
            name: "x".into(),
            node: "node".into(),
            image: image.into(),
            phase,
            reason: reason.into(),
            message: String::new(),
            is_final: phase == Phase::Ready,
            progress: None,
            running_seconds: None,
            size_bytes: None,
            took: None,
            digest: None,
            attempts: None,
        }
    }

    /// Reads all, sorted by namespace, image and node.
    pub fn from_all<'a>(
        warms: impl IntoIterator<Item = &'a ImageWarm>,
        now: Timestamp,
    ) -> Vec<Row> {
        let mut rows: Vec<Row> = warms.into_iter().map(|warm| Row::new(warm, now)).collect();
        rows.sort_by(|a, b| {
            (&a.namespace, &a.image, &a.node).cmp(&(&b.namespace, &b.image, &b.node))
        });
        rows
    }
}

/// Number of assignments in each phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All of them.
    pub total: usize,
    /// Images that are on their node.
    pub ready: usize,
    /// Running pulls.
    pub pulling: usize,
    /// Assignments that wait for other pulls of their node.
    pub queued: usize,
    /// Assignments that their node has not received yet.
    pub waiting: usize,
    /// Failures, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Assignments whose phase does not change without user action.
    pub settled: usize,
}

impl Summary {
    /// Counts the rows.
    pub fn of(rows: &[Row]) -> Summary {
        let mut summary = Summary { total: rows.len(), ..Summary::default() };
        for row in rows {
            summary.settled += usize::from(row.is_final);
            match row.phase {
                Phase::Ready => summary.ready += 1,
                Phase::Pulling => summary.pulling += 1,
                Phase::Queued => summary.queued += 1,
                Phase::Waiting => summary.waiting += 1,
                Phase::Failed => *summary.failed.entry(row.reason.clone()).or_default() += 1,
            }
        }
        summary
    }

    /// Whether every image is on its node.
    pub fn all_ready(&self) -> bool {
        self.ready == self.total
    }

    /// Whether no phase changes without user action.
    pub fn is_settled(&self) -> bool {
        self.settled == self.total
    }

    /// `12 of 15 ready, 2 pulling, 1 failed: Unauthorized`.
    pub fn line(&self) -> String {
        let mut line = format!("{} of {} ready", self.ready, self.total);
        let others =
            [(self.pulling, "pulling"), (self.queued, "queued"), (self.waiting, "waiting")];
        for (count, phase) in others.into_iter().filter(|(count, _)| *count > 0) {
            line.push_str(&format!(", {count} {phase}"));
        }
        let failed: usize = self.failed.values().sum();
        let reasons: Vec<String> = match self.failed.len() {
            0 => return line,
            1 => self.failed.keys().cloned().collect(),
            _ => self.failed.iter().map(|(reason, count)| format!("{count} {reason}")).collect(),
        };
        line.push_str(&format!(", {failed} failed: {}", reasons.join(", ")));
        line
    }
}
