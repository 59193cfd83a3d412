//! The node gate: when a node that has come with the gate's taint is released. It is held until the
//! images that active Revisions want there are warm or have failed for good, and never for longer than
//! the deadline. The taint is set by others, and only removed by us.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::jiff::SignedDuration;

use super::Observed;
use super::eligible::DemandNodes;
use super::existing::{State, is_older_than_node};
use crate::api::Reason;
use crate::demand::consumers::{Consumer, ConsumerDemand, is_of_revision};
use crate::image::Reference;
use crate::labels;
use crate::placement::NodeFacts;
use crate::policy::Policy;
use crate::policy::bounds::OverLimit;

/// The taints of a node that is still being set up: by Kubernetes itself, by its cloud provider and by
/// Karpenter. Labels that decide where Pods may start can still be missing.
const SETUP_TAINTS: [&str; 3] =
    ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "karpenter.sh/unregistered"];

labels! {
    /// Why a node was released.
    pub enum Release {
        /// Everything that active Revisions want there is warm.
        Warm,
        /// The same, except images whose pull fails until a user acts, and those beyond a limit.
        Failed,
        /// No active Revision wants an image there.
        NothingWanted,
        /// The deadline has passed; images are still missing.
        DeadlineExceeded,
        /// Warming is paused.
        Paused,
    }
}

impl Release {
    /// Whether the node was released without an image that it should have.
    pub const fn is_warning(self) -> bool {
        matches!(self, Release::Failed | Release::DeadlineExceeded)
    }
}

/// The images that active Revisions want on a node with the gate's taint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatedNode {
    /// Images that the node holds.
    pub warm: usize,
    /// Images whose pull fails until a user acts, and those beyond a limit.
    pub failed: usize,
    /// All other images.
    pub pending: usize,
    /// The first of these, and the state of its pull.
    pub first_pending: Option<(Reference, Reason)>,
    /// Whether the node is not Ready, or still has a taint of its setup: more may be wanted there soon.
    pub in_setup: bool,
}

/// The nodes with the gate's taint, by the uid of the Node.
pub type GatedNodes = BTreeMap<String, GatedNode>;

/// The taints of the gate on a node, with their positions: those of its key, whatever their effect.
pub fn gate_taints<'a>(
    node: &'a Node,
    key: &'a str,
) -> impl DoubleEndedIterator<Item = (usize, &'a Taint)> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().enumerate().filter(move |(_, taint)| taint.key == key)
}

/// Counts what is wanted on each node that has the gate's taint; `nodes` are all nodes. Empty when the
/// gate is off.
pub fn gated_nodes(
    nodes: &[Arc<Node>],
    observed: &Observed<'_>,
    over_limit: &BTreeMap<String, OverLimit>,
    policy: &Policy,
) -> GatedNodes {
    let Some(key) = &policy.gate_taint else { return GatedNodes::new() };
    let gated: Vec<Gated<'_>> = nodes
        .iter()
        .filter(|node| gate_taints(node, key).next().is_some())
        .map(|node| Gated::new(node))
        .collect();
    if gated.is_empty() {
        return GatedNodes::new();
    }
    let facts: Vec<NodeFacts<'_>> = gated.iter().map(Gated::facts).collect();
    let mut states: BTreeMap<&str, Images<'_>> = BTreeMap::new();
    let mut eligible =
        DemandNodes::new(&facts, observed.runtime_classes, observed.every_revision, policy);
    for one in observed.demands {
        let namespace = one.by.namespace();
        if !is_active(one) || observed.terminating.contains(namespace) {
            continue;
        }
        let on = eligible.of(one);
        for wanted in one.demand.images.iter().filter(|_| !on.is_empty()) {
            let image_warms = observed.image_warms.of(namespace, wanted);
            for node in on {
                let state = match image_warms.state(node.name) {
                    State::Held => Image::Warm,
                    State::Failed(reason, _) if reason.requires_user_action() => Image::Failed,
                    // It is not created, so that there is nothing to wait for.
                    _ if image_warms.missing(node.name).is_some()
                        && over_limit.contains_key(namespace) =>
                    {
                        Image::Failed
                    }
                    State::Underway(reason) | State::Failed(reason, _) => Image::Pending(reason),
                };
                let image = wanted.resolved.as_ref().unwrap_or(&wanted.reference);
                states.entry(node.name).or_default().insert((namespace, image), state);
            }
        }
    }
    let uid = |node: &Node| node.metadata.uid.clone().unwrap_or_default();
    let created: HashMap<&str, Option<i64>> =
        gated.iter().map(|one| (one.observed.name, one.observed.created)).collect();
    // What their ImageWarms say is of nodes of the same names before.
    let replaced: HashSet<&str> = observed
        .image_warms
        .all
        .iter()
        .filter(|warm| warm.is_managed())
        .filter(|warm| {
            created.get(&*warm.node_name).is_some_and(|at| is_older_than_node(warm, *at))
        })
        .map(|warm| &*warm.node_name)
        .collect();
    let counted = |one: &Gated<'_>| {
        let name = one.observed.name;
        let images = states.remove(name).unwrap_or_default();
        (uid(one.node), GatedNode::new(&images, one.in_setup() || replaced.contains(name)))
    };
    gated.iter().map(counted).collect()
}

