//! What the leader remembers of the plan of each namespace, so that a change costs what its namespace costs:
//! only namespaces in which something has changed, is still to be done or has become due are planned. A
//! change of what all depend on, and a full run from time to time, plan all.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;

use super::diff::{Creation, Deletion, GracePeriods};
use super::eligible::placements;
use super::failures::{Failure, failures};
use super::node_gate::{GatedNodes, gate_taints, gated_nodes};
use super::rollup::{ImageUpdate, Nodes, rollup};
use super::{ImageWarmIndex, Observed, diff};
use crate::api::names::NodeName;
use crate::api::{CachedImageWarm, KnativeImage, Reason, Revision};
use crate::demand::Cluster;
use crate::demand::consumers::{ConsumerDemand, Demands, demands_in};
use crate::placement::{NodeFacts, PodConstraints, RuntimeClasses};
use crate::policy::Policy;
use crate::policy::bounds::{Limit, OverLimit};
use crate::report::image_starts::AllImageStarts;

/// The namespaces of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// These.
    Only(BTreeSet<Box<str>>),
}

impl Scope {
    /// Whether the namespace is one of them.
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(names) => names.contains(namespace),
        }
    }
}

/// What the caches hold of the namespaces of a run, and of what all namespaces share.
#[derive(Debug)]
pub struct Snapshot {
    /// ImageWarms of these namespaces.
    pub image_warms: Vec<Arc<CachedImageWarm>>,
    /// How many ImageWarms all other namespaces have.
    pub elsewhere: usize,
    /// Revisions of these namespaces.
    pub revisions: Vec<Arc<Revision>>,
    /// Images of these namespaces.
    pub images: Vec<Arc<KnativeImage>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// What RuntimeClasses add to where Pods may run.
    pub runtime_classes: RuntimeClasses,
    /// The rules of these namespaces, and the settings of Knative.
    pub cluster: Cluster,
    /// Which of these namespaces are being deleted: nothing can be made there.
    pub terminating: BTreeSet<String>,
    /// Nodes whose warmer is connected.
    pub connected: Arc<BTreeSet<NodeName>>,
    /// Container starts for the statuses of Images.
    pub starts: Arc<AllImageStarts>,
    /// Every list is complete and current, and Knative's types are served.
    pub may_delete: bool,
}

/// What is to be done, and what all namespaces together are like.
#[derive(Debug, Default)]
pub struct Outcome {
    /// ImageWarms that are missing, in the namespaces of the run.
    pub create: Vec<Creation>,
    /// ImageWarms that are garbage-collected, in the namespaces of the run.
    pub delete: Vec<Deletion>,
    /// Outdated statuses of Images, in the namespaces of the run.
    pub images: Vec<ImageUpdate>,
    /// Missing objects over a limit, by namespace.
    pub over_limit: BTreeMap<String, OverLimit>,
    /// The failures of all Revisions.
    pub failures: Vec<Failure>,
    /// What is wanted on nodes with the gate's taint.
    pub gated: GatedNodes,
    /// Number of ImageWarms by reason.
    pub reasons: BTreeMap<Option<Reason>, usize>,
    /// When to plan again without a change.
    pub recheck_at: Option<Timestamp>,
}

/// The plan of one namespace, as far as it is needed until the next one.
#[derive(Clone, Debug, Default)]
struct Known {
    reasons: BTreeMap<Option<Reason>, usize>,
    failures: Vec<Failure>,
    over_limit: Option<OverLimit>,
    recheck_at: Option<Timestamp>,
    placements: Vec<PodConstraints>,
    /// Something was to be done. Whether it was done is seen by planning again.
    is_unfinished: bool,
}

/// Decides which namespaces are planned, and plans them.
#[derive(Debug)]
pub struct Planner {
    known: BTreeMap<Box<str>, Known>,
    changed: BTreeSet<Box<str>>,
    all_changed: bool,
    /// Nodes may have changed since `nodes` was computed.
    nodes_changed: bool,
    /// A hash of what plans depend on in the nodes.
    nodes: u64,
    /// Nodes have the gate's taint. What they wait for is counted over all namespaces.
    is_gating: bool,
}

