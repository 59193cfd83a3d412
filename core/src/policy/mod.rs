//! The operator's settings for the whole cluster.

pub mod bounds;

pub use bounds::Bounds;

use crate::image::registry_pattern::RegistryPattern;
use crate::image::{ImageRewrites, Reference, ReferenceError};
use crate::placement::NodeSelector;

/// Settings that planning depends on; the same for admission and repair.
#[derive(Clone, Debug)]
pub struct Policy {
    /// True stops all warming; existing ImageWarms are not changed.
    pub paused: bool,
    /// Registries whose images are never warmed, as Knative skips them.
    pub skipped_registries: Vec<RegistryPattern>,
    /// What the cluster makes of images when Pods are admitted.
    pub image_rewrites: ImageRewrites,
    /// Keys of taints that do not hold warming back, since they only mark a starting node.
    pub startup_taints: Vec<String>,
    /// Key of the taint that holds new nodes until they are warm: a further startup taint. `None` without
    /// the node gate.
    pub gate_taint: Option<String>,
    /// The node selector of namespaces that have none of their own.
    pub default_node_selector: NodeSelector,
    /// The namespace of Knative Serving.
    pub knative_namespace: String,
    /// Limits of namespaces and Revisions.
    pub bounds: Bounds,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            paused: false,
            skipped_registries: ["dev.local", "kind.local", "ko.local"]
                .iter()
                .filter_map(|domain| domain.parse().ok())
                .collect(),
            image_rewrites: ImageRewrites::default(),
            startup_taints: vec!["node.kubernetes.io/not-ready".into()],
            gate_taint: None,
            default_node_selector: NodeSelector::default(),
            knative_namespace: "knative-serving".into(),
            bounds: Bounds::default(),
        }
    }
}

impl Policy {
    /// The image that Pods pull where one of this name is demanded.
    pub(crate) fn image(&self, name: &str) -> Result<Reference, ReferenceError> {
        Ok(self.image_rewrites.of(Reference::parse(name)?))
    }
}
