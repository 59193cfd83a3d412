//! Live reads of single objects, where a cache does not suffice: before a deletion, and at admission.

use std::future::Future;

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::{PartialObjectMeta, Status};
use kube::{Api, Client, Resource};

use super::apply_error::ApplyError;
use super::request::{RequestError, request};
use super::writes::{CALL_TIMEOUT, bounded};
use imagewarm_core::api::knative::Configuration;
use imagewarm_core::api::names::{self, is_dns_subdomain};
use imagewarm_core::api::{KnativeImage, Revision};

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

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    fn refused(code: u16, name: &str) -> Status {
        let details = StatusDetails {
            name: name.into(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        Status { code, details: Some(details), ..Status::default() }
    }

    #[test]
    fn only_a_404_that_names_the_object_speaks_of_the_object() {
        assert_eq!(absence(&refused(404, "r-1"), "r-1"), Presence::Absent);
        assert_eq!(absence(&refused(404, ""), "r-1"), Presence::TypeAbsent);
        assert_eq!(
            absence(&Status { code: 404, ..Status::default() }, "r-1"),
            Presence::TypeAbsent
        );
    }
}
