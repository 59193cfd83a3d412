//! The pull context of each ImageWarm: on behalf of which Revisions and Images of its namespace it
//! is pulled. Cached until something that it depends on changes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kube::ResourceExt;

use crate::kubernetes::caches::Stores;
use imagewarm_core::api::cached::Pool;
use imagewarm_core::api::names::Uid;
use imagewarm_core::api::{CachedImageWarm, KnativeImage, Revision};
use imagewarm_core::demand::Cluster;
use imagewarm_core::demand::consumers::{Consumer, ConsumerDemand, Demands, demands_in};
use imagewarm_core::demand::pull_context::{PullContext, RuntimeHandlers, pull_context};
use imagewarm_core::image::Reference;
use imagewarm_core::policy::Policy;

/// The demands of one namespace, computed once for all of its ImageWarms.
type Shared = Arc<Demands>;

struct Cached {
    demands: Shared,
    fingerprint: u64,
    pull_context: Arc<PullContext>,
}

pub(crate) struct PullContexts {
    policy: Policy,
    /// The settings of Knative; no namespace counts as opted out.
    cluster: Cluster,
    handlers: RuntimeHandlers,
    /// By namespace: the runtime handlers of its Revisions, where there are others than the default.
    handlers_in: BTreeMap<String, BTreeSet<String>>,
    /// By namespace.
    demands: HashMap<String, Shared>,
    /// By uid.
    cache: HashMap<Uid, Cached>,
    /// Each stored once: the ImageWarms of one Revision share it.
    pull_contexts: Pool<PullContext>,
    changed: BTreeSet<String>,
}

impl PullContexts {
    pub(crate) fn new(policy: Policy) -> Self {
        PullContexts {
            policy,
            cluster: Cluster::default(),
            handlers: RuntimeHandlers::default(),
            handlers_in: BTreeMap::new(),
            demands: HashMap::new(),
            cache: HashMap::new(),
            pull_contexts: Pool::default(),
            changed: BTreeSet::new(),
        }
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        self.demands.clear();
        self.handlers_in.clear();
        self.cache = HashMap::new();
        self.pull_contexts = Pool::default();
        self.changed.clear();
    }

    /// Reads the cluster's settings, and computes the demands of all namespaces at once.
    pub(crate) fn group(&mut self, stores: &Stores) {
        self.cluster = Cluster::new(&self.policy, stores.deployment_config());
        self.handlers.classes = stores.runtime_classes();
        let mut groups: HashMap<String, (Vec<_>, Vec<_>)> = HashMap::new();
        for revision in stores.revisions.state() {
            groups.entry(revision.namespace().unwrap_or_default()).or_default().0.push(revision);
        }
        for image in stores.images.state() {
            groups.entry(image.namespace().unwrap_or_default()).or_default().1.push(image);
        }
        for (namespace, (revisions, images)) in groups {
            self.compute(&namespace, &revisions, &images);
        }
        self.handlers.of_every_revision = self.handlers_in.values().flatten().cloned().collect();
    }

    /// Ignores a pause and namespaces that have opted out: ImageWarms that exist keep their
    /// context.
    fn compute(
        &mut self,
        namespace: &str,
        revisions: &[Arc<Revision>],
        images: &[Arc<KnativeImage>],
    ) -> Shared {
        let running = Policy { paused: false, ..self.policy.clone() };
        let demands =
            demands_in(|name| name == namespace, revisions, images, &self.cluster, &running);
        let starting = demands.consumers.iter().filter(|one| one.starts_pods());
        let handlers = starting.filter_map(|one| self.handlers.of(one));
        let handlers: BTreeSet<String> =
            handlers.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if handlers.is_empty() {
            self.handlers_in.remove(namespace);
        } else {
            self.handlers_in.insert(namespace.to_owned(), handlers);
        }
        let demands = Arc::new(demands);
        self.demands.insert(namespace.to_owned(), demands.clone());
        demands
    }

    /// The demands of a namespace, computed when they are not known.
    fn demands_in(&mut self, namespace: &str, stores: &Stores) -> Shared {
        if let Some(demands) = self.demands.get(namespace) {
            return demands.clone();
        }
        let revisions = stores.revisions.in_namespaces([namespace]);
        let images = stores.images.in_namespaces([namespace]);
        self.compute(namespace, &revisions, &images)
    }

