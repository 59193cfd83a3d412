//! The consumers of images: Revisions, Knative Images that do not belong to a Revision's images, and
//! Knative's `config-deployment`, which names the queue-proxy's. An Image that Knative created for a
//! Revision demands nothing itself: it only gives the digest that a tag of that Revision was resolved to.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::cluster::Cluster;
use super::revision::{
    Demand, WantedImage, demand, is_routable, is_skipped, never_pulls, of_image, opts_out,
};
use crate::api::knative::{REVISION_LABEL, ROUTING_STATE_MODIFIED};
use crate::api::{DeploymentConfig, KnativeImage, Revision};
use crate::image::Reference;
use crate::policy::Policy;

/// An object that demands images.
#[derive(Clone, Debug)]
pub enum Consumer {
    /// A Knative Revision.
    Revision(Arc<Revision>),
    /// A Knative Image that is not merely the digest of what its Revision names.
    Image(Arc<KnativeImage>),
    /// Knative's ConfigMap, for the queue-proxy: Pods get the image that it names, whatever the Image of the
    /// queue-proxy says.
    DeploymentConfig(Arc<DeploymentConfig>),
}

/// Name of Knative's Image of the queue-proxy, in its namespace.
const QUEUE_PROXY: &str = "queue-proxy";

impl Consumer {
    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Consumer::Revision(revision) => &revision.metadata,
            Consumer::Image(image) => &image.metadata,
            Consumer::DeploymentConfig(config) => &config.metadata,
        }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// Creation, in seconds since 1970; 0 for a Revision that is only being admitted.
    pub fn created(&self) -> i64 {
        created(self.metadata())
    }
}

/// A consumer and its demand.
#[derive(Clone, Debug)]
pub struct ConsumerDemand {
    /// The consumer.
    pub by: Consumer,
    /// Its demand.
    pub demand: Demand,
    /// Since when its Revision is held in reserve; `None` while it may get traffic.
    pub reserve_since: Option<Timestamp>,
}

impl ConsumerDemand {
    /// Whether Pods may be started for it.
    pub fn is_routable(&self) -> bool {
        self.reserve_since.is_none()
    }

    /// Whether Pods of it may be started, whether or not its own images are warmed.
    pub fn starts_pods(&self) -> bool {
        let is_terminating = self.by.metadata().deletion_timestamp.is_some();
        matches!(self.by, Consumer::Revision(_)) && self.is_routable() && !is_terminating
    }
}

/// How a Knative Image relates to the demanded images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is this image of this consumer.
    Wanted {
        /// Index into [`Demands::consumers`].
        consumer: usize,
        /// Index into the images of its demand.
        image: usize,
    },
    /// It names no image.
    Empty,
    /// It does not name a valid image reference, for this reason.
    Invalid(String),
    /// It is excluded from warming.
    OptedOut,
    /// It exceeds the limit of images for one Revision.
    BeyondLimit,
    /// Which image of its Revision it is, is known only from the Revision's status.
    Undecided,
    /// Its Revision does not exist: Kubernetes garbage-collects it.
    Orphaned,
}

/// All that is demanded.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Revisions, newest first, then Images, newest first, then Knative's ConfigMap.
    pub consumers: Vec<ConsumerDemand>,
    /// Each Image, and how it relates to the demanded images.
    pub images: Vec<(Arc<KnativeImage>, Resolution)>,
}

/// All demands of Revisions and Images, and of the settings of the cluster.
pub fn demands(
    revisions: &[Arc<Revision>],
    images: &[Arc<KnativeImage>],
    cluster: &Cluster,
    policy: &Policy,
) -> Demands {
    demands_in(|_| true, revisions, images, cluster, policy)
}

/// The demands of the Revisions and Images of some namespaces, and of the settings of the cluster, if they are
/// in one of these.
pub fn demands_in(
    is_meant: impl Fn(&str) -> bool,
    revisions: &[Arc<Revision>],
    images: &[Arc<KnativeImage>],
    cluster: &Cluster,
    policy: &Policy,
) -> Demands {
    let mut demands = of_objects(revisions, images, cluster, policy);
    let config = cluster.deployment.as_ref();
    if let Some(config) = config.filter(|one| is_meant(namespace(&one.metadata))) {
        demands.add_deployment_config(config, cluster, policy);
    }
    demands
}

