//! Publishes the CA: in `caBundle` of the webhook configurations (for the API server) and in a
//! ConfigMap (for warmers). Writes these fields only, and only where they differ.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::info;

use super::request::{self, RequestError};
use imagewarm_core::api::{MANAGED_BY, MANAGED_BY_LABEL};

/// Key of the CA in the ConfigMap.
pub const CA_KEY: &str = "ca.crt";

/// Timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of attempts when a configuration changes between read and write.
const ATTEMPTS: usize = 3;

/// The two configurations, by `metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfigurations {
    /// A MutatingWebhookConfiguration.
    pub mutating: String,
    /// A ValidatingWebhookConfiguration.
    pub validating: String,
}

/// State of one object with respect to the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleState {
    /// It holds the CA.
    Current,
    /// It exists and does not hold the CA.
    Outdated,
    /// It does not exist; its manifest may be applied later.
    NotFound,
}

/// State of both configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaBundles {
    /// Of the MutatingWebhookConfiguration.
    pub mutating: BundleState,
    /// Of the ValidatingWebhookConfiguration.
    pub validating: BundleState,
}

impl CaBundles {
    /// Whether the API server can call both webhooks.
    pub fn are_current(self) -> bool {
        (self.mutating, self.validating) == (BundleState::Current, BundleState::Current)
    }

    /// Fails with the configurations that keep the API server from calling the webhooks, and why.
    pub fn check(self) -> Result<(), String> {
        let faults: Vec<String> = [
            ("MutatingWebhookConfiguration", self.mutating),
            ("ValidatingWebhookConfiguration", self.validating),
        ]
        .into_iter()
        .filter_map(|(kind, state)| match state {
            BundleState::Current => None,
            BundleState::Outdated => Some(format!("the {kind} does not hold the CA yet")),
            BundleState::NotFound => Some(format!("the {kind} does not exist")),
        })
        .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }
}

/// Why the CA could not be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}")]
pub struct PublishError {
    /// `read` or `patch`.
    verb: &'static str,
    /// Kind and name.
    object: String,
    source: RequestError,
}

/// The part of a webhook configuration that is used here.
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

/// Sets the CA in every webhook of both configurations that does not hold it yet.
pub async fn ensure_ca_bundle(
    client: &Client,
    names: &WebhookConfigurations,
    ca_pem: &str,
) -> Result<CaBundles, PublishError> {
    // The second is attempted even if the first fails.
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
        mutating: read::<MutatingWebhookConfiguration>(client, &names.mutating, ca_pem).await?.0,
        validating: read::<ValidatingWebhookConfiguration>(client, &names.validating, ca_pem)
            .await?
            .0,
    })
}

/// Makes the Namespace the owner of both configurations, so that they are deleted with it: a
/// webhook with failurePolicy Fail that nothing serves would block its objects for ever. Other
/// owners stay. A configuration that does not exist is skipped until the next call.
pub async fn ensure_owner(
    client: &Client,
    names: &WebhookConfigurations,
    namespace: &str,
) -> Result<(), PublishError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = || format!("Namespace {namespace}");
    let found = request("read", object, namespaces.get_metadata(namespace)).await?;
    let Some(uid) = found.metadata.uid else { return Ok(()) };
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Namespace".into(),
        name: namespace.into(),
        uid,
        controller: Some(false),
        block_owner_deletion: Some(false),
    };
    own::<MutatingWebhookConfiguration>(client, &names.mutating, &owner).await?;
    own::<ValidatingWebhookConfiguration>(client, &names.validating, &owner).await
}

async fn own<K>(client: &Client, name: &str, owner: &OwnerReference) -> Result<(), PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let Some(found) = request("read", object, api.get_metadata_opt(name)).await? else {
        return Ok(());
    };
    let mut owners = found.metadata.owner_references.unwrap_or_default();
    if owners.iter().any(|held| held.uid == owner.uid) {
        return Ok(());
    }
    // An owner of the same name but another uid is a deleted Namespace.
    owners.retain(|held| (&held.kind, &held.name) != (&owner.kind, &owner.name));
    owners.push(owner.clone());
    let patch = json!({"metadata": {
        "resourceVersion": found.metadata.resource_version, "ownerReferences": owners,
    }});
    let params = PatchParams::default();
    request("patch", object, api.patch_metadata(name, &params, &Patch::Merge(patch))).await?;
    info!(kind = %K::kind(&()), name, owner = owner.name, "owner reference set");
    Ok(())
}

/// Sets the CA in the ConfigMap's key `ca.crt`. Returns whether anything was written.
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
    // Server-side apply creates or updates, and owns only these fields.
    let params = PatchParams::apply(MANAGED_BY).force();
    request("patch", object, api.patch(name, &params, &Patch::Apply(next))).await?;
    info!(namespace, name, "CA published in a ConfigMap");
    Ok(true)
}

async fn ensure<K>(client: &Client, name: &str, ca_pem: &str) -> Result<BundleState, PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let mut attempt = 1;
    loop {
        let (state, found) = read::<K>(client, name, ca_pem).await?;
        let Some(found) = found.filter(|_| state == BundleState::Outdated) else {
            return Ok(state);
        };
        let Some(patch) = ca_patch(&found.webhooks(), ca_pem) else {
            return Ok(BundleState::Current);
        };
        let (params, patch) = (PatchParams::default(), Patch::Json::<()>(patch));
        let patched = api.patch(name, &params, &patch);
        match request("patch", object, patched).await {
            Ok(_) => {
                info!(kind = %K::kind(&()), name, "caBundle set");
                return Ok(BundleState::Current);
            }
            Err(error) if attempt < ATTEMPTS && is_changed_since(&error.source) => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn read<K>(
    client: &Client,
    name: &str,
    ca_pem: &str,
) -> Result<(BundleState, Option<K>), PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let Some(found) = request("read", object, api.get_opt(name)).await? else {
        return Ok((BundleState::NotFound, None));
    };
    let holds = |ca: &Option<&ByteString>| ca.is_some_and(|ca| ca.0 == ca_pem.as_bytes());
    let webhooks = found.webhooks();
    let current = !webhooks.is_empty() && webhooks.iter().all(|(_, ca)| holds(ca));
    let state = if current { BundleState::Current } else { BundleState::Outdated };
    Ok((state, Some(found)))
}

/// The patch that sets `caBundle` where it differs; `None` if nothing does. It addresses each
/// webhook by its index, so it first tests that the index still holds that webhook.
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

/// A failed `test` is 422; 404 means that the object or the index no longer exists.
fn is_changed_since(error: &RequestError) -> bool {
    matches!(error.status_code(), Some(404 | 409 | 422))
}

async fn request<T>(
    verb: &'static str,
    object: impl Fn() -> String,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, PublishError> {
    let answer = request::request(REQUEST_TIMEOUT, call).await;
    answer.map_err(|source| PublishError { verb, object: object(), source })
}

#[cfg(test)]
pub(crate) mod tests;
