//! The index is fed events by hand, and what it wants done is read back: no tasks, no clock.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::api::condition::READY;
use crate::api::{Condition, ImageWarm, ImageWarmSpec, ImageWarmStatus};
use crate::protocol::{Progress, PullRequest};

mod budget;
mod hostile;
mod needs;
mod preemption;

const GRACE: i64 = 8_000;

fn warm(uid: &str, node: &str, image: &str) -> ImageWarm {
    let spec =
        ImageWarmSpec { image: image.into(), node_name: node.into(), ..ImageWarmSpec::default() };
    let mut warm = ImageWarm::new(uid, spec);
    warm.metadata.uid = Some(uid.into());
    warm.metadata.namespace = Some("default".into());
    warm
}

fn kept(warm: ImageWarm) -> Arc<CachedImageWarm> {
    Arc::new(warm.into())
}

fn with_ready(mut warm: ImageWarm, reason: Reason) -> ImageWarm {
    let condition = Condition {
        type_: READY.into(),
        status: reason.ready(),
        reason: reason.as_str().into(),
        ..Condition::default()
    };
    warm.status =
        Some(ImageWarmStatus { conditions: vec![condition], ..ImageWarmStatus::default() });
    warm
}

fn pull_context(priority: i64) -> PullContext {
    let identity = PullIdentity { secrets: vec!["regcred".into()], service_account: None };
    PullContext { identities: vec![identity], priority, ..PullContext::default() }
}

fn hello(epoch: u64, pulling: &[&str]) -> Hello {
    let pulling = pulling.iter().map(|uid| (*uid).to_owned()).collect();
    Hello { protocol_version: 1, epoch, pulling, ..Hello::default() }
}

fn request(uid: &str) -> FromWarmer {
    FromWarmer::PullRequest(PullRequest { uid: uid.into() })
}

fn outcome(uid: &str, reason: Reason) -> FromWarmer {
    FromWarmer::Outcome(protocol::Outcome {
        uid: uid.into(),
        present: reason.ready() == ConditionStatus::True,
        reason: reason.as_str().into(),
        ..protocol::Outcome::default()
    })
}

fn progress(uid: &str, queued: bool) -> FromWarmer {
    FromWarmer::Progress(Progress { uid: uid.into(), queued, ..Progress::default() })
}

/// Effects as short texts, so that whole sequences can be compared.
fn described(index: &mut Index) -> Vec<String> {
    let describe = |effect: Effect| match effect {
        Effect::Send(to, ToWarmer::Welcome(_)) => format!("{to} welcome"),
        Effect::Send(to, ToWarmer::Assign(assign)) => {
            let check = if assign.check_for.is_empty() { "" } else { " check" };
            let believed = if assign.believed_present { " believed" } else { "" };
            let waits = if assign.pod_waits { " pod waits" } else { "" };
            format!("{to} assign {}{check}{believed}{waits}", assign.uid)
        }
        Effect::Send(to, ToWarmer::Withdraw(withdraw)) => format!("{to} withdraw {}", withdraw.uid),
        Effect::Send(to, ToWarmer::RetryPull(retry)) => format!("{to} retry {}", retry.uid),
        Effect::Send(to, ToWarmer::SuspendPull(suspend)) => format!("{to} suspend {}", suspend.uid),
        Effect::Send(to, ToWarmer::ReportProgress(report)) => {
            format!("{to} report {} every {} ms", report.uid, report.interval_ms)
        }
        Effect::Send(to, ToWarmer::Synced(_)) => format!("{to} synced"),
        Effect::Send(to, ToWarmer::PullGrant(grant)) => {
            format!("{to} grant {} {}{}", grant.uid, grant.credentials.len(), grant.refused_reason)
        }
        Effect::Close(to, end) => format!("{to} close {end:?}"),
        Effect::Resolve(job) => format!("{} resolve {}", job.session, job.uid),
        Effect::RecheckCredentials(_, mut uids) => {
            uids.sort();
            format!("again {}", uids.join(" "))
        }
        Effect::Status(uid, _, report) => {
            let what = match report {
                Report::WaitingForWarmer => "waiting".to_owned(),
                Report::Queued => "queued".to_owned(),
                Report::Pulling(_) => "pulling".to_owned(),
                Report::Outcome(outcome) => outcome.reason.to_string(),
            };
            format!("status {uid} {what}")
        }
    };
    index.take_effects().into_iter().map(describe).collect()
}

