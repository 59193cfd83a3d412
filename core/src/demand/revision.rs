//! The demand of a Revision or an Image: the images, the pull identity, and the placement of Pods.
//! Tolerates Revisions that Knative has not defaulted yet.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::LocalObjectReference;

use super::PullIdentity;
use crate::api::knative::{Container, ContainerStatus, ROUTING_STATE_LABEL, RevisionSpec};
use crate::api::names::{MAX_PULL_SECRET_NAMES, MAX_PULL_SECRETS, is_dns_subdomain};
use crate::api::{KnativeImage, Revision, SecretReference, WARM_KEY};
use crate::image::Reference;
use crate::placement::PodConstraints;
use crate::policy::Policy;

/// The demand of one Revision or Image.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Every distinct image once, in order of appearance.
    pub images: Vec<WantedImage>,
    /// Number of images over the limit for one Revision.
    pub beyond_limit: usize,
    /// Why images are no references: Knative itself does not refuse all of them.
    pub invalid_images: Vec<String>,
    /// The pull identity; secrets as the Revision names them, valid or not.
    pub identity: PullIdentity,
    /// Where its Pods may run.
    pub placement: PodConstraints,
    /// Whether it is also wanted wherever the Pods of any Revision may run.
    pub by_every_revision: bool,
}

/// One image of a Revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedImage {
    /// As the Revision names it.
    pub reference: Reference,
    /// The same by digest, once Knative resolved it (or where the Revision names a digest).
    pub resolved: Option<Reference>,
    /// Whether it is the image of a volume and no container's. Knative resolves no digest for it: its
    /// Pods name it as the Revision does.
    pub is_volume: bool,
}

impl WantedImage {
    /// Whether `image` is this image, by the Revision's own name or by its digest.
    pub fn is(&self, image: &Reference) -> bool {
        self.names().any(|name| name == image)
    }

    /// Its names: the Revision's own, and the digest where that is known.
    pub fn names(&self) -> impl Iterator<Item = &Reference> {
        [&self.reference].into_iter().chain(&self.resolved)
    }
}

/// Whether a Revision may get traffic. Knative retains 20 and more that may not: no ImageWarms are
/// created for those, and existing ones are deleted after a grace period.
pub fn is_routable(revision: &Revision) -> bool {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(ROUTING_STATE_LABEL)).map(String::as_str) != Some("reserve")
}

/// Whether labels or annotations say `caching.knative.dev/warm: "false"`.
pub fn opts_out(pairs: Option<&BTreeMap<String, String>>) -> bool {
    pairs.and_then(|pairs| pairs.get(WARM_KEY)).map(String::as_str) == Some("false")
}

/// The demand of `revision`; `namespace_opted_out` is the namespace's label.
pub fn demand(revision: &Revision, namespace_opted_out: bool, policy: &Policy) -> Demand {
    let opted_out =
        namespace_opted_out || policy.paused || opts_out(revision.metadata.annotations.as_ref());
    let mut images = if opted_out { Vec::new() } else { images(revision, policy) };
    let count = policy.bounds.of_images(images.len());
    let beyond_limit = images.len() - count;
    images.truncate(count);
    let invalid_images = if opted_out { Vec::new() } else { invalid_images(revision) };
    Demand {
        images,
        beyond_limit,
        invalid_images,
        identity: identity(&revision.spec.image_pull_secrets, &revision.spec.service_account_name),
        placement: placement(revision),
        by_every_revision: false,
    }
}

/// The demand of an Image without a Revision: its `image`, wherever a Pod without any constraint
/// may run.
pub(super) fn of_image(image: &KnativeImage, reference: &Reference) -> Demand {
    let resolved = reference.digest().map(|_| reference.clone());
    Demand {
        images: vec![WantedImage { reference: reference.clone(), resolved, is_volume: false }],
        beyond_limit: 0,
        invalid_images: Vec::new(),
        identity: identity(&image.spec.image_pull_secrets, &image.spec.service_account_name),
        placement: PodConstraints::default(),
        by_every_revision: false,
    }
}

/// Whether the operator excluded this registry from warming.
pub(super) fn is_skipped(reference: &Reference, policy: &Policy) -> bool {
    policy.skipped_registries.iter().any(|skipped| skipped.matches(reference.domain()))
}

/// Whether the Revision has a container image of this repository that is never to be pulled. Knative makes
/// no Images of volumes.
pub(super) fn never_pulls(revision: &Revision, reference: &Reference, policy: &Policy) -> bool {
    let mut all = revision.spec.containers.iter().chain(&revision.spec.init_containers);
    all.any(|container| {
        is_never_pulled(container.image_pull_policy.as_deref())
            && policy
                .image(&container.image)
                .is_ok_and(|image| image.repository() == reference.repository())
    })
}

fn is_never_pulled(policy: Option<&str>) -> bool {
    policy == Some("Never")
}

