//! Tells clients whom to trust: the CA in `caBundle` of the webhook configurations (for the API
//! server) and in a ConfigMap (for warmers). Writes only what differs, and nothing beside it.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::info;

use crate::api::{MANAGED_BY, MANAGED_BY_LABEL};

/// Key of the CA in the ConfigMap.
pub const CA_KEY: &str = "ca.crt";

/// How long one request to the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a configuration that changed in between is read again.
const ATTEMPTS: usize = 3;

/// The two configurations, by `metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfigurations {
    /// A MutatingWebhookConfiguration.
    pub mutating: String,
    /// A ValidatingWebhookConfiguration.
    pub validating: String,
}

/// How one object stands to the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the CA.
    Right,
    /// It exists and holds something else.
    Different,
    /// It does not exist; perhaps its manifest comes later.
    NotFound,
}

/// How both configurations stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaBundles {
    /// Of the MutatingWebhookConfiguration.
    pub mutating: Standing,
    /// Of the ValidatingWebhookConfiguration.
    pub validating: Standing,
}

impl CaBundles {
    /// Whether the API server can call both webhooks.
    pub fn are_right(self) -> bool {
        (self.mutating, self.validating) == (Standing::Right, Standing::Right)
    }
}

/// Why the CA could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The API server answered with an error, or could not be reached.
    #[error("cannot {verb} {object}")]
    Api {
        /// `read` or `patch`.
        verb: &'static str,
        /// Kind and name.
        object: String,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("cannot {verb} {object}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// `read` or `patch`.
        verb: &'static str,
        /// Kind and name.
        object: String,
    },
}

/// A webhook configuration, as far as it matters here.
trait Configuration: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope> {
    /// Name and `caBundle` of each webhook, in order.
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref())).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref())).collect()
    }
}

/// Puts the CA into every webhook of both configurations where it is not there yet.
pub async fn ensure_ca_bundle(
    client: &Client,
    names: &WebhookConfigurations,
    ca_pem: &str,
) -> Result<CaBundles, PublishError> {
    // Both are tried, whatever becomes of the first.
    let mutating = ensure::<MutatingWebhookConfiguration>(client, &names.mutating, ca_pem).await;
    let validating =
        ensure::<ValidatingWebhookConfiguration>(client, &names.validating, ca_pem).await;
    Ok(CaBundles { mutating: mutating?, validating: validating? })
}

/// Whether both configurations hold the CA already; for replicas that do not lead.
pub async fn ca_bundle_is_set(
    client: &Client,
    names: &WebhookConfigurations,
    ca_pem: &str,
) -> Result<CaBundles, PublishError> {
    Ok(CaBundles {
        mutating: look::<MutatingWebhookConfiguration>(client, &names.mutating, ca_pem).await?.0,
        validating: look::<ValidatingWebhookConfiguration>(client, &names.validating, ca_pem)
            .await?
            .0,
    })
}

/// Keeps the CA in the ConfigMap's key `ca.crt`. Says whether anything was written.
pub async fn ensure_ca_config_map(
    client: &Client,
    namespace: &str,
    name: &str,
    ca_pem: &str,
) -> Result<bool, PublishError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let object = || format!("ConfigMap {namespace}/{name}");
    let found = request("read", object, api.get_opt(name)).await?;
    let held = found.as_ref().and_then(|map| map.data.as_ref()?.get(CA_KEY));
    if held.map(String::as_str) == Some(ca_pem) {
        return Ok(false);
    }
    let next = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": namespace, "labels": {MANAGED_BY_LABEL: MANAGED_BY},
        },
        "data": {CA_KEY: ca_pem},
    });
    // Server-side apply creates or changes, and owns these fields alone.
    let params = PatchParams::apply(MANAGED_BY).force();
    request("patch", object, api.patch(name, &params, &Patch::Apply(next))).await?;
    info!(namespace, name, "published the CA in a ConfigMap");
    Ok(true)
}

