//! Writes Events.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource};

use super::apply_error::ApplyError;
use super::writes::{Created, bounded};
use imagewarm_core::api::Revision;
use imagewarm_core::image::quoted::printable;

/// `note` of an Event may have 1,024 bytes.
const NOTE_MAX: usize = 1024;

/// An Event, in its own terms.
#[derive(Clone, Debug)]
pub(crate) struct EventText<'a> {
    /// Name of the Event; the same again is written once.
    pub name: String,
    /// Whether it is a Warning; else it is Normal.
    pub is_warning: bool,
    /// What was done, in upper camel case.
    pub action: &'a str,
    /// The reason, in upper camel case.
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