impl Default for Planner {
    /// Nothing is known: the first run plans all.
    fn default() -> Self {
        Planner {
            known: BTreeMap::new(),
            changed: BTreeSet::new(),
            all_changed: true,
            nodes_changed: true,
            nodes: 0,
            is_gating: false,
        }
    }
}

impl Planner {
    /// Objects of this namespace, or its Namespace, have changed.
    pub fn changed(&mut self, namespace: &str) {
        if !self.all_changed && !self.changed.contains(namespace) {
            self.changed.insert(namespace.into());
        }
    }

    /// Anything may have changed.
    pub fn all_changed(&mut self) {
        self.all_changed = true;
        self.changed.clear();
    }

    /// Nodes have changed, or which of them have a connected warmer.
    pub fn nodes_changed(&mut self) {
        self.nodes_changed = true;
    }

    /// The namespaces to be planned now.
    pub fn scope(
        &mut self,
        nodes: &[Arc<Node>],
        connected: &BTreeSet<NodeName>,
        policy: &Policy,
        now: Timestamp,
    ) -> Scope {
        if std::mem::take(&mut self.nodes_changed) {
            let hash = hash(nodes, connected);
            if std::mem::replace(&mut self.nodes, hash) != hash {
                self.all_changed();
            }
            let is_gated = |key| nodes.iter().any(|node| gate_taints(node, key).next().is_some());
            let was_gating = self.is_gating;
            self.is_gating = policy.gate_taint.as_deref().is_some_and(is_gated);
            if was_gating {
                self.all_changed();
            }
        }
        // Which namespace gets the last places of the cluster depends on all of them.
        let is_of_cluster = |over: OverLimit| matches!(over.limit, Limit::Cluster(_));
        let is_full = || self.known.values().any(|one| one.over_limit.is_some_and(is_of_cluster));
        if self.all_changed || self.is_gating || is_full() {
            return Scope::All;
        }
        let is_due = |one: &Known| one.is_unfinished || one.recheck_at.is_some_and(|at| at <= now);
        let due = self.known.iter().filter(|(_, one)| is_due(one)).map(|(name, _)| name.clone());
        Scope::Only(self.changed.iter().cloned().chain(due).collect())
    }

    /// Plans these namespaces, of which `snapshot` has all objects.
    pub fn plan(
        &mut self,
        scope: &Scope,
        snapshot: &Snapshot,
        policy: &Policy,
        grace_periods: GracePeriods,
        now: Timestamp,
    ) -> Outcome {
        let demanded = demands_in(
            |namespace| scope.contains(namespace),
            &snapshot.revisions,
            &snapshot.images,
            &snapshot.cluster,
            policy,
        );
        let every_revision = self.begin(scope, &demanded, policy, now);
        let nodes: Vec<_> =
            snapshot.nodes.iter().map(|node| NodeFacts::new(node, &snapshot.connected)).collect();
        let image_warms = ImageWarmIndex::new(&snapshot.image_warms);
        let observed = Observed {
            image_warms: &image_warms,
            elsewhere: snapshot.elsewhere,
            demands: &demanded.consumers,
            every_revision: &every_revision,
            nodes: &nodes,
            runtime_classes: &snapshot.runtime_classes,
            terminating: &snapshot.terminating,
            may_delete: snapshot.may_delete,
        };
        let mut plan = diff(&observed, policy, grace_periods, now);
        let statuses = Nodes {
            image_warms: &image_warms,
            nodes: &nodes,
            runtime_classes: &snapshot.runtime_classes,
            every_revision: &every_revision,
            terminating: &snapshot.terminating,
            full: &plan.over_limit,
            starts: &snapshot.starts,
        };
        // A stale list yields wrong statuses.
        let images = match snapshot.may_delete {
            true => rollup(&statuses, &demanded, policy, grace_periods, now),
            false => Vec::new(),
        };
        let gated = gated_nodes(&snapshot.nodes, &observed, &plan.over_limit, policy);
        // The status of an Image says when its Revision's time in reserve is over.
        for one in &demanded.consumers {
            let ends = one.reserve_since.and_then(|at| at.checked_add(grace_periods.reserve).ok());
            if let Some(at) = ends.filter(|at| *at > now) {
                plan.recheck(one.by.namespace(), at);
            }
        }
        for failure in failures(&image_warms, &demanded.consumers) {
            let namespace = failure.revision.metadata.namespace.as_deref().unwrap_or_default();
            self.known(namespace).failures.push(failure);
        }
        for warm in &snapshot.image_warms {
            *self.known(&warm.namespace).reasons.entry(warm.reason()).or_default() += 1;
        }
        for (namespace, over_limit) in plan.over_limit {
            self.known(&namespace).over_limit = Some(over_limit);
        }
        for (namespace, at) in plan.rechecks {
            let known = self.known(&namespace);
            known.recheck_at = known.recheck_at.into_iter().chain([at]).min();
        }
        let created = plan.create.iter().map(|one| one.object.metadata.namespace.as_deref());
        let deleted = plan.delete.iter().map(|one| Some(&*one.warm.namespace));
        let written = images.iter().map(|one| one.image.metadata.namespace.as_deref());
        for namespace in created.chain(deleted).chain(written) {
            self.known(namespace.unwrap_or_default()).is_unfinished = true;
        }
        Outcome { create: plan.create, delete: plan.delete, images, gated, ..self.outcome() }
    }

