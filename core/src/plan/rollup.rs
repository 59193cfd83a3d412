//! The status of Knative's Images, aggregated over the nodes (duck/v1): Ready is True once every
//! eligible node holds the image, and never because no node is eligible yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::diff::GracePeriods;
use super::eligible::DemandNodes;
use super::existing::{ImageWarmIndex, State};
use crate::api::condition::{READY, set_condition};
use crate::api::knative::KnativeImageStatus;
use crate::api::{Condition, ConditionStatus, KnativeImage, Reason};
use crate::demand::consumers::{ConsumerDemand, Demands, Resolution};
use crate::demand::revision::WantedImage;
use crate::image::quoted::printable;
use crate::placement::{Exclusion, NodeFacts, PodConstraints, RuntimeClasses};
use crate::policy::Policy;
use crate::policy::bounds::{LIMIT_REACHED, Limit, OverLimit};
use crate::report::image_starts::{AllImageStarts, ImageStarts};

/// Annotation of an Image's status: the number of eligible nodes.
pub const NODES: &str = "caching.knative.dev/nodes";
/// Annotation of an Image's status: how many eligible nodes hold the image.
pub const NODES_READY: &str = "caching.knative.dev/nodes-ready";
/// Annotation of an Image's status: on how many eligible nodes the pull fails.
pub const NODES_FAILED: &str = "caching.knative.dev/nodes-failed";

/// Reason: no node is eligible now.
pub const NO_ELIGIBLE_NODE: &str = "NoEligibleNode";
/// Reason: the Image names no image.
pub const NO_IMAGE: &str = "NoImage";
/// Reason: the Image's Revision has been in reserve for longer than its grace period.
pub const NOT_ROUTABLE: &str = "NotRoutable";
/// Reason: the image is excluded from warming.
pub const OPTED_OUT: &str = "OptedOut";

/// Nodes that are named in one message.
const NAMED: usize = 3;
/// Limit of a runtime's message, in bytes.
const RUNTIME_MESSAGE_MAX: usize = 512;

/// The state that the statuses depend on, beside the demands.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// All ImageWarms.
    pub image_warms: &'a ImageWarmIndex<'a>,
    /// All nodes.
    pub nodes: &'a [NodeFacts<'a>],
    /// What RuntimeClasses add to where Pods may run.
    pub runtime_classes: &'a RuntimeClasses,
    /// The [placements](super::placements) of the Revisions of all namespaces.
    pub every_revision: &'a [PodConstraints],
    /// Namespaces that are being deleted: nothing is written there.
    pub terminating: &'a BTreeSet<String>,
    /// Namespaces at their limit of ImageWarms that demand more.
    pub full: &'a BTreeMap<String, OverLimit>,
    /// What kubelets have said of containers that started with the images.
    pub starts: &'a AllImageStarts,
}

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageUpdate {
    /// The Image as observed.
    pub image: Arc<KnativeImage>,
    /// Its whole status from now on.
    pub status: KnativeImageStatus,
}

/// The statuses of Images that differ from the stored ones.
pub fn rollup(
    observed: &Nodes<'_>,
    demanded: &Demands,
    policy: &Policy,
    grace_periods: GracePeriods,
    now: Timestamp,
) -> Vec<ImageUpdate> {
    if policy.paused {
        return Vec::new();
    }
    let (nodes, classes) = (observed.nodes, observed.runtime_classes);
    let mut eligible = DemandNodes::new(nodes, classes, observed.every_revision, policy);
    let mut updates = Vec::new();
    for (image, resolution) in &demanded.images {
        let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
        if image.metadata.deletion_timestamp.is_some() || observed.terminating.contains(namespace) {
            continue;
        }
        let verdict = match resolution {
            Resolution::Orphaned => continue,
            Resolution::Empty => ReadyCondition::new(
                ConditionStatus::Unknown,
                NO_IMAGE,
                "spec.image is empty: Knative resolves no digests for this registry".into(),
            ),
            Resolution::Invalid(problem) => ReadyCondition::new(
                ConditionStatus::False,
                Reason::InvalidImage.as_str(),
                format!("spec.image: {problem}"),
            ),
            Resolution::OptedOut => ReadyCondition::new(
                ConditionStatus::Unknown,
                OPTED_OUT,
                "the image, its Revision or its namespace is excluded from warming".into(),
            ),
            Resolution::BeyondLimit => ReadyCondition::new(
                ConditionStatus::Unknown,
                LIMIT_REACHED,
                format!(
                    "of one Revision no more than {} images are warmed (--max-images-per-revision)",
                    policy.bounds.images_per_revision
                ),
            ),
            Resolution::Undecided => ReadyCondition::new(
                ConditionStatus::Unknown,
                Reason::Queued.as_str(),
                "waiting for the Revision's status to show which of its images this is".into(),
            ),
            Resolution::Wanted { consumer, image } => {
                let one = &demanded.consumers[*consumer];
                let rejected = eligible.rejected(one);
                let nodes = eligible.of(one);
                let limit = observed.full.get(namespace).map(|over| over.limit);
                let wanted = &one.demand.images[*image];
                let nodes = (nodes, rejected);
                of_wanted(one, wanted, nodes, observed.image_warms, limit, grace_periods, now)
            }
        };
        if let Some(status) = verdict.status(image, observed.starts.of(image), now) {
            updates.push(ImageUpdate { image: image.clone(), status });
        }
    }
    updates
}

