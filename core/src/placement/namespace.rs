//! What a Namespace's annotations add to the placement of its Pods. Kubernetes' admission plugins
//! `PodNodeSelector` and `PodTolerationRestriction`, and OpenShift's `OriginPodNodeEnvironment`, add it to
//! each Pod, after the Revision, and reject Pods that contradict it or whose Namespace they cannot read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;

use super::constraints::{PodConstraints, Rejection};
use super::node_selector::{NodeSelector, NodeSelectorError};

/// Annotation of a Namespace that `PodNodeSelector` reads.
pub const NODE_SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// Annotation of a Namespace that OpenShift reads where there is no [`NODE_SELECTOR`].
pub const OPENSHIFT_NODE_SELECTOR: &str = "openshift.io/node-selector";
/// Annotation of a Namespace that `PodTolerationRestriction` reads.
pub const DEFAULT_TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
/// The annotations that are read.
pub const ANNOTATIONS: [&str; 3] = [NODE_SELECTOR, OPENSHIFT_NODE_SELECTOR, DEFAULT_TOLERATIONS];

/// The longest value of an annotation that is read, in bytes.
const LONGEST: usize = 8 * 1024;
/// Stands for a value that is too long: no plugin accepts it either.
const TOO_LONG: &str = "=";

/// What one Namespace adds to the placement of its Pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespaceRules {
    node_selector: BTreeMap<String, String>,
    tolerations: Vec<Toleration>,
    malformed: Option<&'static str>,
}

impl NamespaceRules {
    /// Reads a Namespace's annotations; `default` applies to one without a node selector. An empty
    /// node selector is one: it selects every node.
    pub fn new(annotations: Option<&BTreeMap<String, String>>, default: &NodeSelector) -> Self {
        let value = |key: &str| annotations.and_then(|all| all.get(key)).map(String::as_str);
        let mut rules = NamespaceRules::default();
        let own = [NODE_SELECTOR, OPENSHIFT_NODE_SELECTOR]
            .into_iter()
            .find_map(|key| Some((key, value(key)?)));
        match own.map(|(key, text)| (key, node_selector(key, text))) {
            None => rules.node_selector.clone_from(&default.0),
            Some((_, Ok(selector))) => rules.node_selector = selector.0,
            Some((key, Err(_))) => rules.malformed = Some(key),
        }
        match value(DEFAULT_TOLERATIONS).filter(|text| !text.is_empty()).map(serde_json::from_str) {
            None => {}
            Some(Ok(tolerations)) => rules.tolerations = tolerations,
            Some(Err(_)) => rules.malformed = Some(DEFAULT_TOLERATIONS),
        }
        rules
    }

    /// Whether they add nothing.
    pub fn is_empty(&self) -> bool {
        *self == NamespaceRules::default()
    }

    /// The placement with what the Namespace adds.
    pub fn constrain(&self, mut placement: PodConstraints) -> PodConstraints {
        let contradicts = |(key, value): &(&String, &String)| {
            placement.node_selector.get(*key).is_some_and(|own| own != *value)
        };
        let contradiction = self.node_selector.iter().find(contradicts);
        placement.rejected = match (self.malformed, contradiction) {
            (Some(annotation), _) => Some(Rejection::Malformed(annotation)),
            (None, Some((key, _))) => Some(Rejection::Contradiction(key.clone())),
            (None, None) => None,
        };
        if placement.rejected.is_none() {
            placement.node_selector.extend(self.node_selector.clone());
            placement.tolerations.extend(self.tolerations.iter().cloned());
        }
        placement
    }
}

/// The value of one of the annotations: `PodNodeSelector` takes neither `==` nor mere spaces.
fn node_selector(annotation: &str, text: &str) -> Result<NodeSelector, NodeSelectorError> {
    let is_openshift = text.contains("==") || (text.trim().is_empty() && !text.is_empty());
    if annotation == NODE_SELECTOR && is_openshift {
        return Err(NodeSelectorError);
    }
    text.parse()
}

/// Drops from a Namespace's annotations all that is not read here.
pub fn retain_read(annotations: &mut BTreeMap<String, String>) {
    annotations.retain(|key, value| {
        if value.len() > LONGEST {
            TOO_LONG.clone_into(value);
        }
        ANNOTATIONS.contains(&key.as_str())
    });
}

#[cfg(test)]
mod tests;