fn index(limit: usize) -> Index {
    let mut index = Index::new(Budget::of_pulls(limit), GRACE, 0);
    assign(&mut index, &[("a1", "a"), ("a2", "a"), ("b1", "b")]);
    index
}

fn index_with(assignments: &[(&str, &str)]) -> Index {
    let mut index = Index::new(Budget::of_pulls(9), GRACE, 0);
    assign(&mut index, assignments);
    index
}

fn assign(index: &mut Index, assignments: &[(&str, &str)]) {
    for (uid, node) in assignments {
        index.apply(kept(warm(uid, node, "registry.test/app:v1")), pull_context(1), 0);
    }
    assert!(described(index).is_empty());
}

#[test]
fn the_welcome_says_what_the_leader_speaks_and_whom_it_takes_the_warmer_for() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    let welcome = index.take_effects().into_iter().find_map(|effect| match effect {
        Effect::Send(1, ToWarmer::Welcome(welcome)) => Some(welcome),
        _ => None,
    });
    let welcome = welcome.unwrap();
    assert_eq!((welcome.protocol_version, &*welcome.node_name), (PROTOCOL_VERSION, "a"));
    assert_eq!(welcome.controller_version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_node_gets_its_own_assignments_and_then_synced_at_every_opening() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    assert_eq!(described(&mut index), ["1 welcome", "1 assign a1", "1 assign a2", "1 synced"]);
    assert_eq!(index.node_of(1).map(|node| &**node), Some("a"));
    assert_eq!(index.node_of(2), None);
    index.close(1, 5);
    assert!(described(&mut index).is_empty(), "a lost stream changes no status");
    index.open(2, &"a".into(), &hello(2, &[]), 10);
    assert_eq!(described(&mut index), ["2 welcome", "2 assign a1", "2 assign a2", "2 synced"]);
    assert_eq!(index.connected(), [NodeName::from("a")].into());
    index.open(3, &"empty".into(), &hello(1, &[]), 10);
    assert_eq!(described(&mut index), ["3 welcome", "3 synced"]);
}

#[test]
fn the_newer_stream_of_a_node_stays() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(5, &[]), 0);
    described(&mut index);
    index.open(2, &"a".into(), &hello(4, &[]), 0);
    assert_eq!(described(&mut index), ["2 close Replaced"]);
    index.open(3, &"a".into(), &hello(6, &[]), 0);
    assert_eq!(described(&mut index)[..2], ["1 close Replaced", "3 welcome"]);
    index.close(1, 1);
    index.close(2, 1);
    assert_eq!(index.connected().len(), 1);
    index.message(1, &outcome("a1", Reason::Pulled), 2);
    assert_eq!(index.take_ignored(), 1, "an ended stream is not heard");
}

#[test]
fn a_node_cannot_speak_of_orders_of_another() {
    let mut index = index(9);
    index.open(1, &"b".into(), &hello(1, &["a1"]), 0);
    described(&mut index);
    for message in [outcome("a1", Reason::Pulled), request("a1"), progress("a1", false)] {
        index.message(1, &message, 60_000);
        assert_eq!(described(&mut index), ["1 close Misbehaved"]);
    }
    index.message(1, &outcome("nobody's", Reason::Pulled), 0);
    assert!(described(&mut index).is_empty(), "an assignment that is gone may still be spoken of");
    assert_eq!(index.take_ignored(), 4);
    assert_eq!(index.pulls(), (0, 0), "nor hold places for them");
}

