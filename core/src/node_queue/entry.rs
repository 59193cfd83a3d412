//! One order: what the node is taken to hold of it, what comes next, and what each result means.

use super::removal::Removals;
use super::{Job, Step};
use crate::api::Reason;
use crate::image::Reference;
use crate::protocol::{Assign, Outcome};
use crate::runtime::{PresentImage, RuntimeError};

const LONGEST_RETRY_MS: f64 = 300_000.0;
/// How often a full disk is looked at: that costs next to nothing.
const SPACE_EVERY_MS: i64 = 15_000;
/// A download lies beside what is unpacked from it.
const ROOM_PER_SIZE: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Due(Step, i64),
    Running,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) assign: Assign,
    pub(super) image: Reference,
    pub(super) state: State,
    pub(super) arrived: u64,
    pub(super) attempts: u32,
    pub(super) last: Option<Outcome>,
    /// Named since the last Welcome.
    pub(super) confirmed: bool,
    /// Changed while its job ran: do it once more.
    pub(super) again: bool,
    pub(super) removals: Removals,
    /// How often the disk ran low during its pull: it needs more than was thought.
    pub(super) outgrown: u32,
    /// When it may be pulled again after it was removed.
    pub(super) pull_not_before: i64,
    /// Something was removed while its job ran: look once more.
    pub(super) unsure: bool,
    /// What the node holds of the image, without a proof that this order's namespace may have it.
    pub(super) unproven: Option<PresentImage>,
}

impl Entry {
    /// Whether the node is taken to hold the image.
    pub(super) fn is_believed(&self) -> bool {
        match &self.last {
            Some(last) => last.present,
            None => self.assign.believed_present,
        }
    }

    pub(super) fn is_believed_after(&self, report: &Option<Outcome>) -> bool {
        report.as_ref().map_or_else(|| self.is_believed(), |report| report.present)
    }

    /// Whether holding this order's image is holding what `image`, a digest, names.
    pub(super) fn holds_content_of(&self, image: &Reference) -> bool {
        let digest = image.digest();
        let told = self.last.as_ref().map(|last| last.digest.as_str());
        self.image.repository() == image.repository()
            && digest.is_some()
            && (self.image.digest() == digest || told == digest)
    }

    /// It is there, for others: whether this one's namespace may have it is asked next.
    pub(super) fn unverified(&mut self, held: PresentImage, now: i64) {
        self.unproven = Some(held);
        self.state = State::Due(Step::Verify, now);
    }

    pub(super) fn verified(
        &mut self,
        job: &Job,
        result: Result<(), RuntimeError>,
        presence_interval_ms: i64,
        now: i64,
        jitter: f64,
    ) -> Option<Outcome> {
        let Some(held) = self.unproven.clone() else {
            self.state = State::Due(Step::CheckPresence, now);
            return None;
        };
        match result {
            Err(RuntimeError { reason, message }) if reason.requires_user_action() => {
                let message = format!(
                    "the image is on the node for other namespaces, but not with the credentials of \
                     this one: {message}"
                );
                Some(self.failed(job, reason, message, now, now, jitter))
            }
            // A registry that does not answer says nothing against it.
            Ok(()) | Err(_) => {
                self.attempts = 0;
                self.unproven = None;
                self.removals.held(now);
                self.state =
                    State::Due(Step::CheckPresence, now + spread(presence_interval_ms, jitter));
                Some(present(job, Reason::AlreadyPresent, held, now))
            }
        }
    }

    /// What its pull may take on the disk.
    pub(super) fn room_bytes(&self, assumed_bytes: u64) -> u64 {
        let expected = match self.assign.known_size_bytes {
            0 => assumed_bytes,
            known => known.saturating_mul(ROOM_PER_SIZE),
        };
        // Some tries too many for a huge image, but no huge room for a small one.
        expected.saturating_mul(1 << self.outgrown.min(16))
    }

    pub(super) fn presence_checked(
        &mut self,
        job: &Job,
        result: Result<Option<PresentImage>, RuntimeError>,
        presence_interval_ms: i64,
        now: i64,
        jitter: f64,
    ) -> Option<Outcome> {
        let held_before = self.is_believed();
        match result {
            Ok(Some(held)) => {
                self.attempts = 0;
                self.removals.held(now);
                self.state =
                    State::Due(Step::CheckPresence, now + spread(presence_interval_ms, jitter));
                let known = self.last.as_ref().is_some_and(|last| {
                    last.present
                        && held.digest.as_ref().is_none_or(|digest| *digest == last.digest)
                        && last.checked_for == job.check_for
                });
                (!known).then(|| present(job, Reason::AlreadyPresent, held, now))
            }
            Ok(None) if held_before => Some(self.removed(job, presence_interval_ms, now, jitter)),
            // It may come back by itself: the kubelet pulls what a Pod needs.
            Ok(None) if now < self.pull_not_before => {
                let next_look = now + spread(presence_interval_ms, jitter);
                self.state = State::Due(Step::CheckPresence, next_look.min(self.pull_not_before));
                None
            }
            Ok(None) => {
                self.state = State::Due(Step::Pull, now);
                None
            }
            // A runtime that does not answer has not lost the image.
            Err(_) if held_before => {
                self.attempts += 1;
                let delay = retry_delay(self.attempts, Reason::RuntimeUnavailable, jitter);
                self.state = State::Due(Step::CheckPresence, now + delay);
                None
            }
            Err(error) => Some(self.failed(job, error.reason, error.message, now, now, jitter)),
        }
    }

