//! What every replica watches: one list-and-watch for each type, kept in stores that hold only the
//! fields in use. Says when a list is not to be trusted; draws no conclusions.

mod slim;
mod source;
mod store;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::{broadcast, watch as watch_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use imagewarm_core::api::cached::Shared;
use imagewarm_core::api::{CachedImageWarm, ImageWarm, KnativeImage, Revision};
use imagewarm_core::placement::RuntimeClasses;
use source::{Progress, Source, Watched};

pub use store::Store;

/// Changes that a slow receiver may be behind before it has to look at everything.
const CHANGES_KEPT: usize = 16_384;

/// What every replica watches, slimmed to the fields in use.
#[derive(Clone)]
pub struct Stores {
    /// All ImageWarms.
    pub image_warms: Store<CachedImageWarm>,
    /// All Knative Revisions; empty while Knative's CRDs are absent.
    pub revisions: Store<Revision>,
    /// All Knative Images; empty while Knative's CRDs are absent.
    pub images: Store<KnativeImage>,
    /// All Nodes (labels, taints, unschedulable, conditions; no images).
    pub nodes: Store<Node>,
    /// Metadata of all Namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// All RuntimeClasses (name and scheduling).
    pub runtime_classes: Store<RuntimeClass>,
    /// Says what changed, after the store shows it. A receiver that lags looks at everything.
    pub changes: broadcast::Sender<Change>,
    /// Which stores hold a complete and current list.
    pub synced: watch_channel::Receiver<Synced>,
}

/// One change of a store. What changed only in fields that are not kept is not told.
#[derive(Clone, Debug)]
pub enum Change {
    /// Made or changed.
    ImageWarm(Arc<CachedImageWarm>),
    /// Deleted.
    ImageWarmDeleted(Arc<CachedImageWarm>),
    /// Made, changed or deleted: namespace and name.
    Revision(String, String),
    /// Made, changed or deleted: namespace and name.
    Image(String, String),
    /// Made, changed or deleted: name.
    Node(String),
    /// Made, changed or deleted: name.
    Namespace(String),
    /// Made, changed or deleted: name.
    RuntimeClass(String),
    /// A store was listed anew: look at everything.
    Relisted,
}

/// Which stores hold a complete and current list. False again while a watch cannot be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// ImageWarms, Nodes, Namespaces and RuntimeClasses.
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

impl Stores {
    /// Stores that hold exactly these objects and no RuntimeClass for ever, all synced: for tests.
    pub fn fixed(
        image_warms: Vec<ImageWarm>,
        revisions: Vec<Revision>,
        images: Vec<KnativeImage>,
        nodes: Vec<Node>,
        namespaces: Vec<PartialObjectMeta<Namespace>>,
    ) -> Stores {
        let synced = Synced { own: true, revisions: true, images: true, knative_absent: false };
        Stores {
            image_warms: filled(image_warms),
            revisions: filled(revisions),
            images: filled(images),
            nodes: filled(nodes),
            namespaces: filled(namespaces),
            runtime_classes: Store::default(),
            changes: broadcast::channel(CHANGES_KEPT).0,
            synced: watch_channel::channel(synced).1,
        }
    }

    /// The same with these RuntimeClasses: for tests.
    pub fn with_runtime_classes(self, classes: Vec<RuntimeClass>) -> Stores {
        Stores { runtime_classes: filled(classes), ..self }
    }

    /// What RuntimeClasses add to where Pods may run.
    pub fn runtime_classes(&self) -> RuntimeClasses {
        RuntimeClasses::new(self.runtime_classes.state().iter().map(AsRef::as_ref))
    }

    /// The Namespace of this name.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.get("", name)
    }
}

fn filled<K: Watched>(objects: Vec<K>) -> Store<K::CachedObject> {
    let mut shared = Shared::default();
    objects.into_iter().map(|object| object.keep(&mut shared)).collect()
}

/// Starts all watches; the tasks end after `shutdown`. Returns at once: `Stores::synced` tells when
/// the stores are filled.
pub async fn watch(client: Client, shutdown: CancellationToken) -> (Stores, JoinSet<()>) {
    let (changes, _) = broadcast::channel(CHANGES_KEPT);
    let (progress, synced) = Progress::new();
    let start = Start { client, changes: changes.clone(), progress, shutdown };
    let mut tasks = JoinSet::new();
    let stores = Stores {
        image_warms: start.source::<ImageWarm>(&mut tasks),
        revisions: start.source::<Revision>(&mut tasks),
        images: start.source::<KnativeImage>(&mut tasks),
        nodes: start.source::<Node>(&mut tasks),
        namespaces: start.source::<PartialObjectMeta<Namespace>>(&mut tasks),
        runtime_classes: start.source::<RuntimeClass>(&mut tasks),
        changes,
        synced,
    };
    (stores, tasks)
}

struct Start {
    client: Client,
    changes: broadcast::Sender<Change>,
    progress: Arc<Progress>,
    shutdown: CancellationToken,
}

impl Start {
    fn source<K: Watched>(&self, tasks: &mut JoinSet<()>) -> Store<K::CachedObject> {
        let source = Source::<K>::new(
            Api::all(self.client.clone()),
            self.changes.clone(),
            self.progress.clone(),
        );
        let store = source.store();
        let shutdown = self.shutdown.clone();
        tasks.spawn(async move {
            shutdown.run_until_cancelled(source.run()).await;
        });
        store
    }
}
