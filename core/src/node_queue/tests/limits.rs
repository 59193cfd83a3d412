//! What holds pulls back: registries, the disk, and whoever removes images.

use super::*;

/// Starts the next job, which is a pull, and ends it.
fn pulled(queue: &mut Queue, now: i64, result: Result<PulledImage, RuntimeError>) -> Outcome {
    let job = queue.next(now).unwrap();
    assert_eq!(job.step, Step::Pull);
    queue.ended(&job, Ended::Pulled(now, result), now, 0.5).unwrap()
}

fn refused(message: &str) -> Result<PulledImage, RuntimeError> {
    Err(RuntimeError { reason: Reason::RateLimited, message: message.into() })
}

/// Looks at the only order there is, and finds that the runtime holds it or not.
fn presence_checked(queue: &mut Queue, now: i64, found: bool) -> Option<Outcome> {
    let job = queue.next(now).unwrap();
    assert_eq!(job.step, Step::CheckPresence);
    let found = found.then(|| PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 });
    queue.ended(&job, Ended::PresenceChecked(Ok(found)), now, 0.5)
}

#[test]
fn slow_pulls_of_one_namespace_leave_a_place_for_another() {
    let of = |namespace: &str, uid: &str, image: &str, priority| Assign {
        namespace: namespace.into(),
        priority,
        ..assignment(uid, image)
    };
    let mut queue = Queue::new(Limits { parallel_pulls: 5, pulls_per_registry: 4, ..limits() });
    // Two registries that never finish, and a namespace whose pulls are the newest.
    for at in 0..500 {
        let image = format!("tarpit-{}.test/{at}", at % 2);
        queue.assign(of("slow", &format!("s{at}"), &image, 9), 0);
    }
    assert_eq!(std::iter::from_fn(|| queue.next(0)).count(), 4);
    queue.assign(of("quick", "q1", "tarpit-0.test/quick", 1), 1);
    queue.assign(of("quick", "q2", "r.test/quick", 1), 1);
    let quick = queue.next(1).unwrap();
    assert_eq!(&*quick.uid, "q1", "of a registry that the others use, too");
    assert_eq!(queue.next(1), None);
    queue.ended(&quick, Ended::Pulled(0, held(true)), 2, 0.5);
    assert_eq!(&*queue.next(2).unwrap().uid, "q2");
    // Within one registry.
    let mut queue = Queue::new(Limits { parallel_pulls: 9, pulls_per_registry: 3, ..limits() });
    for at in 0..9 {
        queue.assign(of("slow", &format!("s{at}"), &format!("r.test/{at}"), 9), 0);
    }
    assert_eq!(std::iter::from_fn(|| queue.next(0)).count(), 2);
    queue.assign(of("quick", "q", "r.test/quick", 1), 1);
    assert_eq!(&*queue.next(1).unwrap().uid, "q");
}

#[test]
fn a_rate_limit_stops_the_account_alone() {
    let mut queue = queue();
    let of = |account_mark, uid: &str| Assign {
        account_mark,
        ..assignment(uid, &format!("r.test/{uid}"))
    };
    queue.assign(of(1, "exhausted"), 0);
    let job = queue.next(0).unwrap();
    queue.ended(&job, Ended::Pulled(0, Err(error(Reason::RateLimited))), 1, 0.5);
    queue.assign(of(1, "same"), 2);
    queue.assign(of(2, "other"), 2);
    assert_eq!(&*queue.next(2).unwrap().uid, "other");
    assert_eq!(queue.next(2), None);
    assert_eq!(queue.held_up(2).len(), 1, "the one that waits says so");
}

#[test]
fn a_registry_gets_its_share_of_the_places_only() {
    let mut queue = Queue::new(Limits { parallel_pulls: 4, pulls_per_registry: 2, ..limits() });
    for (uid, image, priority) in
        [("a", "r.test/a", 9), ("b", "r.test/b", 8), ("c", "r.test/c", 7), ("d", "other.test/d", 1)]
    {
        queue.assign(Assign { priority, ..assignment(uid, image) }, 0);
    }
    let jobs: Vec<Job> = std::iter::from_fn(|| queue.next(0)).collect();
    let started: Vec<_> = jobs.iter().map(|job| &*job.uid).collect();
    assert_eq!(started, ["a", "b", "d"], "c waits for its registry, d need not");
    queue.ended(&jobs[0], Ended::Pulled(0, held(true)), 1, 0.5);
    assert_eq!(queue.next(1).unwrap().uid, "c");
}

