//! The order in which a node is to pull.

use super::*;
use crate::report::pod_image::PodImage;

fn image(name: &str) -> Reference {
    Reference::parse(&format!("registry.test/{name}:v1")).unwrap()
}

fn assigned(index: &mut Index, uid: &str, node: &str, name: &str, priority: i64) {
    index.apply(kept(warm(uid, node, image(name).as_str())), pull_context(priority), 0);
}

/// The Assigns of a new stream, and whether the Pod waits.
fn opened(index: &mut Index, session: SessionId, node: &str, now: i64) -> Vec<String> {
    index.open(session, &node.into(), &hello(1, &[]), now);
    let effects = described(index).into_iter();
    effects.filter(|one| one.contains("assign")).collect()
}

fn started(index: &mut Index, node: &str, name: &str, now: i64) {
    let image = image(name);
    index.pod_started(&PodImage { namespace: "default".into(), node: node.into(), image }, now);
}

#[test]
fn a_new_node_is_sent_first_what_pods_wait_for_then_what_serves_most_then_the_newest() {
    let mut index = index_with(&[]);
    for (number, name) in ["old", "new", "busy", "busier", "pending"].into_iter().enumerate() {
        let priority = if name == "new" { 9 } else { 1 };
        assigned(&mut index, &format!("a{number}"), "a", name, priority);
        assigned(&mut index, &format!("b-{name}"), "b", name, priority);
    }
    for (name, starts) in [("busy", 1), ("busier", 3)] {
        for _ in 0..starts {
            started(&mut index, "a", name, 0);
        }
    }
    index.pod_pending("default", &[image("pending")], 0);
    index.pod_pending("other", &[image("old")], 0);
    described(&mut index);
    let expected = ["b-pending pod waits", "b-busier", "b-busy", "b-new", "b-old"];
    assert_eq!(opened(&mut index, 2, "b", 0), expected.map(|one| format!("2 assign {one}")));
    // What nobody reports any more counts no longer.
    let expected = ["b-busier", "b-new"];
    let hour = 3_600_000;
    index.close(2, hour);
    let later = opened(&mut index, 3, "b", hour);
    assert_eq!(later[..2], expected.map(|one| format!("3 assign {one}")));
    assert!(later.iter().all(|one| !one.contains("pod waits")), "{later:?}");
}

#[test]
fn what_is_not_there_yet_is_assigned_again_once_when_a_pod_begins_to_wait() {
    let mut index = index_with(&[]);
    assigned(&mut index, "a1", "a", "app", 1);
    assigned(&mut index, "a2", "a", "other", 1);
    assigned(&mut index, "b1", "b", "app", 1);
    opened(&mut index, 1, "a", 0);
    opened(&mut index, 2, "b", 0);
    index.message(2, &outcome("b1", Reason::Pulled), 5);
    let held = with_ready(warm("b1", "b", image("app").as_str()), Reason::Pulled);
    index.apply(kept(held), pull_context(1), 5);
    described(&mut index);
    index.pod_pending("default", &[image("app")], 10);
    assert_eq!(described(&mut index), ["1 assign a1 pod waits"]);
    index.pod_pending("default", &[image("app")], 20);
    assert!(described(&mut index).is_empty(), "the scheduler repeats it");
}