    /// Handles a change of an Image. Returns whether a pull context may depend on it. None depends
    /// on the status, which imagewarm itself writes and which changes most often.
    pub(crate) fn image_changed(&mut self, namespace: &str, name: &str, stores: &Stores) -> bool {
        let now = stores.images.get(namespace, name);
        let before = self.demands.get(namespace).and_then(|demands| {
            let mut images = demands.images.iter().map(|(image, _)| image);
            images.find(|image| image.metadata.name.as_deref() == Some(name))
        });
        let same = match (before, &now) {
            (Some(before), Some(now)) => demands_the_same(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.changed(namespace);
        }
        !same
    }

    /// Revisions or Images of the namespace changed.
    pub(crate) fn changed(&mut self, namespace: &str) {
        self.demands.remove(namespace);
        self.changed.insert(namespace.to_owned());
    }

    /// Namespaces whose pull contexts may have changed since the last call: Revisions or Images of theirs did, or
    /// the runtime handlers of Revisions anywhere.
    pub(crate) fn take_changed(&mut self, stores: &Stores) -> BTreeSet<String> {
        let mut changed = std::mem::take(&mut self.changed);
        for namespace in &changed {
            self.demands_in(namespace, stores);
        }
        let handlers: BTreeSet<String> = self.handlers_in.values().flatten().cloned().collect();
        if handlers != self.handlers.of_every_revision {
            self.handlers.of_every_revision = handlers;
            let knative = self.policy.knative_namespace.to_string();
            self.demands.remove(&knative);
            changed.insert(knative);
        }
        changed
    }

    /// The images of a Revision's containers; none where there is no such Revision.
    pub(crate) fn images_of(
        &mut self,
        namespace: &str,
        revision: &str,
        stores: &Stores,
    ) -> Vec<Reference> {
        if stores.revisions.get(namespace, revision).is_none() {
            return Vec::new();
        }
        let demands = self.demands_in(namespace, stores);
        let is_it = |one: &&ConsumerDemand| {
            matches!(one.by, Consumer::Revision(_))
                && one.by.metadata().name.as_deref() == Some(revision)
        };
        let images = demands.consumers.iter().find(is_it).map(|one| one.demand.images.as_slice());
        let images = images.unwrap_or_default().iter();
        images.map(|image| image.reference.clone()).collect()
    }

    /// Drops a deleted ImageWarm.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.cache.remove(uid);
    }

    /// The current pull context of `warm`.
    pub(crate) fn of(&mut self, warm: &CachedImageWarm, stores: &Stores) -> Arc<PullContext> {
        let demands = self.demands_in(&warm.namespace, stores);
        let fingerprint = fingerprint(warm);
        if let Some(cached) = self.cache.get(&warm.uid)
            && Arc::ptr_eq(&cached.demands, &demands)
            && cached.fingerprint == fingerprint
        {
            return cached.pull_context.clone();
        }
        let computed = pull_context(warm, &demands.consumers, &self.handlers, &self.policy);
        let pull_context = self.pull_contexts.share(computed);
        #[cfg(test)]
        tests::COMPUTED.with(|computed| computed.set(computed.get() + 1));
        let cached = Cached { demands, fingerprint, pull_context: pull_context.clone() };
        self.cache.insert(warm.uid.clone(), cached);
        pull_context
    }
}

fn demands_the_same(before: &KnativeImage, now: &KnativeImage) -> bool {
    let (old, new) = (&before.metadata, &now.metadata);
    before.spec == now.spec
        && (&old.uid, &old.labels, &old.annotations, &old.owner_references)
            == (&new.uid, &new.labels, &new.annotations, &new.owner_references)
}

