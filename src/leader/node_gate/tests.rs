//! Tests of the node gate's requests, with an API server that answers as one does.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::sync::Mutex;

use http_body_util::BodyExt;
use imagewarm_core::placement::GATE_TAINT;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::*;
use crate::kubernetes::leadership::Leadership;

const DEADLINE: Duration = Duration::from_secs(300);

/// A Node that was created so many seconds ago, with these taints.
fn node(name: &str, age: i64, taints: &[&str]) -> Node {
    let created = wall_clock() - SignedDuration::from_secs(age);
    let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created},
        "spec": {"taints": taints.iter().map(taint).collect::<Vec<_>>()},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

fn warm() -> GatedNode {
    GatedNode { warm: 2, ..GatedNode::default() }
}

fn pending_image() -> GatedNode {
    let image = imagewarm_core::image::Reference::parse("app:v1").unwrap();
    let first_pending = Some((image, imagewarm_core::api::Reason::Pulling));
    GatedNode { warm: 1, pending: 1, first_pending, ..GatedNode::default() }
}

/// Requests so far: method and path, and the body.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(String, Value)>>>);

impl Log {
    fn taken(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// A client whose patches are answered with this status.
    fn client(&self, patch_status: u16) -> Client {
        let log = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let log = log.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let what = format!("{} {}", head.method, head.uri.path());
                let is_patch = head.method == http::Method::PATCH;
                log.0.lock().unwrap().push((what, body));
                let (status, answer) = match is_patch {
                    true if patch_status != 200 => (
                        patch_status,
                        json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
                            "code": patch_status, "reason": "", "message": "m"}),
                    ),
                    true => (
                        200,
                        json!({"apiVersion": "meta.k8s.io/v1",
                        "kind": "PartialObjectMetadata", "metadata": {"name": "a"}}),
                    ),
                    false => (
                        201,
                        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
                        "metadata": {"name": "x"}, "eventTime": null}),
                    ),
                };
                let body = kube::client::Body::from(answer.to_string().into_bytes());
                http::Response::builder().status(status).body(body)
            }
        });
        Client::new(service, "default")
    }
}

struct World {
    gate: NodeGate,
    leadership: watch::Sender<Leadership>,
    log: Log,
    held: HeldNodes,
}

impl World {
    fn new(nodes: Vec<Node>, gated: &[(&str, GatedNode)], patch_status: u16) -> World {
        let log = Log::default();
        let leadership = watch::Sender::new(Leadership { leading: true, ..Leadership::default() });
        let gated = gated.iter().map(|(name, node)| (format!("uid-{name}"), node.clone()));
        let gate = NodeGate {
            client: log.client(patch_status),
            stores: Stores::fixed(vec![], vec![], vec![], nodes, vec![]),
            policy: Policy { gate_taint: Some(GATE_TAINT.into()), ..Policy::default() },
            deadline: DEADLINE,
            concurrency: 4,
            still_leading: StillLeading(leadership.subscribe()),
            gated: watch::Sender::new(gated.collect()).subscribe(),
            instance: "me".into(),
            metrics: ControllerMetrics::register(&mut Registry::default()),
        };
        World { gate, leadership, log, held: HeldNodes::new() }
    }

    async fn run(&mut self) -> Option<Instant> {
        self.gate.release_nodes(GATE_TAINT, &mut self.held).await
    }

    /// The nodes that were patched since the last call.
    async fn patched(&mut self) -> Vec<String> {
        self.run().await;
        let mut patched: Vec<_> = self
            .log
            .taken()
            .into_iter()
            .filter_map(|(what, _)| Some(what.strip_prefix("PATCH /api/v1/nodes/")?.to_owned()))
            .collect();
        patched.sort();
        patched
    }
}