fn images(revision: &Revision, policy: &Policy) -> Vec<WantedImage> {
    let none = Vec::new();
    let (statuses, init_statuses) = match &revision.status {
        Some(status) => (&status.container_statuses, &status.init_container_statuses),
        None => (&none, &none),
    };
    let spec = &revision.spec;
    let containers =
        spec.containers.iter().enumerate().map(|(at, c)| (c, digest(c, at, statuses, policy)));
    let inits = spec
        .init_containers
        .iter()
        .enumerate()
        .map(|(at, c)| (c, digest(c, at, init_statuses, policy)));

    let mut images: Vec<WantedImage> = Vec::new();
    let mut places: HashMap<Reference, usize> = HashMap::new();
    for (container, digest) in containers.chain(inits) {
        let named = (container.image.as_str(), container.image_pull_policy.as_deref());
        let Some(reference) = warmable(named, policy) else { continue };
        let resolved = match reference.digest() {
            Some(_) => Some(reference.clone()),
            None => digest,
        };
        match places.entry(reference) {
            Entry::Occupied(at) => {
                let known = &mut images[*at.get()];
                known.resolved = known.resolved.take().or(resolved);
            }
            Entry::Vacant(free) => {
                let reference = free.key().clone();
                free.insert(images.len());
                images.push(WantedImage { reference, resolved, is_volume: false });
            }
        }
    }
    images.extend(volume_images(spec, &places, policy));
    images
}

/// The images of volumes, each once. One whose tag a container has too is wanted beside that: the container
/// gets the digest that Knative resolves, the volume the tag.
fn volume_images(
    spec: &RevisionSpec,
    of_containers: &HashMap<Reference, usize>,
    policy: &Policy,
) -> Vec<WantedImage> {
    let mut known: HashSet<Reference> = HashSet::new();
    let mut images = Vec::new();
    for named in volumes(spec) {
        let Some(reference) = warmable(named, policy) else { continue };
        let resolved = reference.digest().map(|_| reference.clone());
        let is_containers = resolved.is_some() && of_containers.contains_key(&reference);
        if !is_containers && known.insert(reference.clone()) {
            images.push(WantedImage { reference, resolved, is_volume: true });
        }
    }
    images
}

/// The images of volumes, with their pull policies. They count when they are declared: a kubelet pulls all of
/// a Pod's before it starts a container, mounted or not.
fn volumes(spec: &RevisionSpec) -> impl Iterator<Item = (&str, Option<&str>)> {
    let images = spec.volumes.iter().filter_map(|volume| volume.image.as_ref());
    images.map(|image| (image.reference.as_str(), image.pull_policy.as_deref()))
}

/// The images of containers, init containers and volumes, with their pull policies.
fn named(spec: &RevisionSpec) -> impl Iterator<Item = (&str, Option<&str>)> {
    let containers = spec.containers.iter().chain(&spec.init_containers);
    containers
        .map(|container| (container.image.as_str(), container.image_pull_policy.as_deref()))
        .chain(volumes(spec))
}

/// The errors of the images that no reference can be read from.
fn invalid_images(revision: &Revision) -> Vec<String> {
    let pulled = named(&revision.spec)
        .filter(|(image, policy)| !image.is_empty() && !is_never_pulled(*policy));
    let errors = pulled.filter_map(|(image, _)| Reference::parse(image).err());
    errors.map(|error| error.to_string()).collect()
}

/// The image, unless it is never pulled, excluded or invalid.
fn warmable((image, pull_policy): (&str, Option<&str>), policy: &Policy) -> Option<Reference> {
    if is_never_pulled(pull_policy) {
        return None;
    }
    let reference = policy.image(image).ok()?;
    (!is_skipped(&reference, policy)).then_some(reference)
}

/// What Knative resolved the container's tag to: by name, or by position while it has no name.
fn digest(
    container: &Container,
    at: usize,
    statuses: &[ContainerStatus],
    policy: &Policy,
) -> Option<Reference> {
    let status = if container.name.is_empty() {
        statuses.get(at)
    } else {
        statuses.iter().find(|status| status.name == container.name)
    };
    let resolved = policy.image(&status?.image_digest).ok()?;
    resolved.digest().is_some().then_some(resolved)
}

fn identity(named: &[LocalObjectReference], account: &Option<String>) -> PullIdentity {
    let secrets = named.iter().map(|secret| secret.name.clone()).collect();
    let account = account.as_deref().filter(|name| !name.is_empty());
    PullIdentity { secrets, service_account: Some(account.unwrap_or("default").to_owned()) }
}

/// Those of the secrets that an `ImageWarm` can name.
pub fn valid_secrets(names: &[String]) -> Vec<SecretReference> {
    let mut secrets: Vec<SecretReference> = Vec::new();
    let mut bytes = 0;
    for name in names.iter().filter(|name| is_dns_subdomain(name)) {
        let is_known = secrets.iter().any(|known| known.name == *name);
        let fits = bytes + name.len() <= MAX_PULL_SECRET_NAMES && secrets.len() < MAX_PULL_SECRETS;
        if !is_known && fits {
            bytes += name.len();
            secrets.push(SecretReference { name: name.clone() });
        }
    }
    secrets
}

fn placement(revision: &Revision) -> PodConstraints {
    let spec = &revision.spec;
    let node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = node_affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    PodConstraints {
        node_selector: spec.node_selector.clone(),
        tolerations: spec.tolerations.clone(),
        required_terms: required.map(|selector| selector.node_selector_terms.clone()),
        runtime_class: spec.runtime_class_name.clone().filter(|name| !name.is_empty()),
        rejected: None,
    }
}

#[cfg(test)]
mod tests;
