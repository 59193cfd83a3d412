//! One assignment on the node: the last known presence, the next step, and how each result changes
//! both.

use super::registry::Account;
use super::removal::Removals;
use super::{ALONE_MS, Job, Step};
use crate::api::Reason;
use crate::clock::Now;
use crate::image::{Digest, Reference};
use crate::protocol::{Assign, Outcome};
use crate::runtime::{PresentImage, PulledImage, RuntimeError};

const LONGEST_RETRY_MS: f64 = 300_000.0;
/// How often a full disk is checked; a check is cheap.
const SPACE_EVERY_MS: i64 = 15_000;
/// The download and the unpacked layers are on the disk at the same time.
const ROOM_PER_SIZE: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be started at this monotonic time, in milliseconds.
    Due(Step, i64),
    Running,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) assign: Assign,
    pub(super) image: Reference,
    /// The image by the digest that its tag was resolved to, unless the tag has to be checked.
    pub(super) resolved: Option<Reference>,
    /// The digest for which a failed pull was last tried again at once.
    pub(super) retried_for: Option<Reference>,
    pub(super) state: State,
    pub(super) arrived: u64,
    pub(super) attempts: u32,
    /// Since when it is the first of its namespace: monotonic, in milliseconds.
    pub(super) first_since: Option<i64>,
    pub(super) last: Option<Outcome>,
    /// Assigned again since the last Welcome.
    pub(super) confirmed: bool,
    /// Changed while its job ran: run it again.
    pub(super) rerun: bool,
    pub(super) removals: Removals,
    /// How often the disk ran low during its pull: it needs more space than estimated.
    pub(super) underestimates: u32,
    /// The earliest monotonic time of the next pull after a removal, in milliseconds.
    pub(super) pull_not_before: i64,
    /// An image was removed while its job ran: check presence again.
    pub(super) recheck: bool,
    /// The image on the node, while this assignment's namespace is not yet authorized to use it.
    pub(super) unproven: Option<PresentImage>,
}