fn of_objects(
    revisions: &[Arc<Revision>],
    images: &[Arc<KnativeImage>],
    cluster: &Cluster,
    policy: &Policy,
) -> Demands {
    let is_opted_out = |metadata: &ObjectMeta| cluster.opted_out.contains(namespace(metadata));
    let consumer_demand = |revision: &Arc<Revision>| {
        let mut demand = demand(revision, is_opted_out(&revision.metadata), policy);
        demand.placement = cluster.constrain(revision, demand.placement);
        let reserve_since = reserve_since(revision);
        ConsumerDemand { demand, reserve_since, by: Consumer::Revision(revision.clone()) }
    };
    let mut demands: Vec<ConsumerDemand> = revisions.iter().map(consumer_demand).collect();
    demands.sort_by(|a, b| newest_first(a.by.metadata(), b.by.metadata()));
    let places: HashMap<(String, String), usize> =
        demands.iter().enumerate().map(|(at, one)| (key(one.by.metadata()), at)).collect();

    let mut images: Vec<Arc<KnativeImage>> = images.to_vec();
    images.sort_by(|a, b| newest_first(&a.metadata, &b.metadata));
    let mut resolutions = Vec::with_capacity(images.len());
    for image in images {
        let is_opted_out =
            is_opted_out(&image.metadata) || opts_out(image.metadata.annotations.as_ref());
        let resolution = resolve(&image, is_opted_out, &mut demands, &places, policy);
        resolutions.push((image, resolution));
    }
    Demands { consumers: demands, images: resolutions }
}

impl Demands {
    fn add_deployment_config(
        &mut self,
        config: &Arc<DeploymentConfig>,
        cluster: &Cluster,
        policy: &Policy,
    ) {
        if cluster.opted_out.contains(namespace(&config.metadata)) {
            return;
        }
        let image = self.images.iter().find(|(image, _)| is_queue_proxy(image, policy));
        let demand = of_deployment_config(config, image.map(|(image, _)| &**image), policy);
        self.consumers.extend(demand);
    }
}

/// How the Image relates to the demanded images; adds to `demands` what it demands itself.
fn resolve(
    image: &Arc<KnativeImage>,
    is_opted_out: bool,
    demands: &mut Vec<ConsumerDemand>,
    places: &HashMap<(String, String), usize>,
    policy: &Policy,
) -> Resolution {
    if image.spec.image.is_empty() {
        return Resolution::Empty;
    }
    let reference = match policy.image(&image.spec.image) {
        Ok(reference) => reference,
        Err(error) => return Resolution::Invalid(error.to_string()),
    };
    if is_opted_out || policy.paused || is_skipped(&reference, policy) {
        return Resolution::OptedOut;
    }
    let revision = revision_name(&image.metadata)
        .map(|name| (namespace(&image.metadata).to_owned(), name.to_owned()));
    let mut reserve_since = None;
    let mut demand = of_image(image, &reference);
    demand.by_every_revision = is_queue_proxy(image, policy);
    if let Some(&at) = revision.as_ref().and_then(|key| places.get(key)) {
        let owner = &mut demands[at];
        let Consumer::Revision(revision) = &owner.by else { return Resolution::Undecided };
        if opts_out(revision.metadata.annotations.as_ref())
            || never_pulls(revision, &reference, policy)
        {
            return Resolution::OptedOut;
        }
        match place(&reference, (image, revision), &mut owner.demand.images, policy) {
            Place::At(image) => return Resolution::Wanted { consumer: at, image },
            Place::Ambiguous => return Resolution::Undecided,
            Place::None if owner.demand.beyond_limit > 0 => return Resolution::BeyondLimit,
            Place::None => {}
        }
        demand.placement = owner.demand.placement.clone();
        reserve_since = owner.reserve_since;
    } else if is_owned_by_revision(&image.metadata) {
        return Resolution::Orphaned;
    }
    demands.push(ConsumerDemand { by: Consumer::Image(image.clone()), demand, reserve_since });
    Resolution::Wanted { consumer: demands.len() - 1, image: 0 }
}

/// Whether this is the Image that Knative installs for the queue-proxy.
fn is_queue_proxy(image: &KnativeImage, policy: &Policy) -> bool {
    image.metadata.name.as_deref() == Some(QUEUE_PROXY)
        && namespace(&image.metadata) == policy.knative_namespace
}

