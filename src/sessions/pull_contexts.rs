//! Works out whose behalf each ImageWarm stands for, from the Revisions and Images of its namespace, and
//! keeps the answers while nothing that they depend on changes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kube::ResourceExt;

use crate::kubernetes::caches::Stores;
use imagewarm_core::api::cached::Pool;
use imagewarm_core::api::{CachedImageWarm, KnativeImage, Revision};
use imagewarm_core::demand::consumers::{ConsumerDemand, Demands, demands};
use imagewarm_core::demand::pull_context::PullContext;
use imagewarm_core::policy::Policy;

/// `plan::want::pull_context`, or a test's own.
pub(crate) type PullContextFn = fn(&CachedImageWarm, &[ConsumerDemand], &Policy) -> PullContext;

/// What is asked for in one namespace: read once, for all ImageWarms of the namespace.
type Shared = Arc<Demands>;

struct Known {
    asked: Shared,
    decisive: u64,
    pull_context: Arc<PullContext>,
}

pub(crate) struct PullContexts {
    work_out: PullContextFn,
    policy: Policy,
    asked: HashMap<String, Shared>,
    known: HashMap<Arc<str>, Known>,
    /// Each once: the ImageWarms of one Revision have the same.
    pull_contexts: Pool<PullContext>,
    changed: BTreeSet<String>,
}

