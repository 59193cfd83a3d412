//! The operator's settings for the whole cluster.

pub mod bounds;

pub use bounds::Bounds;

/// Settings that planning depends on; the same for admission and repair.
#[derive(Clone, Debug)]
pub struct Policy {
    /// True stops all warming; existing ImageWarms are not changed.
    pub paused: bool,
    /// Registry domains that are never warmed, as Knative skips them.
    pub skipped_registries: Vec<String>,
    /// Keys of taints that do not hold warming back, since they only mark a starting node.
    pub startup_taints: Vec<String>,
    /// Limits of namespaces and Revisions.
    pub bounds: Bounds,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            paused: false,
            skipped_registries: ["dev.local", "kind.local", "ko.local"].map(Into::into).to_vec(),
            startup_taints: vec!["node.kubernetes.io/not-ready".into()],
            bounds: Bounds::default(),
        }
    }
}
