//! Which nodes could run a Pod: the rules of kube-scheduler (its filters `NodeUnschedulable`,
//! `TaintToleration` and `NodeAffinity`), as far as they depend on the node and not on what else
//! runs there, and a few of our own.

mod affinity;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

use super::constraints::{PodConstraints, Rejection};
use crate::api::names::NodeName;
use crate::policy::Policy;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";
const OS_LABEL: &str = "kubernetes.io/os";
/// Labels of nodes that are no machines: of virtual kubelets, of Fargate, of AKS. The warmers' DaemonSet leaves
/// out the same ones.
pub const VIRTUAL_NODES: [(&str, &str); 3] = [
    ("eks.amazonaws.com/compute-type", "fargate"),
    ("type", "virtual-kubelet"),
    ("virtualization", "virtualnode2"),
];

/// What planning needs to know of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// `metadata.name`.
    pub name: &'a str,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Taints.
    pub taints: &'a [Taint],
    /// `spec.unschedulable`: cordoned.
    pub cordoned: bool,
    /// The node's `Ready` condition is True.
    pub ready: bool,
    /// The node's warmer is connected to the leader, and that is us.
    pub connected: bool,
    /// The Node object is terminating.
    pub leaving: bool,
    /// Creation of the Node object, in seconds since 1970.
    pub created: Option<i64>,
}

impl<'a> NodeFacts<'a> {
    /// Reads a Node; `connected` holds the nodes whose warmer is known to be connected.
    pub fn new(node: &'a Node, connected: &BTreeSet<NodeName>) -> Self {
        static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let spec = node.spec.as_ref();
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        NodeFacts {
            name,
            labels: node.metadata.labels.as_ref().unwrap_or(&NO_LABELS),
            taints: spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default(),
            cordoned: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            ready: conditions
                .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
            connected: connected.contains(name),
            leaving: node.metadata.deletion_timestamp.is_some(),
            created: node.metadata.creation_timestamp.as_ref().map(|at| at.0.as_second()),
        }
    }
}

/// Why a node is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// The Node object is terminating.
    Leaving,
    /// It has no container runtime to pull with (virtual kubelet, Fargate).
    VirtualKubelet,
    /// Its containers are not Linux containers.
    OperatingSystem,
    /// Neither Ready, nor is its warmer connected.
    NotReady,
    /// Cordoned.
    Cordoned,
    /// Has a taint (its key) that is not tolerated.
    Taint(String),
    /// Lacks a label of the node selector (its key).
    NodeSelector(String),
    /// No term of the required node affinity holds.
    NodeAffinity,
    /// The RuntimeClass (its name) does not exist, or contradicts the node selector.
    RuntimeClass(String),
    /// The API server rejects the Pods in their namespace.
    Rejected(Rejection),
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exclusion::Leaving => f.write_str("node is being deleted"),
            Exclusion::VirtualKubelet => f.write_str("virtual-kubelet node"),
            Exclusion::OperatingSystem => f.write_str("node does not run Linux"),
            Exclusion::NotReady => f.write_str("node is not ready"),
            Exclusion::Cordoned => f.write_str("node is cordoned"),
            Exclusion::Taint(key) => write!(f, "taint {key} is not tolerated"),
            Exclusion::NodeSelector(key) => write!(f, "label {key} is not as selected"),
            Exclusion::NodeAffinity => f.write_str("required node affinity does not hold"),
            Exclusion::RuntimeClass(name) => {
                write!(f, "RuntimeClass {name} is missing or contradicts the node selector")
            }
            Exclusion::Rejected(rejection) => rejection.fmt(f),
        }
    }
}

impl PodConstraints {
    /// Why the API server rejects Pods with these constraints, so that no node fits them.
    pub fn rejected(&self) -> Option<Exclusion> {
        let namespace = self.rejected.clone().map(Exclusion::Rejected);
        namespace.or_else(|| self.runtime_class.clone().map(Exclusion::RuntimeClass))
    }
}

/// Whether Pods with these constraints could be started on the node.
pub fn is_eligible(
    node: &NodeFacts<'_>,
    pod: &PodConstraints,
    policy: &Policy,
) -> Result<(), Exclusion> {
    if let Some(rejected) = pod.rejected() {
        return Err(rejected);
    }
    if node.leaving {
        return Err(Exclusion::Leaving);
    }
    let has_label =
        |(key, value): &(&str, &str)| node.labels.get(*key).is_some_and(|it| it == value);
    if VIRTUAL_NODES.iter().any(has_label)
        || node.taints.iter().any(|taint| taint.key == "virtual-kubelet.io/provider")
    {
        return Err(Exclusion::VirtualKubelet);
    }
    if node.labels.get(OS_LABEL).is_some_and(|os| os != "linux") {
        return Err(Exclusion::OperatingSystem);
    }
    if !node.ready && !node.connected {
        return Err(Exclusion::NotReady);
    }
    if node.cordoned && !tolerates_cordon(pod) {
        return Err(Exclusion::Cordoned);
    }
    if let Some(taint) = node.taints.iter().find(|taint| repels(taint, pod, policy)) {
        return Err(Exclusion::Taint(taint.key.clone()));
    }
    if let Some((key, _)) =
        pod.node_selector.iter().find(|(key, value)| node.labels.get(*key) != Some(value))
    {
        return Err(Exclusion::NodeSelector(key.clone()));
    }
    if let Some(terms) = &pod.required_terms
        && !terms.iter().any(|term| affinity::holds(term, node))
    {
        return Err(Exclusion::NodeAffinity);
    }
    Ok(())
}

fn tolerates_cordon(pod: &PodConstraints) -> bool {
    let taint =
        Taint { key: UNSCHEDULABLE_TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
    pod.tolerations.iter().any(|toleration| tolerates(toleration, &taint))
}

fn repels(taint: &Taint, pod: &PodConstraints, policy: &Policy) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        && policy.gate_taint.as_ref() != Some(&taint.key)
        && !policy.startup_taints.iter().any(|key| matches_key(key, &taint.key))
        && !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// A key, or the start of keys when it ends with `*`.
fn matches_key(pattern: &str, key: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == key, |start| key.starts_with(start))
}

/// As `ToleratesTaint` of Kubernetes: an empty key stands for every key, whatever the operator. Its
/// numeric operators `Gt` and `Lt` are behind a feature gate that is off by default.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    fn filled(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    let (effect, key) = (filled(&toleration.effect), filled(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match filled(&toleration.operator) {
        "" | "Equal" => filled(&toleration.value) == filled(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
