//! The leader's plan for some namespaces or all: which ImageWarms are missing there, and which are orphans.
//! Works from a full observation of these, so that a missed event is repaired by the next run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::Repair;
use super::eligible::DemandNodes;
use super::existing::{ImageWarmIndex, is_older_than_node};
use super::fan_out::{Origin, image_warm};
use crate::api::{CachedImageWarm, ImageWarm};
use crate::demand::consumers::{Consumer, ConsumerDemand, is_of_revision};
use crate::demand::revision::WantedImage;
use crate::image::Reference;
use crate::labels;
use crate::placement::{NodeFacts, PodConstraints, RuntimeClasses};
use crate::policy::Policy;
use crate::policy::bounds::{OverLimit, Room};

/// Creation times have full seconds only: an object may be this much younger than recorded.
const TRUNCATION: Duration = Duration::from_secs(1);

/// While ImageWarms of a fan-out still appear, its grace period is extended at most to this
/// multiple: nodes that join one after another must not be delayed for ever.
const FAN_OUT_EXTENSION: u32 = 30;

/// Everything that the plan of some namespaces depends on, from one moment.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// All ImageWarms of these namespaces.
    pub image_warms: &'a ImageWarmIndex<'a>,
    /// How many ImageWarms all other namespaces have.
    pub elsewhere: usize,
    /// All that is demanded there, by [`crate::demand::consumers::demands`].
    pub demands: &'a [ConsumerDemand],
    /// The [placements](super::placements) of the Revisions of all namespaces.
    pub every_revision: &'a [PodConstraints],
    /// All nodes.
    pub nodes: &'a [NodeFacts<'a>],
    /// What RuntimeClasses add to where Pods may run.
    pub runtime_classes: &'a RuntimeClasses,
    /// Namespaces that are being deleted: nothing can be made there.
    pub terminating: &'a BTreeSet<String>,
    /// Every list is complete and current, and Knative's types are served.
    pub may_delete: bool,
}

/// The grace periods of the plan.
#[derive(Clone, Copy, Debug)]
pub struct GracePeriods {
    /// How long a Revision waits for the webhook's fan-out before it is repaired.
    pub fan_out: Duration,
    /// The least age at which an ImageWarm can be garbage-collected.
    pub collect: Duration,
    /// How long the images of a Revision in reserve are retained.
    pub reserve: Duration,
}

impl Default for GracePeriods {
    fn default() -> Self {
        GracePeriods {
            fan_out: Duration::from_secs(2),
            collect: Duration::from_secs(30),
            reserve: Duration::from_secs(600),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Objects that are missing.
    pub create: Vec<Creation>,
    /// Objects that are garbage-collected.
    pub delete: Vec<Deletion>,
    /// Missing objects over a limit, by namespace.
    pub over_limit: BTreeMap<String, OverLimit>,
    /// When to plan a namespace again without a change.
    pub rechecks: BTreeMap<String, Timestamp>,
}

/// A missing object.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// The complete object.
    pub object: ImageWarm,
    /// What is repaired.
    pub repair: Repair,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq)]
pub struct Deletion {
    /// The object as observed.
    pub warm: Arc<CachedImageWarm>,
    /// Why it is deleted.
    pub cause: Cause,
}

labels! {
    /// Why an object is deleted.
    pub enum Cause {
        /// Its node no longer exists.
        NodeGone,
        /// It is older than its node, and so for one of the same name before: what it says is not of this one.
        NodeReplaced,
        /// No consumer demands its image.
        NotDemanded,
        /// Only Revisions past the reserve grace period demand it.
        Reserve,
        /// It is by a tag of which an ImageWarm by digest is on the node.
        Resolved,
        /// It was made by hand for a time that is over, and no consumer demands its image.
        Expired,
    }
}

