//! The ImageWarms of a Revision: one for each of its images and each node that could run it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Policy;
use super::demand::{Demand, is_routable, valid_secrets};
use super::eligible::{NodeFacts, may_start};
use crate::api::knative::configuration_owner;
use crate::api::{
    CREATED_FOR_ANNOTATION, ImageWarm, ImageWarmSpec, MANAGED_BY, MANAGED_BY_LABEL, Revision,
    SERVICE_ACCOUNT_ANNOTATION, revision_token,
};
use crate::image::Reference;
use crate::image::object_name::object_name;

/// All that is wanted for a Revision that was just seen, by the names that it uses itself. Nothing
/// for one that may not get traffic: a restored backup brings back many of those.
pub fn fan_out(
    revision: &Revision,
    demand: &Demand,
    nodes: &[NodeFacts<'_>],
    policy: &Policy,
) -> Vec<ImageWarm> {
    if !is_routable(revision) {
        return Vec::new();
    }
    let eligible =
        || nodes.iter().filter(|node| may_start(node, &demand.placement, policy).is_ok());
    let one_image = |image: &Reference| -> Vec<ImageWarm> {
        eligible().map(|node| image_warm(revision, demand, image, node.name)).collect()
    };
    demand.images.iter().flat_map(|image| one_image(&image.reference)).collect()
}

/// The complete object that orders `image` onto `node` for `revision`.
pub fn image_warm(
    revision: &Revision,
    demand: &Demand,
    image: &Reference,
    node: &str,
) -> ImageWarm {
    let secrets = valid_secrets(&demand.identity.secrets);
    let mut annotations = BTreeMap::new();
    if let Some(token) = revision_token(revision) {
        annotations.insert(CREATED_FOR_ANNOTATION.to_owned(), token);
    }
    // Names that cannot be stored must not read as none: then the ServiceAccount's would apply.
    let account = demand.identity.service_account.as_ref();
    if let Some(account) =
        account.filter(|_| secrets.is_empty() == demand.identity.secrets.is_empty())
    {
        annotations.insert(SERVICE_ACCOUNT_ANNOTATION.to_owned(), account.clone());
    }
    ImageWarm {
        metadata: ObjectMeta {
            name: Some(object_name(image, node)),
            namespace: revision.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.into(), MANAGED_BY.into())])),
            annotations: Some(annotations),
            owner_references: configuration_owner(&revision.metadata)
                .filter(|owner| !owner.uid.is_empty())
                .map(|owner| vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        spec: ImageWarmSpec {
            image: image.as_str().to_owned(),
            node_name: node.to_owned(),
            image_pull_secrets: secrets,
        },
        status: None,
    }
}

/// Deleted with the Configuration, without holding its deletion up.
fn owned_by(owner: &OwnerReference) -> OwnerReference {
    OwnerReference {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(false),
        block_owner_deletion: Some(false),
    }
}

#[cfg(test)]
mod tests;