/// The demand of Knative's ConfigMap, with the credentials of `image`, the Image of the queue-proxy.
fn of_deployment_config(
    config: &Arc<DeploymentConfig>,
    image: Option<&KnativeImage>,
    policy: &Policy,
) -> Option<ConsumerDemand> {
    let reference = policy.image(&config.queue_proxy).ok()?;
    if policy.paused || is_skipped(&reference, policy) {
        return None;
    }
    let mut demand = of_image(image.unwrap_or(&KnativeImage::default()), &reference);
    demand.by_every_revision = true;
    let by = Consumer::DeploymentConfig(config.clone());
    Some(ConsumerDemand { by, demand, reserve_since: None })
}

/// The position of an Image among the images of its Revision.
enum Place {
    At(usize),
    /// Two tags of one repository, and which one was resolved to this digest is unknown.
    Ambiguous,
    None,
}

fn place(
    reference: &Reference,
    (image, revision): (&KnativeImage, &Revision),
    wanted: &mut [WantedImage],
    policy: &Policy,
) -> Place {
    // Knative makes Images of containers only.
    let is_containers = |one: &WantedImage| !one.is_volume;
    if let Some(at) = wanted.iter().position(|one| is_containers(one) && one.is(reference)) {
        return Place::At(at);
    }
    if reference.digest().is_none() {
        return Place::None;
    }
    let open: Vec<usize> = (0..wanted.len())
        .filter(|at| {
            let one = &wanted[*at];
            is_containers(one)
                && one.resolved.is_none()
                && one.reference.repository() == reference.repository()
        })
        .collect();
    let at = match open.as_slice() {
        [] => return Place::None,
        [one] => *one,
        _ => {
            let named = container_image(image, revision, policy);
            let at = open.iter().find(|at| Some(&wanted[**at].reference) == named.as_ref());
            let Some(at) = at else { return Place::Ambiguous };
            *at
        }
    };
    wanted[at].resolved = Some(reference.clone());
    Place::At(at)
}

/// The image of the container that is part of the Image's name
/// (`<Revision>-cache-<container>`, unless that is too long).
fn container_image(
    image: &KnativeImage,
    revision: &Revision,
    policy: &Policy,
) -> Option<Reference> {
    let name = image.metadata.name.as_deref()?;
    let container = name
        .strip_prefix(revision.metadata.name.as_deref()?)
        .and_then(|rest| rest.strip_prefix("-cache-"))?;
    let mut all = revision.spec.containers.iter().chain(&revision.spec.init_containers);
    policy.image(&all.find(|one| one.name == container)?.image).ok()
}

/// The Revision that an Image names in its label or owner reference.
fn revision_name(image: &ObjectMeta) -> Option<&str> {
    let label = image.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
    label.map(String::as_str).or_else(|| revision_owner(image))
}

fn is_owned_by_revision(image: &ObjectMeta) -> bool {
    revision_owner(image).is_some()
}

fn revision_owner(image: &ObjectMeta) -> Option<&str> {
    let mut owners = image.owner_references.iter().flatten();
    let owner = owners.find(|owner| {
        owner.kind == "Revision" && owner.api_version.starts_with("serving.knative.dev/")
    });
    owner.map(|owner| owner.name.as_str())
}

/// Whether an Image belongs to a Revision, whether or not that exists.
pub fn is_of_revision(image: &KnativeImage) -> bool {
    revision_name(&image.metadata).is_some()
}

/// When Knative last changed the routing state. Without that annotation, the Revision's creation is
/// the best estimate.
fn reserve_since(revision: &Revision) -> Option<Timestamp> {
    if is_routable(revision) {
        return None;
    }
    let metadata = &revision.metadata;
    let modified = metadata.annotations.as_ref().and_then(|all| all.get(ROUTING_STATE_MODIFIED));
    let modified = modified.and_then(|text| text.parse().ok());
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    Some(modified.or(created).unwrap_or(Timestamp::MIN))
}

/// By creation, then by name, so that the order is the same in every replica.
fn newest_first(a: &ObjectMeta, b: &ObjectMeta) -> std::cmp::Ordering {
    let key = |one: &ObjectMeta| (created(one), one.name.clone(), one.namespace.clone());
    key(b).cmp(&key(a))
}

fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

fn key(metadata: &ObjectMeta) -> (String, String) {
    (namespace(metadata).to_owned(), metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests;
