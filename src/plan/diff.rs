//! The leader's plan: which ImageWarms are missing, and which nobody needs any more. Works from a
//! full look at everything, so that what was missed once is put right the next time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::Policy;
use super::demand::{Demand, PodConstraints, WantedImage, demand, is_routable};
use super::eligible::{NodeFacts, may_start};
use super::fan_out::image_warm;
use super::runtime_class::RuntimeClasses;
use super::want::newest_first;
use crate::api::{ConditionStatus, ImageWarm, Reason, Revision};
use crate::image::Reference;

/// Creation times are cut to full seconds: an object may be this much younger than it says.
const TRUNCATION: Duration = Duration::from_secs(1);

/// Everything that the plan depends on, from one moment.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// All ImageWarms.
    pub image_warms: &'a [Arc<ImageWarm>],
    /// All Revisions.
    pub revisions: &'a [Arc<Revision>],
    /// All nodes.
    pub nodes: &'a [NodeFacts<'a>],
    /// What RuntimeClasses add to where Pods may run.
    pub runtime_classes: &'a RuntimeClasses,
    /// Namespaces whose label says that they are left alone.
    pub opted_out: &'a BTreeSet<String>,
    /// Namespaces that are being deleted: nothing can be made there.
    pub terminating: &'a BTreeSet<String>,
    /// Every list is complete and current, and Knative's types are served.
    pub may_delete: bool,
}

/// How long the plan holds back.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a Revision is left to the webhook's fan-out.
    pub fan_out: Duration,
    /// How old an ImageWarm must be before it can be collected.
    pub collect: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { fan_out: Duration::from_secs(2), collect: Duration::from_secs(30) }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Objects that are missing.
    pub create: Vec<Creation>,
    /// Objects that are in the way of nobody, but wanted by nobody either.
    pub delete: Vec<Deletion>,
    /// When to look again although nothing changed.
    pub recheck_at: Option<Timestamp>,
}

/// A missing object.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// The complete object.
    pub object: ImageWarm,
    /// What is repaired.
    pub repair: Repair,
}

/// Kinds of repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Nothing on this node stood for the image: a new node, or a fan-out that did not happen.
    Missing,
    /// The node holds the tag, but not the digest that Knative resolved it to.
    MovedTag,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq)]
pub struct Deletion {
    /// The object as observed.
    pub warm: Arc<ImageWarm>,
    /// Why.
    pub cause: Cause,
}

/// Why an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its node does not exist any more.
    NodeGone,
    /// No Revision names its image.
    Unwanted,
}

/// Compares what Revisions want with what exists.
pub fn diff(observed: &Observed<'_>, policy: &Policy, patience: Patience, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if policy.paused {
        return plan;
    }
    let mut revisions: Vec<&Arc<Revision>> = observed.revisions.iter().collect();
    revisions.sort_by(|a, b| newest_first(a, b));
    let demands: Vec<(&Revision, Demand)> =
        revisions.iter().map(|one| (one.as_ref(), demand_of(one, observed, policy))).collect();
    let existing = Existing::new(observed.image_warms);

    let classes = observed.runtime_classes;
    let mut eligible = Eligible { nodes: observed.nodes, classes, policy, known: Vec::new() };
    let mut planned: HashSet<(String, Reference, &str)> = HashSet::new();
    for (revision, demand) in &demands {
        let namespace = namespace(&revision.metadata.namespace);
        if !is_routable(revision)
            || revision.metadata.deletion_timestamp.is_some()
            || observed.terminating.contains(namespace)
        {
            continue;
        }
        let young_until = created(&revision.metadata, patience.fan_out + TRUNCATION);
        for wanted in &demand.images {
            let orders = existing.orders(namespace, wanted);
            for node in eligible.of(&demand.placement) {
                let Some((image, repair)) = orders.missing(wanted, node) else {
                    continue;
                };
                if young_until > now {
                    plan.recheck(young_until);
                    break;
                }
                if planned.insert((namespace.to_owned(), image.clone(), node)) {
                    let object = image_warm(revision, demand, image, node);
                    plan.create.push(Creation { object, repair });
                }
            }
        }
    }
    collect(observed, &demands, patience, now, &mut plan);
    plan
}

impl Plan {
    fn recheck(&mut self, at: Timestamp) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |known| known.min(at)));
    }
}

fn demand_of(revision: &Revision, observed: &Observed<'_>, policy: &Policy) -> Demand {
    let opted_out = observed.opted_out.contains(namespace(&revision.metadata.namespace));
    demand(revision, opted_out, policy)
}

fn namespace(namespace: &Option<String>) -> &str {
    namespace.as_deref().unwrap_or_default()
}

/// The moment at which the object is certainly older than `age`.
fn created(metadata: &ObjectMeta, age: Duration) -> Timestamp {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    created.map_or(Timestamp::MIN, |created| created.checked_add(age).unwrap_or(Timestamp::MAX))
}

