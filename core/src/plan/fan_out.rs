//! The ImageWarms of a Revision: one for each of its images and each node that could run it.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_core::Resource;

use crate::api::knative::configuration_owner;
use crate::api::{
    CREATED_FOR_ANNOTATION, DeploymentConfig, ImageWarm, ImageWarmSpec, KnativeImage, MANAGED_BY,
    MANAGED_BY_LABEL, Revision, SERVICE_ACCOUNT_ANNOTATION, revision_token,
};
use crate::demand::consumers::Consumer;
use crate::demand::revision::{Demand, is_routable, valid_secrets};
use crate::image::Reference;
use crate::image::object_name::object_name;
use crate::placement::{NodeFacts, is_eligible};
use crate::policy::Policy;

/// The ImageWarms of an admitted Revision, by the image names that it uses itself. None for a
/// Revision that may not get traffic: a restored backup creates many of those.
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
        || nodes.iter().filter(|node| is_eligible(node, &demand.placement, policy).is_ok());
    let origin = Origin::of_revision(revision);
    let one_image = |image: &Reference| -> Vec<ImageWarm> {
        eligible().map(|node| image_warm(&origin, demand, image, node.name)).collect()
    };
    let mut known = HashSet::new();
    let images = demand.images.iter().map(|image| &image.reference);
    // A volume may name the image of a container.
    images.filter(|image| known.insert(*image)).flat_map(one_image).collect()
}

/// The consumer for which an ImageWarm is created: its namespace, and the owner it is deleted with.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    namespace: Option<String>,
    owner: Option<OwnerReference>,
    created_for: Option<String>,
}

impl Origin {
    /// Owned by the Revision's Configuration, whose uid is known at admission already.
    pub fn of_revision(revision: &Revision) -> Self {
        Origin {
            namespace: revision.metadata.namespace.clone(),
            owner: configuration_owner(&revision.metadata)
                .filter(|owner| !owner.uid.is_empty())
                .map(owned_by),
            created_for: revision_token(revision),
        }
    }

    /// Owned by the Image itself.
    pub fn of_image(image: &KnativeImage) -> Self {
        let owner = image.owner_ref(&()).as_ref().map(owned_by);
        Origin { namespace: image.metadata.namespace.clone(), owner, created_for: None }
    }

    /// Owned by Knative's ConfigMap.
    fn of_deployment_config(config: &DeploymentConfig) -> Self {
        let metadata = &config.metadata;
        let owner = OwnerReference {
            api_version: ConfigMap::api_version(&()).into(),
            kind: ConfigMap::kind(&()).into(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let owner = (!owner.uid.is_empty()).then(|| owned_by(&owner));
        Origin { namespace: metadata.namespace.clone(), owner, created_for: None }
    }

    pub(super) fn of(consumer: &Consumer) -> Self {
        match consumer {
            Consumer::Revision(revision) => Origin::of_revision(revision),
            Consumer::Image(image) => Origin::of_image(image),
            Consumer::DeploymentConfig(config) => Origin::of_deployment_config(config),
        }
    }
}

/// The complete ImageWarm of `image` on `node`.
pub fn image_warm(origin: &Origin, demand: &Demand, image: &Reference, node: &str) -> ImageWarm {
    let secrets = valid_secrets(&demand.identity.secrets);
    let mut annotations = BTreeMap::new();
    if let Some(token) = &origin.created_for {
        annotations.insert(CREATED_FOR_ANNOTATION.to_owned(), token.clone());
    }
    // Invalid names are not the same as no names: the ServiceAccount's secrets must not apply then.
    let account = demand.identity.service_account.as_ref();
    if let Some(account) =
        account.filter(|_| secrets.is_empty() == demand.identity.secrets.is_empty())
    {
        annotations.insert(SERVICE_ACCOUNT_ANNOTATION.to_owned(), account.clone());
    }
    ImageWarm {
        metadata: ObjectMeta {
            name: Some(object_name(image, node)),
            namespace: origin.namespace.clone(),
            labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.into(), MANAGED_BY.into())])),
            annotations: Some(annotations),
            owner_references: origin.owner.clone().map(|owner| vec![owner]),
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

/// An owner reference that does not block the owner's deletion.
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
