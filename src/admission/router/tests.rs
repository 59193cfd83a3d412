//! Tests of both routes without TLS, by `oneshot`: requests of Knative, constructed ones, and
//! bodies that are not an AdmissionReview.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use axum::body::Body;
use base64::Engine;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::admission::validate::{PullSecrets, SecretFault};
use crate::admission::{AdmissionBounds, WebhookMetrics};
use imagewarm_core::api::Revision;
use imagewarm_core::demand::AdmittedRevision;
use imagewarm_core::webhook_paths::{Published, REVISIONS_WEBHOOK, WebhookPaths};

const REVISION: &str = include_str!(
    "../../../tests/fixtures/admission/admission-review.revision-create.mutating.json"
);
const IMAGE: &str =
    include_str!("../../../tests/fixtures/admission/admission-review.image-create.json");

/// Where Revisions are reviewed.
const REVISIONS: &str = "/mutate/000000000000000000000000000000aa";
/// Where the defaults of ImageWarms are set.
const MUTATE: &str = "/mutate/000000000000000000000000000000bb";
/// Where ImageWarms are validated.
const VALIDATE: &str = "/validate/000000000000000000000000000000cc";

/// `good` is valid, `hangs` never answers, `down` cannot be read; any other does not exist.
struct Table;

impl PullSecrets for Table {
    fn check<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), SecretFault>> {
        Box::pin(async move {
            match name {
                "good" | "fine" => Ok(()),
                "hangs" => std::future::pending().await,
                "down" => Err(SecretFault::Unreadable("cannot read the Secret".into())),
                _ => {
                    Err(SecretFault::Unusable(format!("no such Secret in namespace {namespace:?}")))
                }
            }
        })
    }
}

mod limits;

struct Bench {
    router: Router,
    /// `None` for one that cannot be decoded.
    forwarded: Arc<Mutex<Vec<Option<Revision>>>>,
    registry: Registry,
}

fn bench_with_room(room: usize) -> Bench {
    bench_within(room, None)
}

fn bench_within(room: usize, bounds: Option<AdmissionBounds>) -> Bench {
    let forwarded = Arc::new(Mutex::new(Vec::new()));
    let queue = Arc::clone(&forwarded);
    let mut registry = Registry::default();
    let reviewer = Reviewer {
        admitted: Arc::new(move |admitted: AdmittedRevision| {
            let mut queue = queue.lock().unwrap();
            let fits = queue.len() < room;
            if fits {
                queue.push(admitted.revision().ok());
            }
            fits
        }),
        pull_secrets: Arc::new(Table),
        node_exists: Arc::new(|node| match node {
            "unknown" => None,
            node => Some(node.starts_with("node-")),
        }),
        bounds,
        secrets_timeout: Duration::from_millis(50),
        metrics: WebhookMetrics::register(&mut registry),
    };
    let limits = BodyLimits { size: 128 * 1024, time: Duration::from_millis(200) };
    Bench { router: router(reviewer, limits, served()), forwarded, registry }
}

/// A path of each webhook.
fn served() -> watch::Receiver<ServedPaths> {
    let mut mutating = WebhookPaths::new(Endpoint::Mutate);
    let mutate = [(REVISIONS_WEBHOOK, Some(REVISIONS)), ("defaulting", Some(MUTATE))];
    mutating.observe(Published::read(Endpoint::Mutate, mutate, None), 0);
    let mut validating = WebhookPaths::new(Endpoint::Validate);
    let validate = [("validation", Some(VALIDATE))];
    validating.observe(Published::read(Endpoint::Validate, validate, None), 0);
    watch::channel(ServedPaths::of([&mutating, &validating])).1
}

fn bench() -> Bench {
    bench_with_room(10)
}

impl Bench {
    async fn send(&self, request: http::Request<Body>) -> (u16, Value) {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// `response` of a well-formed request.
    async fn ask(&self, path: &str, review: &Value) -> Value {
        let (status, answer) = self.send(request(path, review.to_string())).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        answer["response"].clone()
    }

    /// Names of the forwarded Revisions, as namespace/name.
    fn forwarded(&self) -> Vec<String> {
        let forwarded = self.forwarded.lock().unwrap();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let name = |revision: &Option<Revision>| match revision.as_ref().map(|one| &one.metadata) {
            Some(metadata) => format!("{}/{}", text(&metadata.namespace), text(&metadata.name)),
            None => "undecodable".to_owned(),
        };
        forwarded.iter().map(name).collect()
    }
}

fn request(path: &str, body: impl Into<Body>) -> http::Request<Body> {
    let request = http::Request::post(path).header(CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

fn warm(operation: &str, spec: Value, old: Value) -> Value {
    let object = |spec: Value| match spec {
        Value::Null => Value::Null,
        spec => json!({"apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
                       "metadata": {"name": "w", "namespace": "default"}, "spec": spec}),
    };
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "7d1a", "operation": operation, "namespace": "default", "name": "w",
            "kind": {"group": "caching.knative.dev", "version": "v1alpha1", "kind": "ImageWarm"},
            "object": object(spec), "oldObject": object(old),
        },
    })
}

