//! The caches of every replica: one list-and-watch for each type, into stores that hold only the
//! fields in use. Reports when a cache is not complete and current; decides nothing.
//!
//! Own code rather than `kube::runtime::reflector`: that holds each object as it was sent, behind a
//! key of three strings, and does not tell an absent type from an empty one, nor a stale cache from a
//! current one, before something is deleted on its account. `cargo xtask bench memory` prints
//! the bytes for each ImageWarm.

mod slim;
mod source;
mod store;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::{broadcast, watch as watch_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use imagewarm_core::api::deployment_config::DEPLOYMENT_CONFIG;
use imagewarm_core::api::{CachedImageWarm, DeploymentConfig, ImageWarm, KnativeImage, Revision};
use imagewarm_core::placement::RuntimeClasses;
use source::{Progress, Source, Watched};

pub(crate) use store::Store;

/// Number of changes that a receiver may lag behind before it has to resynchronise.
const CHANGES_CAPACITY: usize = 16_384;

/// The watched objects, reduced to the fields in use.
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
    /// Knative's ConfigMap `config-deployment`; empty where it is absent, or may not be read.
    pub deployment_config: Store<DeploymentConfig>,
    /// Metadata of all Namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// All RuntimeClasses (name, handler and scheduling).
    pub runtime_classes: Store<RuntimeClass>,
    /// Changes, sent after the store holds them. A receiver that lags resynchronises.
    pub changes: broadcast::Sender<Change>,
    /// Which stores hold a complete and current list.
    pub synced: watch_channel::Receiver<Synced>,
}

/// One change of a store. Changes of fields that are not cached are not sent.
#[derive(Clone, Debug)]
pub enum Change {
    /// Created or changed.
    ImageWarm(Arc<CachedImageWarm>),
    /// Deleted.
    ImageWarmDeleted(Arc<CachedImageWarm>),
    /// Created, changed or deleted: namespace and name.
    Revision(String, String),
    /// Created, changed or deleted: namespace and name.
    Image(String, String),
    /// Created, changed or deleted: name.
    Node(String),
    /// Created, changed or deleted: name.
    Namespace(String),
    /// Created, changed or deleted: name.
    RuntimeClass(String),
    /// Knative's ConfigMap was created, changed or deleted.
    DeploymentConfig,
    /// A store was relisted: receivers resynchronise.
    Relisted,
}

/// Which stores hold a complete and current list; false again while a watch cannot be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// ImageWarms, Nodes, Namespaces and RuntimeClasses; and whether there is Knative's ConfigMap is known.
    pub own: bool,
    /// Revisions are listed, and their CRD is served.
    pub revisions: bool,
    /// Images are listed, and their CRD is served.
    pub images: bool,
    /// Knative's CRDs are not installed (counts as filled for readiness only).
    pub knative_absent: bool,
}

impl Synced {
    /// Whether the caches suffice for admission requests.
    pub fn ready(self) -> bool {
        self.own && (self.knative_absent || (self.revisions && self.images))
    }
    /// Whether the caches suffice for deletions.
    pub fn may_delete(self) -> bool {
        self.own && self.revisions && self.images
    }
}

#[cfg(test)]
impl Stores {
    /// Synced stores that hold exactly these objects, and no RuntimeClass.
    pub(crate) fn fixed(
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
            deployment_config: Store::default(),
            changes: broadcast::channel(CHANGES_CAPACITY).0,
            synced: watch_channel::channel(synced).1,
        }
    }

    /// The same with these RuntimeClasses.
    pub(crate) fn with_runtime_classes(self, classes: Vec<RuntimeClass>) -> Stores {
        Stores { runtime_classes: filled(classes), ..self }
    }

    /// The same with this ConfigMap of Knative's.
    pub(crate) fn with_deployment_config(self, config: ConfigMap) -> Stores {
        Stores { deployment_config: filled(vec![config]), ..self }
    }
}

impl Stores {
    /// All RuntimeClasses.
    pub fn runtime_classes(&self) -> RuntimeClasses {
        RuntimeClasses::new(self.runtime_classes.state().iter().map(AsRef::as_ref))
    }

    /// Knative's ConfigMap.
    pub fn deployment_config(&self) -> Option<Arc<DeploymentConfig>> {
        self.deployment_config.state().into_iter().next()
    }

    /// The Namespace of this name.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.get("", name)
    }
}

#[cfg(test)]
fn filled<K: Watched>(objects: Vec<K>) -> Store<K::CachedObject> {
    let mut shared = imagewarm_core::api::cached::Shared::default();
    objects.into_iter().map(|object| object.into_cached(&mut shared)).collect()
}

/// Starts all watches; the tasks stop after `shutdown`. Returns at once: `Stores::synced` reports
/// when the stores are filled.
pub(crate) async fn watch(
    client: Client,
    knative_namespace: &str,
    shutdown: CancellationToken,
) -> (Stores, JoinSet<()>) {
    let (changes, _) = broadcast::channel(CHANGES_CAPACITY);
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
        deployment_config: start.one(knative_namespace, DEPLOYMENT_CONFIG, &mut tasks),
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
    /// All objects of a type.
    fn source<K: Watched>(&self, tasks: &mut JoinSet<()>) -> Store<K::CachedObject> {
        self.run::<K>(Api::all(self.client.clone()), None, tasks)
    }

    /// One ConfigMap.
    fn one(&self, namespace: &str, name: &str, tasks: &mut JoinSet<()>) -> Store<DeploymentConfig> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        self.run(api, Some(format!("metadata.name={name}")), tasks)
    }

    fn run<K: Watched>(
        &self,
        api: Api<K>,
        fields: Option<String>,
        tasks: &mut JoinSet<()>,
    ) -> Store<K::CachedObject> {
        let source = Source::<K>::new(api, fields, self.changes.clone(), self.progress.clone());
        let store = source.store();
        let shutdown = self.shutdown.clone();
        tasks.spawn(async move {
            shutdown.run_until_cancelled(source.run()).await;
        });
        store
    }
}