#[test]
fn one_rate_limit_backs_off_every_pull_from_the_registry() {
    let mut queue = queue();
    for (uid, image) in [("a", "r.test/a"), ("b", "r.test/b"), ("d", "other.test/d")] {
        queue.assign(assignment(uid, image), 0);
    }
    let report = pulled(&mut queue, 0, refused("toomanyrequests: retry after 60 seconds"));
    assert_eq!((report.reason.as_str(), report.retry_at_unix_ms), ("RateLimited", 63_000));
    assert!(report.message.ends_with("; this node pulls nothing from it for 63 s"), "{report:?}");
    assert_eq!(started(&mut queue, 10), [("d".into(), Step::Pull)]);
    let reports = queue.held_up(10);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!((reports[0].uid.as_str(), reports[0].reason.as_str()), ("b", "RateLimited"));
    assert!(reports[0].message.starts_with("r.test asked for fewer requests"), "{reports:?}");
    assert_eq!(reports[0].retry_at_unix_ms, 63_000, "{reports:?}");
    assert_eq!((queue.held_up(20), queue.queued(20).count()), (vec![], 0), "reported once");
    // Then one pull at a time, until one has gone well.
    assert_eq!(queue.wake_at(20), Some(63_000));
    let first = queue.next(63_000).unwrap();
    assert_eq!(queue.next(63_000), None);
    queue.ended(&first, Ended::Pulled(63_000, held(true)), 64_000, 0.5);
    assert!(queue.next(64_000).is_some());
}

#[test]
fn what_the_node_holds_is_not_called_limited() {
    let mut queue = queue();
    queue.assign(assignment("a", "r.test/a"), 0);
    let held_tag = Assign { believed_present: true, ..assignment("t", "r.test/t:v1") };
    queue.assign(Assign { check_for: "u/r".into(), ..held_tag }, 0);
    pulled(&mut queue, 0, refused(""));
    assert_eq!(queue.held_up(1), [], "its check waits, and it is there");
}

#[test]
fn a_full_disk_is_reported_once_and_checked_often() {
    let mut queue = queue();
    queue.assign(assignment("a", "r.test/a"), 0);
    let mut now = 0;
    let mut reports = vec![];
    for _ in 0..5 {
        let job = queue.next(now).unwrap();
        assert_eq!((job.step, job.attempt), (Step::Pull, 1), "what was not begun is no try");
        reports.extend(queue.ended(&job, Ended::NoRoom("full".into()), now, 0.5));
        now = queue.wake_at(now).unwrap();
    }
    assert_eq!(now, 5 * 15_000);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!((reports[0].reason.as_str(), reports[0].message.as_str()), ("DiskPressure", "full"));
    assert_eq!(reports[0].retry_at_unix_ms, 15_000);
    assert_eq!(pulled(&mut queue, now, held(true)).reason, "Pulled");
}

#[test]
fn an_image_that_outgrew_its_room_needs_more_the_next_time() {
    let mut queue = queue();
    queue.assign(assignment("a", "r.test/a"), 0);
    let mut now = 0;
    for room_bytes in [1_000, 2_000, 4_000] {
        let job = queue.next(now).unwrap();
        assert_eq!(job.room_bytes, room_bytes);
        let report = queue.ended(&job, Ended::OutOfRoom("full".into()), now, 0.5);
        assert_eq!(outcome_of(report), Some((false, "DiskPressure".into())), "it ends the grant");
        now += 15_000;
    }
    assert_eq!(pulled(&mut queue, now, held(true)).reason, "Pulled");
}

#[test]
fn pulls_side_by_side_need_room_for_all() {
    let mut queue = queue();
    queue.assign(assignment("a", "r.test/a"), 0);
    queue.assign(Assign { known_size_bytes: 70, ..assignment("b", "r.test/b") }, 0);
    let first = queue.next(0).unwrap();
    assert_eq!(first.room_bytes, 1_000, "as assumed");
    let second = queue.next(0).unwrap();
    assert_eq!(second.room_bytes, 1_140, "as known, and the first");
    queue.ended(&first, Ended::Pulled(0, held(true)), 0, 0.5);
    queue.ended(&second, Ended::Pulled(0, Err(error(Reason::TimedOut))), 0, 0.5);
    assert_eq!(queue.next(30_000).unwrap().room_bytes, 140);
}

#[test]
fn a_reported_removal_is_checked_at_once() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    presence_checked(&mut queue, 0, true);
    assert_eq!(queue.next(1), None);
    queue.removal_seen(1);
    assert_eq!(outcome_of(presence_checked(&mut queue, 1, false)), Some((false, "Removed".into())));
    pulled(&mut queue, 1, held(true));
    // While a look runs, its answer may be from before.
    queue.removal_seen(2);
    let job = queue.next(2).unwrap();
    queue.removal_seen(2);
    let found = PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 };
    assert_eq!(queue.ended(&job, Ended::PresenceChecked(Ok(Some(found))), 3, 0.5), None);
    assert_eq!(outcome_of(presence_checked(&mut queue, 3, false)), Some((false, "Removed".into())));
}