fn of_wanted(
    consumer: &ConsumerDemand,
    wanted: &WantedImage,
    (nodes, rejected): (&[&NodeFacts<'_>], Option<Exclusion>),
    image_warms: &ImageWarmIndex<'_>,
    limit: Option<Limit>,
    grace_periods: GracePeriods,
    now: Timestamp,
) -> ReadyCondition {
    let is_expired =
        |since: Timestamp| since.checked_add(grace_periods.reserve).is_ok_and(|at| at <= now);
    if consumer.reserve_since.is_some_and(is_expired) {
        let message = "the Revision gets no traffic: its images are not kept warm".into();
        return ReadyCondition::new(ConditionStatus::Unknown, NOT_ROUTABLE, message);
    }
    if nodes.is_empty() {
        let message = match rejected {
            Some(reason) => format!("0 of 0 nodes: Pods are rejected: {reason}"),
            None => "0 of 0 nodes: no node can run this image now".into(),
        };
        return ReadyCondition::new(ConditionStatus::Unknown, NO_ELIGIBLE_NODE, message)
            .with_counts(Counts::default());
    }
    let image_warms = image_warms.of(consumer.by.namespace(), wanted);
    let mut tally = Tally::default();
    for node in nodes {
        match image_warms.state(node.name) {
            State::Held => tally.held += 1,
            State::Underway(reason) => tally.underway.entry(reason).or_default().push(node.name),
            State::Failed(reason, warm) => {
                let message = warm.ready().map_or("", |ready| ready.message.as_str());
                tally.failed.entry(reason).or_default().push((node.name, message));
            }
        }
    }
    let verdict = tally.verdict(nodes.len());
    let unassigned =
        || nodes.iter().filter(|node| image_warms.missing(node.name).is_some()).count();
    match limit {
        Some(limit) if verdict.status == ConditionStatus::Unknown && unassigned() > 0 => {
            ReadyCondition {
                reason: LIMIT_REACHED,
                message: format!(
                    "{} of {} nodes hold the image; none is assigned to {}, since {limit}",
                    tally.held,
                    nodes.len(),
                    unassigned(),
                ),
                ..verdict
            }
        }
        _ => verdict,
    }
}

/// Nodes by the state of the image.
#[derive(Default)]
struct Tally<'a> {
    held: usize,
    underway: BTreeMap<Reason, Vec<&'a str>>,
    failed: BTreeMap<Reason, Vec<(&'a str, &'a str)>>,
}

impl Tally<'_> {
    fn verdict(&self, all: usize) -> ReadyCondition {
        let counts =
            Counts { all, held: self.held, failed: self.failed.values().map(Vec::len).sum() };
        let held = format!("{} of {all} nodes hold the image", self.held);
        // A failure that requires user action comes before a transient one; then the most frequent.
        let worst = self
            .failed
            .iter()
            .max_by_key(|(reason, nodes)| (reason.requires_user_action(), nodes.len(), **reason));
        let verdict = match worst {
            Some((reason, nodes)) => {
                let names = named(nodes.iter().map(|(node, _)| *node));
                let text = nodes.first().map_or("", |(_, message)| message);
                let text = printable(text, RUNTIME_MESSAGE_MAX);
                let colon = if text.is_empty() { "" } else { ": " };
                let message = format!("{held}; {reason} on {names}{colon}{text}");
                ReadyCondition::new(ConditionStatus::False, reason.as_str(), message)
            }
            None if self.held == all => {
                ReadyCondition::new(ConditionStatus::True, "", String::new())
            }
            None => {
                let reasons = [Reason::Pulling, Reason::Queued, Reason::WaitingForWarmer];
                let most = reasons.into_iter().find(|one| self.underway.contains_key(one));
                let message = match self.underway.get(&Reason::WaitingForWarmer) {
                    Some(nodes) => {
                        let names = named(nodes.iter().copied());
                        format!("{held}; no warmer is connected on {names}")
                    }
                    None => held,
                };
                let reason = most.unwrap_or(Reason::Queued).as_str();
                ReadyCondition::new(ConditionStatus::Unknown, reason, message)
            }
        };
        verdict.with_counts(counts)
    }
}

/// The first few names, and how many more there are.
fn named<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let first: Vec<&str> = names.take(NAMED).collect();
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    all: usize,
    held: usize,
    failed: usize,
}

/// The `Ready` condition of an Image.
struct ReadyCondition {
    status: ConditionStatus,
    reason: &'static str,
    message: String,
    counts: Option<Counts>,
}

impl ReadyCondition {
    fn new(status: ConditionStatus, reason: &'static str, message: String) -> Self {
        ReadyCondition { status, reason, message, counts: None }
    }

    fn with_counts(self, counts: Counts) -> Self {
        ReadyCondition { counts: Some(counts), ..self }
    }

    /// The status to write, if it differs from the stored one. Fields of other writers are
    /// preserved.
    fn status(
        self,
        image: &KnativeImage,
        starts: Option<&ImageStarts>,
        now: Timestamp,
    ) -> Option<KnativeImageStatus> {
        let old = image.status.clone().unwrap_or_default();
        let mut next = old.clone();
        next.observed_generation = image.metadata.generation;
        let ready = Condition {
            type_: READY.into(),
            severity: String::new(),
            status: self.status,
            reason: self.reason.into(),
            message: self.message,
            last_transition_time: None,
        };
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        set_condition(&mut next.conditions, ready, Time(now));
        for (key, count) in [
            (NODES, self.counts.map(|counts| counts.all)),
            (NODES_READY, self.counts.map(|counts| counts.held)),
            (NODES_FAILED, self.counts.map(|counts| counts.failed)),
        ] {
            match count {
                Some(count) => next.annotations.insert(key.into(), count.to_string()),
                None => next.annotations.remove(key),
            };
        }
        if let Some(starts) = starts {
            starts.annotate(&mut next.annotations);
        }
        (next != old).then_some(next)
    }
}

#[cfg(test)]
mod tests;
