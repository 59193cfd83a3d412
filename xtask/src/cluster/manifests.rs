//! Applies YAML files as `kubectl apply --server-side` does: the shipped ones of `deploy/`, changed
//! only where the development cluster has no Service network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope, pinned_kind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::wait::wait_for;

/// Writer of everything that is applied here, as field managers go.
const FIELD_MANAGER: &str = "imagewarm-development-cluster";

/// Reads all objects of a file, or of a folder: those that its `kustomization.yaml` lists (folders
/// among them likewise), else those of each YAML file in it.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    if path.is_file() {
        let text = std::fs::read_to_string(path)?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)
            .with_context(|| format!("{} is not YAML", path.display()))?;
        return Ok(objects.into_iter().filter(|object| !object.is_null()).collect());
    }
    let mut objects = Vec::new();
    for file in listed(path).with_context(|| format!("read {}", path.display()))? {
        objects.extend(read(&file)?);
    }
    Ok(objects)
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Kustomization {
        #[serde(default)]
        resources: Vec<String>,
    }
    let kustomization = folder.join("kustomization.yaml");
    if kustomization.is_file() {
        let text = std::fs::read_to_string(kustomization)?;
        let kustomization: Kustomization = serde_saphyr::from_str(&text)?;
        return Ok(kustomization.resources.iter().map(|name| folder.join(name)).collect());
    }
    let files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files: Vec<PathBuf> = files.collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|kind| kind == "yaml"));
    files.sort();
    Ok(files)
}

/// Changes a shipped object for a cluster without Service network: the API server reaches the
/// webhook at `localhost:PORT`, under the name of the Service as ever.
pub fn for_development(mut object: Value, webhook_port: u16) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match object["kind"].as_str() {
        Some("Service") if name.starts_with("imagewarm-") => {
            object["spec"] = json!({"type": "ExternalName", "externalName": "localhost"});
        }
        Some("MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
                webhook["clientConfig"]["service"]["port"] = json!(webhook_port);
            }
        }
        _ => {}
    }
    object
}

/// Applies the objects, namespaces and CRDs first, and waits until the CRDs are served.
pub async fn apply(client: &kube::Client, objects: Vec<Value>) -> Result<()> {
    apply_as(client, FIELD_MANAGER, objects).await
}

/// The same for another writer.
pub async fn apply_as(client: &kube::Client, manager: &str, mut objects: Vec<Value>) -> Result<()> {
    objects.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        // The rest keeps its order: a stable sort.
        _ => 2,
    });
    let (first, rest): (Vec<Value>, Vec<Value>) = objects.into_iter().partition(|object| {
        matches!(object["kind"].as_str(), Some("Namespace" | "CustomResourceDefinition"))
    });
    let mut kinds = Kinds { client, known: BTreeMap::new() };
    for object in &first {
        kinds.apply(manager, object).await?;
    }
    for crd in first.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        wait_served(client, crd).await?;
    }
    for object in &rest {
        kinds.apply(manager, object).await?;
    }
    Ok(())
}

/// Waits until the resource that a CRD defines can be listed.
async fn wait_served(client: &kube::Client, crd: &Value) -> Result<()> {
    let spec = &crd["spec"];
    let (group, plural) = (&spec["group"], &spec["names"]["plural"]);
    let version = spec["versions"].as_array().and_then(|versions| {
        versions.iter().find(|version| version["served"] == true).map(|version| &version["name"])
    });
    let (Some(group), Some(version), Some(plural)) =
        (group.as_str(), version.and_then(Value::as_str), plural.as_str())
    else {
        bail!("CRD {} has no served version", crd["metadata"]["name"]);
    };
    let path = format!("/apis/{group}/{version}/{plural}?limit=1");
    wait_for(Duration::from_secs(20), &format!("{plural}.{group} to be served"), async || {
        let request = http::Request::get(path.as_str()).body(Vec::new()).ok()?;
        client.request_text(request).await.ok()
    })
    .await
    .map(drop)
}

/// Deletes an object, by its kind and name; its absence is fine.
pub async fn delete(client: &kube::Client, object: &Value) -> Result<()> {
    let mut kinds = Kinds { client, known: BTreeMap::new() };
    let (api, name) = kinds.api(object).await?;
    match api.delete(&name, &kube::api::DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {name}")),
    }
}

struct Kinds<'a> {
    client: &'a kube::Client,
    known: BTreeMap<String, (ApiResource, bool)>,
}

impl Kinds<'_> {
    async fn api(&mut self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let wanted = "an object needs apiVersion, kind and metadata.name";
        let version = text(&object["apiVersion"]).context(wanted)?;
        let kind = text(&object["kind"]).context(wanted)?;
        let name = text(&object["metadata"]["name"]).context(wanted)?;
        let key = format!("{version} {kind}");
        if !self.known.contains_key(&key) {
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            let kind = GroupVersionKind::gvk(group, version, &kind);
            let (resource, capabilities) = pinned_kind(self.client, &kind)
                .await
                .with_context(|| format!("the API server does not serve {key}"))?;
            self.known.insert(key.clone(), (resource, capabilities.scope == Scope::Namespaced));
        }
        let (resource, namespaced) = &self.known[&key];
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let api = if *namespaced {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        };
        Ok((api, name))
    }

    async fn apply(&mut self, manager: &str, object: &Value) -> Result<()> {
        let (api, name) = self.api(object).await?;
        let params = PatchParams::apply(manager).force();
        let applied = api.patch(&name, &params, &Patch::Apply(object)).await;
        applied.map(drop).with_context(|| format!("apply {} {name}", object["kind"]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_kustomization_is_followed_into_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("rbac")).unwrap();
        std::fs::write(path.join("kustomization.yaml"), "resources: [rbac, a.yaml]\n").unwrap();
        std::fs::write(path.join("rbac/kustomization.yaml"), "resources: [b.yaml]\n").unwrap();
        std::fs::write(path.join("a.yaml"), "kind: A\n---\nkind: B\n---\n").unwrap();
        std::fs::write(path.join("rbac/b.yaml"), "# c\n---\nkind: C\n").unwrap();
        std::fs::write(path.join("not-listed.yaml"), "kind: D\n").unwrap();
        let kinds: Vec<Value> =
            read(path).unwrap().into_iter().map(|mut object| object["kind"].take()).collect();
        assert_eq!(kinds, ["C", "A", "B"]);
    }

    #[test]
    fn services_and_webhooks_lead_to_this_machine() {
        let service = json!({
            "kind": "Service", "metadata": {"name": "imagewarm-webhook"},
            "spec": {"selector": {"a": "b"}},
        });
        let changed = for_development(service, 1);
        assert_eq!(changed["spec"], json!({"type": "ExternalName", "externalName": "localhost"}));
        let configuration = json!({
            "kind": "ValidatingWebhookConfiguration",
            "webhooks": [{"clientConfig": {"service": {"name": "imagewarm-webhook"}}}],
        });
        let changed = for_development(configuration, 4711);
        assert_eq!(changed["webhooks"][0]["clientConfig"]["service"]["port"], 4711);
    }
}
