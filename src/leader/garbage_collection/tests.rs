//! Tests of the live checks before a deletion.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kube::client::Body;
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::kubernetes::leadership::Leadership;
use imagewarm_core::api::{ImageWarm, Revision};

/// An API server that holds these Revisions in every namespace.
fn client(names: &'static [&'static str]) -> Client {
    let service = tower::service_fn(move |_: http::Request<Body>| async move {
        let item = |name: &&str| json!({"metadata": {"name": name, "namespace": "n"}});
        let list = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {}, "items": names.iter().map(item).collect::<Vec<_>>(),
        });
        Ok::<_, tower::BoxError>(http::Response::new(Body::from(list.to_string().into_bytes())))
    });
    Client::new(service, "default")
}

fn garbage_collector(client: Client) -> GarbageCollector {
    let (sender, leadership) =
        watch::channel(Leadership { leading: true, ..Leadership::default() });
    drop(sender);
    let metrics =
        ControllerMetrics::register(&mut prometheus_client::registry::Registry::default());
    GarbageCollector::new(client, 1, StillLeading(leadership), metrics)
}

#[tokio::test]
async fn an_unnamed_revision_blocks_deletion_while_the_cache_lags() {
    let seen: Revision = serde_json::from_value(json!({
        "metadata": {"name": "seen", "namespace": "n"},
        "spec": {"containers": [{"image": "a"}]},
    }))
    .unwrap();
    let stores = Stores::fixed(vec![], vec![seen], vec![], vec![], vec![]);
    let check = Check::Unnamed("n".into());
    for (live, verdict) in [
        (&[] as &[&str], Verdict::Delete),
        (&["seen"], Verdict::Delete),
        (&["seen", "new"], Verdict::Keep),
    ] {
        assert_eq!(
            garbage_collector(client(live)).check(&check, &stores).await,
            verdict,
            "{live:?}"
        );
    }
}

#[test]
fn each_object_has_its_check() {
    let check = |cause, created_for: Option<&str>| {
        let annotations = created_for.map(|token| json!({CREATED_FOR_ANNOTATION: token}));
        let warm: ImageWarm = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": "w", "namespace": "n", "annotations": annotations},
            "spec": {"image": "a", "nodeName": "node-a"},
        }))
        .unwrap();
        check_for(&Deletion { warm: Arc::new(warm.into()), cause })
    };
    assert_eq!(check(Cause::NodeGone, Some("u/r")), Check::Node("node-a".into()));
    assert_eq!(check(Cause::NodeReplaced, Some("u/r")), Check::ReplacedNode("node-a".into()));
    assert_eq!(check(Cause::NotDemanded, Some("u/r")), Check::Revision("n".into(), "r".into()));
    assert_eq!(check(Cause::Expired, None), Check::Expiry);
    for unnamed in [None, Some(""), Some("u/"), Some("r")] {
        assert_eq!(check(Cause::NotDemanded, unnamed), Check::Unnamed("n".into()), "{unnamed:?}");
    }
}

#[tokio::test]
async fn an_object_that_changed_since_the_cache_is_kept() {
    let revision = |labels: serde_json::Value, generation: i64| -> Revision {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "n", "uid": "u", "labels": labels,
                "generation": generation},
            "spec": {"containers": [{"image": "a"}]},
        }))
        .unwrap()
    };
    let reserve = json!({"serving.knative.dev/routingState": "reserve"});
    let active = json!({"serving.knative.dev/routingState": "active"});
    let check = Check::Revision("n".into(), "r".into());
    for (live, verdict) in [
        (revision(reserve.clone(), 1), Verdict::Delete),
        (revision(active, 1), Verdict::Keep),
        (revision(reserve.clone(), 2), Verdict::Keep),
    ] {
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let live = serde_json::to_vec(&live).unwrap();
            async move { Ok::<_, tower::BoxError>(http::Response::new(Body::from(live))) }
        });
        let stores =
            Stores::fixed(vec![], vec![revision(reserve.clone(), 1)], vec![], vec![], vec![]);
        let garbage_collector = garbage_collector(Client::new(service, "default"));
        assert_eq!(garbage_collector.check(&check, &stores).await, verdict);
    }
}

#[test]
fn an_owned_object_is_checked_with_its_image() {
    let warm: ImageWarm = serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": "w", "namespace": "n", "ownerReferences": [{
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "name": "queue-proxy", "uid": "u",
        }]},
        "spec": {"image": "a", "nodeName": "node-a"},
    }))
    .unwrap();
    let check = |cause| check_for(&Deletion { warm: Arc::new(warm.clone().into()), cause });
    assert_eq!(check(Cause::NotDemanded), Check::Image("n".into(), "queue-proxy".into()));
    assert_eq!(check(Cause::NodeGone), Check::Node("node-a".into()));
}

