//! Every write to the API server, and the live looks that precede a deletion. Each call has a time
//! limit, and its errors are sorted by what the caller does next.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{PartialObjectMeta, Status};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::request::{RequestError, one_line, request};
use imagewarm_core::api::knative::{Configuration, KnativeImageStatus};
use imagewarm_core::api::names::{self, is_dns_subdomain};
use imagewarm_core::api::{ImageWarm, ImageWarmStatus, KnativeImage, Revision};
use imagewarm_core::image::quoted::printable;
use imagewarm_core::plan::node_gate::gate_taints;

/// How long one call may take, with all that the client retries by itself.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Owner of the fields that we write.
const FIELD_MANAGER: &str = "imagewarm";
/// `note` of an Event may have 1,024 bytes.
const NOTE_MAX: usize = 1024;

/// Why a write was not done, by what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Somebody else changed the object: look again. For a creation the object is the namespace's
    /// ResourceQuota, which many creations count themselves in.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// An object of this name exists.
    #[error("the object exists already")]
    AlreadyExists,
    /// The object (or its type) does not exist.
    #[error("the object does not exist")]
    NotFound,
    /// The namespace is being deleted: nothing can be made there.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// A policy rejects this object.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The account may not create such objects in the namespace.
    #[error("not allowed in the namespace: {0}")]
    NamespaceForbidden(String),
    /// A ResourceQuota of the namespace is used up, or not counted yet.
    #[error("refused by a quota: {0}")]
    QuotaExceeded(String),
    /// The API server will never take this.
    #[error("refused: {0}")]
    Invalid(String),
    /// Worth another try later.
    #[error("{0}")]
    Retryable(String),
}

impl ApplyError {
    /// The word for metrics and logs.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            ApplyError::Conflict => "Conflict",
            ApplyError::AlreadyExists => "AlreadyExists",
            ApplyError::NotFound => "NotFound",
            ApplyError::NamespaceTerminating => "NamespaceTerminating",
            ApplyError::Forbidden(_) => "Forbidden",
            ApplyError::NamespaceForbidden(_) => "NamespaceForbidden",
            ApplyError::QuotaExceeded(_) => "QuotaExceeded",
            ApplyError::Invalid(_) => "Invalid",
            ApplyError::Retryable(_) => "Retryable",
        }
    }

    /// Whether a creation was refused for the whole namespace: it will be for the next one too.
    /// What one policy says of one object is not.
    pub(crate) const fn is_of_namespace(&self) -> bool {
        matches!(
            self,
            ApplyError::NamespaceForbidden(_)
                | ApplyError::QuotaExceeded(_)
                | ApplyError::NamespaceTerminating
                | ApplyError::NotFound
        )
    }
}

impl From<kube::Error> for ApplyError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else {
            return ApplyError::Retryable(one_line(&error));
        };
        let terminating = status.details.iter().flat_map(|details| &details.causes);
        match status.code {
            404 => ApplyError::NotFound,
            409 if status.reason == "AlreadyExists" => ApplyError::AlreadyExists,
            409 => ApplyError::Conflict,
            403 if terminating.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                ApplyError::NamespaceTerminating
            }
            403 if status.message.contains(" cannot create resource ") => {
                ApplyError::NamespaceForbidden(one_line(&error))
            }
            403 if is_of_quota(&status.message) => ApplyError::QuotaExceeded(one_line(&error)),
            403 => ApplyError::Forbidden(one_line(&error)),
            // The token expired, or an authenticator fails: for a moment, and everywhere.
            401 => ApplyError::Retryable(one_line(&error)),
            400 | 405 | 413 | 415 | 422 => ApplyError::Invalid(one_line(&error)),
            _ => ApplyError::Retryable(one_line(&error)),
        }
    }
}

/// Whether the API server's own text of a 403 is that of a ResourceQuota.
fn is_of_quota(message: &str) -> bool {
    ["exceeded quota: ", "status unknown for quota: "]
        .iter()
        .any(|text| message.contains(&format!(" is forbidden: {text}")))
}

