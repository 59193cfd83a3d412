//! Pods that wait, and what is suspended for them.

use super::*;
use crate::report::pod_image::PodImage;

const IMAGE: &str = "registry.test/app:v1";

fn pod(namespace: &str, node: &str, image: &str) -> PodImage {
    let image = Reference::parse(image).unwrap();
    PodImage { namespace: namespace.into(), node: node.into(), image }
}

fn bytes(uid: &str, downloaded_bytes: u64) -> FromWarmer {
    FromWarmer::Progress(Progress {
        uid: uid.into(),
        downloaded_bytes,
        total_bytes: 1_000_000,
        ..Progress::default()
    })
}

/// Three nodes whose pulls run, each with the stream of its number.
fn pulling() -> Index {
    let mut index = index_with(&[("a1", "a"), ("b1", "b"), ("c1", "c")]);
    for (session, node) in [(1, "a"), (2, "b"), (3, "c")] {
        index.open(session, &node.into(), &hello(1, &[]), 0);
        index.message(session, &request(&format!("{node}1")), 0);
    }
    described(&mut index);
    assert_eq!(index.pulls(), (3, 0));
    index
}

#[test]
fn pulls_of_other_nodes_are_suspended_until_the_container_starts() {
    let mut index = pulling();
    let digest = format!("registry.test/app@sha256:{}", "a".repeat(64));
    index.pod_waits(&pod("default", "a", &digest), 10);
    let effects = described(&mut index);
    let expected =
        ["1 assign a1 pod waits", "1 report a1 every 250 ms", "2 suspend b1", "3 suspend c1"];
    assert_eq!(effects, expected);
    assert_eq!((index.pulls(), index.waiting_pods(), index.take_suspended()), ((1, 0), 1, 2));
    // Their warmers ask again, and wait.
    index.message(2, &request("b1"), 20);
    index.message(3, &request("c1"), 20);
    index.begin_waiting(100);
    assert!(described(&mut index).is_empty());
    assert_eq!(index.pulls(), (1, 2));
    index.pod_started(&pod("default", "a", &digest), 200);
    index.begin_waiting(200);
    let mut effects = described(&mut index);
    effects.sort();
    assert_eq!(effects, ["2 resolve b1", "3 resolve c1"]);
    assert!(!index.has_waiting());
}

#[test]
fn the_outcome_of_the_pods_node_ends_it_too_and_so_does_the_end_of_its_assignment() {
    for end in [false, true] {
        let mut index = pulling();
        index.pod_waits(&pod("default", "a", IMAGE), 10);
        if end {
            index.delete("a1", 20);
        } else {
            index.message(1, &outcome("a1", Reason::Pulled), 20);
        }
        assert_eq!(index.waiting_pods(), 0);
    }
}

#[test]
fn what_one_more_pull_takes_is_measured_and_then_left() {
    let mut index = pulling();
    index.pod_waits(&pod("default", "a", IMAGE), 0);
    index.message(2, &request("b1"), 0);
    index.message(3, &request("c1"), 0);
    described(&mut index);
    let mut downloaded = 0;
    let mut run = |index: &mut Index, from: i64, until: i64, rate: u64| {
        for now in (from..until).step_by(250) {
            downloaded += rate;
            index.message(1, &bytes("a1", downloaded), now);
            index.begin_waiting(now);
        }
        let effects = described(index);
        effects.into_iter().filter(|one| !one.starts_with("status")).collect::<Vec<_>>()
    };
    let probing = ["2 resolve b1", "2 report b1 every 250 ms"];
    assert_eq!(run(&mut index, 0, 2_000, 1_000), probing);
    // It gets less than before: that pull is suspended again, for as long as the Pod waits.
    assert_eq!(run(&mut index, 2_000, 4_000, 500), ["2 suspend b1"]);
    index.message(2, &request("b1"), 4_000);
    assert!(run(&mut index, 4_000, 30_000, 1_000).is_empty());
}

#[test]
fn only_a_pod_of_the_assignments_own_namespace_node_and_image_suspends() {
    let others = [
        pod("other", "a", IMAGE),
        pod("default", "d", IMAGE),
        pod("default", "a", "registry.test/app:v2"),
        pod("default", "a", "other.test/app:v1"),
    ];
    let mut index = pulling();
    for pod in others {
        index.pod_waits(&pod, 10);
        assert!(described(&mut index).is_empty(), "{pod:?}");
    }
    assert_eq!(index.waiting_pods(), 0);
}

#[test]
fn an_image_that_is_there_is_not_waited_for() {
    let mut index = pulling();
    index.message(1, &outcome("a1", Reason::Pulled), 5);
    let held = with_ready(warm("a1", "a", IMAGE), Reason::Pulled);
    index.apply(kept(held), pull_context(1), 5);
    described(&mut index);
    index.pod_waits(&pod("default", "a", IMAGE), 10);
    assert!(described(&mut index).is_empty());
    // Until its node reports that it is gone.
    index.message(1, &outcome("a1", Reason::Removed), 20);
    described(&mut index);
    index.pod_waits(&pod("default", "a", IMAGE), 30);
    assert_eq!(index.waiting_pods(), 1);
}

#[test]
fn the_pods_own_node_waits_neither_for_a_canary_nor_for_a_place() {
    let canary = canary::Settings { nodes: 2, timeout_ms: 60_000 };
    let budget = Budget { registry: Limits { pulls: 1, per_second: 0 }.into(), canary };
    let mut index = Index::new(budget, GRACE, 0);
    assign(&mut index, &[("a1", "a"), ("b1", "b")]);
    for (session, node) in [(1, "a"), (2, "b")] {
        index.open(session, &node.into(), &hello(1, &[]), 0);
        described(&mut index);
        index.message(session, &request(&format!("{node}1")), 0);
    }
    assert!(described(&mut index).is_empty(), "b1 waits for a1, the canary");
    index.pod_waits(&pod("default", "b", IMAGE), 10);
    let effects = described(&mut index);
    let expected =
        ["2 assign b1 pod waits", "2 report b1 every 250 ms", "1 suspend a1", "2 resolve b1"];
    assert_eq!(effects, expected);
}

#[test]
fn a_pull_that_a_reconnected_warmer_still_runs_is_suspended_as_well() {
    let mut index = pulling();
    index.close(2, 5);
    index.pod_waits(&pod("default", "a", IMAGE), 10);
    let expected = ["1 assign a1 pod waits", "1 report a1 every 250 ms", "3 suspend c1"];
    assert_eq!(described(&mut index), expected);
    index.open(4, &"b".into(), &hello(2, &["b1"]), 20);
    described(&mut index);
    index.begin_waiting(100);
    assert_eq!(described(&mut index), ["4 suspend b1"]);
}