#[tokio::test]
async fn a_warm_node_loses_just_this_taint_and_gets_an_event() {
    let nodes = vec![node("a", 42, &["other", GATE_TAINT]), node("b", 42, &["other"])];
    let mut world = World::new(nodes, &[("a", warm())], 200);
    let next = world.run().await;
    let requests = world.log.taken();
    let [(patch, operations), (event, body)] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(patch, "PATCH /api/v1/nodes/a");
    assert_eq!(
        *operations,
        json!([
            {"op": "test", "path": "/metadata/uid", "value": "uid-a"},
            {"op": "test", "path": "/spec/taints/1/key", "value": GATE_TAINT},
            {"op": "remove", "path": "/spec/taints/1"},
        ])
    );
    assert_eq!(event, "POST /apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!((&body["type"], &body["reason"]), (&json!("Normal"), &json!("Warm")));
    assert_eq!(
        (&body["regarding"]["kind"], &body["regarding"]["uid"]),
        (&json!("Node"), &json!("uid-a"))
    );
    let note = body["note"].as_str().unwrap();
    assert!(note.ends_with("s after its creation: 2 of 2 images are warm"), "{note}");
    // Until the watch has delivered the Node, nothing is repeated.
    assert!(next.is_some_and(|next| next > Instant::now()));
    assert!(world.patched().await.is_empty());
}

#[tokio::test]
async fn a_node_that_waits_is_held_until_the_deadline() {
    let nodes = ["young", "uncounted"].map(|name| node(name, 10, &[GATE_TAINT]));
    let mut world = World::new(nodes.into(), &[("young", pending_image())], 200);
    let next = world.run().await;
    assert!(world.log.taken().is_empty());
    let left = next.unwrap().duration_since(Instant::now());
    assert!(left <= DEADLINE - Duration::from_secs(10), "{left:?}");

    // By the Node's age: a leader that has just started does not begin anew.
    let nodes = ["old", "uncounted"].map(|name| node(name, 301, &[GATE_TAINT]));
    let mut world = World::new(nodes.into(), &[("old", pending_image())], 200);
    assert_eq!(world.patched().await, ["old", "uncounted"]);

    // By the time that this leader has seen it: the wall clock may be behind.
    let mut world = World::new(vec![node("future", -9_000, &[GATE_TAINT])], &[], 200);
    assert!(world.patched().await.is_empty());
    let since = Instant::now().checked_sub(DEADLINE).unwrap();
    world.held.get_mut("uid-future").unwrap().since = since;
    assert_eq!(world.patched().await, ["future"]);
}

#[tokio::test]
async fn paused_it_releases_all_and_off_the_lead_none() {
    let nodes = || vec![node("a", 1, &[GATE_TAINT]), node("b", 1, &[GATE_TAINT])];
    let mut world = World::new(nodes(), &[("a", pending_image())], 200);
    world.gate.policy.paused = true;
    assert_eq!(world.patched().await, ["a", "b"]);

    let mut world = World::new(nodes(), &[("a", warm()), ("b", warm())], 200);
    world.leadership.send_replace(Leadership::default());
    assert!(world.patched().await.is_empty());
}

#[tokio::test]
async fn a_patch_that_fails_is_tried_again_later_without_an_event() {
    for status in [403, 404, 409, 422, 500] {
        let mut world = World::new(vec![node("a", 1, &[GATE_TAINT])], &[("a", warm())], status);
        let next = world.run().await.unwrap();
        let requests = world.log.taken();
        assert!(
            requests.iter().all(|(what, _)| what.starts_with("PATCH")),
            "{status}: {requests:?}"
        );
        assert!(next > Instant::now(), "{status}");
        assert!(world.patched().await.is_empty(), "{status}");
        let held = world.held.get_mut("uid-a").unwrap();
        held.retry_at = Some(Instant::now());
        assert_eq!(world.patched().await.first().map(String::as_str), Some("a"), "{status}");
    }
}

#[tokio::test]
async fn each_effect_of_the_taint_is_removed_and_a_deleted_node_is_left_alone() {
    let mut going = node("going", 1, &[GATE_TAINT]);
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    let nodes = vec![node("a", 1, &[GATE_TAINT, "other", GATE_TAINT]), going];
    let mut world = World::new(nodes, &[("a", warm()), ("going", warm())], 200);
    world.run().await;
    let patches: Vec<_> =
        world.log.taken().into_iter().filter(|it| it.0.starts_with("PATCH")).collect();
    assert_eq!(patches.len(), 1, "{patches:?}");
    let removed = patches[0].1.as_array().unwrap().iter().filter(|one| one["op"] == "remove");
    let removed: Vec<_> = removed.map(|one| one["path"].as_str().unwrap()).collect();
    assert_eq!(removed, ["/spec/taints/2", "/spec/taints/0"]);
}

#[test]
fn notes_state_what_was_missing() {
    let age = Duration::from_secs(300);
    let nothing = GatedNode::default();
    let notes = [
        note(Release::Failed, age, Some(&GatedNode { failed: 1, ..warm() })),
        note(Release::DeadlineExceeded, age, Some(&pending_image())),
        note(Release::DeadlineExceeded, age, None),
        note(Release::NothingWanted, age, Some(&nothing)),
        note(Release::Paused, age, None),
    ];
    insta::assert_snapshot!(notes.join("\n"), @"
    Node released 300 s after its creation: 2 of 3 images are warm, 1 failed
    Node released 300 s after its creation: deadline exceeded; 1 of 2 images are warm, 1 pending: docker.io/library/app:v1 (Pulling)
    Node released 300 s after its creation: deadline exceeded; which images are wanted is unknown
    Node released 300 s after its creation: no active Revision wants an image here
    Node released 300 s after its creation: warming is paused
    ");
}