fn create(spec: Value) -> Value {
    warm("CREATE", spec, Value::Null)
}

const ALLOWED: fn() -> Value = || json!({"uid": "7d1a", "allowed": true});

#[tokio::test]
async fn a_revision_is_forwarded_and_not_changed() {
    let bench = bench();
    let review: Value = serde_json::from_str(REVISION).unwrap();
    let response = bench.ask(&format!("{REVISIONS}?timeout=1s"), &review).await;
    assert_eq!(response, json!({"uid": review["request"]["uid"], "allowed": true}));
    assert_eq!(bench.forwarded(), ["default/hello-00001"]);
    let revision = bench.forwarded.lock().unwrap()[0].clone();
    let revision = revision.as_ref().unwrap();
    assert_eq!(revision.spec.containers[0].image, "127.0.0.1:22020/demo/app:v1");
    assert!(revision.metadata.managed_fields.is_none());
    assert!(imagewarm_core::api::knative::configuration_owner(&revision.metadata).is_some());
}

#[tokio::test]
async fn revisions_of_all_shapes_are_admitted() {
    let twist = |twist: &dyn Fn(&mut Value)| {
        let mut review: Value = serde_json::from_str(REVISION).unwrap();
        twist(&mut review["request"]);
        review
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Value), &'a [&'a str]);
    let cases: [Case; 10] = [
        (
            "bad image",
            &|r| r["object"]["spec"]["containers"][0]["image"] = json!("App:v1"),
            &["default/hello-00001"],
        ),
        ("dry run", &|r| r["dryRun"] = json!(true), &[]),
        ("update", &|r| r["operation"] = json!("UPDATE"), &[]),
        ("status", &|r| r["subResource"] = json!("status"), &[]),
        ("no object", &|r| r["object"] = Value::Null, &[]),
        ("odd metadata", &|r| r["object"]["metadata"] = json!([1]), &["undecodable"]),
        (
            "undecodable",
            &|r| r["object"] = json!({"metadata": [1], "spec": {"containers": "x"}}),
            &["undecodable"],
        ),
        (
            "generateName",
            &|r| {
                r["name"] = json!("");
                r["object"]["metadata"] = json!({"generateName": "hello-"});
            },
            &["default/"],
        ),
        (
            "name in the request only",
            &|r| r["object"]["metadata"] = json!({}),
            &["default/hello-00001"],
        ),
        ("odd spec", &|r| r["object"]["spec"]["containers"] = json!("x"), &["default/hello-00001"]),
    ];
    for (name, change, forwarded) in cases {
        let bench = bench();
        let response = bench.ask(REVISIONS, &twist(change)).await;
        assert_eq!(response["allowed"], true, "{name}");
        assert!(response.get("patch").is_none() && response.get("status").is_none(), "{name}");
        assert_eq!(bench.forwarded(), forwarded, "{name}");
        let warned = ["undecodable", "bad image"].contains(&name);
        assert_eq!(response.get("warnings").is_some(), warned, "{name}");
    }
}