impl Entry {
    /// The registry and the credentials of its pulls.
    pub(super) fn account(&self) -> Account<'_> {
        (self.image.domain(), self.assign.account_mark)
    }

    /// Whether the node is assumed to hold the image.
    pub(super) fn is_believed(&self) -> bool {
        match &self.last {
            Some(last) => last.present,
            None => self.assign.believed_present,
        }
    }

    fn is_believed_after(&self, report: &Option<Outcome>) -> bool {
        report.as_ref().map_or_else(|| self.is_believed(), |report| report.present)
    }

    /// Whether this assignment's image has the content that `image`, a digest, names.
    pub(super) fn holds_content_of(&self, image: &Reference) -> bool {
        let digest = image.digest();
        let reported = self.last.as_ref().map(|last| last.digest.as_str());
        self.image.repository() == image.repository()
            && digest.is_some()
            && (self.image.digest() == digest || reported == digest)
    }

    /// What is pulled. Once the digest is known, Pods no longer use the tag.
    pub(super) fn target(&self) -> &Reference {
        self.resolved.as_ref().unwrap_or(&self.image)
    }

    /// Whether other pulls of its namespace wait for its, since a Pod waits for it: for a while, and until it is known
    /// how the pull ended.
    pub(super) fn is_first(&self, now: Now) -> bool {
        let is_recent = |since: i64| now.monotonic_ms - since < ALONE_MS;
        self.assign.pod_waits && self.first_since.is_some_and(is_recent)
    }

    /// The image of a step.
    pub(super) fn of(&self, step: Step) -> &Reference {
        if step.uses_registry() { self.target() } else { &self.image }
    }

    /// Whether what the node holds is not what Pods use, as far as that is known.
    fn is_outdated(&self, held: &PresentImage) -> bool {
        let resolved = self.resolved.as_ref().and_then(Reference::digest);
        resolved.is_some_and(|digest| held.digest.as_ref().is_none_or(|held| *held != digest))
    }

    /// Its job ended with this report, if any. `rerun`: the assignment changed meanwhile.
    pub(super) fn after(&mut self, report: &Option<Outcome>, rerun: bool, now: Now) {
        if rerun {
            self.attempts = 0;
            self.state = State::Due(self.first_step(), now.monotonic_ms);
        }
        if std::mem::take(&mut self.recheck)
            && let State::Due(Step::CheckPresence, _) = self.state
            && self.is_believed_after(report)
        {
            self.state = State::Due(Step::CheckPresence, now.monotonic_ms);
        }
        if let Some(report) = report {
            // While its content is being downloaded for somebody else, such as the Pod's kubelet, it is not over.
            if report.reason != Reason::Pulling.as_str() {
                self.first_since = None;
            }
            self.last = Some(report.clone());
        }
    }

    /// The image is present for other namespaces: next, verify that this one is authorized.
    pub(super) fn unverified(&mut self, held: PresentImage, now: Now) {
        self.unproven = Some(held);
        self.state = State::Due(Step::Verify, now.monotonic_ms);
    }

    pub(super) fn verified(
        &mut self,
        job: &Job,
        result: Result<(), RuntimeError>,
        presence_interval_ms: i64,
        now: Now,
        jitter: f64,
    ) -> Option<Outcome> {
        let Some(held) = self.unproven.clone() else {
            self.state = State::Due(Step::CheckPresence, now.monotonic_ms);
            return None;
        };
        match result {
            Err(RuntimeError { reason, message }) if reason.requires_user_action() => {
                let message = format!(
                    "the image is on the node for other namespaces, but not with the credentials of \
                     this one: {message}"
                );
                Some(self.failed(job, reason, message, now, now.monotonic_ms, jitter))
            }
            // A registry that does not answer has not denied access.
            Ok(()) | Err(_) => {
                self.attempts = 0;
                self.unproven = None;
                self.removals.held(now.monotonic_ms);
                self.state = State::Due(
                    Step::CheckPresence,
                    now.monotonic_ms + spread(presence_interval_ms, jitter),
                );
                Some(present(job, Reason::AlreadyPresent, held, now))
            }
        }
    }

    /// Disk space that its pull may need, in bytes.
    pub(super) fn room_bytes(&self, assumed_bytes: u64) -> u64 {
        let expected = match self.assign.known_size_bytes {
            0 => assumed_bytes,
            known => known.saturating_mul(ROOM_PER_SIZE),
        };
        // Doubling costs a huge image some attempts, but reserves little for a small one.
        expected.saturating_mul(1 << self.underestimates.min(16))
    }

    pub(super) fn presence_checked(
        &mut self,
        job: &Job,
        result: Result<Option<PresentImage>, RuntimeError>,
        presence_interval_ms: i64,
        now: Now,
        jitter: f64,
    ) -> Option<Outcome> {
        let held_before = self.is_believed();
        let result = result.map(|held| held.filter(|held| held_before || !self.is_outdated(held)));
        match result {
            Ok(Some(held)) => {
                self.attempts = 0;
                self.removals.held(now.monotonic_ms);
                self.state = State::Due(
                    Step::CheckPresence,
                    now.monotonic_ms + spread(presence_interval_ms, jitter),
                );
                let known = self.last.as_ref().is_some_and(|last| {
                    last.present
                        && held.digest.as_ref().is_none_or(|digest| *digest == last.digest)
                        && last.checked_for == job.check_for
                });
                (!known).then(|| present(job, Reason::AlreadyPresent, held, now))
            }
            Ok(None) if held_before => Some(self.removed(job, presence_interval_ms, now, jitter)),
            // The kubelet may pull it again meanwhile, for a Pod.
            Ok(None) if now.monotonic_ms < self.pull_not_before => {
                let next_check = now.monotonic_ms + spread(presence_interval_ms, jitter);
                self.state = State::Due(Step::CheckPresence, next_check.min(self.pull_not_before));
                None
            }
            Ok(None) => {
                self.state = State::Due(Step::Pull, now.monotonic_ms);
                None
            }
            // A runtime that does not answer has not lost the image; another one never had it.
            Err(error) if held_before && error.reason != Reason::RuntimeMismatch => {
                self.attempts += 1;
                let delay = retry_delay(self.attempts, Reason::RuntimeUnavailable, jitter);
                self.state = State::Due(Step::CheckPresence, now.monotonic_ms + delay);
                None
            }
            Err(RuntimeError { reason, message }) => {
                Some(self.failed(job, reason, message, now, now.monotonic_ms, jitter))
            }
        }
    }

    /// The pull that began at `started_unix_ms` brought the image, or found it present.
    pub(super) fn pulled(
        &mut self,
        job: &Job,
        pulled: PulledImage,
        started_unix_ms: i64,
        presence_interval_ms: i64,
        now: Now,
        jitter: f64,
    ) -> Outcome {
        (self.attempts, self.underestimates, self.unproven) = (0, 0, None);
        self.removals.held(now.monotonic_ms);
        let next_check = now.monotonic_ms + spread(presence_interval_ms, jitter);
        self.state = State::Due(Step::CheckPresence, next_check);
        let reason = if pulled.downloaded { Reason::Pulled } else { Reason::AlreadyPresent };
        let outcome = present(job, reason, pulled.image, now);
        Outcome { started_at_unix_ms: started_unix_ms, attempt: job.attempt, ..outcome }
    }

    fn removed(&mut self, job: &Job, presence_interval_ms: i64, now: Now, jitter: f64) -> Outcome {
        let (backoff_ms, consecutive) = self.removals.removed(now.monotonic_ms);
        let pull_at = now.monotonic_ms + spread(backoff_ms, jitter);
        self.pull_not_before = pull_at;
        let (next, when) = if pull_at == now.monotonic_ms {
            (State::Due(Step::Pull, now.monotonic_ms), "it is pulled again".to_owned())
        } else {
            let check_at = now.monotonic_ms + spread(presence_interval_ms, jitter);
            let when = format!(
                "it was removed {consecutive} times in a row, so it is pulled again in {}",
                duration_text(pull_at - now.monotonic_ms)
            );
            (State::Due(Step::CheckPresence, check_at.min(pull_at)), when)
        };
        self.state = next;
        let message = format!("the runtime no longer holds the image; {when}");
        let outcome = absent(&job.uid, Reason::Removed, message, now);
        Outcome { retry_at_unix_ms: now.unix_ms_at(pull_at), ..outcome }
    }

    /// The reason that was reported last.
    pub(super) fn last_reason(&self) -> Option<&str> {
        self.last.as_ref().map(|last| last.reason.as_str())
    }

    /// Retries soon, without counting an attempt.
    pub(super) fn no_room(&mut self, job: &Job, message: String, now: Now, jitter: f64) -> Outcome {
        let retry_at = now.monotonic_ms + spread(SPACE_EVERY_MS, jitter);
        self.state = State::Due(self.step_after_failure(), retry_at);
        let outcome = absent(&job.uid, Reason::DiskPressure, message, now);
        Outcome { retry_at_unix_ms: now.unix_ms_at(retry_at), ..outcome }
    }

    /// A tag has to be pulled: the image that the node holds under it may be outdated.
    fn step_after_failure(&self) -> Step {
        if self.target().digest().is_some() { Step::CheckPresence } else { Step::Pull }
    }

    /// A digest is immutable. A tag may have moved, unless the controller requires no check.
    pub(super) fn first_step(&self) -> Step {
        let is_current = self.assign.believed_present && self.assign.check_for.is_empty();
        if is_current { Step::CheckPresence } else { self.step_after_failure() }
    }

    pub(super) fn failed(
        &mut self,
        job: &Job,
        reason: Reason,
        message: String,
        now: Now,
        not_before: i64,
        jitter: f64,
    ) -> Outcome {
        self.attempts += 1;
        let retry_at =
            not_before.max(now.monotonic_ms + retry_delay(self.attempts, reason, jitter));
        self.state = State::Due(self.step_after_failure(), retry_at);
        Outcome {
            attempt: self.attempts,
            retry_at_unix_ms: now.unix_ms_at(retry_at),
            ..absent(&job.uid, reason, message, now)
        }
    }
}

