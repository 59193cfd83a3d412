//! Who asks for images: Revisions, and those Knative Images that stand for themselves. An Image
//! that Knative made for a Revision asks for nothing of its own: it only tells which digest a tag
//! of that Revision was resolved to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::revision::{
    Demand, WantedImage, demand, is_routable, is_skipped, never_pulls, of_image, opts_out,
};
use crate::api::knative::{REVISION_LABEL, ROUTING_STATE_MODIFIED};
use crate::api::{KnativeImage, Revision};
use crate::image::Reference;
use crate::policy::Policy;

/// An object that asks for images.
#[derive(Clone, Debug)]
pub enum Consumer {
    /// A Knative Revision.
    Revision(Arc<Revision>),
    /// A Knative Image that is not merely the digest of what its Revision names.
    Image(Arc<KnativeImage>),
}

impl Consumer {
    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Consumer::Revision(revision) => &revision.metadata,
            Consumer::Image(image) => &image.metadata,
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

/// An object with what it asks for.
#[derive(Clone, Debug)]
pub struct ConsumerDemand {
    /// Who asks.
    pub by: Consumer,
    /// For what.
    pub demand: Demand,
    /// Since when its Revision is held in reserve; `None` while it may get traffic.
    pub reserve_since: Option<Timestamp>,
}

impl ConsumerDemand {
    /// Whether Pods may be started for it.
    pub fn is_routable(&self) -> bool {
        self.reserve_since.is_none()
    }
}

/// What a Knative Image stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The image at this place of the demand at this place of [`Demands::consumers`].
    Wanted {
        /// Index into [`Demands::consumers`].
        consumer: usize,
        /// Index into the images of its demand.
        image: usize,
    },
    /// It names no image.
    Nothing,
    /// What it names is not an image reference, and why.
    Invalid(String),
    /// Somebody decided that it is not to be warmed.
    LeftAlone,
    /// Its Revision names more images than are warmed for one, and this is one of those beyond.
    BeyondLimit,
    /// Which image of its Revision it is, only the Revision's status will tell.
    Undecided,
    /// Its Revision is gone, and takes it along.
    Going,
}

/// All that is demanded.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Revisions, newest first, then Images, newest first.
    pub consumers: Vec<ConsumerDemand>,
    /// What each Image means.
    pub images: Vec<(Arc<KnativeImage>, Meaning)>,
}

/// Reads what Revisions and Images ask for; `opted_out` are the namespaces that are left alone.
pub fn demands(
    revisions: &[Arc<Revision>],
    images: &[Arc<KnativeImage>],
    opted_out: &BTreeSet<String>,
    policy: &Policy,
) -> Demands {
    let ask = |revision: &Arc<Revision>| ConsumerDemand {
        demand: demand(revision, opted_out.contains(namespace(&revision.metadata)), policy),
        reserve_since: reserve_since(revision),
        by: Consumer::Revision(revision.clone()),
    };
    let mut demands: Vec<ConsumerDemand> = revisions.iter().map(ask).collect();
    demands.sort_by(|a, b| newest_first(a.by.metadata(), b.by.metadata()));
    let places: HashMap<(String, String), usize> =
        demands.iter().enumerate().map(|(at, one)| (key(one.by.metadata()), at)).collect();

    let mut images: Vec<Arc<KnativeImage>> = images.to_vec();
    images.sort_by(|a, b| newest_first(&a.metadata, &b.metadata));
    let mut meanings = Vec::with_capacity(images.len());
    for image in images {
        let left_alone = opted_out.contains(namespace(&image.metadata))
            || opts_out(image.metadata.annotations.as_ref());
        let meaning = meaning(&image, left_alone, &mut demands, &places, policy);
        meanings.push((image, meaning));
    }
    Demands { consumers: demands, images: meanings }
}