#[test]
fn new_changed_and_deleted_orders_reach_an_open_stream() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    index.apply(kept(warm("a3", "a", "app")), pull_context(1), 0);
    index.apply(kept(warm("a3", "a", "app")), pull_context(1), 0);
    assert_eq!(described(&mut index), ["1 assign a3"], "once");
    let stored = kept(with_ready(warm("a3", "a", "app"), Reason::Pulled));
    index.apply(stored.clone(), pull_context(1), 0);
    assert!(described(&mut index).is_empty(), "the warmer knows its own report");
    let check = PullContext { check_for: Some("uid/rev-2".into()), ..pull_context(2) };
    index.apply(stored.clone(), check, 0);
    assert_eq!(described(&mut index), ["1 assign a3 check believed"]);
    index.apply(stored, pull_context(2), 0);
    assert!(described(&mut index).is_empty(), "nothing is left to check");
    let paid_by_another = PullContext { identities: vec![], ..pull_context(2) };
    index.apply(kept(warm("a3", "a", "app")), paid_by_another, 0);
    assert_eq!(described(&mut index), ["1 assign a3"]);
    index.delete("a3", 0);
    index.delete("a3", 0);
    assert_eq!(described(&mut index), ["1 withdraw a3"]);
}

#[test]
fn a_checked_tag_is_recorded_only_for_what_was_asked() {
    let mut index = Index::new(Budget::of_pulls(9), GRACE, 0);
    let check = PullContext { check_for: Some("uid/rev-2".into()), ..pull_context(2) };
    index.apply(kept(warm("a1", "a", "app")), check, 0);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    assert_eq!(described(&mut index), ["1 welcome", "1 assign a1 check", "1 synced"]);
    for (said, recorded) in [("uid/rev-2", Some("uid/rev-2")), ("uid/rev-9", None)] {
        let FromWarmer::Outcome(mut message) = outcome("a1", Reason::Pulled) else { panic!() };
        message.checked_for = said.into();
        index.message(1, &FromWarmer::Outcome(message), 1);
        let effects = index.take_effects();
        let [Effect::Status(_, _, Report::Outcome(outcome))] = effects.as_slice() else {
            panic!("{effects:?}")
        };
        assert_eq!(outcome.checked_for.as_deref(), recorded);
    }
}

#[test]
fn pulls_beyond_the_limit_of_a_registry_wait_for_their_turn() {
    let mut index = index(1);
    index.apply(kept(warm("a3", "a", "registry.test/new:v1")), pull_context(9), 0);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.open(2, &"b".into(), &hello(1, &[]), 0);
    described(&mut index);
    for (session, uid) in [(1, "a1"), (2, "b1"), (1, "a3")] {
        index.message(session, &request(uid), 0);
    }
    assert_eq!(described(&mut index), ["1 resolve a1"]);
    assert_eq!(index.pulls(), (1, 2));
    let job = CredentialRequest {
        uid: "a1".into(),
        session: 1,
        namespace: "default".into(),
        identities: vec![],
        image: Reference::parse("registry.test/app:v1").unwrap(),
    };
    index.resolved(&job, Ok(vec![]), 0);
    assert_eq!(described(&mut index), ["1 grant a1 0"]);
    index.message(1, &outcome("a1", Reason::Pulled), 1);
    assert_eq!(
        described(&mut index),
        ["status a1 Pulled", "1 resolve a3"],
        "newest Revision first"
    );
    let job = CredentialRequest { uid: "a3".into(), ..job };
    let refusal = Refusal { reason: Reason::InvalidImage, message: "no image".into() };
    index.resolved(&job, Err(refusal), 2);
    assert_eq!(described(&mut index), ["1 grant a3 0InvalidImage", "2 resolve b1"]);
    index.resolved(&job, Ok(vec![]), 3);
    assert!(described(&mut index).is_empty(), "its place is given up");
    index.delete("b1", 4);
    assert_eq!(described(&mut index), ["2 withdraw b1"]);
    assert_eq!(index.pulls(), (0, 0));
}