/// Whether Pods that may start soon need the images of this demand: those of Revisions that are not in
/// reserve, and the queue-proxy.
fn is_active(one: &ConsumerDemand) -> bool {
    let is_of_revision = match &one.by {
        Consumer::Revision(_) => true,
        Consumer::Image(image) => is_of_revision(image),
        Consumer::DeploymentConfig(_) => false,
    };
    one.is_routable()
        && one.by.metadata().deletion_timestamp.is_none()
        && (is_of_revision || one.demand.by_every_revision)
}

/// The state of an image on a node, as the gate needs it.
#[derive(Clone, Copy)]
enum Image {
    Warm,
    Failed,
    Pending(Reason),
}

/// By namespace and image.
type Images<'a> = BTreeMap<(&'a str, &'a Reference), Image>;

/// A node with the gate's taint.
struct Gated<'a> {
    node: &'a Node,
    observed: NodeFacts<'a>,
    /// Its taints without those of its setup.
    taints: Vec<Taint>,
}

impl<'a> Gated<'a> {
    fn new(node: &'a Node) -> Self {
        let observed = NodeFacts::new(node, &Default::default());
        let taints = observed.taints.iter().filter(|taint| !is_of_setup(taint)).cloned().collect();
        Gated { node, observed, taints }
    }

    /// The node as it will be once its setup is complete.
    fn facts(&self) -> NodeFacts<'_> {
        NodeFacts { taints: &self.taints, ready: true, cordoned: false, ..self.observed }
    }

    fn in_setup(&self) -> bool {
        !self.observed.ready || self.observed.taints.iter().any(is_of_setup)
    }
}

fn is_of_setup(taint: &Taint) -> bool {
    SETUP_TAINTS.iter().any(|start| taint.key.starts_with(start))
}

impl GatedNode {
    fn new(images: &Images<'_>, in_setup: bool) -> Self {
        let mut node = GatedNode { in_setup, ..GatedNode::default() };
        for ((_, image), state) in images {
            match state {
                Image::Warm => node.warm += 1,
                Image::Failed => node.failed += 1,
                Image::Pending(reason) => {
                    node.pending += 1;
                    node.first_pending.get_or_insert_with(|| ((*image).clone(), *reason));
                }
            }
        }
        node
    }

    /// Whether nothing more is to be waited for, and how it ended.
    fn outcome(&self) -> Option<Release> {
        match self {
            GatedNode { in_setup: true, .. } => None,
            GatedNode { pending: 1.., .. } => None,
            GatedNode { failed: 1.., .. } => Some(Release::Failed),
            GatedNode { warm: 1.., .. } => Some(Release::Warm),
            _ => Some(Release::NothingWanted),
        }
    }
}

/// States the number of images in each state, and the first that is pending.
impl fmt::Display for GatedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GatedNode { warm, failed, pending, first_pending, in_setup } = self;
        write!(f, "{warm} of {} images are warm", warm + failed + pending)?;
        if *failed > 0 {
            write!(f, ", {failed} failed")?;
        }
        if let Some((image, reason)) = first_pending {
            write!(f, ", {pending} pending: {image} ({reason})")?;
        }
        if *in_setup {
            f.write_str("; the node is not set up")?;
        }
        Ok(())
    }
}

/// Whether the node is released now. `images` is missing while they are not counted; `time_left` is
/// that of [`time_left`].
pub fn release(paused: bool, images: Option<&GatedNode>, time_left: Duration) -> Option<Release> {
    if paused {
        return Some(Release::Paused);
    }
    let outcome = images.and_then(GatedNode::outcome);
    outcome.or_else(|| time_left.is_zero().then_some(Release::DeadlineExceeded))
}

/// The time until the deadline of a node: the earlier of two. `seen_for` is how long this leader has seen
/// the taint, by a monotonic clock: it bounds the wait when the wall clock is behind. `age` is that of the
/// Node by the wall clock, if its creation is known: it bounds the wait when leaders change.
pub fn time_left(deadline: Duration, seen_for: Duration, age: Option<SignedDuration>) -> Duration {
    let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
    deadline.saturating_sub(seen_for.max(age))
}

#[cfg(test)]
mod tests;
