//! Tests against a minimal fake API server.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use http_body_util::BodyExt;
use kube::client::Body;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// An API server: objects by path, and the patches that were sent.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) objects: HashMap<String, Value>,
    pub(crate) patches: Vec<(String, Value)>,
    pub(crate) refuse_patches: u32,
    /// Requests to these paths are answered 403.
    pub(crate) forbidden: Vec<&'static str>,
}

impl Cluster {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let failure = |code: u16| {
            let reason = match code {
                403 => "Forbidden",
                404 => "NotFound",
                _ => "Invalid",
            };
            let status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {},
                "status": "Failure", "message": "no", "reason": reason, "code": code});
            (code, status)
        };
        if self.forbidden.iter().any(|start| path.starts_with(start)) {
            return failure(403);
        }
        if method == "PATCH" {
            let patch: Value = serde_json::from_slice(body).unwrap();
            self.patches.push((path.to_owned(), patch.clone()));
            if self.refuse_patches > 0 {
                self.refuse_patches -= 1;
                return failure(422);
            }
            if let (true, Some(object)) = (patch.is_object(), self.objects.get_mut(path)) {
                json_patch::merge(object, &patch);
            } else if patch.is_object() {
                self.objects.insert(path.to_owned(), patch);
            } else if let Some(object) = self.objects.get_mut(path) {
                let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
                if json_patch::patch(object, &patch).is_err() {
                    return failure(422);
                }
            }
        }
        self.objects.get(path).map_or_else(|| failure(404), |object| (200, object.clone()))
    }
}

pub(crate) fn client(cluster: &Arc<Mutex<Cluster>>) -> Client {
    let cluster = Arc::clone(cluster);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let cluster = Arc::clone(&cluster);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let method = head.method.as_str();
            let (code, answer) = cluster.lock().unwrap().answer(method, head.uri.path(), &body);
            let answer = Body::from(answer.to_string().into_bytes());
            let answer = http::Response::builder().status(code).body(answer).unwrap();
            Ok::<_, tower::BoxError>(answer)
        }
    });
    Client::new(service, "default")
}

pub(crate) const MUTATING: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/imagewarm";
pub(crate) const VALIDATING: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/imagewarm";

pub(crate) fn configuration(kind: &str, cas: &[Option<&str>]) -> Value {
    let webhooks = cas.iter().enumerate().map(|(at, ca)| {
        let mut config = json!({"service": {"name": "s", "namespace": "n"}});
        if let Some(ca) = ca {
            config["caBundle"] = json!(ByteString(ca.as_bytes().to_vec()));
        }
        json!({"name": format!("w{at}.example.com"), "clientConfig": config,
               "admissionReviewVersions": ["v1"], "sideEffects": "None"})
    });
    let webhooks = webhooks.collect::<Vec<_>>();
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
           "metadata": {"name": "imagewarm"}, "webhooks": webhooks})
}

fn names() -> WebhookConfigurations {
    WebhookConfigurations { mutating: "imagewarm".into(), validating: "imagewarm".into() }
}

#[tokio::test]
async fn only_differences_are_written_and_absence_is_reported() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    let put = |path: &str, value| {
        cluster.lock().unwrap().objects.insert(path.to_owned(), value);
    };
    put(MUTATING, configuration("MutatingWebhookConfiguration", &[Some("CA"), None, Some("old")]));
    let bundles = ensure_ca_bundle(&client, &names(), "CA").await.unwrap();
    assert_eq!(bundles.mutating, BundleState::Current);
    assert_eq!(bundles.validating, BundleState::NotFound);
    assert!(!bundles.are_current());
    assert_eq!(bundles.check().unwrap_err(), "the ValidatingWebhookConfiguration does not exist");
    let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
    let ca = json!(ByteString(b"CA".to_vec()));
    let expected = json!([
        {"op": "test", "path": "/webhooks/1/name", "value": "w1.example.com"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": ca},
        {"op": "test", "path": "/webhooks/2/name", "value": "w2.example.com"},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": ca},
    ]);
    assert_eq!(patches, [(MUTATING.to_owned(), expected)]);

    put(VALIDATING, configuration("ValidatingWebhookConfiguration", &[None]));
    assert!(!ca_bundle_is_set(&client, &names(), "CA").await.unwrap().are_current());
    cluster.lock().unwrap().refuse_patches = 1;
    assert!(ensure_ca_bundle(&client, &names(), "CA").await.unwrap().are_current());
    assert_eq!(cluster.lock().unwrap().patches.len(), 2, "rejected once, then retried");
    assert!(ca_bundle_is_set(&client, &names(), "CA").await.unwrap().are_current());
    assert!(ensure_ca_bundle(&client, &names(), "CA").await.unwrap().are_current());
    assert_eq!(cluster.lock().unwrap().patches.len(), 2, "no difference, no write");
    assert!(!ca_bundle_is_set(&client, &names(), "CB").await.unwrap().are_current());
}

#[tokio::test]
async fn the_config_map_is_written_once_for_each_ca() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    for (ca, written) in [("A", true), ("A", false), ("B", true), ("B", false)] {
        assert_eq!(ensure_ca_config_map(&client, "ns", "ca", ca).await.unwrap(), written);
    }
    let cluster = cluster.lock().unwrap();
    assert_eq!(cluster.objects["/api/v1/namespaces/ns/configmaps/ca"]["data"]["ca.crt"], "B");
}

#[tokio::test]
async fn the_namespace_becomes_an_owner_beside_others() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    let put = |path: &str, value| {
        cluster.lock().unwrap().objects.insert(path.to_owned(), value);
    };
    let owner = |kind: &str, name: &str, uid: &str| {
        json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid,
               "controller": false, "blockOwnerDeletion": false})
    };
    let owned = |owners: Value| {
        let mut object = configuration("MutatingWebhookConfiguration", &[None]);
        object["metadata"]["ownerReferences"] = owners;
        object["metadata"]["resourceVersion"] = json!("7");
        object
    };
    put(
        "/api/v1/namespaces/ns",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns", "uid": "new"}}),
    );
    let (other, ours) = (owner("ConfigMap", "ns", "x"), owner("Namespace", "ns", "new"));
    for (before, after) in [
        (json!([]), Some(json!([ours]))),
        (json!([other]), Some(json!([other, ours]))),
        (json!([owner("Namespace", "ns", "old"), other]), Some(json!([other, ours]))),
        (json!([ours, other]), None),
    ] {
        put(MUTATING, owned(before.clone()));
        // The validating configuration is absent, which is no error.
        ensure_owner(&client, &names(), "ns").await.unwrap();
        let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
        let written = patches.first().map(|(path, patch)| {
            assert_eq!((path.as_str(), patches.len()), (MUTATING, 1));
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            patch["metadata"]["ownerReferences"].clone()
        });
        assert_eq!(written, after, "{before}");
    }
}