/// The image by the digest that its tag was resolved to. `None` where the tag has to be checked: then a newer
/// Revision uses it.
pub(super) fn resolved(assign: &Assign, image: &Reference) -> Option<Reference> {
    let digest: Digest = assign.resolved_digest.parse().ok()?;
    let is_used = image.digest().is_none() && assign.check_for.is_empty();
    is_used.then(|| Reference::parse(&format!("{}@{digest}", image.repository())).ok()).flatten()
}

/// Transient failures are retried soon, those that require user action slowly; both with a back-off
/// of at most about five minutes.
pub(crate) fn retry_delay(attempts: u32, reason: Reason, jitter: f64) -> i64 {
    let (first, factor): (f64, f64) =
        if reason.requires_user_action() { (10_000.0, 4.0) } else { (1_000.0, 2.0) };
    let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX).min(30);
    let delay = (first * factor.powi(power)).min(LONGEST_RETRY_MS);
    (delay * (0.75 + jitter * 0.5)) as i64
}

/// The part of a message that states how long the node backs off.
pub(super) fn backoff_text(now: Now, until_ms: i64) -> String {
    format!("this node pulls nothing from it for {}", duration_text(until_ms - now.monotonic_ms))
}

fn duration_text(ms: i64) -> String {
    let seconds = (ms + 999) / 1_000;
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", (seconds + 59) / 60) }
}

