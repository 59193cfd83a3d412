//! The constraints of a Pod's spec on the nodes that it may run on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};

/// The constraints of a Pod's spec on the nodes that it may run on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodConstraints {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the Pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// Terms of the required node affinity, of which one must hold; `None` without any.
    pub required_terms: Option<Vec<NodeSelectorTerm>>,
    /// The RuntimeClass whose rules are still to be added: see `RuntimeClasses::constrain`. While
    /// it is named, no node fits.
    pub runtime_class: Option<String>,
}
