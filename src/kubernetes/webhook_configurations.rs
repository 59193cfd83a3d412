//! Publishes how the webhooks are reached: for the API server, the CA and the paths in the webhook
//! configurations; for warmers, the CA in a ConfigMap. Writes these fields only, and only where they
//! differ.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::info;

use super::request::{self, RequestError};
use imagewarm_core::api::{MANAGED_BY, MANAGED_BY_LABEL};
use imagewarm_core::webhook_paths::{
    Endpoint, NEXT_PATHS_ANNOTATION, Paths, Published, ServedPaths, Step, WebhookPaths,
};

/// Key of the CA in the ConfigMap.
pub(crate) const CA_KEY: &str = "ca.crt";

/// Timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of attempts when a configuration changes between read and write.
const ATTEMPTS: usize = 3;

/// The two configurations, by `metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WebhookConfigurations {
    /// A MutatingWebhookConfiguration.
    pub mutating: String,
    /// A ValidatingWebhookConfiguration.
    pub validating: String,
}

/// State of one configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigurationState {
    /// The API server can call its webhooks.
    Current,
    /// It exists and does not hold the CA.
    NoCa,
    /// It holds the CA, but not the paths of its webhooks.
    NoPaths,
    /// It does not exist; its manifest may be applied later.
    NotFound,
}

/// State of both configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigurationStates {
    /// Of the MutatingWebhookConfiguration.
    pub mutating: ConfigurationState,
    /// Of the ValidatingWebhookConfiguration.
    pub validating: ConfigurationState,
}

impl ConfigurationStates {
    /// Whether the API server can call both webhooks.
    pub(crate) fn are_current(self) -> bool {
        let current = ConfigurationState::Current;
        (self.mutating, self.validating) == (current, current)
    }

    /// Fails with the configurations that keep the API server from calling the webhooks, and why.
    pub(crate) fn check(self) -> Result<(), String> {
        let faults: Vec<String> = [
            ("MutatingWebhookConfiguration", self.mutating),
            ("ValidatingWebhookConfiguration", self.validating),
        ]
        .into_iter()
        .filter_map(|(kind, state)| match state {
            ConfigurationState::Current => None,
            ConfigurationState::NoCa => Some(format!("the {kind} does not hold the CA yet")),
            ConfigurationState::NoPaths => Some(format!("the {kind} does not hold its paths yet")),
            ConfigurationState::NotFound => Some(format!("the {kind} does not exist")),
        })
        .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }
}

/// What a replica does with the configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It reads them.
    Reads,
    /// It also publishes, as the leader, what nobody else does.
    Publishes {
        /// Whether it publishes the CA.
        ca_bundle: bool,
        /// Whether it publishes the paths and rotates them.
        paths: bool,
    },
}

/// The paths of both configurations, as one replica knows them.
#[derive(Debug)]
pub(crate) struct ReplicaPaths {
    mutating: WebhookPaths,
    validating: WebhookPaths,
    served: watch::Sender<ServedPaths>,
}

impl Default for ReplicaPaths {
    fn default() -> Self {
        ReplicaPaths {
            mutating: WebhookPaths::new(Endpoint::Mutate),
            validating: WebhookPaths::new(Endpoint::Validate),
            served: watch::Sender::default(),
        }
    }
}

impl ReplicaPaths {
    /// The paths that are served, for the router.
    pub(crate) fn served(&self) -> watch::Receiver<ServedPaths> {
        self.served.subscribe()
    }

    fn of(&mut self, endpoint: Endpoint) -> &mut WebhookPaths {
        match endpoint {
            Endpoint::Mutate => &mut self.mutating,
            Endpoint::Validate => &mut self.validating,
        }
    }

    fn serve(&self) {
        let next = ServedPaths::of([&self.mutating, &self.validating]);
        self.served.send_if_modified(|served| {
            let differs = *served != next;
            *served = next;
            differs
        });
    }
}

/// Why the CA could not be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}")]
pub(crate) struct PublishError {
    /// `read` or `patch`.
    verb: &'static str,
    /// Kind and name.
    object: String,
    source: RequestError,
}

/// The part of a webhook configuration that is used here.
trait Configuration: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope> {
    /// The paths of its webhooks begin with this.
    const ENDPOINT: Endpoint;

    /// Name and client configuration of each webhook, in order.
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for MutatingWebhookConfiguration {
    const ENDPOINT: Endpoint = Endpoint::Mutate;

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|one| (one.name.as_str(), &one.client_config)).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    const ENDPOINT: Endpoint = Endpoint::Validate;

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|one| (one.name.as_str(), &one.client_config)).collect()
    }
}

/// Reads both configurations, and writes what differs as far as that is the replica's `role`.
/// `now` is monotonic, in milliseconds.
pub(crate) async fn sync(
    client: &Client,
    names: &WebhookConfigurations,
    ca_pem: &str,
    role: Role,
    paths: &mut ReplicaPaths,
    now: i64,
) -> Result<ConfigurationStates, PublishError> {
    let (mutating, validating) = (&names.mutating, &names.validating);
    // The second is attempted even if the first fails.
    let mutating =
        sync_one::<MutatingWebhookConfiguration>(client, mutating, ca_pem, role, paths, now).await;
    let validating =
        sync_one::<ValidatingWebhookConfiguration>(client, validating, ca_pem, role, paths, now)
            .await;
    Ok(ConfigurationStates { mutating: mutating?, validating: validating? })
}

