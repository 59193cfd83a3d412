//! The leader's plan: which ImageWarms are missing, and which nobody needs any more. Works from a
//! full look at everything, so that what was missed once is put right the next time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::Repair;
use super::existing::ImageWarmIndex;
use super::fan_out::{Origin, image_warm};
use crate::api::{CachedImageWarm, ImageWarm};
use crate::demand::consumers::{Consumer, ConsumerDemand, is_of_revision};
use crate::image::Reference;
use crate::labels;
use crate::placement::{EligibleNodes, NodeFacts, RuntimeClasses};
use crate::policy::Policy;
use crate::policy::bounds::Room;

/// Creation times are cut to full seconds: an object may be this much younger than it says.
const TRUNCATION: Duration = Duration::from_secs(1);

/// A fan-out whose image_warms still appear is waited for, at most so many times the grace_periods with one
/// of which none does: nodes that join one after another must not be put off for ever.
const FAN_OUT_MOST: u32 = 30;

/// Everything that the plan depends on, from one moment.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// All ImageWarms.
    pub image_warms: &'a ImageWarmIndex<'a>,
    /// All that is demanded, by [`crate::demand::consumers::demands`].
    pub demands: &'a [ConsumerDemand],
    /// All nodes.
    pub nodes: &'a [NodeFacts<'a>],
    /// What RuntimeClasses add to where Pods may run.
    pub runtime_classes: &'a RuntimeClasses,
    /// Namespaces that are being deleted: nothing can be made there.
    pub terminating: &'a BTreeSet<String>,
    /// Every list is complete and current, and Knative's types are served.
    pub may_delete: bool,
}

