//! The constraints of a Pod's spec on the nodes that it may run on.

use std::collections::BTreeMap;
use std::fmt;

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
    /// Why the API server rejects the Pods. While there is a reason, no node fits.
    pub rejected: Option<Rejection>,
}

/// Why the API server rejects Pods in a Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The value of this annotation cannot be read.
    Malformed(&'static str),
    /// The Pod selects another value of this label than its Namespace.
    Contradiction(String),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Malformed(annotation) => {
                write!(f, "the namespace's annotation {annotation} is malformed")
            }
            Rejection::Contradiction(key) => {
                write!(f, "the namespace's node selector requires another value of label {key}")
            }
        }
    }
}
