//! What a warmer's report means for an ImageWarm's status: [`next_status`], a function of the
//! stored object and the report. Pure; writing is `status_writer`'s part.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::api::condition::{READY, set_condition};
use crate::api::{
    Condition, ConditionStatus, ImageWarm, ImageWarmStatus, Progress, RUNTIME_KEY,
    RUNTIME_REPORTS_KEY, Reason,
};
use crate::image::Digest;
use crate::image::quoted::printable;
use crate::protocol;

/// Progress of a pull that ends sooner than this is not written to the API server.
pub const QUIET_MS: i64 = 2_000;
/// The same for an assignment that waits. Longer, since a whole cluster may wait for one registry's
/// budget: each node would cost one more write without more information than no status.
pub const QUEUED_QUIET_MS: i64 = 15_000;
/// Progress of one assignment is written at most this often.
pub const PROGRESS_EVERY_MS: i64 = 5_000;
/// The longest message that is stored; some registries answer with whole web pages.
const LONGEST_MESSAGE: usize = 1_024;
/// The longest name of a runtime that is stored.
const LONGEST_FACT: usize = 100;

/// A report about one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Its node has had no warmer for a while.
    WaitingForWarmer,
    /// It waits for other pulls of the node.
    Queued,
    /// Its pull is running.
    Pulling(Pulling),
    /// A presence check or a pull ended.
    Outcome(Outcome),
}

impl Report {
    /// Whether this must reach the API server; other reports are repeated or superseded.
    pub fn is_final(&self) -> bool {
        matches!(self, Report::Outcome(_))
    }
}

/// A running pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulling {
    /// Bytes downloaded and in total.
    pub progress: Progress,
    /// Number of the attempt, from 1.
    pub attempt: i32,
    /// When it began.
    pub started_at: Option<Timestamp>,
}

/// The runtime of a node, as reported by its warmer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRuntime {
    /// Name and version, such as `containerd 2.2.3`; empty when not reported.
    pub runtime: String,
    /// What the runtime reports by itself: `progress`, `removals`.
    pub reports: String,
}

impl NodeRuntime {
    /// Whether the runtime reports the progress of pulls.
    pub fn reports_progress(&self) -> bool {
        self.reports.split(", ").any(|reported| reported == "progress")
    }
}

impl From<&protocol::Hello> for NodeRuntime {
    fn from(hello: &protocol::Hello) -> Self {
        let runtime = format!("{} {}", hello.runtime_name, hello.runtime_version);
        NodeRuntime {
            runtime: printable(&runtime, LONGEST_FACT),
            reports: printable(&hello.runtime_reports.join(", "), LONGEST_FACT),
        }
    }
}

/// How a presence check or a pull ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the runtime holds the image.
    pub present: bool,
    /// The typed reason.
    pub reason: Reason,
    /// The human-readable message; may be empty.
    pub message: String,
    /// `sha256:…`, when known.
    pub digest: Option<Digest>,
    /// Size on the node, when known.
    pub size_bytes: Option<i64>,
    /// Number of the attempt; 0 when none was made.
    pub attempt: i32,
    /// When the attempt began; `None` without one.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The Revision for which the tag was checked with the registry.
    pub checked_for: Option<String>,
    /// Why the registry could not be asked whether the tag of a present image has moved.
    pub unchecked: Option<Reason>,
    /// The runtime of the node.
    pub runtime: NodeRuntime,
}

impl From<&protocol::Progress> for Report {
    fn from(progress: &protocol::Progress) -> Self {
        if progress.queued {
            return Report::Queued;
        }
        Report::Pulling(Pulling {
            progress: Progress {
                downloaded_bytes: clamp(progress.downloaded_bytes),
                total_bytes: clamp(progress.total_bytes),
            },
            attempt: i32::try_from(progress.attempt).unwrap_or(i32::MAX),
            started_at: instant(progress.started_at_unix_ms),
        })
    }
}