/// Works out what the Image means; adds to `demands` what it asks for itself.
fn meaning(
    image: &Arc<KnativeImage>,
    left_alone: bool,
    demands: &mut Vec<ConsumerDemand>,
    places: &HashMap<(String, String), usize>,
    policy: &Policy,
) -> Meaning {
    if image.spec.image.is_empty() {
        return Meaning::Nothing;
    }
    let reference = match Reference::parse(&image.spec.image) {
        Ok(reference) => reference,
        Err(error) => return Meaning::Invalid(error.to_string()),
    };
    if left_alone || policy.paused || is_skipped(&reference, policy) {
        return Meaning::LeftAlone;
    }
    let revision = revision_name(&image.metadata)
        .map(|name| (namespace(&image.metadata).to_owned(), name.to_owned()));
    let mut reserve_since = None;
    let mut demand = of_image(image, &reference);
    if let Some(&at) = revision.as_ref().and_then(|key| places.get(key)) {
        let its = &mut demands[at];
        let Consumer::Revision(revision) = &its.by else { return Meaning::Undecided };
        if opts_out(revision.metadata.annotations.as_ref()) || never_pulls(revision, &reference) {
            return Meaning::LeftAlone;
        }
        match place(&reference, image, revision, &mut its.demand.images) {
            Place::At(image) => return Meaning::Wanted { consumer: at, image },
            Place::Later => return Meaning::Undecided,
            Place::Nowhere if its.demand.beyond_limit > 0 => return Meaning::BeyondLimit,
            Place::Nowhere => {}
        }
        demand.placement = its.demand.placement.clone();
        reserve_since = its.reserve_since;
    } else if is_owned_by_revision(&image.metadata) {
        return Meaning::Going;
    }
    demands.push(ConsumerDemand { by: Consumer::Image(image.clone()), demand, reserve_since });
    Meaning::Wanted { consumer: demands.len() - 1, image: 0 }
}

/// Where among a Revision's images one of its Images belongs.
enum Place {
    At(usize),
    /// Two tags of one repository, and nothing tells which was resolved to this digest.
    Later,
    Nowhere,
}

fn place(
    reference: &Reference,
    image: &KnativeImage,
    revision: &Revision,
    wanted: &mut [WantedImage],
) -> Place {
    if let Some(at) = wanted.iter().position(|one| one.is(reference)) {
        return Place::At(at);
    }
    if reference.digest().is_none() {
        return Place::Nowhere;
    }
    let open: Vec<usize> = (0..wanted.len())
        .filter(|at| {
            let one = &wanted[*at];
            one.resolved.is_none() && one.reference.repository() == reference.repository()
        })
        .collect();
    let at = match open.as_slice() {
        [] => return Place::Nowhere,
        [one] => *one,
        _ => {
            let named = container_image(image, revision);
            let at = open.iter().find(|at| Some(&wanted[**at].reference) == named.as_ref());
            let Some(at) = at else { return Place::Later };
            *at
        }
    };
    wanted[at].resolved = Some(reference.clone());
    Place::At(at)
}

/// What the container names after which Knative called the Image
/// (`<Revision>-cache-<container>`, unless that is too long).
fn container_image(image: &KnativeImage, revision: &Revision) -> Option<Reference> {
    let name = image.metadata.name.as_deref()?;
    let container = name
        .strip_prefix(revision.metadata.name.as_deref()?)
        .and_then(|rest| rest.strip_prefix("-cache-"))?;
    let mut all = revision.spec.containers.iter().chain(&revision.spec.init_containers);
    Reference::parse(&all.find(|one| one.name == container)?.image).ok()
}

/// The Revision that an Image says it belongs to.
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

/// Whether an Image was made for a Revision, known or not.
pub fn is_of_revision(image: &KnativeImage) -> bool {
    revision_name(&image.metadata).is_some()
}

/// Knative writes down when it changed the routing state. Without that the Revision's own age is
/// the best that is known.
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

/// By creation, then by name, so that every replica finds the same order.
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