    /// Forgets what was known of the namespaces of the run. Returns the placements of the Revisions of all
    /// namespaces.
    fn begin(
        &mut self,
        scope: &Scope,
        demanded: &Demands,
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<PodConstraints> {
        let before = self.every_revision();
        match scope {
            Scope::All => {
                self.known.clear();
                self.changed.clear();
                self.all_changed = false;
            }
            Scope::Only(names) => {
                self.known.retain(|name, _| !names.contains(name));
                self.changed.retain(|name| !names.contains(name));
            }
        }
        let mut by_namespace: BTreeMap<&str, Vec<&ConsumerDemand>> = BTreeMap::new();
        for one in &demanded.consumers {
            by_namespace.entry(one.by.namespace()).or_default().push(one);
        }
        for (namespace, demands) in by_namespace {
            let placements = placements(demands.into_iter());
            if !placements.is_empty() {
                self.known(namespace).placements = placements;
            }
        }
        let after = self.every_revision();
        // The queue-proxy is wanted wherever any Revision may run.
        let is_same = before.len() == after.len() && before.iter().all(|one| after.contains(one));
        if !is_same && !scope.contains(&policy.knative_namespace) {
            self.known(&policy.knative_namespace).recheck_at = Some(now);
        }
        after
    }

    fn known(&mut self, namespace: &str) -> &mut Known {
        if !self.known.contains_key(namespace) {
            self.known.insert(namespace.into(), Known::default());
        }
        self.known.entry(namespace.into()).or_default()
    }

    fn every_revision(&self) -> Vec<PodConstraints> {
        let mut all: Vec<PodConstraints> = Vec::new();
        for one in self.known.values().flat_map(|known| &known.placements) {
            if !all.contains(one) {
                all.push(one.clone());
            }
        }
        all
    }

    /// What is known of all namespaces.
    fn outcome(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for (namespace, known) in &self.known {
            for (reason, count) in &known.reasons {
                *outcome.reasons.entry(*reason).or_default() += count;
            }
            outcome.failures.extend_from_slice(&known.failures);
            outcome.over_limit.extend(known.over_limit.map(|over| (namespace.to_string(), over)));
            outcome.recheck_at = outcome.recheck_at.into_iter().chain(known.recheck_at).min();
        }
        outcome
    }
}

/// A hash of what plans depend on in the nodes.
fn hash(nodes: &[Arc<Node>], connected: &BTreeSet<NodeName>) -> u64 {
    let mut all: Vec<NodeFacts<'_>> =
        nodes.iter().map(|node| NodeFacts::new(node, connected)).collect();
    all.sort_unstable_by_key(|node| node.name);
    let mut hasher = DefaultHasher::new();
    for node in all {
        // Whether a node is Ready matters only where no warmer is connected.
        let is_usable = node.ready || node.connected;
        let flags = (node.cordoned, is_usable, node.leaving, node.created);
        (node.name, node.labels, flags, node.taints.len()).hash(&mut hasher);
        for taint in node.taints {
            (&taint.key, &taint.value, &taint.effect).hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