impl From<&protocol::Outcome> for Outcome {
    /// Trusts nothing: a reason that is unknown or contradicts `present` is replaced by one that
    /// follows from `present` alone.
    fn from(outcome: &protocol::Outcome) -> Self {
        let narrower = Reason::from_name(&outcome.narrower_reason);
        let reason = match narrower.or(Reason::from_name(&outcome.reason)) {
            Some(reason) if (reason.ready() == ConditionStatus::True) == outcome.present => reason,
            _ if outcome.present => Reason::AlreadyPresent,
            Some(_) => Reason::Removed,
            None => Reason::RuntimeUnavailable,
        };
        Outcome {
            present: outcome.present,
            reason,
            message: printable(&outcome.message, LONGEST_MESSAGE),
            digest: outcome.digest.parse().ok(),
            size_bytes: Some(clamp(outcome.size_bytes)).filter(|size| *size > 0),
            attempt: i32::try_from(outcome.attempt).unwrap_or(i32::MAX),
            started_at: instant(outcome.started_at_unix_ms),
            finished_at: instant(outcome.finished_at_unix_ms),
            checked_for: Some(outcome.checked_for.clone())
                .filter(|token| !token.is_empty() && token.len() <= 512),
            unchecked: Reason::from_name(&outcome.unchecked_reason)
                .filter(|reason| outcome.present && reason.leaves_image_unknown()),
            runtime: NodeRuntime::default(),
        }
    }
}

/// The status that follows from `report`; `None` when it equals the stored one.
pub fn next_status(old: &ImageWarm, report: &Report, now: Timestamp) -> Option<ImageWarmStatus> {
    let before = old.status.clone().unwrap_or_default();
    let ready = old.ready().map_or(ConditionStatus::Unknown, |ready| ready.status);
    let mut next = before.clone();
    match report {
        Report::WaitingForWarmer if ready == ConditionStatus::Unknown => {
            next.progress = None;
            let message = "no warmer is connected for the node: is its imagewarmer Pod running?";
            set_ready(&mut next, Reason::WaitingForWarmer, message, now);
        }
        // A decided condition does not change before the next outcome.
        Report::Queued if ready == ConditionStatus::Unknown => {
            next.progress = None;
            set_ready(&mut next, Reason::Queued, "other pulls come first", now);
        }
        Report::Pulling(pulling) => {
            next.progress = Some(pulling.progress);
            // The image of a tag that is being checked again is still there.
            if ready != ConditionStatus::True {
                next.attempts = Some(pulling.attempt);
                next.started_at = pulling.started_at.map(stored).or(next.started_at);
                next.finished_at = None;
                set_ready(&mut next, Reason::Pulling, "", now);
            }
        }
        Report::Outcome(outcome) => apply_outcome(&mut next, outcome, ready, now),
        Report::WaitingForWarmer | Report::Queued => {}
    }
    if next == before {
        return None;
    }
    if let Report::Outcome(outcome) = report {
        note_runtime(&mut next, &outcome.runtime);
    }
    next.observed_generation = old.metadata.generation.or(next.observed_generation);
    Some(next)
}

fn apply_outcome(
    next: &mut ImageWarmStatus,
    outcome: &Outcome,
    ready: ConditionStatus,
    now: Timestamp,
) {
    next.progress = None;
    if let Some(digest) = &outcome.digest {
        next.digest = Some(digest.to_string());
    }
    if outcome.checked_for.is_some() {
        next.checked_for.clone_from(&outcome.checked_for);
    }
    if outcome.present {
        next.size_bytes = outcome.size_bytes.or(next.size_bytes);
        // A presence check without a change keeps the record of the pull.
        if ready == ConditionStatus::True && outcome.started_at.is_none() {
            return;
        }
    }
    if outcome.attempt > 0 {
        next.attempts = Some(outcome.attempt);
    }
    next.started_at = outcome.started_at.map(stored).or(next.started_at.take());
    next.finished_at = outcome.finished_at.map(stored).or(next.finished_at.take());
    if outcome.present
        && let (Some(started), Some(finished)) = (outcome.started_at, outcome.finished_at)
    {
        next.took = Some(took(started, finished));
    }
    set_ready(next, outcome.reason, &outcome.message, now);
}

/// Added to a status that changes anyway: it does not justify a write of its own.
fn note_runtime(status: &mut ImageWarmStatus, node: &NodeRuntime) {
    for (key, value) in [(RUNTIME_KEY, &node.runtime), (RUNTIME_REPORTS_KEY, &node.reports)] {
        if !node.runtime.is_empty() {
            status.annotations.insert(key.to_owned(), value.clone());
        }
    }
}

fn set_ready(status: &mut ImageWarmStatus, reason: Reason, message: &str, now: Timestamp) {
    let condition = Condition {
        type_: READY.into(),
        severity: String::new(),
        status: reason.ready(),
        reason: reason.as_str().into(),
        message: message.into(),
        last_transition_time: None,
    };
    set_condition(&mut status.conditions, condition, stored(now));
}