/// A hash of everything in an ImageWarm that its pull context may depend on: the start and the end
/// of an attempt, but not the progress of a pull, which is by far the most frequent change.
fn fingerprint(warm: &CachedImageWarm) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&warm.image, &warm.node_name, &warm.common).hash(&mut hasher);
    warm.ready().map(|ready| ready.status as u8).hash(&mut hasher);
    if let Some(status) = &warm.status {
        let times = [status.started_at, status.finished_at];
        let times = times.map(|time| time.map(|time| time.as_nanosecond()));
        (&status.checked_for, &status.digest, times).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use k8s_openapi::api::node::v1::RuntimeClass;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use imagewarm_core::api::Progress;
    use imagewarm_core::api::cached::CachedStatus;

    thread_local! {
        /// How many pull contexts this test's thread has computed.
        pub(super) static COMPUTED: Cell<usize> = const { Cell::new(0) };
    }

    /// A Revision that was created at this second.
    fn revision(name: &str, created: i64) -> Revision {
        let created = Timestamp::from_second(created).unwrap();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "team", "creationTimestamp": created},
            "spec": {"containers": [{"image": "r.test/app:v1"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pull_context_is_cached_until_something_that_it_depends_on_changes() {
        let with = |revisions| Stores::fixed(vec![], revisions, vec![], vec![], vec![]);
        let stores = with(vec![revision("one", 1)]);
        let mut pull_contexts = PullContexts::new(Policy::default());
        let mut warm = CachedImageWarm {
            uid: "uid".into(),
            namespace: "team".into(),
            image: "r.test/app:v1".into(),
            status: Some(CachedStatus::default()),
            ..CachedImageWarm::default()
        };
        let computed =
            |pull_contexts: &mut PullContexts, warm: &CachedImageWarm, stores: &Stores| {
                let before = COMPUTED.get();
                let pull_context = pull_contexts.of(warm, stores);
                (COMPUTED.get() - before, pull_context.priority)
            };
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (1, 1));
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (0, 1));

        let moved = Progress { downloaded_bytes: 1, total_bytes: 2 };
        warm.status.as_mut().unwrap().progress = Some(moved);
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (0, 1), "progress");

        let changes: [fn(&mut CachedStatus); 4] = [
            |status| status.started_at = Some(Timestamp::UNIX_EPOCH),
            |status| status.finished_at = Some(Timestamp::UNIX_EPOCH),
            |status| status.checked_for = Some("token".into()),
            |status| status.digest = Some("sha256:1".into()),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            change(warm.status.as_mut().unwrap());
            assert_eq!(computed(&mut pull_contexts, &warm, &stores), (1, 1), "change {at}");
        }
        Arc::make_mut(&mut warm.common).annotations.insert("k".into(), "v".into());
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (1, 1), "an annotation");

        let stores = with(vec![revision("one", 1), revision("two", 2)]);
        pull_contexts.changed("elsewhere");
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (0, 1), "another namespace");
        pull_contexts.changed("team");
        assert_eq!(computed(&mut pull_contexts, &warm, &stores), (1, 2));
        assert_eq!(pull_contexts.take_changed(&stores).len(), 2);
    }

    #[test]
    fn the_handlers_of_revisions_anywhere_are_those_of_the_queue_proxy() {
        let class = |name: &str, handler: &str| RuntimeClass {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            handler: handler.into(),
            ..RuntimeClass::default()
        };
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "config-deployment", "namespace": "knative-serving"},
            "data": {
                "queue-sidecar-image": "r.test/queue:v1",
                "runtime-class-name": "sandboxed:\n  selector:\n    isolated: \"yes\"\n",
            },
        });
        let with = |revisions| {
            Stores::fixed(vec![], revisions, vec![], vec![], vec![])
                .with_runtime_classes(vec![class("sandboxed", "kata"), class("named", "gvisor")])
                .with_deployment_config(serde_json::from_value(config.clone()).unwrap())
        };
        let warm = |namespace: &str, image: &str| CachedImageWarm {
            uid: image.into(),
            namespace: namespace.into(),
            image: image.into(),
            ..CachedImageWarm::default()
        };
        let (app, queue) =
            (warm("team", "r.test/app:v1"), warm("knative-serving", "r.test/queue:v1"));
        let mut pull_contexts = PullContexts::new(Policy::default());
        let handlers =
            |pull_contexts: &mut PullContexts, warm: &CachedImageWarm, stores: &Stores| {
                let pull_context = pull_contexts.of(warm, stores);
                pull_context.runtime_handlers.iter().cloned().collect::<Vec<_>>()
            };

        let stores = with(vec![revision("one", 1)]);
        pull_contexts.group(&stores);
        assert_eq!(handlers(&mut pull_contexts, &app, &stores), [""; 0]);
        assert_eq!(handlers(&mut pull_contexts, &queue, &stores), [""; 0]);

        // Knative chooses the RuntimeClass by the Revision's labels, unless the Revision names one.
        let mut labelled = revision("two", 2);
        labelled.metadata.labels = Some([("isolated".to_owned(), "yes".to_owned())].into());
        let mut named = revision("three", 3);
        named.spec.runtime_class_name = Some("named".into());
        let stores = with(vec![labelled.clone(), named]);
        pull_contexts.changed("team");
        let changed: Vec<_> = pull_contexts.take_changed(&stores).into_iter().collect();
        assert_eq!(changed, ["knative-serving", "team"]);
        assert_eq!(handlers(&mut pull_contexts, &app, &stores), ["gvisor", "kata"]);
        assert_eq!(handlers(&mut pull_contexts, &queue, &stores), ["", "gvisor", "kata"]);

        let stores = with(vec![labelled, revision("four", 4)]);
        pull_contexts.changed("team");
        pull_contexts.take_changed(&stores);
        assert_eq!(handlers(&mut pull_contexts, &app, &stores), ["", "kata"]);
        assert_eq!(handlers(&mut pull_contexts, &queue, &stores), ["", "kata"]);
    }
}
