//! Tags of which the digest is known, and tags that cannot be checked.

use super::*;

const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn tag() -> Assign {
    assignment("t", "r.test/app:v1")
}

fn resolved() -> Assign {
    Assign { resolved_digest: DIGEST.into(), ..tag() }
}

fn exactly() -> Reference {
    Reference::parse(&format!("r.test/app@{DIGEST}")).unwrap()
}

fn image(digest: &str) -> PresentImage {
    PresentImage { digest: digest.parse().ok(), size_bytes: 5 }
}

#[test]
fn for_every_failure_a_resolved_digest_on_the_node_ends_it_at_the_next_check() {
    let ends: [fn() -> Ended; 5] = [
        || Ended::Pulled(0, Err(error(Reason::Unauthorized))),
        || Ended::Pulled(0, Err(error(Reason::NotFound))),
        || Ended::Pulled(0, Err(error(Reason::RateLimited))),
        || Ended::NoRoom("full".into()),
        || Ended::Refused(Reason::SecretMissing, "gone".into()),
    ];
    for end in ends {
        let mut queue = queue();
        queue.assign(tag(), 0);
        let job = queue.next(0).unwrap();
        assert_eq!((job.step, job.image.as_str()), (Step::Pull, "r.test/app:v1"));
        let failed = outcome_of(queue.ended(&job, end(), 10, 0.5));
        // Knative has resolved it: checked at once, whatever the back-off.
        assert!(queue.next(20).is_none(), "{failed:?}");
        queue.assign(resolved(), 20);
        let job = queue.next(20).unwrap();
        assert_eq!((job.step, job.resolved.as_ref()), (Step::CheckPresence, Some(&exactly())));
        let ended = Ended::PresenceChecked(Ok(Some(image(DIGEST))));
        let report = queue.ended(&job, ended, 30, 0.5).unwrap();
        assert_eq!((report.present, &*report.digest), (true, DIGEST), "{failed:?}");
    }
}

#[test]
fn a_digest_that_comes_and_goes_is_tried_at_once_only_the_first_time() {
    let mut queue = queue();
    queue.assign(tag(), 0);
    let mut tries = 0;
    for now in [0, 10, 20, 30] {
        while let Some(job) = queue.next(now) {
            let ended = match job.step {
                Step::CheckPresence => Ended::PresenceChecked(Ok(None)),
                _ => Ended::Pulled(now, Err(error(Reason::NotFound))),
            };
            tries += usize::from(job.step == Step::Pull);
            queue.ended(&job, ended, now, 0.5);
        }
        queue.assign(resolved(), now + 1);
        queue.assign(tag(), now + 2);
        queue.assign(resolved(), now + 3);
    }
    assert_eq!(tries, 2);
}

#[test]
fn once_the_digest_is_known_the_tag_is_not_pulled() {
    let mut queue = queue();
    queue.assign(resolved(), 0);
    for round in [0, 100_000] {
        let job = queue.next(round).unwrap();
        assert_eq!((job.step, job.image.as_str()), (Step::CheckPresence, "r.test/app:v1"));
        // The node holds an older image of that tag.
        let ended = Ended::PresenceChecked(Ok(Some(image(OTHER))));
        assert_eq!(queue.ended(&job, ended, round, 0.5), None);
        let job = queue.next(round).unwrap();
        assert_eq!((job.step, &job.image, &job.resolved), (Step::Pull, &exactly(), &None));
        let failed = Ended::Pulled(0, Err(error(Reason::RegistryUnreachable)));
        assert!(queue.ended(&job, failed, round, 0.5).is_some_and(|report| !report.present));
    }
}

#[test]
fn a_tag_that_is_to_be_checked_is_pulled_although_an_older_digest_is_known() {
    let mut queue = queue();
    queue.assign(Assign { check_for: "u/r-2".into(), ..resolved() }, 0);
    let job = queue.next(0).unwrap();
    assert_eq!((job.step, job.image.as_str()), (Step::Pull, "r.test/app:v1"));
}

#[test]
fn an_image_that_was_reported_stays_so_when_its_tag_is_resolved_to_another() {
    let mut queue = queue();
    queue.assign(Assign { believed_present: true, ..resolved() }, 0);
    let job = queue.next(0).unwrap();
    let ended = Ended::PresenceChecked(Ok(Some(image(OTHER))));
    let report = queue.ended(&job, ended, 0, 0.5);
    assert_eq!(outcome_of(report), Some((true, "AlreadyPresent".into())));
    assert!(queue.next(10_000).is_none(), "an ImageWarm by digest follows");
}

#[test]
fn the_digest_of_another_namespace_is_verified() {
    let mut queue = queue();
    let theirs = Assign { namespace: "theirs".into(), believed_present: true, ..by_digest("d") };
    queue.assign(theirs, 0);
    let job = queue.next(0).unwrap();
    let present = || Ended::PresenceChecked(Ok(Some(image(DIGEST))));
    queue.ended(&job, present(), 0, 0.5);
    queue.assign(Assign { namespace: "ours".into(), ..resolved() }, 0);
    let job = queue.next(0).unwrap();
    assert_eq!(queue.ended(&job, present(), 0, 0.5), None);
    let job = queue.next(0).unwrap();
    assert_eq!((job.step, &job.image), (Step::Verify, &exactly()));
}

#[test]
fn an_image_of_a_tag_that_cannot_be_checked_is_present_and_is_checked_later() {
    for reason in [Reason::RegistryUnreachable, Reason::RateLimited] {
        let mut queue = queue();
        let check = Assign { check_for: "u/r-2".into(), believed_present: true, ..tag() };
        queue.assign(check.clone(), 0);
        let job = queue.next(0).unwrap();
        let ended = Ended::Unchecked(0, image(OTHER), error(reason));
        let report = queue.ended(&job, ended, 10, 0.5).unwrap();
        assert!(report.present && report.checked_for.is_empty(), "{report:?}");
        assert_eq!((report.unchecked_reason.as_str(), &*report.digest), (reason.as_str(), OTHER));
        assert!(report.message.contains("the node holds an image of this tag"), "{report:?}");
        // The same assignment again says nothing new; its registry that answers again does.
        assert_eq!(queue.assign(check, 20), Some(report));
        assert!(queue.next(20).is_none());
        queue.retry("t", 400_000);
        let job = queue.next(400_000).unwrap();
        assert_eq!((job.step, job.check_for.as_str()), (Step::Pull, "u/r-2"));
        let report = queue.ended(&job, Ended::Pulled(0, held(true)), 400_010, 0.5).unwrap();
        assert_eq!((report.checked_for.as_str(), &*report.unchecked_reason), ("u/r-2", ""));
    }
}