impl From<RequestError> for ApplyError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Failed(error) => ApplyError::from(*error),
            RequestError::TimedOut(_) => ApplyError::Retryable(error.to_string()),
        }
    }
}

async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ApplyError> {
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

fn patch_parameters() -> PatchParams {
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

/// What a live look found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Presence {
    /// The object is there, with this metadata.
    Present(Box<ObjectMeta>),
    /// The type is served, and has no such object.
    Absent,
    /// The type is not served: says nothing about the object.
    TypeAbsent,
}

/// Asks the API server itself whether the Revision exists.
pub(crate) async fn find_revision(
    client: &Client,
    namespace: &str,
    revision: &str,
) -> Result<Presence, ApplyError> {
    let api: Api<Revision> = Api::namespaced(client.clone(), namespace);
    find(revision, api.get_metadata(revision)).await
}

/// Asks the API server itself whether the Configuration exists that owns a Revision.
pub(crate) async fn find_configuration(
    client: &Client,
    namespace: &str,
    configuration: &str,
) -> Result<Presence, ApplyError> {
    let api: Api<Configuration> = Api::namespaced(client.clone(), namespace);
    find(configuration, api.get_metadata(configuration)).await
}

/// Metadata of the Namespace, as it is now; `None` when it does not exist.
pub(crate) async fn read_namespace(
    client: &Client,
    name: &names::Namespace,
) -> Result<Option<ObjectMeta>, ApplyError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = request(CALL_TIMEOUT, api.get_metadata_opt(name)).await?;
    Ok(found.map(|found| found.metadata))
}

/// Reads the Configuration that owns a Revision, as it is now; `None` when there is none, or when
/// no object can have this name.
pub(crate) async fn read_configuration(
    client: &Client,
    namespace: &names::Namespace,
    configuration: &str,
) -> Result<Option<Configuration>, ApplyError> {
    // The client inserts names into the URL unescaped: one with a slash would address another object.
    if !is_dns_subdomain(configuration) {
        return Ok(None);
    }
    let api: Api<Configuration> = Api::namespaced(client.clone(), namespace);
    Ok(request(CALL_TIMEOUT, api.get_opt(configuration)).await?)
}

/// Asks the API server itself whether the Image exists.
pub(crate) async fn find_image(
    client: &Client,
    namespace: &str,
    image: &str,
) -> Result<Presence, ApplyError> {
    let api: Api<KnativeImage> = Api::namespaced(client.clone(), namespace);
    find(image, api.get_metadata(image)).await
}

/// Asks the API server itself for the names of all Revisions of a namespace.
pub(crate) async fn revision_names(
    client: &Client,
    namespace: &str,
) -> Result<Vec<String>, ApplyError> {
    let api: Api<Revision> = Api::namespaced(client.clone(), namespace);
    let listed = bounded(api.list_metadata(&ListParams::default())).await?;
    Ok(listed.items.into_iter().filter_map(|one| one.metadata.name).collect())
}

/// Asks the API server itself whether the Node exists.
pub(crate) async fn find_node(client: &Client, node: &str) -> Result<Presence, ApplyError> {
    let api: Api<Node> = Api::all(client.clone());
    find(node, api.get_metadata(node)).await
}

