//! Tests against a minimal fake API server.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use http_body_util::BodyExt;
use imagewarm_core::webhook_paths::{ANNOUNCE_FOR_MS, ROTATE_AFTER_MS};
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
           "metadata": {"name": "imagewarm", "resourceVersion": "7"}, "webhooks": webhooks})
}

fn names() -> WebhookConfigurations {
    WebhookConfigurations { mutating: "imagewarm".into(), validating: "imagewarm".into() }
}

const LEADS: Role = Role::Publishes { ca_bundle: true, paths: true };

async fn synced(
    client: &Client,
    ca: &str,
    role: Role,
    paths: &mut ReplicaPaths,
    now: i64,
) -> ConfigurationStates {
    sync(client, &names(), ca, role, paths, now).await.unwrap()
}

/// The paths in the MutatingWebhookConfiguration, in order.
fn stored_paths(cluster: &Mutex<Cluster>) -> Vec<String> {
    let webhooks = &cluster.lock().unwrap().objects[MUTATING]["webhooks"];
    let path = |one: &Value| one["clientConfig"]["service"]["path"].as_str().unwrap().to_owned();
    webhooks.as_array().unwrap().iter().map(path).collect()
}

#[tokio::test]
async fn only_differences_are_written_and_absence_is_reported() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    let put = |path: &str, value| {
        cluster.lock().unwrap().objects.insert(path.to_owned(), value);
    };
    let paths = &mut ReplicaPaths::default();
    put(MUTATING, configuration("MutatingWebhookConfiguration", &[Some("CA"), None, Some("old")]));
    let states = synced(&client, "CA", LEADS, paths, 0).await;
    assert_eq!(states.mutating, ConfigurationState::Current);
    assert_eq!(states.validating, ConfigurationState::NotFound);
    assert!(!states.are_current());
    assert_eq!(states.check().unwrap_err(), "the ValidatingWebhookConfiguration does not exist");
    let patches = std::mem::take(&mut cluster.lock().unwrap().patches);
    let ca = json!(ByteString(b"CA".to_vec()));
    let stored = stored_paths(&cluster);
    let path = |at: usize| {
        json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/service/path"),
               "value": stored[at]})
    };
    let expected = json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        path(0),
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": ca},
        path(1),
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": ca},
        path(2),
    ]);
    assert_eq!(patches, [(MUTATING.to_owned(), expected)]);

    put(VALIDATING, configuration("ValidatingWebhookConfiguration", &[None]));
    let reads = &mut ReplicaPaths::default();
    assert_eq!(
        synced(&client, "CA", Role::Reads, reads, 0).await.validating,
        ConfigurationState::NoCa
    );
    cluster.lock().unwrap().refuse_patches = 1;
    assert!(synced(&client, "CA", LEADS, paths, 1).await.are_current());
    assert_eq!(cluster.lock().unwrap().patches.len(), 2, "rejected once, then retried");
    assert!(synced(&client, "CA", Role::Reads, reads, 1).await.are_current());
    assert!(synced(&client, "CA", LEADS, paths, 2).await.are_current());
    assert_eq!(cluster.lock().unwrap().patches.len(), 2, "no difference, no write");
    assert!(!synced(&client, "CB", Role::Reads, reads, 2).await.are_current());
}

#[tokio::test]
async fn every_replica_serves_what_is_published_and_rotated() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    let (kind, cas) = ("MutatingWebhookConfiguration", [Some("CA"), Some("CA")]);
    cluster.lock().unwrap().objects.insert(MUTATING.into(), configuration(kind, &cas));
    let (leader, replica) = (&mut ReplicaPaths::default(), &mut ReplicaPaths::default());
    let not_yet = synced(&client, "CA", Role::Reads, replica, 0).await;
    assert_eq!(not_yet.mutating, ConfigurationState::NoPaths);
    assert!(not_yet.check().unwrap_err().contains("does not hold its paths yet"));

    // The CA is another program's.
    let role = Role::Publishes { ca_bundle: false, paths: true };
    assert_eq!(
        synced(&client, "CB", role, leader, 0).await.mutating,
        ConfigurationState::NoCa,
        "the paths are published all the same"
    );
    let first = stored_paths(&cluster);
    synced(&client, "CA", Role::Reads, replica, 0).await;

    let announced = ROTATE_AFTER_MS;
    synced(&client, "CA", LEADS, leader, announced).await;
    assert_eq!(stored_paths(&cluster), first, "the next ones are only announced");
    synced(&client, "CA", Role::Reads, replica, announced).await;
    synced(&client, "CA", LEADS, leader, announced + 1).await;
    synced(&client, "CA", LEADS, leader, announced + 1 + ANNOUNCE_FOR_MS).await;
    let second = stored_paths(&cluster);
    let annotations = cluster.lock().unwrap().objects[MUTATING]["metadata"]["annotations"].clone();
    assert_eq!(annotations, json!({}), "the announcement is over");
    assert!(first.iter().all(|path| !second.contains(path)), "{first:?} {second:?}");
    for paths in [&*leader, &*replica] {
        let served = paths.served().borrow().clone();
        assert!(first.iter().chain(&second).all(|path| served.get(path).is_some()));
    }
}

#[tokio::test]
async fn a_url_keeps_its_host() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let client = client(&cluster);
    for (before, host) in [
        ("https://webhook.example.com:8443/mutate", "https://webhook.example.com:8443"),
        ("https://webhook.example.com", "https://webhook.example.com"),
    ] {
        let mut object = configuration("MutatingWebhookConfiguration", &[Some("CA")]);
        object["webhooks"][0]["clientConfig"] = json!({"url": before, "caBundle": "Q0E="});
        cluster.lock().unwrap().objects.insert(MUTATING.into(), object);
        let states = synced(&client, "CA", LEADS, &mut ReplicaPaths::default(), 0).await;
        assert_eq!(states.mutating, ConfigurationState::Current);
        let object = cluster.lock().unwrap().objects[MUTATING].clone();
        let url = object["webhooks"][0]["clientConfig"]["url"].as_str().unwrap().to_owned();
        let path = url.strip_prefix(host).unwrap();
        assert!(path.starts_with("/mutate/") && path.len() == 40, "{url}");
    }
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