#[test]
fn running_pulls_keep_their_places_through_a_reconnect() {
    let mut index = index(1);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.open(2, &"b".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    index.message(2, &request("b1"), 0);
    index.message(1, &request("a2"), 0);
    assert_eq!(index.pulls(), (1, 2));
    index.close(1, 10);
    described(&mut index);
    assert_eq!(index.pulls(), (1, 1), "what waited is asked for again");
    index.open(3, &"a".into(), &hello(2, &["a1"]), 20);
    assert_eq!(described(&mut index), ["3 welcome", "3 assign a1", "3 assign a2", "3 synced"]);
    index.message(3, &outcome("a1", Reason::Pulled), 30);
    assert_eq!(described(&mut index), ["status a1 Pulled", "2 resolve b1"]);
    index.open(4, &"b".into(), &hello(2, &[]), 40);
    assert_eq!(index.pulls(), (0, 0), "a new hello that does not name it gives it up");
}

#[test]
fn a_node_without_a_warmer_is_reported_after_the_grace_period() {
    let mut index = index(1);
    index.apply(kept(with_ready(warm("a3", "a", "app"), Reason::Pulled)), pull_context(0), 0);
    index.apply(kept(with_ready(warm("a4", "a", "app"), Reason::NotFound)), pull_context(0), 0);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    index.close(1, 1_000);
    described(&mut index);
    index.tick(GRACE + 999);
    assert!(described(&mut index).is_empty());
    assert_eq!(index.pulls(), (1, 0));
    index.tick(GRACE + 1_000);
    assert_eq!(described(&mut index), ["status a1 waiting", "status a2 waiting"]);
    assert_eq!(index.pulls(), (0, 0));
    // The warmer of a node that has not been seen yet may still look for the new leader.
    index.tick(4 * GRACE - 1);
    assert!(described(&mut index).is_empty());
    index.tick(4 * GRACE);
    assert_eq!(described(&mut index), ["status b1 waiting"]);
    index.tick(GRACE * 9);
    assert!(described(&mut index).is_empty(), "once");
    // Later a node has the time in which a new one starts its warmer, and one that is known to be
    // gone none.
    index.apply(kept(warm("c1", "c", "app")), pull_context(0), GRACE * 9);
    index.apply(kept(warm("b2", "b", "app")), pull_context(0), GRACE * 9);
    index.tick(GRACE * 9);
    assert_eq!(described(&mut index), ["status b1 waiting", "status b2 waiting"]);
    index.tick(GRACE * 10);
    assert_eq!(described(&mut index), ["status c1 waiting"]);
}

#[test]
fn progress_is_written_late_and_seldom() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    described(&mut index);
    let mut written = vec![];
    for second in 0..17 {
        index.message(1, &progress("a1", false), second * 1_000);
        index.message(1, &progress("a2", true), second * 1_000);
        written.extend(described(&mut index).into_iter().map(|word| format!("{second} {word}")));
    }
    let (queued, pulling): (Vec<_>, Vec<_>) =
        written.into_iter().partition(|word| word.contains("queued"));
    assert_eq!(pulling, ["2 status a1 pulling", "7 status a1 pulling", "12 status a1 pulling"]);
    assert_eq!(queued[0], "15 status a2 queued");
}

#[test]
fn an_image_that_is_no_reference_is_refused_in_status() {
    let mut index = Index::new(Budget::of_pulls(1), GRACE, 0);
    index.apply(kept(warm("x", "a", "Not An Image")), pull_context(0), 0);
    assert_eq!(described(&mut index), ["status x InvalidImage"]);
}

#[test]
fn an_object_being_deleted_is_withdrawn() {
    let mut index = index(1);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    let mut going = warm("a1", "a", "registry.test/app:v1");
    going.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap();
    index.apply(kept(going), pull_context(1), 0);
    assert_eq!(described(&mut index), ["1 withdraw a1"]);
}

