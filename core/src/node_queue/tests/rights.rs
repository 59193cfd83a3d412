//! That an image is there gives a namespace no right to it.

use super::*;

fn of(namespace: &str, uid: &str) -> Assign {
    Assign { namespace: namespace.into(), ..by_digest(uid) }
}

fn found() -> Ended {
    Ended::PresenceChecked(Ok(Some(PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 })))
}

/// A queue in which `a` of namespace `team-a` is on the node.
fn held_by_team_a() -> Queue {
    let mut queue = queue();
    queue.assign(Assign { believed_present: true, ..of("team-a", "a") }, 0);
    assert_eq!(
        done(&mut queue, 0, Step::CheckPresence, found()),
        Some((true, "AlreadyPresent".into()))
    );
    queue
}

/// Starts the next job, which is this step, and ends it.
fn done(queue: &mut Queue, now: i64, step: Step, ended: Ended) -> Option<(bool, String)> {
    let job = queue.next(now).unwrap();
    assert_eq!(job.step, step);
    outcome_of(queue.ended(&job, ended, now, 0.5))
}

/// A provider that fails is no registry that does not answer: the registry has refused.
#[test]
fn what_a_registry_refuses_is_denied_whatever_was_missing() {
    for reason in [Reason::NoCredentials, Reason::CredentialProviderFailed, Reason::SecretMissing] {
        let mut queue = held_by_team_a();
        queue.assign(of("team-b", "b"), 1);
        assert_eq!(done(&mut queue, 1, Step::CheckPresence, found()), None);
        let refused = Ended::Verified(Err(error(reason)));
        let expected = Some((false, reason.as_str().into()));
        assert_eq!(done(&mut queue, 1, Step::Verify, refused), expected);
    }
}

#[test]
fn what_another_namespace_brought_is_asked_for() {
    let mut queue = held_by_team_a();
    queue.assign(of("team-b", "b"), 1);
    assert_eq!(done(&mut queue, 1, Step::CheckPresence, found()), None);
    let refused = Ended::Verified(Err(error(Reason::Unauthorized)));
    assert_eq!(done(&mut queue, 1, Step::Verify, refused), Some((false, "Unauthorized".into())));
    // Tried again later, slowly, though the other's order is gone meanwhile.
    queue.withdraw("a");
    let later = queue.wake_at(1).unwrap();
    assert_eq!(later, 10_001);
    assert_eq!(done(&mut queue, later, Step::CheckPresence, found()), None);
    let refused = Ended::Verified(Err(error(Reason::Unauthorized)));
    assert_eq!(
        done(&mut queue, later, Step::Verify, refused),
        Some((false, "Unauthorized".into()))
    );
    assert_eq!(queue.wake_at(later), Some(later + 40_000));
    // At once when its secrets change.
    queue.assign(Assign { identity_mark: 7, ..of("team-b", "b") }, 20_000);
    assert_eq!(done(&mut queue, 20_000, Step::CheckPresence, found()), None);
    let opened = Ended::Verified(Ok(()));
    assert_eq!(
        done(&mut queue, 20_000, Step::Verify, opened),
        Some((true, "AlreadyPresent".into()))
    );
    // And never again while it is there.
    let later = queue.wake_at(20_000).unwrap();
    assert_eq!(done(&mut queue, later, Step::CheckPresence, found()), None);
    assert_eq!(queue.next(later), None);
}

#[test]
fn a_tag_of_the_same_content_counts_as_bringing_it() {
    let mut queue = queue();
    queue.assign(Assign { namespace: "team-a".into(), ..assignment("a", "r.test/app:v1") }, 0);
    let pulled = Ended::Pulled(0, held(true));
    assert_eq!(done(&mut queue, 0, Step::Pull, pulled), Some((true, "Pulled".into())));
    queue.assign(of("team-b", "b"), 1);
    assert_eq!(done(&mut queue, 1, Step::CheckPresence, found()), None);
    assert_eq!(queue.next(1).unwrap().step, Step::Verify);
}

#[test]
fn what_is_known_or_was_there_before_is_not_asked_for() {
    let other = Assign { image: format!("r.test/other@{DIGEST}"), ..of("team-b", "b") };
    let believed = Assign { believed_present: true, ..of("team-b", "b") };
    for (case, assign) in [
        ("the same namespace", of("team-a", "b")),
        ("another repository", other),
        ("ready before", believed),
    ] {
        let mut queue = held_by_team_a();
        queue.assign(assign, 1);
        let reports = done(&mut queue, 1, Step::CheckPresence, found());
        assert_eq!(reports, Some((true, "AlreadyPresent".into())), "{case}");
    }
    // Nobody's order: it came with the machine.
    let mut queue = queue();
    queue.assign(of("team-b", "b"), 0);
    assert_eq!(
        done(&mut queue, 0, Step::CheckPresence, found()),
        Some((true, "AlreadyPresent".into()))
    );
}

#[test]
fn a_registry_that_does_not_answer_says_nothing_against_it() {
    for ended in [
        Ended::Verified(Err(error(Reason::RegistryUnreachable))),
        Ended::Verified(Err(error(Reason::RateLimited))),
        Ended::Refused(Reason::WaitingForWarmer, "the warmer is ending".into()),
    ] {
        let mut queue = held_by_team_a();
        queue.assign(of("team-b", "b"), 1);
        assert_eq!(done(&mut queue, 1, Step::CheckPresence, found()), None);
        assert_eq!(done(&mut queue, 1, Step::Verify, ended), Some((true, "AlreadyPresent".into())));
    }
}

#[test]
fn what_was_removed_meanwhile_is_pulled() {
    let mut queue = held_by_team_a();
    queue.assign(of("team-b", "b"), 1);
    assert_eq!(done(&mut queue, 1, Step::CheckPresence, found()), None);
    let refused = Ended::Refused(Reason::SecretMissing, "no regcred".into());
    assert_eq!(done(&mut queue, 1, Step::Verify, refused), Some((false, "SecretMissing".into())));
    assert_eq!(
        done(&mut queue, 20_000, Step::CheckPresence, Ended::PresenceChecked(Ok(None))),
        None
    );
    let pulled = Ended::Pulled(20_000, held(true));
    assert_eq!(done(&mut queue, 20_000, Step::Pull, pulled), Some((true, "Pulled".into())));
}
