//! Orders in, jobs out, results back: no tasks, no clock, no runtime.
#![allow(clippy::unwrap_used, clippy::panic)]

mod clocks;
mod digests;
mod handlers;
mod limits;
mod needs;
mod rights;

use std::ops::{Deref, DerefMut};

use proptest::prelude::*;

use super::entry::retry_delay;
use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn assignment(uid: &str, image: &str) -> Assign {
    Assign { uid: uid.into(), image: image.into(), ..Assign::default() }
}

fn by_digest(uid: &str) -> Assign {
    assignment(uid, &format!("r.test/app@{DIGEST}"))
}

fn limits() -> Limits {
    let (presence_interval_ms, assumed_bytes) = (60_000, 1_000);
    Limits { parallel_pulls: 2, pulls_per_registry: 2, presence_interval_ms, assumed_bytes }
}

/// The queue with one number for both clocks; the wall clock may be set ahead or back.
struct Queue {
    queue: super::Queue,
    wall_ahead_ms: i64,
}

impl Queue {
    fn new(limits: Limits) -> Self {
        Queue { queue: super::Queue::new(limits), wall_ahead_ms: 0 }
    }

    fn at(&self, ms: i64) -> Now {
        Now { monotonic_ms: ms, unix_ms: ms + self.wall_ahead_ms }
    }

    fn assign(&mut self, assign: Assign, now: i64) -> Option<Outcome> {
        self.queue.assign(assign, self.at(now))
    }

    fn next(&mut self, now: i64) -> Option<Job> {
        self.queue.next(self.at(now))
    }

    fn removal_seen(&mut self, now: i64) {
        self.queue.removal_seen(self.at(now));
    }

    fn retry(&mut self, uid: &str, now: i64) {
        self.queue.retry(uid, self.at(now));
    }

    fn held_up(&mut self, now: i64) -> Vec<Outcome> {
        self.queue.held_up(self.at(now))
    }

    fn queued(&self, now: i64) -> impl Iterator<Item = &Uid> {
        self.queue.queued(self.at(now))
    }

    fn wake_at(&self, now: i64) -> Option<i64> {
        self.queue.wake_at(self.at(now))
    }

    fn stopped(&mut self, uid: &str, now: i64) {
        self.queue.stopped(uid, self.at(now));
    }

    fn ended(&mut self, job: &Job, ended: Ended, now: i64, jitter: f64) -> Option<Outcome> {
        self.queue.ended(job, ended, self.at(now), jitter)
    }
}

impl Deref for Queue {
    type Target = super::Queue;

    fn deref(&self) -> &super::Queue {
        &self.queue
    }
}

impl DerefMut for Queue {
    fn deref_mut(&mut self) -> &mut super::Queue {
        &mut self.queue
    }
}

fn queue() -> Queue {
    Queue::new(limits())
}

fn held(downloaded: bool) -> Result<PulledImage, RuntimeError> {
    let image = PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 };
    Ok(PulledImage { image, downloaded })
}

fn error(reason: Reason) -> RuntimeError {
    RuntimeError { reason, message: "why".into() }
}

fn started(queue: &mut Queue, now: i64) -> Vec<(Uid, Step)> {
    let mut jobs: Vec<_> =
        std::iter::from_fn(|| queue.next(now)).map(|job| (job.uid, job.step)).collect();
    jobs.sort_by(|a, b| a.0.cmp(&b.0));
    jobs
}

fn outcome_of(outcome: Option<Outcome>) -> Option<(bool, String)> {
    outcome.map(|outcome| (outcome.present, outcome.reason))
}

#[test]
fn a_digest_is_checked_first_and_a_tag_is_pulled() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    queue.assign(assignment("t", "r.test/app:v1"), 0);
    queue.assign(Assign { believed_present: true, ..assignment("held", "r.test/b:v1") }, 0);
    let check = Assign { check_for: "u/r".into(), ..assignment("check", "r.test/c:v1") };
    queue.assign(Assign { believed_present: true, ..check }, 0);
    let expected = [
        ("check", Step::Pull),
        ("d", Step::CheckPresence),
        ("held", Step::CheckPresence),
        ("t", Step::Pull),
    ];
    assert_eq!(started(&mut queue, 0), expected.map(|(uid, step)| (uid.into(), step)));
}