#[test]
fn a_repeated_request_reads_the_secrets_once() {
    let mut index = index(1);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    described(&mut index);
    index.message(1, &request("a1"), 1);
    assert!(described(&mut index).is_empty());
    index.close(1, 2);
    index.open(2, &"a".into(), &hello(2, &[]), 3);
    described(&mut index);
    index.message(2, &request("a1"), 4);
    assert_eq!(described(&mut index), ["2 resolve a1"], "another stream needs its own answer");
}

#[test]
fn assignments_are_counted_by_node() {
    let index = index(9);
    assert_eq!(["a", "b", "c"].map(|node| index.assignments_of(node)), [2, 1, 0]);
    assert_eq!(index.assignments(), 3);
}

/// The answer to a stream that is closed does not answer its successor, whose request is pending.
#[test]
fn an_answer_for_an_older_stream_leaves_the_request_of_the_newer_one_pending() {
    let mut index = index(9);
    let request_of = |index: &mut Index| {
        let effects = index.take_effects();
        effects.into_iter().find_map(|effect| match effect {
            Effect::Resolve(request) => Some(request),
            _ => None,
        })
    };
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    let first = request_of(&mut index).unwrap();
    index.close(1, 1);
    index.open(2, &"a".into(), &hello(2, &[]), 2);
    index.message(2, &request("a1"), 3);
    let second = request_of(&mut index).unwrap();
    assert_eq!((first.session, second.session), (1, 2));
    index.resolved(&first, Ok(vec![]), 4);
    index.message(2, &request("a1"), 5);
    assert!(described(&mut index).is_empty(), "its own answer is still to come");
    index.resolved(&second, Ok(vec![]), 6);
    assert_eq!(described(&mut index), ["2 grant a1 0"]);
}

/// A warmer that has checked for a newer Revision is not sent the same request again.
#[test]
fn an_assignment_is_sent_again_for_another_check_only() {
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    let context = |check: Option<&str>| PullContext {
        check_for: check.map(str::to_owned),
        ..pull_context(1)
    };
    let mut apply = |check: Option<&str>| {
        let warm = kept(warm("a1", "a", "registry.test/app:v1"));
        index.apply(warm, context(check), 0);
        described(&mut index)
    };
    assert_eq!(apply(Some("u/r-1")), ["1 assign a1 check"]);
    assert!(apply(Some("u/r-1")).is_empty(), "the same");
    assert!(apply(None).is_empty(), "nothing is to be checked any more");
    assert_eq!(apply(Some("u/r-2")), ["1 assign a1 check"]);
}

#[test]
fn credentials_that_no_message_can_carry_are_refused() {
    let credential = |length: usize| Credential {
        username: "u".into(),
        password: "p".repeat(length),
        identity_token: String::new(),
        registry_token: String::new(),
    };
    assert_eq!(grant("a", Ok(vec![credential(100)])).credentials.len(), 1);
    let refused = grant("a", Ok(vec![credential(100), credential(200_000)]));
    assert_eq!((refused.credentials.len(), &*refused.refused_reason), (0, "SecretMissing"));
}