impl PullContexts {
    pub(crate) fn new(work_out: PullContextFn, policy: Policy) -> Self {
        PullContexts {
            work_out,
            policy,
            asked: HashMap::new(),
            known: HashMap::new(),
            pull_contexts: Pool::default(),
            changed: BTreeSet::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.asked.clear();
        self.known = HashMap::new();
        self.pull_contexts = Pool::default();
        self.changed.clear();
    }

    /// Sorts what is asked for in all namespaces at once.
    pub(crate) fn group(&mut self, stores: &Stores) {
        let mut groups: HashMap<String, (Vec<_>, Vec<_>)> = HashMap::new();
        for revision in stores.revisions.state() {
            groups.entry(revision.namespace().unwrap_or_default()).or_default().0.push(revision);
        }
        for image in stores.images.state() {
            groups.entry(image.namespace().unwrap_or_default()).or_default().1.push(image);
        }
        let ask = |(name, (revisions, images))| (name, self.ask(revisions, images));
        self.asked = groups.into_iter().map(ask).collect();
    }

    /// While paused, and in namespaces that were opted out since, they still stand for what exists.
    fn ask(&self, revisions: Vec<Arc<Revision>>, images: Vec<Arc<KnativeImage>>) -> Shared {
        let running = Policy { paused: false, ..self.policy.clone() };
        Arc::new(demands(&revisions, &images, &BTreeSet::new(), &running))
    }

    /// An Image changed: says whether anything here depends on what changed of it. Of its status,
    /// which is ours to write and changes most often, nothing does.
    pub(crate) fn image_changed(&mut self, namespace: &str, name: &str, stores: &Stores) -> bool {
        let now = stores.images.get(namespace, name);
        let before = self.asked.get(namespace).and_then(|asked| {
            let mut images = asked.images.iter().map(|(image, _)| image);
            images.find(|image| image.metadata.name.as_deref() == Some(name))
        });
        let same = match (before, &now) {
            (Some(before), Some(now)) => asks_the_same(before, now),
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
        self.asked.remove(namespace);
        self.changed.insert(namespace.to_owned());
    }

    /// Namespaces whose Revisions or Images changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// The ImageWarm is gone.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.known.remove(uid);
    }

    /// The pull_context of `warm` now.
    pub(crate) fn of(&mut self, warm: &CachedImageWarm, stores: &Stores) -> Arc<PullContext> {
        let asked = match self.asked.get(&*warm.namespace) {
            Some(asked) => asked.clone(),
            None => {
                let namespace = &*warm.namespace;
                let (mut revisions, mut images) = (stores.revisions.state(), stores.images.state());
                revisions.retain(|one| one.metadata.namespace.as_deref() == Some(namespace));
                images.retain(|one| one.metadata.namespace.as_deref() == Some(namespace));
                let asked = self.ask(revisions, images);
                self.asked.insert(namespace.to_owned(), asked.clone());
                asked
            }
        };
        let decisive = decisive(warm);
        if let Some(known) = self.known.get(&warm.uid)
            && Arc::ptr_eq(&known.asked, &asked)
            && known.decisive == decisive
        {
            return known.pull_context.clone();
        }
        let pull_context =
            self.pull_contexts.share((self.work_out)(warm, &asked.consumers, &self.policy));
        let known = Known { asked, decisive, pull_context: pull_context.clone() };
        self.known.insert(warm.uid.clone(), known);
        pull_context
    }
}

fn asks_the_same(before: &KnativeImage, now: &KnativeImage) -> bool {
    let (old, new) = (&before.metadata, &now.metadata);
    before.spec == now.spec
        && (&old.uid, &old.labels, &old.annotations, &old.owner_references)
            == (&new.uid, &new.labels, &new.annotations, &new.owner_references)
}

/// Stands for all of an ImageWarm that its pull_context depends on. How far a pull is, the commonest
/// change of all, changes none; when its try began and ended may.
fn decisive(warm: &CachedImageWarm) -> u64 {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use imagewarm_core::api::Progress;
    use imagewarm_core::api::cached::CachedStatus;

    static WORKED_OUT: AtomicUsize = AtomicUsize::new(0);

    fn work_out(_: &CachedImageWarm, asked: &[ConsumerDemand], _: &Policy) -> PullContext {
        WORKED_OUT.fetch_add(1, Ordering::SeqCst);
        PullContext { priority: asked.len() as i64, ..PullContext::default() }
    }

    fn revision(name: &str) -> Revision {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"containers": [{"image": "r.test/app:v1"}]},
        }))
        .unwrap()
    }

    #[test]
    fn an_answer_is_kept_until_something_that_it_depends_on_changes() {
        let with = |revisions| Stores::fixed(vec![], revisions, vec![], vec![], vec![]);
        let stores = with(vec![revision("one")]);
        let mut pull_contexts = PullContexts::new(work_out, Policy::default());
        let mut warm = CachedImageWarm {
            uid: "uid".into(),
            namespace: "team".into(),
            status: Some(CachedStatus::default()),
            ..CachedImageWarm::default()
        };
        let asked_anew =
            |pull_contexts: &mut PullContexts, warm: &CachedImageWarm, stores: &Stores| {
                let before = WORKED_OUT.load(Ordering::SeqCst);
                let pull_context = pull_contexts.of(warm, stores);
                (WORKED_OUT.load(Ordering::SeqCst) - before, pull_context.priority)
            };
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (1, 1));
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (0, 1));

        let moved = Progress { downloaded_bytes: 1, total_bytes: 2 };
        warm.status.as_mut().unwrap().progress = Some(moved);
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (0, 1), "progress");

        let changes: [fn(&mut CachedStatus); 4] = [
            |status| status.started_at = Some(Timestamp::UNIX_EPOCH),
            |status| status.finished_at = Some(Timestamp::UNIX_EPOCH),
            |status| status.checked_for = Some("token".into()),
            |status| status.digest = Some("sha256:1".into()),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            change(warm.status.as_mut().unwrap());
            assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (1, 1), "change {at}");
        }
        Arc::make_mut(&mut warm.common).annotations.insert("k".into(), "v".into());
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (1, 1), "an annotation");

        let stores = with(vec![revision("one"), revision("two")]);
        pull_contexts.changed("elsewhere");
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (0, 1), "another namespace");
        pull_contexts.changed("team");
        assert_eq!(asked_anew(&mut pull_contexts, &warm, &stores), (1, 2));
        assert_eq!(pull_contexts.take_changed().len(), 2);
    }
}