/// Compares what is demanded with what exists.
pub fn diff(
    observed: &Observed<'_>,
    policy: &Policy,
    grace_periods: GracePeriods,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    if policy.paused {
        return plan;
    }
    let mut eligible =
        DemandNodes::new(observed.nodes, observed.runtime_classes, observed.every_revision, policy);
    let existing = observed.image_warms.all.iter().map(Arc::as_ref);
    let mut room = Room::new(policy.bounds, existing, observed.elsewhere);
    let mut planned: HashSet<(&str, &Reference, &str)> = HashSet::new();
    for one in observed.demands {
        let (metadata, namespace) = (one.by.metadata(), one.by.namespace());
        if !one.is_routable()
            || metadata.deletion_timestamp.is_some()
            || observed.terminating.contains(namespace)
        {
            continue;
        }
        let fan_out_deadline = match &one.by {
            Consumer::Image(image) if !is_of_revision(image) => Timestamp::MIN,
            Consumer::DeploymentConfig(_) => Timestamp::MIN,
            _ => wait_for_fan_out(one, observed.image_warms, grace_periods),
        };
        let origin = Origin::of(&one.by);
        for wanted in &one.demand.images {
            let image_warms = observed.image_warms.of(namespace, wanted);
            for node in eligible.of(one) {
                let Some((image, repair)) = image_warms.missing(node.name) else {
                    continue;
                };
                if fan_out_deadline > now {
                    plan.recheck(namespace, fan_out_deadline);
                    break;
                }
                if planned.insert((namespace, image, node.name)) && room.take(namespace) {
                    let object = image_warm(&origin, &one.demand, image, node.name);
                    let repair = match (&one.by, repair) {
                        (Consumer::Image(_) | Consumer::DeploymentConfig(_), Repair::Missing) => {
                            Repair::Image
                        }
                        (_, Repair::Missing) if node.created > Some(one.by.created()) => {
                            Repair::NewNode
                        }
                        (_, repair) => repair,
                    };
                    plan.create.push(Creation { object, repair });
                }
            }
        }
    }
    let refused = room.refused.into_iter();
    plan.over_limit = refused.map(|(namespace, over)| (namespace.to_owned(), over)).collect();
    collect_garbage(observed, grace_periods, now, &mut plan);
    plan
}

/// Until when a Revision waits for the webhook's fan-out: for the grace period, and longer while
/// its ImageWarms still appear. With thousands of nodes a fan-out takes seconds, and a concurrent
/// repair would only slow it down.
fn wait_for_fan_out(
    one: &ConsumerDemand,
    image_warms: &ImageWarmIndex<'_>,
    grace_periods: GracePeriods,
) -> Timestamp {
    let revision = one.by.metadata();
    let grace_period_end = object_reaches_age(revision, grace_periods.fan_out + TRUNCATION);
    let namespace = one.by.namespace();
    let images = one.demand.images.iter();
    let newest = images.filter_map(|image| image_warms.of(namespace, image).newest()).max();
    let still_appearing = newest.map_or(Timestamp::MIN, |newest| {
        reaches_age(Some(newest), grace_periods.fan_out + TRUNCATION)
    });
    grace_period_end.max(
        still_appearing
            .min(object_reaches_age(revision, grace_periods.fan_out * FAN_OUT_EXTENSION)),
    )
}

impl Plan {
    /// Has the namespace planned again at this time, or before.
    pub(super) fn recheck(&mut self, namespace: &str, at: Timestamp) {
        match self.rechecks.get_mut(namespace) {
            Some(known) => *known = at.min(*known),
            None => drop(self.rechecks.insert(namespace.to_owned(), at)),
        }
    }
}

/// When the object is certainly older than `age`.
fn object_reaches_age(metadata: &ObjectMeta, age: Duration) -> Timestamp {
    reaches_age(metadata.creation_timestamp.as_ref().map(|time| time.0), age)
}

fn reaches_age(created: Option<Timestamp>, age: Duration) -> Timestamp {
    created.map_or(Timestamp::MIN, |created| created.checked_add(age).unwrap_or(Timestamp::MAX))
}