#[test]
fn no_place_is_ever_lost() {
    let uids = ["a1", "a2", "b1"];
    let mut random = 7_u64;
    let mut index = index(1);
    let mut session = 0;
    for now in 0..20_000_i64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pick = usize::try_from(random >> 40).unwrap();
        let (uid, node) = (uids[pick % 3], ["a", "b"][pick % 2]);
        match pick / 6 % 8 {
            0 => {
                session += 1;
                let pulling = if pick % 5 == 0 { &[uid][..] } else { &[] };
                index.open(session, &node.into(), &hello(session, pulling), now);
            }
            1 => index.close(session, now),
            2 => index.delete(uid, now),
            3 => {
                let image = ["r.test/x:v1", "s.test/y:v1"][pick % 2];
                let warm = with_ready(warm(uid, &uid[..1], image), Reason::Unauthorized);
                index.apply(kept(warm), pull_context(now), now);
            }
            4 => index.message(session, &outcome(uid, Reason::Pulled), now),
            5 => index.tick(now * 100),
            _ => index.message(session, &request(uid), now),
        }
        for effect in index.take_effects() {
            if let Effect::Resolve(job) = effect
                && pick % 3 > 0
            {
                let refused = Refusal { reason: Reason::SecretMissing, message: String::new() };
                index.resolved(&job, if pick % 3 == 1 { Ok(vec![]) } else { Err(refused) }, now);
            }
        }
    }
    // Warmers that come back with nothing at work give every place back.
    for node in ["a", "b"] {
        session += 1;
        index.open(session, &node.into(), &hello(session, &[]), 20_000);
        index.close(session, 20_000);
    }
    assert_eq!(index.pulls(), (0, 0));
    uids.iter().for_each(|uid| index.delete(uid, 20_001));
    assert_eq!((index.assignments(), index.nodes.len()), (0, 0));
}

#[test]
fn secrets_are_read_again_for_pulls_that_wait_for_a_credential() {
    let found = |password: &str| {
        Ok(vec![Credential {
            username: "u".into(),
            password: password.into(),
            identity_token: String::new(),
            registry_token: String::new(),
        }])
    };
    let missing =
        || Err(Refusal { reason: Reason::SecretMissing, message: "no answer in time".into() });
    let mut index = index(9);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.open(2, &"b".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    let job = index.take_effects().into_iter().find_map(|effect| match effect {
        Effect::Resolve(job) => Some(job),
        _ => None,
    });
    index.resolved(&job.unwrap(), found("old"), 0);
    index.message(1, &outcome("a1", Reason::Unauthorized), 0);
    let image = "registry.test/app:v1";
    let failed = |index: &mut Index, uid: &str, node: &str, reason: Reason| {
        let warm = with_ready(warm(uid, node, image), reason);
        index.apply(kept(warm), pull_context(1), 0);
    };
    failed(&mut index, "a1", "a", Reason::Unauthorized);
    failed(&mut index, "a2", "a", Reason::NotFound);
    failed(&mut index, "b1", "b", Reason::SecretMissing);
    failed(&mut index, "c1", "nobody", Reason::SecretMissing);
    described(&mut index);

    index.tick(5_400);
    assert!(described(&mut index).is_empty(), "too soon");
    index.tick(8_300);
    assert_eq!(
        described(&mut index),
        ["again a1 b1"],
        "one read for all with the same credentials and image"
    );
    index.tick(9_300);
    assert!(described(&mut index).is_empty(), "asked already");

    let both = [Uid::from("a1"), Uid::from("b1")];
    index.rechecked(&both, &missing(), 0);
    assert!(described(&mut index).is_empty(), "nothing to try");
    let mark = index.assignments["b1"].identity_mark;
    index.rechecked(&both, &found("old"), 0);
    assert_eq!(described(&mut index), ["2 assign b1"], "a1 was refused with the very same");
    assert_ne!(index.assignments["b1"].identity_mark, mark);
    index.rechecked(&both, &found("new"), 0);
    assert_eq!(described(&mut index), ["1 assign a1", "2 assign b1"]);
    index.rechecked(&both, &found("new"), 0);
    assert!(described(&mut index).is_empty(), "once for each change");

    // The leader before may have seen the change, and died: one attempt each.
    let mut next = index_with(&[("a1", "a")]);
    next.open(1, &"a".into(), &hello(1, &[]), 0);
    failed(&mut next, "a1", "a", Reason::Unauthorized);
    described(&mut next);
    for expected in [&["1 assign a1"][..], &[]] {
        next.rechecked(&both[..1], &found("new"), 0);
        assert_eq!(described(&mut next), expected);
    }

    // The mark stays when the object changes, so that no change counts twice.
    failed(&mut index, "b1", "b", Reason::SecretMissing);
    assert!(described(&mut index).is_empty());
    // What runs reads the Secrets itself; what is well or gone needs none.
    index.message(2, &request("b1"), 25_000);
    failed(&mut index, "a1", "a", Reason::Pulled);
    described(&mut index);
    index.tick(60_000);
    let said = described(&mut index);
    assert!(said.iter().all(|word| !word.starts_with("again")), "{said:?}");
}

#[test]
fn a_size_that_one_node_reported_helps_the_next() {
    let mut index = index(9);
    let mut held = with_ready(warm("a1", "a", "registry.test/app:v1"), Reason::Pulled);
    held.status.as_mut().unwrap().size_bytes = Some(70);
    index.apply(kept(held), pull_context(1), 0);
    index.apply(kept(warm("c1", "c", "registry.test/app:v1")), pull_context(1), 0);
    let described_hello = Hello {
        runtime_name: "containerd".into(),
        runtime_version: "2.2.3".into(),
        runtime_reports: vec!["progress".into()],
        ..hello(1, &[])
    };
    index.open(1, &"c".into(), &described_hello, 0);
    let effects = index.take_effects();
    let sizes: Vec<u64> = effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Send(1, ToWarmer::Assign(assign)) => Some(assign.known_size_bytes),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [70]);
    // And which runtime a node has stands in the status of what it reports.
    index.message(1, &outcome("c1", Reason::Pulled), 1);
    let effects = index.take_effects();
    let [Effect::Status(_, _, Report::Outcome(outcome))] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (&*outcome.runtime.runtime, &*outcome.runtime.reports),
        ("containerd 2.2.3", "progress")
    );
}