#[tokio::test]
async fn a_full_queue_denies_nothing_and_is_counted() {
    let bench = bench_with_room(0);
    let review = serde_json::from_str(REVISION).unwrap();
    assert_eq!(bench.ask(REVISIONS, &review).await["allowed"], true);
    let text = crate::telemetry::metrics::encode(&bench.registry).unwrap();
    assert!(text.contains("admission_revisions_dropped_total 1"), "{text}");
    assert!(text.contains(r#"webhook_requests_total{path="Mutate",verdict="Allowed"} 1"#));
}

#[tokio::test]
async fn other_kinds_are_admitted_without_effect_on_all_paths() {
    let bench = bench();
    let image = serde_json::from_str(IMAGE).unwrap();
    let revision = serde_json::from_str(REVISION).unwrap();
    let bad = create(json!({"image": "Bad", "nodeName": "Bad_"}));
    for (path, review) in [
        (REVISIONS, &image),
        (MUTATE, &image),
        (VALIDATE, &image),
        (MUTATE, &revision),
        (VALIDATE, &revision),
        (REVISIONS, &bad),
    ] {
        assert_eq!(bench.ask(path, review).await["allowed"], true);
    }
    assert!(bench.forwarded().is_empty());
}

/// Whoever does not know a path learns nothing, and is answered before the body is read.
#[tokio::test]
async fn paths_that_are_not_published_are_not_served() {
    let bench = bench();
    let wrong = REVISIONS.replace("aa", "ab");
    let swapped = REVISIONS.replace("/mutate", "/validate");
    let slash = format!("{REVISIONS}/");
    for path in ["/", "/mutate", "/validate", "/mutate/", "/elsewhere", &wrong, &swapped, &slash] {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let (status, answer) = bench.send(request(path, body)).await;
        assert_eq!((status, &answer["reason"]), (404, &json!("NotFound")), "{path}: {answer}");
        assert!(!answer.to_string().contains("aa"), "{answer}");
    }
    assert!(bench.forwarded().is_empty());
    let text = crate::telemetry::metrics::encode(&bench.registry).unwrap();
    assert!(text.contains("webhook_unknown_paths_total 8"), "{text}");
    let mut requests = text.lines().filter(|line| line.contains("webhook_requests_total{"));
    assert!(requests.all(|line| line.ends_with(" 0")), "{text}");
}

#[tokio::test]
async fn defaults_are_set_by_a_patch() {
    let bench = bench();
    let review = create(json!({
        "image": " app:v1\n", "nodeName": "node-a",
        "imagePullSecrets": [{"name": "good"}, {"name": "good "}],
    }));
    let response = bench.ask(MUTATE, &review).await;
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = response["patch"].as_str().unwrap();
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut object = review["request"]["object"].clone();
    json_patch::patch(&mut object, &patch).unwrap();
    let spec = json!({"image": "app:v1", "nodeName": "node-a",
                      "imagePullSecrets": [{"name": "good"}]});
    assert_eq!(object["spec"], spec);
    assert_eq!(bench.ask(MUTATE, &create(spec)).await, ALLOWED());
}

#[tokio::test]
async fn both_paths_list_all_problems_at_once() {
    let bench = bench();
    let review = create(json!({
        "image": "App", "nodeName": "Node_A",
        "imagePullSecrets": [{"name": "good"}, {"name": "gone"}, {"name": "No"}],
    }));
    let mut denials = Vec::new();
    for path in [MUTATE, VALIDATE] {
        let response = bench.ask(path, &review).await;
        assert_eq!(response["allowed"], false);
        assert_eq!(response["status"]["code"], 422);
        assert_eq!(response["status"]["reason"], "Invalid");
        assert!(response.get("patch").is_none());
        denials.push(response["status"].clone());
    }
    assert_eq!(denials[0], denials[1]);
    let message = denials[0]["message"].as_str().unwrap();
    let begin = "ImageWarm \"w\" is invalid: spec.image: Invalid value: \"App\": repository name \
                 must be lower case: \"App\" in \"App\"; spec.nodeName: Invalid value: \"Node_A\": ";
    assert!(message.starts_with(begin), "{message}");
    let gone = "; spec.imagePullSecrets[1].name: Invalid value: \"gone\": no such Secret in \
                namespace \"default\"";
    assert!(message.contains(gone), "{message}");
    let fields: Vec<_> =
        denials[0]["details"]["causes"].as_array().unwrap().iter().map(|c| &c["field"]).collect();
    assert_eq!(
        fields,
        [
            "spec.image",
            "spec.nodeName",
            "spec.imagePullSecrets[2].name",
            "spec.imagePullSecrets[1].name"
        ]
    );
}

#[tokio::test]
async fn unreadable_secrets_are_a_503_and_missing_ones_a_422() {
    let bench = bench();
    for name in ["down", "hangs"] {
        let spec =
            json!({"image": "a", "nodeName": "node-a", "imagePullSecrets": [{"name": name}]});
        assert_eq!(bench.ask(MUTATE, &create(spec.clone())).await, ALLOWED());
        let status = bench.ask(VALIDATE, &create(spec)).await["status"].clone();
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(503), &json!("ServiceUnavailable"))
        );
        let message = status["message"].as_str().unwrap();
        let expected = format!(
            "ImageWarm \"w\" could not be validated, try again: spec.imagePullSecrets[0].name: \
             Internal error: {name:?}: cannot read the Secret"
        );
        assert!(message.starts_with(&expected), "{message}");
    }
    let both = json!({"image": "a", "nodeName": "node-a",
                      "imagePullSecrets": [{"name": "hangs"}, {"name": "gone"}]});
    assert_eq!(bench.ask(VALIDATE, &create(both)).await["status"]["code"], 422);
}

