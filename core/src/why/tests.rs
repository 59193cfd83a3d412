//! Stories, from objects as the API server returns them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::*;
use crate::api::EXPIRES_AT_ANNOTATION;
use crate::demand::Cluster;
use crate::demand::consumers::demands;
use crate::sample::{at, reference, revision};

const NOW: i64 = 10_000;

fn warm(node: &str, image: &str, status: Value) -> ImageWarm {
    serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {
            "name": format!("x-{node}"), "namespace": "ns",
            "labels": {"app.kubernetes.io/managed-by": "imagewarm"},
            "creationTimestamp": at(NOW - 65).to_string(),
        },
        "spec": {"image": image, "nodeName": node},
        "status": status,
    }))
    .unwrap()
}

fn ready(status: &str, reason: &str, message: &str, since: i64) -> Value {
    json!([{
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": at(since).to_string(),
    }])
}

fn node(name: &str, spec: Value) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name}, "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

fn observed(image_warms: Vec<ImageWarm>) -> Observed {
    let mut hello = revision("hello-00001", NOW - 70, &["app:v1"]);
    hello.metadata.labels.as_mut().unwrap().insert(SERVICE_LABEL.into(), "hello".into());
    hello.spec.service_account_name = Some("robot".into());
    let other = revision("other-00003", NOW - 80, &["app:v1", "side:v1"]);
    let policy = Policy::default();
    let cluster = Cluster::new(&policy, None);
    let revisions = [Arc::new(hello), Arc::new(other)];
    Observed {
        now: at(NOW),
        image_warms,
        images: vec![reference("app:v1")],
        demands: demands(&revisions, &[], &cluster, &policy).consumers,
        nodes: Some(vec![]),
        pulling: vec![],
        started: vec![],
    }
}

fn event(reason: &str, pod: &str, node: &str, message: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": {"name": "e", "namespace": "ns"},
        "involvedObject": {"kind": "Pod", "namespace": "ns", "name": pod},
        "reason": reason, "message": message, "source": {"component": "kubelet", "host": node},
        "lastTimestamp": at(NOW - 5).to_string(),
    }))
    .unwrap()
}

#[test]
fn a_failure_is_shown_whole() {
    let denied = |node: &str, attempts: i32| {
        warm(
            node,
            "docker.io/library/app:v1",
            json!({
                "conditions": ready("False", "Unauthorized", "pull access denied", NOW - 61),
                "attempts": attempts, "startedAt": at(NOW - 20).to_string(),
                "finishedAt": at(NOW - 19).to_string(),
                "annotations": {RUNTIME_KEY: "containerd 2.2.3"},
            }),
        )
    };
    let mut observed = observed(vec![denied("node-b", 3), denied("node-a", 2)]);
    let pulling = event("Pulling", "hello-1", "node-b", "Pulling image \"app:v1\"");
    observed.pulling = vec![(PodImage::pulling(&pulling).unwrap(), "hello-1".into())];
    insta::assert_snapshot!("failure", render_why(&stories(&observed)));
    let value: Value = serde_json::from_str(&render_why_json(&stories(&observed))).unwrap();
    assert_eq!(value[0]["nodes"], json!(["node-a", "node-b"]));
    assert_eq!(value[0]["facts"]["state"], "Unauthorized for 1m 1s: pull access denied");
}

#[test]
fn each_state_says_what_comes_next() {
    let mut by_hand = warm("node-e", "r.example/mine:v1", json!({}));
    by_hand.metadata.labels = None;
    by_hand.spec.image_pull_secrets = vec![crate::api::SecretReference { name: "regcred".into() }];
    let mut for_an_hour = by_hand.clone();
    let expires = [(EXPIRES_AT_ANNOTATION.to_owned(), at(NOW + 3_600).to_string())];
    for_an_hour.metadata.annotations = Some(expires.into());
    for_an_hour.spec.image = "r.example/mine:v2".into();
    let pulled = json!({
        "conditions": ready("True", "Pulled", "", NOW - 30), "attempts": 1, "took": "2.4s",
        "startedAt": at(NOW - 33).to_string(), "finishedAt": at(NOW - 30).to_string(),
    });
    let pulling = json!({
        "conditions": ready("Unknown", "Pulling", "", NOW - 10), "attempts": 1,
        "startedAt": at(NOW - 10).to_string(),
        "progress": {"downloadedBytes": 40_000_000, "totalBytes": 100_000_000},
    });
    let queued =
        json!({"conditions": ready("Unknown", "Queued", "other pulls come first", NOW - 16)});
    let mut observed = observed(vec![
        warm("node-a", "app:v1", pulled),
        warm("node-b", "app:v1", pulling),
        warm("node-c", "side:v1", queued),
        warm("node-d", "gone:v1", json!({})),
        by_hand,
        for_an_hour,
    ]);
    let text = "Container image \"app:v1\" already present on machine";
    observed.started =
        vec![ContainerStart::of(&event("Pulled", "hello-1", "node-a", text)).unwrap()];
    insta::assert_snapshot!("states", render_why(&stories(&observed)));
}

#[test]
fn a_node_without_the_image_says_why_not() {
    let mut observed = observed(vec![warm("node-a", "app:v1", json!({}))]);
    observed.nodes = Some(vec![
        node("node-a", json!({})),
        node("node-b", json!({"unschedulable": true})),
        node("node-c", json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]})),
        node("node-d", json!({})),
    ]);
    let facts: Vec<_> = stories(&observed)
        .into_iter()
        .skip(1)
        .map(|story| format!("{}: {}", story.nodes.join(" "), story.facts[0].1))
        .collect();
    assert_eq!(facts.len(), 3, "{facts:#?}");
    assert!(
        facts[0].starts_with("node-b: Pods that use it cannot start here: node is cordoned"),
        "{facts:#?}"
    );
    assert!(facts[1].contains("node-c: ") && facts[1].contains("gpu"), "{facts:#?}");
    assert!(facts[2].starts_with("node-d: the leader is to create"), "{facts:#?}");

    observed.nodes = None;
    assert_eq!(stories(&observed).len(), 1, "which nodes there are is not known");
    observed.image_warms.clear();
    assert!(stories(&observed)[0].facts[0].1.contains("you may not list Nodes"));
    observed.demands.clear();
    assert!(stories(&observed)[0].facts[0].1.contains("no Revision with traffic"));
}

#[test]
fn text_of_others_cannot_move_the_cursor() {
    let hostile = "\u{1b}[2J\r\nx";
    let status = json!({"conditions": ready("False", hostile, hostile, NOW)});
    let text = render_why(&stories(&observed(vec![warm("n\u{1b}", hostile, status)])));
    assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
}