fn took(started: Timestamp, finished: Timestamp) -> String {
    let milliseconds = finished.as_millisecond().saturating_sub(started.as_millisecond()).max(0);
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Whole seconds, as the API server stores them: what is read back must compare as equal.
fn stored(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn instant(unix_ms: i64) -> Option<Timestamp> {
    // Years beyond 9999 cannot be written in RFC 3339.
    (unix_ms > 0).then(|| Timestamp::from_millisecond(unix_ms).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millisecond(second * 1000 + 250).unwrap()
    }

    fn outcome(present: bool, reason: Reason) -> Outcome {
        Outcome {
            present,
            reason,
            message: String::new(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().ok(),
            size_bytes: Some(7),
            attempt: 1,
            started_at: Some(at(10)),
            finished_at: Some(at(12)),
            checked_for: None,
            unchecked: None,
            runtime: NodeRuntime { runtime: "docker 29".into(), reports: "progress".into() },
        }
    }

    fn warm() -> ImageWarm {
        let mut warm = ImageWarm::default();
        warm.metadata.generation = Some(3);
        warm
    }

    fn after(warm: &ImageWarm, report: &Report, second: i64) -> Option<ImageWarm> {
        let status = next_status(warm, report, at(second))?;
        // Through JSON, as the API server stores it.
        let status = serde_json::from_value(serde_json::to_value(status).unwrap()).unwrap();
        Some(ImageWarm { status: Some(status), ..warm.clone() })
    }

    fn ready(warm: &ImageWarm) -> (ConditionStatus, Reason) {
        (warm.ready().unwrap().status, warm.reason().unwrap())
    }

    #[test]
    fn a_pulled_image_is_ready_and_a_repeated_report_writes_nothing() {
        let pulled = Report::Outcome(outcome(true, Reason::Pulled));
        let warm = after(&warm(), &pulled, 13).unwrap();
        assert_eq!(ready(&warm), (ConditionStatus::True, Reason::Pulled));
        let status = warm.status.clone().unwrap();
        assert_eq!(status.took.as_deref(), Some("2.0s"));
        assert_eq!((status.observed_generation, status.attempts), (Some(3), Some(1)));
        assert!(after(&warm, &pulled, 99).is_none());
    }

    #[test]
    fn a_presence_check_that_finds_the_known_image_changes_nothing() {
        let warm = after(&warm(), &Report::Outcome(outcome(true, Reason::Pulled)), 13).unwrap();
        let mut check = outcome(true, Reason::AlreadyPresent);
        (check.started_at, check.finished_at, check.attempt) = (None, Some(at(50)), 0);
        assert!(after(&warm, &Report::Outcome(check.clone()), 50).is_none());
        check.checked_for = Some("uid/rev-2".into());
        let warm = after(&warm, &Report::Outcome(check), 50).unwrap();
        assert_eq!(ready(&warm), (ConditionStatus::True, Reason::Pulled));
        assert_eq!(warm.status.unwrap().checked_for.as_deref(), Some("uid/rev-2"));
    }

    #[test]
    fn the_runtime_is_recorded_with_other_changes_only() {
        let pulled = after(&warm(), &Report::Outcome(outcome(true, Reason::Pulled)), 13).unwrap();
        let annotations = pulled.status.clone().unwrap().annotations;
        assert_eq!(annotations.get(RUNTIME_KEY).map(String::as_str), Some("docker 29"));
        assert_eq!(annotations.get(RUNTIME_REPORTS_KEY).map(String::as_str), Some("progress"));
        let mut again = outcome(true, Reason::AlreadyPresent);
        (again.started_at, again.runtime) = (None, NodeRuntime::default());
        assert_eq!(after(&pulled, &Report::Outcome(again), 14), None);
        let hello = protocol::Hello {
            runtime_name: "docker".into(),
            runtime_version: "1\u{7}".repeat(99),
            ..protocol::Hello::default()
        };
        let runtime = NodeRuntime::from(&hello).runtime;
        assert!(runtime.len() < 120 && !runtime.contains('\u{7}'), "{runtime}");
        assert_eq!(NodeRuntime::from(&protocol::Hello::default()), NodeRuntime::default());
    }

    #[test]
    fn only_an_outcome_moves_what_is_decided() {
        let warm = after(&warm(), &Report::Outcome(outcome(true, Reason::Pulled)), 13).unwrap();
        for report in [Report::WaitingForWarmer, Report::Queued] {
            assert!(after(&warm, &report, 20).is_none(), "{report:?}");
        }
        let progress = Progress { downloaded_bytes: 1, total_bytes: 2 };
        let pulling = Report::Pulling(Pulling { progress, ..Pulling::default() });
        let checked_again = after(&warm, &pulling, 20).unwrap();
        assert_eq!(ready(&checked_again), (ConditionStatus::True, Reason::Pulled));
        let gone = Report::Outcome(outcome(false, Reason::Removed));
        let gone = after(&checked_again, &gone, 21).unwrap();
        assert_eq!(ready(&gone), (ConditionStatus::False, Reason::Removed));
        assert_eq!(gone.status.as_ref().unwrap().progress, None);
        assert!(after(&gone, &Report::WaitingForWarmer, 60).is_none());
    }

    #[test]
    fn an_undecided_assignment_states_what_it_waits_for() {
        let waiting = after(&warm(), &Report::WaitingForWarmer, 1).unwrap();
        assert_eq!(ready(&waiting), (ConditionStatus::Unknown, Reason::WaitingForWarmer));
        let queued = after(&waiting, &Report::Queued, 2).unwrap();
        assert_eq!(ready(&queued), (ConditionStatus::Unknown, Reason::Queued));
        let pulling = Pulling { attempt: 2, started_at: Some(at(3)), ..Pulling::default() };
        let pulling = after(&queued, &Report::Pulling(pulling), 5).unwrap();
        assert_eq!(ready(&pulling), (ConditionStatus::Unknown, Reason::Pulling));
        let failed =
            after(&pulling, &Report::Outcome(outcome(false, Reason::NotFound)), 6).unwrap();
        assert_eq!(ready(&failed), (ConditionStatus::False, Reason::NotFound));
        assert_eq!(failed.status.unwrap().took, None);
    }

    #[test]
    fn a_warmer_cannot_claim_readiness_without_presence() {
        let table = [
            (false, "Pulled", Reason::Removed),
            (true, "NotFound", Reason::AlreadyPresent),
            (true, "Pulled", Reason::Pulled),
            (false, "Invented", Reason::RuntimeUnavailable),
            (false, "TimedOut", Reason::TimedOut),
        ];
        for (present, word, reason) in table {
            let message = protocol::Outcome {
                present,
                reason: word.into(),
                digest: "sha256:short".into(),
                message: "x\u{7}".repeat(9_000),
                started_at_unix_ms: i64::MAX,
                ..protocol::Outcome::default()
            };
            let outcome = Outcome::from(&message);
            assert_eq!(outcome.reason, reason, "{present} {word}");
            assert_eq!((outcome.digest, outcome.started_at), (None, None));
            assert!(outcome.message.len() < 1_100 && !outcome.message.contains('\u{7}'));
        }
    }

    #[test]
    fn a_narrower_reason_counts_unless_it_is_unknown_or_contradicts_the_report() {
        for (present, narrower, expected) in [
            (false, "NoCredentials", Reason::NoCredentials),
            (false, "OfTheFuture", Reason::Unauthorized),
            (false, "Pulled", Reason::Removed),
            (true, "NoCredentials", Reason::AlreadyPresent),
        ] {
            let report = protocol::Outcome {
                present,
                reason: "Unauthorized".into(),
                narrower_reason: narrower.into(),
                ..protocol::Outcome::default()
            };
            assert_eq!(Outcome::from(&report).reason, expected, "{present} {narrower}");
        }
    }

    #[test]
    fn only_what_has_its_form_is_taken_from_a_report() {
        let report = |digest: &str, token: &str| {
            Outcome::from(&protocol::Outcome {
                present: true,
                reason: Reason::Pulled.as_str().into(),
                digest: digest.into(),
                checked_for: token.into(),
                ..protocol::Outcome::default()
            })
        };
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(report(&digest, "").digest.as_deref(), Some(digest.as_str()));
        let (short, other) = (&digest[..70], digest.replace('a', "g"));
        for bad in ["", "sha256:", short, &other, &format!("{digest}0"), &digest.to_uppercase()] {
            assert_eq!(report(bad, "").digest, None, "{bad}");
        }
        let longest = "t".repeat(512);
        assert_eq!(report("", &longest).checked_for.as_deref(), Some(longest.as_str()));
        assert_eq!(report("", &"t".repeat(513)).checked_for, None);
        assert_eq!(report("", "").checked_for, None);
    }

    /// A presence check is no attempt: the number of attempts stays.
    #[test]
    fn a_report_without_an_attempt_keeps_their_number() {
        let first = after(&warm(), &Report::Outcome(outcome(false, Reason::NotFound)), 20).unwrap();
        assert_eq!(first.status.as_ref().unwrap().attempts, Some(1));
        let check = Outcome { attempt: 0, ..outcome(false, Reason::Removed) };
        let second = after(&first, &Report::Outcome(check), 30).unwrap();
        assert_eq!(second.status.unwrap().attempts, Some(1));
    }
}