/// The removal was reported while the image's own check ran and found it absent: it is pulled, and
/// not checked once more.
#[test]
fn a_removal_during_a_check_that_finds_the_image_absent_changes_nothing() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    let job = queue.next(0).unwrap();
    queue.removal_seen(0);
    assert_eq!(queue.ended(&job, Ended::PresenceChecked(Ok(None)), 1, 0.5), None);
    assert_eq!(started(&mut queue, 1), [("d".into(), Step::Pull)]);
    // A failed one waits for its retry, as it would otherwise.
    let mut queue = self::queue();
    queue.assign(by_digest("d"), 0);
    let job = queue.next(0).unwrap();
    queue.removal_seen(0);
    let failed = Ended::PresenceChecked(Err(error(Reason::RuntimeUnavailable)));
    let report = queue.ended(&job, failed, 1, 0.5).unwrap();
    assert_eq!(queue.next(2), None);
    assert_eq!(queue.wake_at(2), Some(report.retry_at_unix_ms));
}

/// While an image that was removed often is left alone, it is looked for at the usual interval.
#[test]
fn presence_is_checked_at_the_interval_while_a_pull_is_put_off() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    presence_checked(&mut queue, 0, true);
    let mut now = 60_000;
    presence_checked(&mut queue, now, false);
    pulled(&mut queue, now, held(true));
    now += 60_000;
    // The second removal in a row: the pull is put off by a minute.
    presence_checked(&mut queue, now, false);
    let next = queue.wake_at(now).unwrap();
    assert_eq!(next, now + 60_000);
    let begin = next - 30_000;
    queue.removal_seen(begin);
    assert_eq!(queue.next(begin), None, "it is not believed present");
}

#[test]
fn an_image_that_is_removed_again_and_again_is_left_alone_for_longer() {
    let mut queue = queue();
    queue.assign(by_digest("d"), 0);
    presence_checked(&mut queue, 0, true);
    let mut now = 0;
    let mut pauses = vec![];
    for time in 1..=6 {
        now += 300_000;
        let report = presence_checked(&mut queue, now, false).unwrap();
        assert_eq!(report.reason, "Removed");
        assert_eq!(report.message.contains("times in a row"), time > 1, "{report:?}");
        pauses.push((report.retry_at_unix_ms - now) / 1_000);
        // Meanwhile it is only looked for, and that says nothing new.
        while now < report.retry_at_unix_ms {
            now = queue.wake_at(now).unwrap();
            assert_eq!(presence_checked(&mut queue, now, false), None);
        }
        assert_eq!(now, report.retry_at_unix_ms);
        assert_eq!(pulled(&mut queue, now, held(true)).reason, "Pulled");
    }
    assert_eq!(pauses, [0, 60, 300, 1_800, 7_200, 7_200]);
}

#[test]
fn a_removed_image_that_comes_back_or_is_wanted_anew_does_not_wait() {
    let removed_twice = || {
        let mut queue = queue();
        queue.assign(by_digest("d"), 0);
        presence_checked(&mut queue, 0, true);
        presence_checked(&mut queue, 60_000, false);
        pulled(&mut queue, 60_000, held(true));
        let report = presence_checked(&mut queue, 120_000, false).unwrap();
        assert!(report.retry_at_unix_ms > 120_000, "{report:?}");
        queue
    };
    let mut queue = removed_twice();
    let at = queue.wake_at(120_000).unwrap();
    assert_eq!(
        outcome_of(presence_checked(&mut queue, at, true)),
        Some((true, "AlreadyPresent".into()))
    );
    let mut queue = removed_twice();
    queue.assign(Assign { priority: 1, ..by_digest("d") }, 120_001);
    assert_eq!(presence_checked(&mut queue, 120_001, false), None);
    assert_eq!(queue.next(120_001).map(|job| job.step), Some(Step::Pull));
}

#[test]
fn a_pull_that_failed_is_due_at_once_when_its_registry_answers_again() {
    let mut queue = queue();
    queue.assign(assignment("a", "r.test/a"), 0);
    for _ in 0..5 {
        let now = queue.wake_at(0).unwrap_or(0);
        let job = queue.next(now).unwrap();
        let failed = Ended::Pulled(0, Err(error(Reason::RegistryUnreachable)));
        queue.ended(&job, failed, now, 0.5);
    }
    let due = queue.wake_at(0).unwrap();
    assert_eq!(queue.next(due - 1), None);
    let last = queue.queue.last_absent("a").unwrap();
    assert_eq!(last.reason, Reason::RegistryUnreachable.as_str());
    queue.retry("unknown", due - 1);
    queue.retry("a", due - 1);
    let job = queue.next(due - 1).unwrap();
    queue.retry("a", due - 1);
    queue.ended(&job, Ended::Pulled(0, held(true)), due, 0.5);
    assert_eq!(queue.queue.last_absent("a"), None);
    queue.retry("a", due);
    assert_eq!(queue.next(due), None, "it is there");
    // A registry that asked for fewer requests is still left alone.
    queue.assign(assignment("b", "r.test/b"), due);
    let job = queue.next(due).unwrap();
    queue.ended(&job, Ended::Pulled(0, Err(error(Reason::RateLimited))), due, 0.5);
    queue.retry("b", due);
    assert_eq!(queue.next(due), None);
}
