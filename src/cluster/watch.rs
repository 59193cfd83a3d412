//! STUB, owned by helper 4.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::Store;

use crate::api::{ImageWarm, KnativeImage, Revision};

/// What every replica watches, slimmed to the fields in use.
#[derive(Clone)]
pub struct Stores {
    /// All ImageWarms.
    pub image_warms: Store<ImageWarm>,
    /// All Knative Revisions; empty while Knative's CRDs are absent.
    pub revisions: Store<Revision>,
    /// All Knative Images; empty while Knative's CRDs are absent.
    pub images: Store<KnativeImage>,
    /// All Nodes (labels, taints, unschedulable, conditions; no images).
    pub nodes: Store<Node>,
    /// Metadata of all Namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Says what changed, after the store shows it. A receiver that lags looks at everything.
    pub changes: tokio::sync::broadcast::Sender<Change>,
    /// Which stores hold a complete and current list.
    pub synced: tokio::sync::watch::Receiver<Synced>,
}

/// One change of a store.
#[derive(Clone, Debug)]
pub enum Change {
    /// Made or changed.
    ImageWarm(Arc<ImageWarm>),
    /// Deleted.
    ImageWarmDeleted(Arc<ImageWarm>),
    /// Made, changed or deleted: namespace and name.
    Revision(String, String),
    /// Made, changed or deleted: namespace and name.
    Image(String, String),
    /// Made, changed or deleted: name.
    Node(String),
    /// Made, changed or deleted: name.
    Namespace(String),
    /// A store was listed anew: look at everything.
    Relisted,
}

/// Which stores hold a complete and current list. False again while a watch cannot be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// ImageWarms, Nodes and Namespaces.
    pub own: bool,
    /// Revisions are listed, and their CRD is served.
    pub revisions: bool,
    /// Images are listed, and their CRD is served.
    pub images: bool,
    /// Knative's CRDs were looked for and are absent (counts as filled for readiness only).
    pub knative_absent: bool,
}

impl Synced {
    /// Enough to answer admission requests.
    pub fn ready(self) -> bool {
        self.own && (self.knative_absent || (self.revisions && self.images))
    }
    /// Enough to delete anything.
    pub fn may_delete(self) -> bool {
        self.own && self.revisions && self.images
    }
}
