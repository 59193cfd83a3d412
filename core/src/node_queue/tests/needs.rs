//! The order of a new node's pulls.

use super::*;

fn needed(uid: &str, namespace: &str, pod_waits: bool, recent_starts: u32) -> Assign {
    let image = format!("r{uid}.test/app:v1");
    let namespace = namespace.to_owned();
    Assign { namespace, pod_waits, recent_starts, priority: 1, ..assignment(uid, &image) }
}

fn order(queue: &mut Queue, now: i64) -> Vec<String> {
    std::iter::from_fn(|| queue.next(now)).map(|job| job.uid.to_string()).collect()
}

#[test]
fn what_a_pod_waits_for_comes_first_then_what_serves_most() {
    let limits = Limits { parallel_pulls: 8, ..limits() };
    let mut queue = Queue::new(limits);
    queue.assign(Assign { priority: 9, ..needed("new", "a", false, 0) }, 0);
    for (uid, namespace, starts) in [("idle", "b", 0), ("busy", "c", 2), ("busier", "d", 7)] {
        queue.assign(needed(uid, namespace, false, starts), 0);
    }
    queue.assign(needed("waiting", "e", true, 0), 0);
    assert_eq!(order(&mut queue, 0), ["waiting", "busier", "busy", "new", "idle"]);
}

#[test]
fn beside_it_no_other_of_its_namespace_is_pulled_for_a_while() {
    let limits = Limits { parallel_pulls: 8, ..limits() };
    let mut queue = Queue::new(limits);
    queue.assign(needed("waiting", "a", true, 0), 0);
    queue.assign(needed("too", "a", true, 0), 0);
    queue.assign(needed("beside", "a", false, 9), 0);
    queue.assign(needed("elsewhere", "b", false, 0), 0);
    assert_eq!(order(&mut queue, 0), ["waiting", "too", "elsewhere"]);
    // One that is stuck is no obstacle.
    assert!(order(&mut queue, ALONE_MS - 1).is_empty());
    assert_eq!(order(&mut queue, ALONE_MS), ["beside"]);
}

#[test]
fn before_it_is_known_to_be_missing_no_other_of_its_namespace_is_pulled() {
    let mut queue = queue();
    let all = [("before", "a", false), ("elsewhere", "b", false), ("waiting", "a", true)];
    for (uid, namespace, waits) in all {
        let image = format!("r{uid}.test/app@{DIGEST}");
        queue.assign(Assign { image, ..needed(uid, namespace, waits, 0) }, 0);
    }
    let checks: Vec<Job> = std::iter::from_fn(|| queue.next(0)).collect();
    let missing = |queue: &mut Queue, uid: &str| {
        let check = checks.iter().find(|job| &*job.uid == uid).unwrap();
        queue.ended(check, Ended::PresenceChecked(Ok(None)), 1, 0.5);
    };
    missing(&mut queue, "before");
    missing(&mut queue, "elsewhere");
    assert_eq!(order(&mut queue, 1), ["elsewhere"]);
    missing(&mut queue, "waiting");
    assert_eq!(order(&mut queue, 1), ["waiting"]);
}

#[test]
fn beside_the_download_of_its_kubelet_no_other_of_its_namespace_is_pulled() {
    let mut queue = queue();
    queue.assign(needed("waiting", "a", true, 0), 0);
    queue.assign(needed("beside", "a", false, 0), 0);
    let job = queue.next(0).unwrap();
    let mut locked = |now: i64| {
        queue.ended(&job, Ended::Pulled(0, Err(error(Reason::Pulling))), now, 0.5);
        queue.next(now)
    };
    assert_eq!(locked(1), None);
    assert_eq!(locked(ALONE_MS - 1), None);
    assert_eq!(&*locked(ALONE_MS).unwrap().uid, "beside");
}

#[test]
fn its_next_attempt_keeps_the_others_waiting_again() {
    let mut queue = queue();
    queue.assign(needed("waiting", "a", true, 0), 0);
    let job = queue.next(0).unwrap();
    queue.ended(&job, Ended::Pulled(0, Err(error(Reason::RegistryUnreachable))), 1, 0.5);
    let again = queue.wake_at(1).unwrap();
    queue.assign(needed("beside", "a", false, 0), again);
    assert_eq!(order(&mut queue, again), ["waiting"]);
}

#[test]
fn a_pod_that_waits_for_what_has_just_failed_lets_the_others_go() {
    let mut queue = queue();
    queue.assign(needed("failed", "a", false, 0), 0);
    let job = queue.next(0).unwrap();
    queue.ended(&job, Ended::Pulled(0, Err(error(Reason::RegistryUnreachable))), 1, 0.5);
    queue.assign(needed("failed", "a", true, 0), 1);
    queue.assign(needed("beside", "a", false, 0), 1);
    assert_eq!(order(&mut queue, 1), ["beside"]);
}

#[test]
fn the_end_of_its_pull_lets_the_others_go() {
    let mut queue = queue();
    queue.assign(needed("waiting", "a", true, 0), 0);
    queue.assign(needed("beside", "a", false, 0), 0);
    let job = queue.next(0).unwrap();
    assert_eq!((&*job.uid, queue.next(0)), ("waiting", None));
    let failed = Ended::Pulled(0, Err(error(Reason::RegistryUnreachable)));
    queue.ended(&job, failed, 1, 0.5);
    assert_eq!(order(&mut queue, 1), ["beside"]);
}