/// Fills `plan.delete` with ImageWarms of deleted nodes and with orphans. Eligibility is not
/// considered: a cordon deletes nothing.
fn collect_garbage(
    observed: &Observed<'_>,
    grace_periods: GracePeriods,
    now: Timestamp,
    plan: &mut Plan,
) {
    if !observed.may_delete {
        return;
    }
    let nodes: HashMap<&str, Option<i64>> =
        observed.nodes.iter().map(|node| (node.name, node.created)).collect();
    let (mut wanted, mut in_reserve) = (DemandedImages::default(), DemandedImages::default());
    for one in observed.demands {
        let expires_at = one
            .reserve_since
            .map(|since| since.checked_add(grace_periods.reserve).unwrap_or(Timestamp::MAX));
        let names = match expires_at {
            Some(from) if from <= now => &mut in_reserve,
            _ => &mut wanted,
        };
        for image in &one.demand.images {
            names.add(one.by.namespace(), image, expires_at);
        }
    }
    for warm in observed.image_warms.all {
        if warm.is_terminating() {
            continue;
        }
        if !warm.is_managed() {
            let expires_at = warm.expires_at();
            if let Some(at) =
                expires_at.filter(|_| wanted.until(warm, observed.image_warms).is_none())
            {
                if at > now {
                    plan.recheck(&warm.namespace, at);
                } else {
                    plan.delete.push(Deletion { warm: warm.clone(), cause: Cause::Expired });
                }
            }
            continue;
        }
        let node_created = nodes.get(&*warm.node_name);
        let cause = if node_created.is_none() {
            Cause::NodeGone
        } else if node_created.is_some_and(|at| is_older_than_node(warm, *at)) {
            // It must not stay for the grace period: what it says is not of this node.
            plan.delete.push(Deletion { warm: warm.clone(), cause: Cause::NodeReplaced });
            continue;
        } else if let Some(until) = wanted.until(warm, observed.image_warms) {
            if let Some(until) = until {
                plan.recheck(&warm.namespace, until);
            }
            continue;
        } else if wanted.is_resolved(warm) {
            Cause::Resolved
        } else if in_reserve.until(warm, observed.image_warms).is_some() {
            Cause::Reserve
        } else {
            Cause::NotDemanded
        };
        let due = reaches_age(warm.created, grace_periods.collect);
        if due > now {
            plan.recheck(&warm.namespace, due);
        } else {
            plan.delete.push(Deletion { warm: warm.clone(), cause });
        }
    }
    let name = |one: &Deletion| (one.warm.namespace.clone(), one.warm.name.clone());
    plan.delete.sort_by_cached_key(name);
}

/// Demanded images by namespace, each with the end of its demand, if it has one.
#[derive(Default)]
struct DemandedImages<'a> {
    images: HashMap<(&'a str, &'a str), Option<Timestamp>>,
    /// Those by a tag whose digest is known, for each digest: not demanded on a node that has an ImageWarm
    /// by that digest.
    resolved: HashMap<(&'a str, &'a str), BTreeMap<&'a Reference, Option<Timestamp>>>,
}

impl<'a> DemandedImages<'a> {
    fn add(&mut self, namespace: &'a str, wanted: &'a WantedImage, until: Option<Timestamp>) {
        let key = |image: &'a Reference| (namespace, image.as_str());
        let by_name = match &wanted.resolved {
            Some(digest) => {
                longest(self.images.entry(key(digest)).or_insert(until), until);
                let by_digest = self.resolved.entry(key(&wanted.reference)).or_default();
                by_digest.entry(digest).or_insert(until)
            }
            None => self.images.entry(key(&wanted.reference)).or_insert(until),
        };
        longest(by_name, until);
    }

    /// `None` when the image of `warm` is not among them.
    fn until(
        &self,
        warm: &CachedImageWarm,
        existing: &ImageWarmIndex<'_>,
    ) -> Option<Option<Timestamp>> {
        let (namespace, node) = (&*warm.namespace, &*warm.node_name);
        of_either_spelling(&warm.image, |image| {
            let by_tag = self.resolved.get(&(namespace, image)).into_iter().flatten();
            let by_tag = by_tag.filter(|(digest, _)| !existing.is_on(namespace, digest, node));
            let whole = self.images.get(&(namespace, image)).copied();
            whole.into_iter().chain(by_tag.map(|(_, until)| *until)).reduce(|mut known, until| {
                longest(&mut known, until);
                known
            })
        })
    }

    /// Whether the image of `warm` is by a tag whose digest is demanded.
    fn is_resolved(&self, warm: &CachedImageWarm) -> bool {
        let namespace = &*warm.namespace;
        of_either_spelling(&warm.image, |image| self.resolved.get(&(namespace, image)).map(drop))
            .is_some()
    }
}

/// `None` means without an end.
fn longest(known: &mut Option<Timestamp>, until: Option<Timestamp>) {
    *known = known.and_then(|known| Some(known.max(until?)));
}

/// What is found for an image as it is written, else for its canonical name. Our own objects are
/// canonical; a copy made by hand, with our labels, need not be.
fn of_either_spelling<T>(image: &str, find: impl Fn(&str) -> Option<T>) -> Option<T> {
    find(image).or_else(|| find(Reference::parse(image).ok()?.as_str()))
}

#[cfg(test)]
mod tests;