#[tokio::test]
async fn a_live_object_that_the_cache_lacks_stops_deletions() {
    let service = tower::service_fn(|_: http::Request<Body>| async {
        let found = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "r", "namespace": "n", "uid": "u"},
        });
        Ok::<_, tower::BoxError>(http::Response::new(Body::from(found.to_string().into_bytes())))
    });
    let client = Client::new(service, "default");
    let stores = Stores::fixed(vec![], vec![], vec![], vec![], vec![]);
    for check in [
        Check::Node("r".into()),
        Check::Revision("n".into(), "r".into()),
        Check::Image("n".into(), "r".into()),
    ] {
        let verdict = garbage_collector(client.clone()).check(&check, &stores).await;
        assert_eq!(verdict, Verdict::StaleCache, "{check:?}");
    }
    let unnamed = Check::Unnamed("n".into());
    assert_eq!(garbage_collector(client).check(&unnamed, &stores).await, Verdict::Keep);
}

/// Of many orphans, at most as many as an API server deletes in a second, so that what is missing
/// elsewhere does not wait; each Revision is read once, and several at the same time.
#[tokio::test]
async fn many_orphans_are_deleted_in_parts() {
    let reads = Arc::new(tokio::sync::Barrier::new(2));
    let deleted = Arc::<AtomicUsize>::default();
    let count = deleted.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (reads, count) = (reads.clone(), count.clone());
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let resource = |name: &str| {
                json!({"name": name, "singularName": "", "namespaced": true,
                "kind": "K", "verbs": ["create"]})
            };
            let (code, answer) = match path.rsplit('/').next().unwrap_or_default() {
                "v1" | "v1alpha1" => {
                    let resources = [resource("revisions"), resource("images")];
                    (200, json!({"groupVersion": "g/v", "resources": resources}))
                }
                _ if method == http::Method::DELETE => {
                    count.fetch_add(1, Ordering::Relaxed);
                    (200, json!({"kind": "Status", "status": "Success"}))
                }
                name => {
                    // Answered only when the other one is being read, too.
                    reads.wait().await;
                    let details = json!({"name": name});
                    (
                        404,
                        json!({"kind": "Status", "code": 404, "reason": "NotFound", "details": details}),
                    )
                }
            };
            let body = Body::from(answer.to_string().into_bytes());
            let response = http::Response::builder().status(code).body(body)?;
            Ok::<_, tower::BoxError>(response)
        }
    });
    let mut garbage = garbage_collector(Client::new(service, "default"));
    garbage.concurrency = 2;
    let stores = Stores::fixed(vec![], vec![], vec![], vec![], vec![]);
    let deletion = |at: usize| {
        let warm: ImageWarm = serde_json::from_value(json!({
            "metadata": {
                "name": format!("w{at}"), "namespace": "n", "uid": format!("u{at}"),
                "resourceVersion": "1",
                "annotations": {CREATED_FOR_ANNOTATION: format!("u/r-{}", at % 2)},
            },
            "spec": {"image": "a", "nodeName": "node-a"},
        }))
        .unwrap();
        Deletion { warm: Arc::new(warm.into()), cause: Cause::NotDemanded }
    };
    let candidates: Vec<Deletion> = (0..DELETIONS + 2).map(deletion).collect();
    for one in &candidates {
        garbage.due_at.insert(one.warm.uid.clone(), Instant::now());
    }
    let next = garbage.collect(candidates.clone(), &stores).await.unwrap();
    assert!(next <= Instant::now(), "the rest follows at once");
    assert_eq!(deleted.load(Ordering::Relaxed), DELETIONS);
    // Also where none of the first went: what stays is not in the way of the rest.
    let next = garbage.collect(candidates, &stores).await.unwrap();
    assert!(next > Instant::now());
    assert_eq!(deleted.load(Ordering::Relaxed), DELETIONS + 2);
}

#[tokio::test]
async fn a_replaced_node_has_to_be_the_one_that_the_cache_holds() {
    let node = |uid: &str| -> k8s_openapi::api::core::v1::Node {
        serde_json::from_value(json!({"metadata": {"name": "node-a", "uid": uid}})).unwrap()
    };
    let check = Check::ReplacedNode("node-a".into());
    for (live, verdict) in
        [(Some("new"), Verdict::Delete), (Some("newer"), Verdict::Keep), (None, Verdict::Delete)]
    {
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let body = match live {
                Some(uid) => serde_json::to_value(node(uid)).unwrap(),
                None => json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "reason": "NotFound", "code": 404, "message": "nodes \"node-a\" not found",
                    "details": {"name": "node-a", "kind": "nodes"},
                }),
            };
            let status = if live.is_some() { 200 } else { 404 };
            let answer = http::Response::builder().status(status);
            let answer = answer.body(Body::from(body.to_string().into_bytes())).unwrap();
            async move { Ok::<_, tower::BoxError>(answer) }
        });
        let stores = Stores::fixed(vec![], vec![], vec![], vec![node("new")], vec![]);
        let garbage_collector = garbage_collector(Client::new(service, "default"));
        assert_eq!(garbage_collector.check(&check, &stores).await, verdict, "{live:?}");
    }
}