#[test]
fn a_digest_that_is_present_is_not_pulled() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    let job = queue.next(0).unwrap();
    let found = PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 };
    let report = queue.ended(&job, Ended::PresenceChecked(Ok(Some(found.clone()))), 1, 0.5);
    assert_eq!(outcome_of(report), Some((true, "AlreadyPresent".into())));
    assert_eq!(queue.next(1), None);
    // Looked at again later; what is as it was is not reported.
    let later = queue.wake_at(1).unwrap();
    assert_eq!(later, 60_001);
    let job = queue.next(later).unwrap();
    assert_eq!(queue.ended(&job, Ended::PresenceChecked(Ok(Some(found))), later, 0.5), None);
}

#[test]
fn a_lost_image_is_reported_and_pulled_again() {
    let mut queue = queue();
    queue.assign(Assign { believed_present: true, ..by_digest("d") }, 0);
    let job = queue.next(0).unwrap();
    let report = queue.ended(&job, Ended::PresenceChecked(Ok(None)), 1, 0.5);
    assert_eq!(outcome_of(report), Some((false, "Removed".into())));
    let job = queue.next(1).unwrap();
    assert_eq!((job.step, job.attempt), (Step::Pull, 1));
    let report = queue.ended(&job, Ended::Pulled(1, held(true)), 9, 0.5).unwrap();
    assert_eq!((report.present, report.attempt, report.started_at_unix_ms), (true, 1, 1));
}

#[test]
fn a_runtime_that_does_not_answer_has_not_lost_the_image() {
    let mut queue = queue();
    queue.assign(Assign { believed_present: true, ..by_digest("d") }, 0);
    queue.assign(by_digest("e"), 0);
    let job = queue.next(0).unwrap();
    assert_eq!(job.uid, "d");
    let failed = || Ended::PresenceChecked(Err(error(Reason::RuntimeUnavailable)));
    assert_eq!(queue.ended(&job, failed(), 1, 0.5), None);
    let job = queue.next(1).unwrap();
    assert_eq!(job.uid, "e");
    let report = outcome_of(queue.ended(&job, failed(), 1, 0.5));
    assert_eq!(report, Some((false, "RuntimeUnavailable".into())));
}

#[test]
fn what_another_runtime_holds_is_not_there_and_the_right_one_is_asked_at_once() {
    let mut queue = queue();
    queue.assign(Assign { believed_present: true, ..by_digest("d") }, 0);
    let job = queue.next(0).unwrap();
    let other = Ended::PresenceChecked(Err(error(Reason::RuntimeMismatch)));
    let report = outcome_of(queue.ended(&job, other, 1, 0.5));
    assert_eq!(report, Some((false, "RuntimeMismatch".into())));
    assert_eq!(queue.next(2), None, "it backs off");
    let now = queue.at(2);
    queue.runtime_changed(now);
    let job = queue.next(2).unwrap();
    assert_eq!(job.step, Step::CheckPresence);
    let report = queue.ended(&job, Ended::PresenceChecked(Ok(None)), 3, 0.5);
    assert_eq!(outcome_of(report), None);
    assert_eq!(queue.next(3).unwrap().step, Step::Pull);
}

#[test]
fn pulls_are_limited_newest_revision_first_and_each_image_once() {
    let mut queue = queue();
    for (uid, image, priority) in
        [("a", "r.test/a:1", 1), ("b", "r.test/b:1", 9), ("b2", "r.test/b:1", 8), ("c", "c", 5)]
    {
        queue.assign(Assign { priority, ..assignment(uid, image) }, 0);
    }
    let first = queue.next(0).unwrap();
    let second = queue.next(0).unwrap();
    assert_eq!((&*first.uid, &*second.uid), ("b", "c"));
    assert_eq!(queue.next(0), None);
    assert_eq!(queue.queued(0).count(), 2);
    queue.ended(&second, Ended::Pulled(0, held(true)), 1, 0.5);
    assert_eq!(queue.next(1).unwrap().uid, "a", "b2 waits for its image, not for a place");
    queue.ended(&first, Ended::Pulled(0, held(true)), 1, 0.5);
    assert_eq!(queue.next(1).unwrap().uid, "b2");
}

