//! Writes of ImageWarms and of the statuses of Images. Each call has a time limit.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::apply_error::ApplyError;
use super::request::request;
use imagewarm_core::api::knative::KnativeImageStatus;
use imagewarm_core::api::{ImageWarm, ImageWarmStatus, KnativeImage};

/// How long one call may take, with all that the client retries by itself.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Owner of the fields that we write.
const FIELD_MANAGER: &str = "imagewarm";

/// One call within [`CALL_TIMEOUT`].
pub(super) async fn bounded<T>(
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApplyError> {
    Ok(request(CALL_TIMEOUT, call).await?)
}

/// What became of a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Made now.
    New,
    /// Was there already.
    Existed,
}

/// Makes the object; that it exists already is no error.
pub(crate) async fn create(client: &Client, warm: &ImageWarm) -> Result<Created, ApplyError> {
    let parameters =
        PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match bounded(api(client, warm).create(&parameters, warm)).await {
        Ok(_) => Ok(Created::New),
        Err(ApplyError::AlreadyExists) => Ok(Created::Existed),
        Err(error) => Err(error),
    }
}

/// Deletes exactly this version of the object. False when it was gone already.
pub(crate) async fn delete(client: &Client, warm: &ImageWarm) -> Result<bool, ApplyError> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: warm.metadata.uid.clone(),
            resource_version: warm.metadata.resource_version.clone(),
        }),
        ..DeleteParams::background()
    };
    match bounded(api(client, warm).delete(&name(warm), &parameters)).await {
        Ok(_) => Ok(true),
        Err(ApplyError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The object as it is now; [`ApplyError::NotFound`] also when another has taken its name.
pub(crate) async fn read(client: &Client, warm: &ImageWarm) -> Result<ImageWarm, ApplyError> {
    let now = bounded(api(client, warm).get(&name(warm))).await?;
    if now.metadata.uid == warm.metadata.uid { Ok(now) } else { Err(ApplyError::NotFound) }
}

/// Writes the status in place of the one that `warm` has, provided that nobody changed the object
/// since `warm` was read. Returns the object as it is now.
pub(crate) async fn patch_status(
    client: &Client,
    warm: &ImageWarm,
    status: &ImageWarmStatus,
) -> Result<ImageWarm, ApplyError> {
    let patch = status_patch(&warm.metadata, &warm.status, status)?;
    let patch = Patch::Merge(&patch);
    bounded(api(client, warm).patch_status(&name(warm), &patch_parameters(), &patch)).await
}

/// Writes the status of a Knative Image, provided that nobody changed the Image since it was read.
pub(crate) async fn patch_image_status(
    client: &Client,
    image: &KnativeImage,
    status: &KnativeImageStatus,
) -> Result<(), ApplyError> {
    let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
    let name = image.metadata.name.as_deref().unwrap_or_default();
    let api: Api<KnativeImage> = Api::namespaced(client.clone(), namespace);
    let patch = status_patch(&image.metadata, &image.status, status)?;
    let patch = Patch::Merge(&patch);
    bounded(api.patch_status(name, &patch_parameters(), &patch)).await.map(drop)
}

pub(super) fn patch_parameters() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// What turns one status into another, for just the version of the object that has the first.
fn status_patch<S: Serialize>(
    metadata: &ObjectMeta,
    old: &Option<S>,
    new: &S,
) -> Result<Value, ApplyError> {
    let encode = |status: &S| {
        serde_json::to_value(status).map_err(|error| ApplyError::Invalid(error.to_string()))
    };
    let old = old.as_ref().map(encode).transpose()?.unwrap_or(Value::Null);
    Ok(json!({
        "metadata": {"resourceVersion": metadata.resource_version},
        "status": merge_patch(&old, &encode(new)?),
    }))
}

/// The JSON merge patch (RFC 7386) that turns `old` into `new`: only what differs, `null` for what
/// is no more.
fn merge_patch(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(same) if same == value => {}
            Some(other) => drop(patch.insert(key.clone(), merge_patch(other, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

fn api(client: &Client, warm: &ImageWarm) -> Api<ImageWarm> {
    Api::namespaced(client.clone(), warm.metadata.namespace.as_deref().unwrap_or_default())
}

fn name(warm: &ImageWarm) -> String {
    warm.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patches() {
        let cases = [
            (json!(null), json!({"a": 1}), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": 1}), json!({})),
            (json!({"a": 1, "b": 2}), json!({"b": 3}), json!({"a": null, "b": 3})),
            (json!({"m": {"x": 1, "y": 2}}), json!({"m": {"y": 2}}), json!({"m": {"x": null}})),
            (json!({"l": [1, 2]}), json!({"l": [2]}), json!({"l": [2]})),
        ];
        for (old, new, patch) in cases {
            assert_eq!(merge_patch(&old, &new), patch, "{old} to {new}");
            let mut patched = old.clone();
            json_patch::merge(&mut patched, &patch);
            assert_eq!(patched, new);
        }
    }
}
