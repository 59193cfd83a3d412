//! What a node can get that does not do what a warmer does.

use super::*;

fn connected() -> Index {
    let mut index = index(0);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    index
}

fn found() -> Result<Vec<Credential>, Refusal> {
    Ok(vec![Credential {
        username: "u".into(),
        password: "p".into(),
        identity_token: String::new(),
        registry_token: String::new(),
    }])
}

#[test]
fn nothing_is_granted_for_an_image_that_is_ready() {
    let mut index = connected();
    let ready = with_ready(warm("a1", "a", "registry.test/app:v1"), Reason::Pulled);
    index.apply(kept(ready.clone()), pull_context(1), 0);
    described(&mut index);
    index.message(1, &request("a1"), 1);
    assert_eq!(described(&mut index), ["1 grant a1 0Removed"]);
    assert_eq!(index.pulls(), (0, 0));
    // A check of the tag is to be made.
    let context = PullContext { check_for: Some("token".into()), ..pull_context(1) };
    index.apply(kept(ready.clone()), context, 2);
    described(&mut index);
    index.message(1, &request("a1"), 2);
    assert_eq!(described(&mut index), ["1 resolve a1"]);
    index.message(1, &outcome("a1", Reason::AlreadyPresent), 3);
    index.apply(kept(ready.clone()), pull_context(1), 4);
    described(&mut index);
    // It was removed: the warmer reports that before it asks, and the cache may lag behind.
    index.message(1, &outcome("a1", Reason::Removed), 5);
    index.apply(kept(ready), pull_context(1), 6);
    index.message(1, &request("a1"), 7);
    assert_eq!(described(&mut index), ["status a1 Removed", "1 resolve a1"]);
    assert_eq!(index.image_warm("a1").map(|warm| &*warm.node_name), Some("a"));
    assert!(index.image_warm("unknown").is_none());
}

#[test]
fn a_permit_lasts_while_bytes_arrive() {
    let mut index = Index::new(Budget::of_pulls(1), GRACE, 0);
    assign(&mut index, &[("a1", "a"), ("b1", "b")]);
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    index.open(2, &"b".into(), &hello(1, &[]), 0);
    index.message(1, &request("a1"), 0);
    index.message(2, &request("b1"), 0);
    described(&mut index);
    let minute = 60_000;
    let moved = |bytes: u64| {
        FromWarmer::Progress(Progress {
            uid: "a1".into(),
            downloaded_bytes: bytes,
            ..Progress::default()
        })
    };
    let waits = |index: &mut Index, now: i64| {
        index.tick(now);
        !described(index).contains(&"2 resolve b1".to_owned())
    };
    index.message(1, &moved(5), 60 * minute);
    assert!(waits(&mut index, 100 * minute), "it moved forty minutes ago");
    // The same bytes again, or fewer, are no progress.
    index.message(1, &moved(5), 110 * minute);
    index.message(1, &moved(4), 111 * minute);
    assert!(!waits(&mut index, 126 * minute));
}

#[test]
fn a_node_that_asks_for_more_pulls_than_it_can_run_is_cut_off() {
    let mut index = Index::new(Budget::of_pulls(1), GRACE, 0);
    for n in 0..=OUTSTANDING_MAX {
        let uid = format!("u{n}");
        index.apply(kept(warm(&uid, "a", &format!("registry.test/{n}"))), pull_context(1), 0);
    }
    index.open(1, &"a".into(), &hello(1, &[]), 0);
    described(&mut index);
    for n in 0..OUTSTANDING_MAX {
        index.message(1, &request(&format!("u{n}")), 1);
        index.message(1, &request(&format!("u{n}")), 1);
    }
    assert_eq!(described(&mut index), ["1 resolve u0"], "one runs, the others wait");
    index.message(1, &request(&format!("u{OUTSTANDING_MAX}")), 2);
    assert_eq!(described(&mut index), ["1 close Excessive"]);
}

#[test]
fn a_node_that_asks_for_more_credentials_than_it_can_use_is_cut_off() {
    let mut index = connected();
    let limit = GRANTS + 2 * GRANTS_PER_ASSIGNMENT;
    let granted = |index: &mut Index, now: i64| {
        index.message(1, &request("a1"), now);
        let request = index.assignments["a1"].credential_request(&"a1".into(), 1);
        index.resolved(&request, found(), now);
        index.message(1, &outcome("a1", Reason::RegistryUnreachable), now);
        let sent = described(index);
        sent.iter().any(|sent| sent == "1 grant a1 1")
    };
    for _ in 0..limit {
        assert!(granted(&mut index, 1_000));
    }
    assert!(!granted(&mut index, GRANTS_PERIOD_MS - 1));
    // A warmer whose pull fails all the time, also with the attempts that the leader asks for, is
    // far below.
    let mut index = connected();
    for second in (0..86_400).step_by(5) {
        assert!(granted(&mut index, second * 1_000));
    }
    assert!(GRANTS > usize::try_from(GRANTS_PERIOD_MS / 5_000).unwrap());
}

#[test]
fn a_node_that_claims_to_pull_everything_holds_what_a_warmer_can_run() {
    let mut index = Index::new(Budget::of_pulls(500), GRACE, 0);
    let uids: Vec<String> = (0..400).map(|n| format!("u{n}")).collect();
    for uid in &uids {
        index.apply(kept(warm(uid, "a", &format!("registry.test/{uid}"))), pull_context(1), 0);
    }
    let claimed: Vec<&str> = uids.iter().map(String::as_str).collect();
    index.open(1, &"a".into(), &hello(1, &claimed), 0);
    assert_eq!(index.pulls(), (RUNNING_MAX, 0));
}