/// How long the plan holds back.
#[derive(Clone, Copy, Debug)]
pub struct GracePeriods {
    /// How long a Revision is left to the webhook's fan-out.
    pub fan_out: Duration,
    /// How old an ImageWarm must be before it can be collected.
    pub collect: Duration,
    /// How long the images of a Revision that Knative holds in reserve are kept.
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
    /// Objects that are in the way of nobody, but wanted by nobody either.
    pub delete: Vec<Deletion>,
    /// What is missing but has no place in its namespace, by namespace.
    pub over_limit: BTreeMap<String, usize>,
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

/// An object to delete.
#[derive(Clone, Debug, PartialEq)]
pub struct Deletion {
    /// The object as observed.
    pub warm: Arc<CachedImageWarm>,
    /// Why.
    pub cause: Cause,
}

labels! {
    /// Why an object is deleted.
    pub enum Cause {
        /// Its node does not exist any more.
        NodeGone,
        /// Nothing asks for its image.
        Unwanted,
        /// Only Revisions that Knative has held in reserve for long ask for it.
        Reserve,
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
    let mut eligible = EligibleNodes::new(observed.nodes, observed.runtime_classes, policy);
    let existing = observed.image_warms.all.iter().map(Arc::as_ref);
    let mut room = Room::new(policy.bounds, existing);
    let mut planned: HashSet<(&str, &Reference, &str)> = HashSet::new();
    for one in observed.demands {
        let (metadata, namespace) = (one.by.metadata(), one.by.namespace());
        if !one.is_routable()
            || metadata.deletion_timestamp.is_some()
            || observed.terminating.contains(namespace)
        {
            continue;
        }
        let young_until = match &one.by {
            Consumer::Image(image) if !is_of_revision(image) => Timestamp::MIN,
            _ => left_to_fan_out_until(one, observed.image_warms, grace_periods),
        };
        let origin = Origin::of(&one.by);
        for wanted in &one.demand.images {
            let image_warms = observed.image_warms.of(namespace, wanted);
            for node in eligible.of(&one.demand.placement) {
                let Some((image, repair)) = image_warms.missing(node.name) else {
                    continue;
                };
                if young_until > now {
                    plan.recheck(young_until);
                    break;
                }
                if planned.insert((namespace, image, node.name)) && room.take(namespace) {
                    let object = image_warm(&origin, &one.demand, image, node.name);
                    let repair = match (&one.by, repair) {
                        (Consumer::Image(_), Repair::Missing) => Repair::Image,
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
    plan.over_limit = refused.map(|(namespace, count)| (namespace.to_owned(), count)).collect();
    collect(observed, grace_periods, now, &mut plan);
    plan
}

/// Until when a Revision is left to the webhook's fan-out: for a while, and longer while its image_warms
/// still appear. With thousands of nodes a fan-out takes seconds, and a second one beside it would
/// only make it slower.
fn left_to_fan_out_until(
    one: &ConsumerDemand,
    image_warms: &ImageWarmIndex<'_>,
    grace_periods: GracePeriods,
) -> Timestamp {
    let revision = one.by.metadata();
    let patience_ends = created(revision, grace_periods.fan_out + TRUNCATION);
    let namespace = one.by.namespace();
    let images = one.demand.images.iter();
    let newest = images.filter_map(|image| image_warms.of(namespace, image).newest()).max();
    let still_appearing = newest
        .map_or(Timestamp::MIN, |newest| ripe(Some(newest), grace_periods.fan_out + TRUNCATION));
    patience_ends.max(still_appearing.min(created(revision, grace_periods.fan_out * FAN_OUT_MOST)))
}

impl Plan {
    fn recheck(&mut self, at: Timestamp) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |known| known.min(at)));
    }
}

/// The moment at which the object is certainly older than `age`.
fn created(metadata: &ObjectMeta, age: Duration) -> Timestamp {
    ripe(metadata.creation_timestamp.as_ref().map(|time| time.0), age)
}

fn ripe(created: Option<Timestamp>, age: Duration) -> Timestamp {
    created.map_or(Timestamp::MIN, |created| created.checked_add(age).unwrap_or(Timestamp::MAX))
}

/// Fills `plan.delete`: what lies on nodes that are gone, and what nothing asks for. Where Pods could
/// not run just now does not matter here: a cordon deletes nothing.
fn collect(observed: &Observed<'_>, grace_periods: GracePeriods, now: Timestamp, plan: &mut Plan) {
    if !observed.may_delete {
        return;
    }
    let nodes: HashSet<&str> = observed.nodes.iter().map(|node| node.name).collect();
    let (mut wanted, mut resting) = (Names::default(), Names::default());
    for one in observed.demands {
        let rests_from = one
            .reserve_since
            .map(|since| since.checked_add(grace_periods.reserve).unwrap_or(Timestamp::MAX));
        let names = match rests_from {
            Some(from) if from <= now => &mut resting,
            _ => &mut wanted,
        };
        for name in one.demand.images.iter().flat_map(|image| image.names()) {
            names.add(one.by.namespace(), name, rests_from);
        }
    }
    for warm in observed.image_warms.all {
        if !warm.is_managed() || warm.is_terminating() {
            continue;
        }
        let cause = if !nodes.contains(&*warm.node_name) {
            Cause::NodeGone
        } else if let Some(until) = wanted.until(warm) {
            if let Some(until) = until {
                plan.recheck(until);
            }
            continue;
        } else if resting.until(warm).is_some() {
            Cause::Reserve
        } else {
            Cause::Unwanted
        };
        let ripe = ripe(warm.created, grace_periods.collect);
        if ripe > now {
            plan.recheck(ripe);
        } else {
            plan.delete.push(Deletion { warm: warm.clone(), cause });
        }
    }
    let name = |one: &Deletion| (one.warm.namespace.clone(), one.warm.name.clone());
    plan.delete.sort_by_cached_key(name);
}

/// Images by namespace, and until when they are demanded where that has an end.
#[derive(Default)]
struct Names<'a>(HashMap<(&'a str, &'a str), Option<Timestamp>>);

impl<'a> Names<'a> {
    fn add(&mut self, namespace: &'a str, image: &'a Reference, until: Option<Timestamp>) {
        let known = self.0.entry((namespace, image.as_str())).or_insert(until);
        // `None` is for ever.
        *known = known.and_then(|known| Some(known.max(until?)));
    }

    /// `None` when the image of `warm` is not among them.
    fn until(&self, warm: &CachedImageWarm) -> Option<Option<Timestamp>> {
        let (namespace, text) = (&*warm.namespace, &*warm.image);
        // What we make is canonical; a copy made by hand, labels and all, need not be.
        self.0.get(&(namespace, text)).copied().or_else(|| {
            let image = Reference::parse(text).ok()?;
            self.0.get(&(namespace, image.as_str())).copied()
        })
    }
}

#[cfg(test)]
mod tests;