#[test]
fn what_a_tag_was_resolved_to_is_sent_while_its_node_does_not_hold_it() {
    let mut index = index_with(&[("u1", "a")]);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    let missing = || {
        let status = serde_json::json!({
            "conditions": [{"type": "Ready", "status": "False", "reason": "NotFound"}],
        });
        let mut missing = warm("u1", "a", "registry.test/app:v1");
        missing.status = Some(serde_json::from_value(status).unwrap());
        kept(missing)
    };
    let resolved = |digest: &str| PullContext { resolved: Some(digest.into()), ..pull_context(1) };
    let sent = |index: &mut Index| -> Vec<String> {
        let effects = index.take_effects().into_iter();
        let digest = |effect| match effect {
            Effect::Send(1, ToWarmer::Assign(assign)) => Some(assign.resolved_digest),
            _ => None,
        };
        effects.filter_map(digest).collect()
    };
    index.apply(missing(), pull_context(1), 1);
    assert!(sent(&mut index).is_empty(), "nobody knows better");
    index.apply(missing(), resolved("sha256:1"), 2);
    assert_eq!(sent(&mut index), ["sha256:1"]);
    index.apply(missing(), resolved("sha256:1"), 3);
    assert!(sent(&mut index).is_empty(), "once");
    index.apply(missing(), pull_context(1), 5);
    assert_eq!(sent(&mut index), [""], "a newer Revision is not resolved yet");
    let held = with_ready(warm("u1", "a", "registry.test/app:v1"), Reason::Pulled);
    index.apply(kept(held.clone()), pull_context(1), 6);
    index.apply(kept(held), resolved("sha256:2"), 7);
    assert!(sent(&mut index).is_empty(), "an ImageWarm by digest follows where it is another");
}

#[test]
fn nothing_is_written_for_a_node_that_has_left() {
    let mut index = index_with(&[("a1", "a"), ("b1", "b")]);
    assert_eq!(index.node_left("a"), [Uid::from("a1")]);
    assert!(index.node_left("never").is_empty());
    index.tick(GRACE * 9);
    assert_eq!(described(&mut index), ["status b1 waiting"]);
    // Another of its name comes, with ImageWarms of its own.
    index.delete("a1", GRACE * 9);
    index.apply(kept(warm("a2", "a", "app")), pull_context(1), GRACE * 9);
    index.tick(GRACE * 20);
    assert_eq!(described(&mut index), ["status a2 waiting"]);
}