    fn removed(&mut self, job: &Job, presence_interval_ms: i64, now: i64, jitter: f64) -> Outcome {
        let (pause, in_a_row) = self.removals.removed(now);
        let pull_at = now + spread(pause, jitter);
        self.pull_not_before = pull_at;
        let (next, when) = if pull_at == now {
            (State::Due(Step::Pull, now), "it is pulled again".to_owned())
        } else {
            let look_at = now + spread(presence_interval_ms, jitter);
            let when = format!(
                "it was removed {in_a_row} times in a row, so it is pulled again in {}",
                in_words(pull_at - now)
            );
            (State::Due(Step::CheckPresence, look_at.min(pull_at)), when)
        };
        self.state = next;
        let message = format!("the runtime no longer holds the image; {when}");
        let outcome = absent(&job.uid, Reason::Removed, message, now);
        Outcome { retry_at_unix_ms: pull_at, ..outcome }
    }

    /// Why, as it was reported last.
    pub(super) fn last_reason(&self) -> Option<&str> {
        self.last.as_ref().map(|last| last.reason.as_str())
    }

    /// Tried again soon, and without counting.
    pub(super) fn no_room(&mut self, job: &Job, message: String, now: i64, jitter: f64) -> Outcome {
        let retry_at = now + spread(SPACE_EVERY_MS, jitter);
        self.state = State::Due(self.step_after_failure(), retry_at);
        let outcome = absent(&job.uid, Reason::DiskPressure, message, now);
        Outcome { retry_at_unix_ms: retry_at, ..outcome }
    }

    /// What the node held of the tag before does not count any more: it has to be pulled.
    fn step_after_failure(&self) -> Step {
        if self.image.digest().is_some() { Step::CheckPresence } else { Step::Pull }
    }

    pub(super) fn failed(
        &mut self,
        job: &Job,
        reason: Reason,
        message: String,
        now: i64,
        not_before: i64,
        jitter: f64,
    ) -> Outcome {
        self.attempts += 1;
        let retry_at = not_before.max(now + retry_delay(self.attempts, reason, jitter));
        self.state = State::Due(self.step_after_failure(), retry_at);
        Outcome {
            attempt: self.attempts,
            retry_at_unix_ms: retry_at,
            ..absent(&job.uid, reason, message, now)
        }
    }
}

/// A digest cannot have moved; a tag may have, unless the controller says that it need not be asked.
pub(super) fn first_step(assign: &Assign, image: &Reference) -> Step {
    if image.digest().is_some() || (assign.believed_present && assign.check_for.is_empty()) {
        Step::CheckPresence
    } else {
        Step::Pull
    }
}

/// What time heals is tried again soon, what a person has to mend slowly; both at most each five
/// minutes or so.
pub(super) fn retry_delay(attempts: u32, reason: Reason, jitter: f64) -> i64 {
    let (first, factor): (f64, f64) =
        if reason.requires_user_action() { (10_000.0, 4.0) } else { (1_000.0, 2.0) };
    let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX).min(30);
    let delay = (first * factor.powi(power)).min(LONGEST_RETRY_MS);
    (delay * (0.75 + jitter * 0.5)) as i64
}

/// What a limit of the registry means for the node.
pub(super) fn waits(now: i64, until: i64) -> String {
    format!("this node pulls nothing from it for {}", in_words(until - now))
}

fn in_words(ms: i64) -> String {
    let seconds = (ms + 999) / 1_000;
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", (seconds + 59) / 60) }
}

/// Not all nodes, and not all images of a node, at the same moment.
pub(super) fn spread(every_ms: i64, jitter: f64) -> i64 {
    (every_ms as f64 * (0.75 + jitter * 0.5)) as i64
}

pub(super) fn present(job: &Job, reason: Reason, held: PresentImage, now: i64) -> Outcome {
    Outcome {
        uid: job.uid.clone(),
        present: true,
        reason: reason.as_str().into(),
        digest: held.digest.unwrap_or_default(),
        size_bytes: held.size_bytes,
        finished_at_unix_ms: now,
        checked_for: job.check_for.clone(),
        ..Outcome::default()
    }
}

pub(super) fn absent(uid: &str, reason: Reason, message: String, now: i64) -> Outcome {
    Outcome {
        uid: uid.to_owned(),
        present: false,
        reason: reason.as_str().into(),
        message,
        finished_at_unix_ms: now,
        ..Outcome::default()
    }
}