async fn find<K: Resource>(
    name: &str,
    call: impl Future<Output = kube::Result<PartialObjectMeta<K>>>,
) -> Result<Presence, ApplyError> {
    match request(CALL_TIMEOUT, call).await {
        Ok(found) => Ok(Presence::Present(Box::new(found.metadata))),
        Err(RequestError::Failed(error)) => match *error {
            kube::Error::Api(status) if status.code == 404 => Ok(absence(&status, name)),
            error => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Only the 404 of an object names it.
fn absence(status: &Status, name: &str) -> Presence {
    let named = status.details.as_ref().is_some_and(|details| details.name == name);
    if named { Presence::Absent } else { Presence::TypeAbsent }
}

/// Whether Knative's types are served and are to stay: a type whose CRD is being removed is still
/// listed, and its objects vanish one by one, but nothing can be made of it any more.
pub(crate) async fn knative_is_served(client: &Client) -> Result<bool, ApplyError> {
    for (group_version, plural) in [
        (Revision::api_version(&()), Revision::plural(&())),
        (KnativeImage::api_version(&()), KnativeImage::plural(&())),
    ] {
        let listed = bounded(client.list_api_group_resources(&group_version)).await;
        let listed = match listed {
            Err(ApplyError::NotFound) => return Ok(false),
            other => other?,
        };
        let stays = |resource: &k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource| {
            resource.name == plural && resource.verbs.iter().any(|verb| verb == "create")
        };
        if !listed.resources.iter().any(stays) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An Event, in its own terms.
#[derive(Clone, Debug)]
pub(crate) struct EventText<'a> {
    /// Name of the Event; the same again is written once.
    pub name: String,
    /// Whether it is a Warning; else it is Normal.
    pub is_warning: bool,
    /// What was done, in upper camel case.
    pub action: &'a str,
    /// One typed word.
    pub reason: &'a str,
    /// One sentence.
    pub note: String,
    /// Which replica says so.
    pub instance: &'a str,
}

/// A Revision as the object of an Event.
pub(crate) fn regarding_revision(revision: &Revision) -> ObjectReference {
    ObjectReference {
        api_version: Some(Revision::api_version(&()).into_owned()),
        kind: Some(Revision::kind(&()).into_owned()),
        name: revision.metadata.name.clone(),
        namespace: Some(revision.metadata.namespace.clone().unwrap_or_default()),
        uid: revision.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// A Node as the object of an Event.
pub(crate) fn regarding_node(node: &Node) -> ObjectReference {
    ObjectReference {
        api_version: Some(Node::api_version(&()).into_owned()),
        kind: Some(Node::kind(&()).into_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Writes an Event, unless one of this name exists: in the namespace of its object, or in `default` for
/// an object without one.
pub(crate) async fn publish_event(
    client: &Client,
    regarding: ObjectReference,
    text: EventText<'_>,
    now: Timestamp,
) -> Result<Created, ApplyError> {
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".into());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(text.name),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if text.is_warning { "Warning" } else { "Normal" }.into()),
        action: Some(text.action.to_owned()),
        reason: Some(text.reason.to_owned()),
        note: Some(printable(&text.note, NOTE_MAX)),
        regarding: Some(regarding),
        reporting_controller: Some("caching.knative.dev/imagewarm".into()),
        reporting_instance: Some(printable(text.instance, 128)),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    match bounded(api.create(&PostParams::default(), &event)).await {
        Ok(_) => Ok(Created::New),
        Err(ApplyError::AlreadyExists) => Ok(Created::Existed),
        Err(error) => Err(error),
    }
}

/// Removes the taints of this key from the Node, as it is in `node`. [`ApplyError::Conflict`] when its
/// taints have changed since; taints that others add or remove meanwhile are never lost.
pub(crate) async fn remove_taint(
    client: &Client,
    node: &Node,
    key: &str,
) -> Result<(), ApplyError> {
    let mut operations = vec![json!({
        "op": "test", "path": "/metadata/uid", "value": node.metadata.uid,
    })];
    // From the last, so that the positions of the others stay.
    for (at, _) in gate_taints(node, key).rev() {
        let path = format!("/spec/taints/{at}");
        operations.push(json!({"op": "test", "path": format!("{path}/key"), "value": key}));
        operations.push(json!({"op": "remove", "path": path}));
    }
    let patch = serde_json::from_value(Value::Array(operations))
        .map_err(|error| ApplyError::Invalid(error.to_string()))?;
    let api: Api<Node> = Api::all(client.clone());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Json::<()>(patch);
    match request(CALL_TIMEOUT, api.patch_metadata(name, &patch_parameters(), &patch)).await {
        Ok(_) => Ok(()),
        Err(RequestError::Failed(error)) => match *error {
            kube::Error::Api(status) if is_outdated(&status) => Err(ApplyError::Conflict),
            error => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Whether a test of a JSON patch failed. The 422 of a policy or a validation names the object.
fn is_outdated(status: &Status) -> bool {
    status.code == 422 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn api(client: &Client, warm: &ImageWarm) -> Api<ImageWarm> {
    Api::namespaced(client.clone(), warm.metadata.namespace.as_deref().unwrap_or_default())
}

fn name(warm: &ImageWarm) -> String {
    warm.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn refused(code: u16, name: &str, cause: &str) -> Status {
        Status {
            code,
            message: "m".into(),
            details: Some(StatusDetails {
                name: name.into(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes: vec![StatusCause {
                    reason: cause.into(),
                    message: String::new(),
                    field: String::new(),
                }],
                retry_after_seconds: 0,
            }),
            ..Status::default()
        }
    }

    #[test]
    fn errors_by_what_to_do_next() {
        let cases = [
            (404, "", "NotFound"),
            (409, "", "Conflict"),
            (403, "", "Forbidden"),
            (403, "NamespaceTerminating", "NamespaceTerminating"),
            (422, "", "Invalid"),
            (429, "", "Retryable"),
            (500, "", "Retryable"),
            (503, "", "Retryable"),
        ];
        for (code, cause, reason) in cases {
            let error = kube::Error::Api(refused(code, "x", cause).boxed());
            assert_eq!(ApplyError::from(error).reason(), reason, "{code} {cause}");
        }
    }

    /// The texts are those of the API server.
    #[test]
    fn refusals_of_rbac_and_quotas_concern_the_namespace_and_those_of_policies_do_not() {
        let cases = [
            (
                "imagewarms.caching.knative.dev is forbidden: User \"u\" cannot create resource \
                 \"imagewarms\" in API group \"caching.knative.dev\" in the namespace \"n\"",
                "NamespaceForbidden",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: exceeded quota: q, requested: \
                 count/imagewarms.caching.knative.dev=1, used: \
                 count/imagewarms.caching.knative.dev=2, limited: \
                 count/imagewarms.caching.knative.dev=2",
                "QuotaExceeded",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: status unknown for quota: q, \
                 resources: count/imagewarms.caching.knative.dev",
                "QuotaExceeded",
            ),
            (
                "imagewarms.caching.knative.dev \"w\" is forbidden: ValidatingAdmissionPolicy 'p' \
                 with binding 'b' denied request: this registry is not allowed",
                "Forbidden",
            ),
        ];
        for (message, reason) in cases {
            let status = Status { code: 403, message: message.into(), ..Status::default() };
            let error = ApplyError::from(kube::Error::Api(status.boxed()));
            assert_eq!(error.reason(), reason, "{message}");
            assert_eq!(error.is_of_namespace(), reason != "Forbidden", "{message}");
        }
    }

    #[test]
    fn only_an_object_of_the_same_name_exists_already() {
        let answer = |reason: &str| {
            let status = Status { code: 409, reason: reason.into(), ..Status::default() };
            ApplyError::from(kube::Error::Api(status.boxed())).reason()
        };
        assert_eq!(answer("AlreadyExists"), "AlreadyExists");
        assert_eq!(answer("Conflict"), "Conflict", "several creations updated one quota");
    }

    #[test]
    fn a_patch_is_outdated_where_a_422_names_no_object() {
        assert!(is_outdated(&refused(422, "", "")));
        assert!(is_outdated(&Status { code: 422, ..Status::default() }));
        assert!(!is_outdated(&refused(422, "node-1", "")));
        assert!(!is_outdated(&refused(403, "", "")));
    }

    #[test]
    fn only_a_404_that_names_the_object_speaks_of_the_object() {
        assert_eq!(absence(&refused(404, "r-1", ""), "r-1"), Presence::Absent);
        assert_eq!(absence(&refused(404, "", ""), "r-1"), Presence::TypeAbsent);
        assert_eq!(
            absence(&Status { code: 404, ..Status::default() }, "r-1"),
            Presence::TypeAbsent
        );
    }

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