#[tokio::test]
async fn a_node_that_does_not_exist_is_a_warning() {
    let bench = bench();
    let spec = |node: &str| create(json!({"image": "a", "nodeName": node}));
    let response = bench.ask(VALIDATE, &spec("elsewhere")).await;
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("spec.nodeName: no Node \"elsewhere\" exists"), "{warning}");
    for node in ["node-a", "unknown"] {
        assert_eq!(bench.ask(VALIDATE, &spec(node)).await, ALLOWED());
    }
}

#[tokio::test]
async fn an_update_is_validated_by_its_change_only() {
    let bench = bench();
    let old = json!({"image": "Bad", "nodeName": "Bad_", "imagePullSecrets": [{"name": "gone"}]});
    let mut same = warm("UPDATE", old.clone(), old.clone());
    same["request"]["object"]["metadata"]["labels"] = json!({"a": "b"});
    let more = |name: &str| {
        let mut new = old.clone();
        new["imagePullSecrets"] = json!([{"name": name}, {"name": "gone"}]);
        warm("UPDATE", new, old.clone())
    };
    let mut terminating = more("also-gone");
    terminating["request"]["object"]["metadata"]["deletionTimestamp"] =
        json!("2026-11-23T02:30:00Z");
    let mut status = more("also-gone");
    status["request"]["subResource"] = json!("status");
    let mut delete = more("also-gone");
    delete["request"]["operation"] = json!("DELETE");
    for path in [MUTATE, VALIDATE] {
        for review in [&same, &more("fine"), &terminating, &status, &delete] {
            assert_eq!(bench.ask(path, review).await, ALLOWED(), "{path}");
        }
    }
    let denied = bench.ask(VALIDATE, &more("also-gone")).await;
    let message = denied["status"]["message"].as_str().unwrap();
    assert!(message.contains("imagePullSecrets[0].name: Invalid value: \"also-gone\""));
    assert!(!message.contains("spec.image:") && !message.contains("\"gone\""), "{message}");
}

#[tokio::test]
async fn white_space_alone_is_no_change_of_the_image() {
    let bench = bench();
    let old = json!({"image": "app", "nodeName": "node-a"});
    let new = json!({"image": "app ", "nodeName": "node-a"});
    let response = bench.ask(MUTATE, &warm("UPDATE", new, old)).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
}

#[tokio::test]
async fn a_request_that_is_not_a_review_is_rejected_with_a_reason() {
    let bench = bench();
    let typed = |body: &str, content_type: &str| {
        let request = http::Request::post(VALIDATE).header(CONTENT_TYPE, content_type);
        request.body(Body::from(body.to_owned())).unwrap()
    };
    let slow = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let review = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#;
    // As a Value it would take sixteen times its size.
    let zeros = create(json!({"image": vec![0; 40_000], "nodeName": "n"})).to_string();
    let named = |namespace: &str, name: &str| {
        let mut review = create(json!({"image": "a", "nodeName": "node-a"}));
        review["request"]["namespace"] = json!(namespace);
        review["request"]["name"] = json!(name);
        review.to_string()
    };
    let cases = [
        (typed("{}", "text/yaml"), 415, "content type is \"text/yaml\""),
        (typed("{", "application/json"), 400, "the body is not an AdmissionReview: EOF"),
        (typed("{}", "application/json"), 400, "must be admission.k8s.io/v1 AdmissionReview"),
        (typed(review, "application/json"), 400, "request.uid is missing"),
        (request(MUTATE, " ".repeat(129 * 1024)), 413, "longer than 131072 bytes"),
        (request(MUTATE, slow), 408, "did not arrive in time"),
        (typed(&zeros, "application/json"), 400, "an ImageWarm's has at most 65536"),
        (
            typed(&named("victim/../other", "w"), "application/json"),
            400,
            "it must be a DNS-1123 label",
        ),
        (typed(&named("default", &"n".repeat(2000)), "application/json"), 400, "request.name is"),
    ];
    for (request, code, message) in cases {
        let (status, answer) = bench.send(request).await;
        assert_eq!((status, &answer["code"]), (code, &json!(code)));
        assert!(answer["message"].as_str().unwrap().contains(message), "{answer}");
    }
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "CONNECT"] {
        let other = http::Request::builder().method(method).uri(VALIDATE);
        let other = other.body(Body::empty()).unwrap();
        let (status, answer) = bench.send(other).await;
        assert_eq!(status, 405, "{method}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(method == "HEAD" || message.contains("must be POST"), "{method}: {answer}");
    }
}

#[test]
fn the_announced_timeout_is_read() {
    for (query, seconds) in [
        ("timeout=2s", 2),
        ("a=b&timeout=30s", 30),
        ("timeout=99s", 30),
        ("", 10),
        ("timeout=x", 10),
    ] {
        assert_eq!(announced_timeout(query), Duration::from_secs(seconds), "{query}");
    }
}
