//! Tests of the operator's limits at admission.

use super::*;
use crate::admission::bounds::Namespaces;
use imagewarm_core::policy::bounds::NamespaceSelection;
use imagewarm_core::policy::{Bounds, Policy};

/// Namespace `full` has three ImageWarms, `chosen` is labelled, `plain` is not.
struct Sample(Bounds);

impl Namespaces for Sample {
    fn is_selected(&self, namespace: &str) -> Option<bool> {
        Some(namespace == "chosen" || self.0.selects_unknown())
    }

    fn image_warms(&self, namespace: &str) -> Option<(usize, usize)> {
        Some((if namespace == "full" { 3 } else { 0 }, 9))
    }
}

fn within(bounds: Bounds) -> Bench {
    let policy = Policy { bounds, ..Policy::default() };
    bench_within(10, Some(AdmissionBounds::new(Arc::new(policy), Sample(bounds))))
}

fn revision(namespace: &str, images: usize) -> Value {
    let containers: Vec<_> = (0..images)
        .map(|at| json!({"name": format!("c{at}"), "image": format!("r.test/app-{at}:v1")}))
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "7d1a", "operation": "CREATE", "namespace": namespace, "name": "r",
            "kind": {"group": "serving.knative.dev", "version": "v1", "kind": "Revision"},
            "object": {
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": {"name": "r", "namespace": namespace},
                "spec": {"containers": containers},
            },
        },
    })
}

fn of(namespace: &str) -> Value {
    let mut review = create(json!({"image": "app", "nodeName": "node-1"}));
    review["request"]["namespace"] = json!(namespace);
    review
}

#[tokio::test]
async fn a_revision_gets_a_warning_and_is_never_denied() {
    let bounds =
        Bounds { images_per_revision: 2, image_warms_per_namespace: 3, ..Bounds::default() };
    let bench = within(bounds);
    for (namespace, images, part) in [
        ("plain", 2, None),
        ("plain", 5, Some("the first 2 of this Revision's 5 images")),
        ("full", 1, Some("the namespace may have no more than 3 ImageWarms")),
        ("full", 0, None),
    ] {
        let answer = bench.ask(REVISIONS, &revision(namespace, images)).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        let warning = answer["warnings"][0].as_str();
        assert_eq!(warning.is_some(), part.is_some(), "{namespace} {images}: {answer}");
        assert!(warning.zip(part).is_none_or(|(text, part)| text.contains(part)), "{answer}");
    }
    assert_eq!(bench.forwarded().len(), 4, "all are forwarded");
    // A namespace that is not warmed gets no warning.
    let opt_in = within(Bounds { namespaces: NamespaceSelection::OptIn, ..bounds });
    let answer = opt_in.ask(REVISIONS, &revision("plain", 5)).await;
    assert_eq!((&answer["allowed"], &answer["warnings"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn an_image_warm_of_a_user_beyond_a_limit_is_denied() {
    let bounds = Bounds { image_warms_per_namespace: 3, ..Bounds::default() };
    let message = async |bench: &Bench, namespace: &str| {
        let answer = bench.ask(VALIDATE, &of(namespace)).await;
        let message = answer["status"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer["allowed"] == true, message.is_empty(), "{answer}");
        message
    };
    let bench = within(bounds);
    assert_eq!(message(&bench, "plain").await, "");
    let full = message(&bench, "full").await;
    assert!(full.contains("metadata.namespace: Forbidden: \"full\""), "{full}");
    assert!(full.contains("the namespace may have no more than 3 ImageWarms"), "{full}");
    let opt_in = within(Bounds { namespaces: NamespaceSelection::OptIn, ..bounds });
    assert_eq!(message(&opt_in, "chosen").await, "");
    let plain = message(&opt_in, "plain").await;
    assert!(plain.contains("caching.knative.dev/warm=true"), "{plain}");
}
