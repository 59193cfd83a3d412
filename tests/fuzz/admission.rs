//! Bodies of admission requests: whatever comes, the answer is a review or a clear refusal, and no
//! Revision is ever denied.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args as _, Command, FromArgMatches as _};
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use imagewarm::admission::router::{BodyLimits, router};
use imagewarm::admission::validate::{PullSecrets, SecretFault};
use imagewarm::admission::{Reviewer, WebhookArgs, WebhookMetrics};
use imagewarm_core::demand::AdmittedRevision;
use imagewarm_core::webhook_paths::{
    Endpoint, Published, REVISIONS_WEBHOOK, ServedPaths, WebhookPaths,
};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::mutation::Corpus;

struct Some200;

impl PullSecrets for Some200 {
    fn check<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), SecretFault>> {
        let fault = || SecretFault::Unusable("there is no such Secret".into());
        Box::pin(std::future::ready(if name.len().is_multiple_of(2) {
            Ok(())
        } else {
            Err(fault())
        }))
    }
}

/// A path of each webhook.
const PATHS: [&str; 3] = [
    "/mutate/000000000000000000000000000000aa",
    "/mutate/000000000000000000000000000000bb",
    "/validate/000000000000000000000000000000cc",
];

fn served() -> watch::Receiver<ServedPaths> {
    let [revisions, defaulting, validation] = PATHS;
    let mut mutating = WebhookPaths::new(Endpoint::Mutate);
    let mutate = [(REVISIONS_WEBHOOK, Some(revisions)), ("defaulting", Some(defaulting))];
    mutating.observe(Published::read(Endpoint::Mutate, mutate, None), 0);
    let mut validating = WebhookPaths::new(Endpoint::Validate);
    let validate = [("validation", Some(validation))];
    validating.observe(Published::read(Endpoint::Validate, validate, None), 0);
    watch::channel(ServedPaths::of([&mutating, &validating])).1
}

fn routes() -> Router {
    let command = WebhookArgs::augment_args(Command::new("fuzz"));
    let args = command.try_get_matches_from(["fuzz"]).expect("no argument is needed");
    let args = WebhookArgs::from_arg_matches(&args).expect("the defaults are valid");
    let reviewer = Reviewer::new(
        // Read behind the answer, whatever it is.
        Arc::new(|admitted: AdmittedRevision| admitted.revision().is_ok() || admitted.size() > 0),
        Arc::new(Some200),
        Arc::new(|_: &str| Some(true)),
        &args,
        WebhookMetrics::register(&mut Registry::default()),
    );
    router(reviewer, BodyLimits { size: 1 << 20, time: Duration::from_secs(5) }, served())
}

async fn asked(routes: Router, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_vec())).expect("a request");
    let answer = routes.oneshot(request).await.expect("the router always answers");
    let status = answer.status().as_u16();
    (status, answer.into_body().collect().await.expect("a body").to_bytes().to_vec())
}

#[test]
fn every_review_is_answered_and_no_revision_denied() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, routes) = (runtime.expect("a runtime"), routes());
    Corpus::read("admission").check(|body| {
        for path in PATHS {
            let (status, answer) = runtime.block_on(asked(routes.clone(), path, body));
            judge(path, body, status, &answer);
        }
    });
}

fn judge(path: &str, body: &[u8], status: u16, answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert!(answer.len() < 64 * 1024 + 2 * body.len(), "{path}: an answer of {}", answer.len());
    if status != 200 {
        assert!((400..500).contains(&status), "{path}: {status} {text}");
        return;
    }
    let answer: Value = serde_json::from_slice(answer).expect("an answer in JSON");
    let response = &answer["response"];
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1", "{path}");
    assert_eq!(answer["kind"], "AdmissionReview", "{path}");
    // What nobody reads of a review may be no text at all.
    let Ok(asked) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(response["uid"], asked["request"]["uid"], "{path}: {text}");
    let allowed = response["allowed"].as_bool().expect("a verdict");
    if !allowed {
        assert_ne!(asked["request"]["kind"]["kind"], "Revision", "{path}: {text}");
        assert_eq!(asked["request"]["kind"]["kind"], "ImageWarm", "{path}: {text}");
        assert!(!response["status"]["message"].as_str().unwrap_or_default().is_empty());
    }
    if let Some(patch) = response["patch"].as_str() {
        let patch = BASE64_STANDARD.decode(patch).expect("a patch in base64");
        let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a JSON patch");
        let mut object = asked["request"]["object"].clone();
        json_patch::patch(&mut object, &patch).expect("a patch that applies");
        assert!(allowed && object["spec"].is_object(), "{path}: {text}");
    }
}