/// Fills `plan.delete`: what lies on nodes that are gone, and what no Revision names. Where a
/// Revision could not run just now does not matter here: a cordon deletes nothing.
fn collect(
    observed: &Observed<'_>,
    demands: &[(&Revision, Demand)],
    patience: Patience,
    now: Timestamp,
    plan: &mut Plan,
) {
    if !observed.may_delete {
        return;
    }
    let nodes: HashSet<&str> = observed.nodes.iter().map(|node| node.name).collect();
    let mut wanted: HashSet<(&str, &str)> = HashSet::new();
    for (revision, demand) in demands {
        for image in &demand.images {
            let namespace = namespace(&revision.metadata.namespace);
            wanted.extend(image.names().map(|image| (namespace, image.as_str())));
        }
    }
    let is_wanted = |warm: &ImageWarm| {
        let (namespace, text) = (namespace(&warm.metadata.namespace), warm.spec.image.as_str());
        // What we make is canonical; a copy made by hand, labels and all, need not be.
        wanted.contains(&(namespace, text))
            || Reference::parse(text)
                .is_ok_and(|image| wanted.contains(&(namespace, image.as_str())))
    };
    for warm in observed.image_warms {
        if !warm.is_managed() || warm.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let cause = if !nodes.contains(warm.spec.node_name.as_str()) {
            Cause::NodeGone
        } else if !is_wanted(warm) {
            Cause::Unwanted
        } else {
            continue;
        };
        let ripe = created(&warm.metadata, patience.collect);
        if ripe > now {
            plan.recheck(ripe);
        } else {
            plan.delete.push(Deletion { warm: warm.clone(), cause });
        }
    }
    let name =
        |one: &Deletion| (one.warm.metadata.namespace.clone(), one.warm.metadata.name.clone());
    plan.delete.sort_by_cached_key(name);
}

/// Orders for one image, by node. Hand-made ones may stand beside ours.
type OnNodes<'a> = HashMap<&'a str, Vec<&'a ImageWarm>>;

/// Existing ImageWarms by namespace and image. Those that are being deleted stand for nothing.
struct Existing<'a> {
    by_image: HashMap<(&'a str, Reference), OnNodes<'a>>,
}

impl<'a> Existing<'a> {
    fn new(image_warms: &'a [Arc<ImageWarm>]) -> Self {
        let mut parsed: HashMap<&str, Option<Reference>> = HashMap::new();
        let mut by_image: HashMap<(&str, Reference), OnNodes<'a>> = HashMap::new();
        for warm in image_warms.iter().filter(|warm| warm.metadata.deletion_timestamp.is_none()) {
            let text = warm.spec.image.as_str();
            let image = parsed.entry(text).or_insert_with(|| Reference::parse(text).ok());
            let Some(image) = image.clone() else { continue };
            let key = (namespace(&warm.metadata.namespace), image);
            let on_nodes = by_image.entry(key).or_default();
            on_nodes.entry(warm.spec.node_name.as_str()).or_default().push(warm);
        }
        Existing { by_image }
    }

    fn orders(&self, namespace: &'a str, wanted: &WantedImage) -> Orders<'_, 'a> {
        let get = |image: &Reference| self.by_image.get(&(namespace, image.clone()));
        Orders {
            by_name: get(&wanted.reference),
            by_digest: wanted.resolved.as_ref().and_then(get),
        }
    }
}

/// What exists for one wanted image.
struct Orders<'e, 'a> {
    by_name: Option<&'e OnNodes<'a>>,
    by_digest: Option<&'e OnNodes<'a>>,
}

impl Orders<'_, '_> {
    /// What has to be made so that `node` gets the wanted image, if anything.
    fn missing<'w>(&self, wanted: &'w WantedImage, node: &str) -> Option<(&'w Reference, Repair)> {
        let by_name = self.by_name.and_then(|orders| orders.get(node));
        let Some(resolved) = &wanted.resolved else {
            return by_name.is_none().then_some((&wanted.reference, Repair::Missing));
        };
        if self.by_digest.is_some_and(|orders| orders.contains_key(node)) {
            return None;
        }
        match by_name {
            None => Some((resolved, Repair::Missing)),
            Some(warms) if warms.iter().any(|warm| stands_for(warm, resolved)) => None,
            Some(_) => Some((resolved, Repair::MovedTag)),
        }
    }
}

/// Whether an order by tag will do for the digest: it holds just that, or is still on its way.
fn stands_for(warm: &ImageWarm, resolved: &Reference) -> bool {
    let digest = warm.status.as_ref().and_then(|status| status.digest.as_deref());
    match (digest, warm.reason()) {
        (Some(digest), _) if Some(digest) == resolved.digest() => true,
        (_, Some(Reason::Pulling)) => true,
        (Some(_), _) => false,
        // The tag is gone, or names something else by now; its digest may still be there.
        (None, Some(Reason::NotFound | Reason::PlatformMismatch | Reason::InvalidImage)) => false,
        (None, reason) => reason.map(Reason::ready) != Some(ConditionStatus::True),
    }
}

/// Eligible nodes by placement; most Revisions share one.
struct Eligible<'a> {
    nodes: &'a [NodeFacts<'a>],
    classes: &'a RuntimeClasses,
    policy: &'a Policy,
    known: Vec<(PodConstraints, Vec<&'a str>)>,
}

impl<'a> Eligible<'a> {
    fn of(&mut self, placement: &PodConstraints) -> impl Iterator<Item = &'a str> + use<'_, 'a> {
        let at = self.known.iter().position(|(known, _)| known == placement);
        let at = at.unwrap_or_else(|| {
            let whole = self.classes.constrain(placement.clone());
            let fits = |node: &&NodeFacts<'_>| may_start(node, &whole, self.policy).is_ok();
            let mut names: Vec<_> = self.nodes.iter().filter(fits).map(|node| node.name).collect();
            names.sort_unstable();
            self.known.push((placement.clone(), names));
            self.known.len() - 1
        });
        self.known[at].1.iter().copied()
    }
}

#[cfg(test)]
mod tests;