/// Makes the Namespace the owner of both configurations, so that they are deleted with it: a
/// webhook with failurePolicy Fail that nothing serves would block its objects for ever. Other
/// owners stay. A configuration that does not exist is skipped until the next call.
pub(crate) async fn ensure_owner(
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
pub(crate) async fn ensure_ca_config_map(
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

async fn sync_one<K>(
    client: &Client,
    name: &str,
    ca_pem: &str,
    role: Role,
    paths: &mut ReplicaPaths,
    now: i64,
) -> Result<ConfigurationState, PublishError>
where
    K: Configuration + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let mut attempt = 1;
    loop {
        let Some(found) = request("read", object, api.get_opt(name)).await? else {
            return Ok(ConfigurationState::NotFound);
        };
        let published = published(&found);
        paths.of(K::ENDPOINT).observe(published.clone(), now);
        let patch = match role {
            Role::Reads => None,
            Role::Publishes { ca_bundle, paths: rotates } => {
                let paths = paths.of(K::ENDPOINT);
                let step = if rotates { paths.step(now, rand::random) } else { Step::Keep };
                patch(&found, ca_bundle.then_some(ca_pem), &step)
            }
        };
        // Before the API server can learn of new ones.
        paths.serve();
        let Some(patch) = patch else { return Ok(state(&found, &published, ca_pem)) };
        let params = PatchParams::default();
        match request("patch", object, api.patch(name, &params, &Patch::Json::<()>(patch))).await {
            Ok(written) => {
                let published = self::published(&written);
                paths.of(K::ENDPOINT).observe(published.clone(), now);
                info!(kind = %K::kind(&()), name, "CA and paths of the webhooks published");
                return Ok(state(&written, &published, ca_pem));
            }
            Err(error) if attempt < ATTEMPTS && is_changed_since(&error.source) => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

fn published<K: Configuration>(found: &K) -> Published {
    let webhooks = found.webhooks();
    let webhooks = webhooks.iter().map(|(name, config)| (*name, path_of(config)));
    let annotations = found.meta().annotations.as_ref();
    let next = annotations.and_then(|all| all.get(NEXT_PATHS_ANNOTATION));
    Published::read(K::ENDPOINT, webhooks, next.map(String::as_str))
}

/// The path of a Service or of a URL.
fn path_of(config: &WebhookClientConfig) -> Option<&str> {
    match (&config.service, &config.url) {
        (Some(service), _) => service.path.as_deref(),
        (None, Some(url)) => Some(&url[path_begins(url)?..]),
        (None, None) => None,
    }
}

/// Where the path of `https://HOST:PORT/PATH` begins.
fn path_begins(url: &str) -> Option<usize> {
    let host = url.find("://")? + 3;
    Some(url[host..].find('/').map_or(url.len(), |slash| host + slash))
}

fn state<K: Configuration>(found: &K, published: &Published, ca_pem: &str) -> ConfigurationState {
    let holds = |config: &WebhookClientConfig| {
        config.ca_bundle.as_ref().is_some_and(|ca| ca.0 == ca_pem.as_bytes())
    };
    let webhooks = found.webhooks();
    if webhooks.is_empty() || !webhooks.iter().all(|(_, config)| holds(config)) {
        ConfigurationState::NoCa
    } else if !published.is_complete() {
        ConfigurationState::NoPaths
    } else {
        ConfigurationState::Current
    }
}

/// The patch that sets `caBundle` where it differs, and writes what the step says; `None` if
/// nothing differs. It addresses each webhook by its index, so it first tests that the object is
/// still the one that was read.
fn patch<K: Configuration>(
    found: &K,
    ca_pem: Option<&str>,
    step: &Step,
) -> Option<json_patch::Patch> {
    let ca = ca_pem.map(|pem| ByteString(pem.as_bytes().to_vec()));
    let none = Paths::new();
    let paths = if let Step::Publish(paths) = step { paths } else { &none };
    let mut operations: Vec<Value> = Vec::new();
    let mut add = |path: String, value: Value| {
        operations.push(json!({"op": "add", "path": path, "value": value}));
    };
    for (at, (name, config)) in found.webhooks().into_iter().enumerate() {
        let place = format!("/webhooks/{at}/clientConfig");
        if ca.is_some() && config.ca_bundle != ca {
            add(format!("{place}/caBundle"), json!(ca));
        }
        let Some(path) = paths.get(name) else { continue };
        match (&config.service, &config.url) {
            (Some(_), _) => add(format!("{place}/service/path"), json!(path.as_str())),
            (None, Some(url)) => {
                let host = &url[..path_begins(url).unwrap_or(url.len())];
                add(format!("{place}/url"), json!(format!("{host}{}", path.as_str())));
            }
            (None, None) => {}
        }
    }
    let annotations = found.meta().annotations.as_ref();
    let place = format!("/metadata/annotations/{}", NEXT_PATHS_ANNOTATION.replace('/', "~1"));
    match step {
        Step::Announce(next) => {
            let next: BTreeMap<&str, &str> =
                next.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
            let next = json!(next).to_string();
            match annotations {
                Some(_) => add(place, json!(next)),
                None => add("/metadata/annotations".into(), json!({NEXT_PATHS_ANNOTATION: next})),
            }
        }
        Step::Publish(_) if annotations.is_some_and(|a| a.contains_key(NEXT_PATHS_ANNOTATION)) => {
            operations.push(json!({"op": "remove", "path": place}));
        }
        Step::Publish(_) | Step::Keep => {}
    }
    if operations.is_empty() {
        return None;
    }
    if let Some(version) = &found.meta().resource_version {
        let path = "/metadata/resourceVersion";
        operations.insert(0, json!({"op": "test", "path": path, "value": version}));
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