#[test]
fn failures_are_retried_with_growing_pauses() {
    let mut queue = queue();
    queue.assign(assignment("a", "app"), 0);
    let mut now = 0;
    let mut pauses = vec![];
    for attempt in 1..=11 {
        let job = queue.next(now).unwrap();
        assert_eq!(job.attempt, attempt);
        let failed = Ended::Pulled(now, Err(error(Reason::RegistryUnreachable)));
        let report = queue.ended(&job, failed, now, 0.5).unwrap();
        assert_eq!((report.attempt, queue.next(now)), (attempt, None));
        let next = queue.wake_at(now).unwrap();
        assert_eq!(report.retry_at_unix_ms, next);
        pauses.push((next - now) / 1000);
        now = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(retry_delay(1, Reason::NotFound, 0.5), 10_000);
    assert_eq!(retry_delay(9, Reason::NotFound, 0.5), 300_000);
}

#[test]
fn what_a_person_mended_is_tried_at_once() {
    let mut queue = queue();
    queue.assign(assignment("a", "app"), 0);
    let job = queue.next(0).unwrap();
    queue.ended(&job, Ended::Refused(Reason::SecretMissing, "no".into()), 0, 0.5);
    let again = queue.assign(assignment("a", "app"), 1);
    assert_eq!(outcome_of(again), Some((false, "SecretMissing".into())), "reported again");
    assert_eq!(queue.next(1), None);
    assert_eq!(queue.assign(Assign { identity_mark: 7, ..assignment("a", "app") }, 2), None);
    assert!(queue.next(2).is_some());
}

#[test]
fn a_tag_is_checked_once_for_each_token() {
    let mut queue = queue();
    queue.assign(assignment("a", "app"), 0);
    let job = queue.next(0).unwrap();
    let check = |word: &str| Assign { check_for: word.into(), ..assignment("a", "app") };
    assert_eq!(queue.assign(check("u/2"), 0), None);
    queue.ended(&job, Ended::Pulled(0, held(true)), 1, 0.5);
    let job = queue.next(1).unwrap();
    assert_eq!((job.step, job.check_for.as_str()), (Step::Pull, "u/2"), "asked while pulling");
    let report = queue.ended(&job, Ended::Pulled(1, held(false)), 2, 0.5).unwrap();
    assert_eq!((report.reason.as_str(), report.checked_for.as_str()), ("AlreadyPresent", "u/2"));
    assert_eq!(queue.assign(check("u/2"), 3), Some(report), "reported again after a reconnect");
    assert_eq!(queue.next(3), None);
    queue.assign(check("u/3"), 4);
    assert_eq!(queue.next(4).unwrap().check_for, "u/3");
}

#[test]
fn what_a_new_stream_does_not_name_is_withdrawn() {
    let mut queue = queue();
    for (uid, image) in [("a", "r.test/a"), ("b", "r.test/b"), ("b2", "r.test/b")] {
        queue.assign(assignment(uid, image), 0);
    }
    assert_eq!(started(&mut queue, 0).len(), 2);
    queue.welcome();
    queue.assign(assignment("b2", "r.test/b"), 1);
    let mut gone = queue.synced();
    gone.sort();
    assert_eq!(gone, ["a", "b"]);
    assert!(queue.withdraw("a"), "nobody else wants it");
    assert!(!queue.withdraw("b"), "b2 does");
    assert!(!queue.withdraw("unknown"));
    queue.stopped("a", 2);
    assert_eq!(queue.next(2), None, "b's pull still runs");
    queue.stopped("b", 2);
    assert_eq!(queue.next(2).unwrap().uid, "b2");
}

#[test]
fn a_broken_reference_is_reported() {
    let report = queue().assign(assignment("a", "NOT AN IMAGE"), 0);
    assert_eq!(outcome_of(report), Some((false, "InvalidImage".into())));
}

proptest! {
    /// Whatever happens in whatever order: limits hold, no image is pulled twice at once, and
    /// nothing is forgotten.
    #[test]
    fn invariants_hold(events in prop::collection::vec((0..6u8, 0..6usize, 0..3usize), 1..200)) {
        let mut queue = queue();
        let mut jobs: Vec<Job> = vec![];
        let mut now = 0;
        for (event, which, image) in events {
            now += 500;
            let uid = format!("uid-{which}");
            match event {
                0 | 1 => {
                    let image = format!("r.test/image-{which}{}", image / 2);
                    queue.assign(Assign { priority: which as i64, ..assignment(&uid, &image) }, now);
                }
                2 => {
                    if queue.withdraw(&uid) {
                        jobs.retain(|job| job.uid != uid);
                        queue.stopped(&uid, now);
                    }
                }
                3 if !jobs.is_empty() => {
                    let job = jobs.remove(which % jobs.len());
                    let ended = match (job.step, image) {
                        (Step::CheckPresence, _) => Ended::PresenceChecked(Ok(None)),
                        (Step::Pull, 0) => Ended::Pulled(now, held(true)),
                        (Step::Pull, _) => Ended::Pulled(now, Err(error(Reason::TimedOut))),
                        (Step::Verify, 0) => Ended::Verified(Ok(())),
                        (Step::Verify, _) => {
                            Ended::Verified(Err(error(Reason::Unauthorized)))
                        }
                    };
                    queue.ended(&job, ended, now, 0.5);
                }
                _ => jobs.extend(std::iter::from_fn(|| queue.next(now))),
            }
            let pulls = jobs.iter().filter(|job| job.step == Step::Pull).count();
            prop_assert!(pulls <= 2);
            let images: HashSet<_> = jobs.iter().map(|job| &job.image).collect();
            prop_assert_eq!(images.len(), jobs.len());
            prop_assert_eq!(queue.running.len(), jobs.len());
        }
        for job in std::mem::take(&mut jobs) {
            queue.ended(&job, Ended::PresenceChecked(Ok(None)), now, 0.5);
        }
        // With nothing running, every order is either due or will be.
        let waiting = queue.entries.values().filter(|e| matches!(e.state, State::Due(..))).count();
        prop_assert_eq!(waiting, queue.assignments());
    }
}

#[test]
fn what_is_known_is_reported_again_even_during_a_presence_check() {
    let mut queue = queue();
    queue.assign(assignment("t", "r.test/app:v1"), 0);
    let job = queue.next(0).unwrap();
    assert_eq!(queue.assign(assignment("t", "r.test/app:v1"), 1), None, "the pull's end will tell");
    queue.ended(&job, Ended::Pulled(0, held(true)), 2, 0.5);
    assert_eq!(queue.next(100_000).map(|job| job.step), Some(Step::CheckPresence));
    let reports = outcome_of(queue.assign(assignment("t", "r.test/app:v1"), 100_001));
    assert_eq!(reports, Some((true, "Pulled".to_owned())));
}

#[test]
fn a_check_that_failed_is_tried_again_until_it_heals() {
    let mut queue = queue();
    queue.assign(assignment("t", "r.test/app:v1"), 0);
    let job = queue.next(0).unwrap();
    queue.ended(&job, Ended::Pulled(0, held(true)), 1, 0.5);
    let believed = Assign { believed_present: true, ..assignment("t", "r.test/app:v1") };
    queue.assign(Assign { check_for: "u/r".into(), ..believed }, 2);
    let check = queue.next(2).unwrap();
    assert_eq!((check.step, &*check.check_for), (Step::Pull, "u/r"));
    let down = Err(error(Reason::RegistryUnreachable));
    let failed = queue.ended(&check, Ended::Pulled(2, down), 3, 0.5);
    assert_eq!(outcome_of(failed), Some((false, "RegistryUnreachable".to_owned())));
    // The controller stored the failure: nothing is to be checked any more, but to be pulled.
    queue.assign(assignment("t", "r.test/app:v1"), 4);
    let again = queue.next(queue.wake_at(4).unwrap()).unwrap();
    assert_eq!(again.step, Step::Pull, "a presence check would find the old content");
    let healed = queue.ended(&again, Ended::Pulled(2_000, held(false)), 2_001, 0.5);
    assert_eq!(outcome_of(healed), Some((true, "AlreadyPresent".to_owned())));
}