async fn ensure<K>(client: &Client, name: &str, ca_pem: &str) -> Result<Standing, PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let mut attempt = 1;
    loop {
        let (standing, found) = look::<K>(client, name, ca_pem).await?;
        let Some(found) = found.filter(|_| standing == Standing::Different) else {
            return Ok(standing);
        };
        let Some(patch) = ca_patch(&found.webhooks(), ca_pem) else { return Ok(Standing::Right) };
        let (params, patch) = (PatchParams::default(), Patch::Json::<()>(patch));
        let patched = api.patch(name, &params, &patch);
        match request("patch", object, patched).await {
            Ok(_) => {
                info!(kind = %K::kind(&()), name, "set caBundle");
                return Ok(Standing::Right);
            }
            Err(PublishError::Api { source, .. })
                if attempt < ATTEMPTS && is_changed_since(&source) =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn look<K>(
    client: &Client,
    name: &str,
    ca_pem: &str,
) -> Result<(Standing, Option<K>), PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let Some(found) = request("read", object, api.get_opt(name)).await? else {
        return Ok((Standing::NotFound, None));
    };
    let holds = |ca: &Option<&ByteString>| ca.is_some_and(|ca| ca.0 == ca_pem.as_bytes());
    let webhooks = found.webhooks();
    let right = !webhooks.is_empty() && webhooks.iter().all(|(_, ca)| holds(ca));
    let standing = if right { Standing::Right } else { Standing::Different };
    Ok((standing, Some(found)))
}

/// Sets `caBundle` where it differs. Each webhook is found by its place, so the patch tests that
/// the place still holds that webhook; `None` when nothing differs.
fn ca_patch(webhooks: &[(&str, Option<&ByteString>)], ca_pem: &str) -> Option<json_patch::Patch> {
    let ca = ByteString(ca_pem.as_bytes().to_vec());
    let mut operations: Vec<Value> = Vec::new();
    for (at, (name, held)) in webhooks.iter().enumerate() {
        if *held != Some(&ca) {
            let path = format!("/webhooks/{at}");
            operations.push(json!({"op": "test", "path": format!("{path}/name"), "value": name}));
            let path = format!("{path}/clientConfig/caBundle");
            operations.push(json!({"op": "add", "path": path, "value": &ca}));
        }
    }
    if operations.is_empty() {
        return None;
    }
    serde_json::from_value(operations.into()).ok()
}

/// A failed `test` is 422; 404 when the object or the place is gone.
fn is_changed_since(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}

async fn request<T>(
    verb: &'static str,
    object: impl Fn() -> String,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, PublishError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => {
            Err(PublishError::Api { verb, object: object(), source: Box::new(source) })
        }
        Err(_) => Err(PublishError::Timeout { verb, object: object() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use http_body_util::BodyExt;
    use kube::client::Body;
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    /// Objects by path, and the patches that were sent.
    #[derive(Default)]
    struct Cluster {
        objects: HashMap<String, Value>,
        patches: Vec<(String, Value)>,
        refuse_patches: u32,
    }

    impl Cluster {
        fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
            let failure = |code: u16| {
                let reason = if code == 404 { "NotFound" } else { "Invalid" };
                let status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {},
                    "status": "Failure", "message": "no", "reason": reason, "code": code});
                (code, status)
            };
            if method == "PATCH" {
                let patch: Value = serde_json::from_slice(body).unwrap();
                self.patches.push((path.to_owned(), patch.clone()));
                if self.refuse_patches > 0 {
                    self.refuse_patches -= 1;
                    return failure(422);
                }
                if patch.is_object() {
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

    fn client(cluster: &Arc<Mutex<Cluster>>) -> Client {
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

    const MUTATING: &str =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hooks";
    const VALIDATING: &str =
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/hooks";

    fn configuration(kind: &str, cas: &[Option<&str>]) -> Value {
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
               "metadata": {"name": "hooks"}, "webhooks": webhooks})
    }

    fn names() -> WebhookConfigurations {
        WebhookConfigurations { mutating: "hooks".into(), validating: "hooks".into() }
    }

    #[tokio::test]
    async fn only_what_differs_is_written_and_absence_is_told() {
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        let client = client(&cluster);
        let put = |path: &str, value| {
            cluster.lock().unwrap().objects.insert(path.to_owned(), value);
        };
        put(
            MUTATING,
            configuration("MutatingWebhookConfiguration", &[Some("CA"), None, Some("old")]),
        );
        let bundles = ensure_ca_bundle(&client, &names(), "CA").await.unwrap();
        assert_eq!(bundles.mutating, Standing::Right);
        assert_eq!(bundles.validating, Standing::NotFound);
        assert!(!bundles.are_right());
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
        assert!(!ca_bundle_is_set(&client, &names(), "CA").await.unwrap().are_right());
        cluster.lock().unwrap().refuse_patches = 1;
        assert!(ensure_ca_bundle(&client, &names(), "CA").await.unwrap().are_right());
        assert_eq!(cluster.lock().unwrap().patches.len(), 2, "refused once, then tried again");
        assert!(ca_bundle_is_set(&client, &names(), "CA").await.unwrap().are_right());
        assert!(ensure_ca_bundle(&client, &names(), "CA").await.unwrap().are_right());
        assert_eq!(cluster.lock().unwrap().patches.len(), 2, "nothing to do, nothing written");
        assert!(!ca_bundle_is_set(&client, &names(), "CB").await.unwrap().are_right());
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
}