/// Adds jitter, so that nodes and images are not all due at the same time.
pub(super) fn spread(every_ms: i64, jitter: f64) -> i64 {
    (every_ms as f64 * (0.75 + jitter * 0.5)) as i64
}

pub(super) fn present(job: &Job, reason: Reason, held: PresentImage, now: Now) -> Outcome {
    Outcome {
        uid: job.uid.to_string(),
        present: true,
        reason: reason.as_str().into(),
        digest: held.digest.map(|digest| digest.to_string()).unwrap_or_default(),
        size_bytes: held.size_bytes,
        finished_at_unix_ms: now.unix_ms,
        checked_for: job.check_for.clone(),
        ..Outcome::default()
    }
}

/// A Pod that may use what is on the node runs, although the pull for its tag failed.
pub(super) fn unchecked(
    job: &Job,
    held: PresentImage,
    reason: Reason,
    failure: Outcome,
    now: Now,
) -> Outcome {
    let why = &failure.message;
    let message = format!(
        "the node holds an image of this tag; whether it is the newest is not known: {reason}: {why}"
    );
    Outcome {
        message,
        checked_for: String::new(),
        attempt: failure.attempt,
        started_at_unix_ms: failure.started_at_unix_ms,
        retry_at_unix_ms: failure.retry_at_unix_ms,
        unchecked_reason: reason.as_str().into(),
        ..present(job, Reason::AlreadyPresent, held, now)
    }
}

pub(super) fn absent(uid: &str, reason: Reason, message: String, now: Now) -> Outcome {
    Outcome {
        uid: uid.to_owned(),
        present: false,
        reason: reason.as_str().into(),
        message,
        finished_at_unix_ms: now.unix_ms,
        ..Outcome::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_five_minutes_and_faster_where_somebody_has_to_act() {
        let delays = |reason| [1, 2, 3, 4, 5, 9, 99].map(|tries| retry_delay(tries, reason, 0.5));
        let transient = [1_000, 2_000, 4_000, 8_000, 16_000, 256_000, 300_000];
        assert_eq!(delays(Reason::RegistryUnreachable), transient);
        let by_user = [10_000, 40_000, 160_000, 300_000, 300_000, 300_000, 300_000];
        assert_eq!(delays(Reason::Unauthorized), by_user);
        let jitter = [0.0, 1.0].map(|jitter| retry_delay(1, Reason::TimedOut, jitter));
        assert_eq!(jitter, [750, 1_250]);
    }
}
