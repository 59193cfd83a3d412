//! Works out whose behalf each ImageWarm stands for, from the Revisions and Images of its namespace, and
//! keeps the answers while nothing that they depend on changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::api::{ImageWarm, KnativeImage, Revision};
use crate::cluster::watch::Stores;
use crate::plan::want::Standing;
use crate::plan::{Asked, Asking, Policy, asked};

/// `plan::want::standing`, or a test's own.
pub(crate) type StandingFn = fn(&ImageWarm, &[Asking], &Policy) -> Standing;

/// What is asked for in one namespace: read once, for all ImageWarms of the namespace.
type Shared = Arc<Asked>;

struct Known {
    asked: Shared,
    warm: Arc<ImageWarm>,
    standing: Standing,
}

pub(crate) struct Standings {
    work_out: StandingFn,
    policy: Policy,
    asked: HashMap<String, Shared>,
    known: HashMap<String, Known>,
    changed: BTreeSet<String>,
}

impl Standings {
    pub(crate) fn new(work_out: StandingFn, policy: Policy) -> Self {
        Standings {
            work_out,
            policy,
            asked: HashMap::new(),
            known: HashMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.asked.clear();
        self.known.clear();
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
        Arc::new(asked(&revisions, &images, &BTreeSet::new(), &running))
    }

    /// An Image changed: says whether anything here depends on what changed of it. Of its status,
    /// which is ours to write and changes most often, nothing does.
    pub(crate) fn image_changed(&mut self, namespace: &str, name: &str, stores: &Stores) -> bool {
        let key = ObjectRef::<KnativeImage>::new(name).within(namespace);
        let now = stores.images.get(&key);
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

    /// The standing of `warm` now.
    pub(crate) fn of(&mut self, warm: &Arc<ImageWarm>, stores: &Stores) -> Standing {
        let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
        let asked = match self.asked.get(namespace) {
            Some(asked) => asked.clone(),
            None => {
                let (mut revisions, mut images) = (stores.revisions.state(), stores.images.state());
                revisions.retain(|one| one.metadata.namespace.as_deref() == Some(namespace));
                images.retain(|one| one.metadata.namespace.as_deref() == Some(namespace));
                let asked = self.ask(revisions, images);
                self.asked.insert(namespace.to_owned(), asked.clone());
                asked
            }
        };
        let uid = warm.metadata.uid.clone().unwrap_or_default();
        if let Some(known) = self.known.get(&uid)
            && Arc::ptr_eq(&known.asked, &asked)
            && decides_the_same(&known.warm, warm)
        {
            return known.standing.clone();
        }
        let standing = (self.work_out)(warm, &asked.asking, &self.policy);
        let known = Known { asked, warm: warm.clone(), standing: standing.clone() };
        self.known.insert(uid, known);
        standing
    }
}

fn asks_the_same(before: &KnativeImage, now: &KnativeImage) -> bool {
    let (old, new) = (&before.metadata, &now.metadata);
    before.spec == now.spec
        && (&old.uid, &old.labels, &old.annotations, &old.owner_references)
            == (&new.uid, &new.labels, &new.annotations, &new.owner_references)
}

/// Whether all that a standing depends on is as it was. How far a pull is, the commonest change of
/// all, changes none; when its try began and ended may.
fn decides_the_same(old: &ImageWarm, new: &ImageWarm) -> bool {
    let checked = |warm: &ImageWarm| {
        let status = warm.status.as_ref()?;
        let times = (status.started_at.clone(), status.finished_at.clone());
        Some((status.checked_for.clone(), status.digest.clone(), times))
    };
    old.metadata.annotations == new.metadata.annotations
        && old.metadata.labels == new.metadata.labels
        && old.spec == new.spec
        && old.ready().map(|ready| ready.status) == new.ready().map(|ready| ready.status)
        && checked(old) == checked(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;
    use tokio::sync::{broadcast, watch};

    use super::*;
    use crate::api::{ImageWarmStatus, Progress};

    static WORKED_OUT: AtomicUsize = AtomicUsize::new(0);

    fn work_out(_: &ImageWarm, asked: &[Asking], _: &Policy) -> Standing {
        WORKED_OUT.fetch_add(1, Ordering::SeqCst);
        Standing { priority: asked.len() as i64, ..Standing::default() }
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
        let (revisions, mut writer) = store();
        writer.apply_watcher_event(&Event::Apply(revision("one")));
        let stores = Stores {
            image_warms: store().0,
            revisions,
            images: store().0,
            nodes: store().0,
            namespaces: store().0,
            runtime_classes: store().0,
            changes: broadcast::channel(1).0,
            synced: watch::channel(Default::default()).1,
        };
        let mut standings = Standings::new(work_out, Policy::default());
        let mut warm = ImageWarm::default();
        warm.metadata.uid = Some("uid".into());
        warm.metadata.namespace = Some("team".into());
        warm.status = Some(ImageWarmStatus::default());
        let asked_anew = |standings: &mut Standings, warm: &ImageWarm| {
            let before = WORKED_OUT.load(Ordering::SeqCst);
            let standing = standings.of(&Arc::new(warm.clone()), &stores);
            (WORKED_OUT.load(Ordering::SeqCst) - before, standing.priority)
        };
        assert_eq!(asked_anew(&mut standings, &warm), (1, 1));
        assert_eq!(asked_anew(&mut standings, &warm), (0, 1));

        let moved = Progress { downloaded_bytes: 1, total_bytes: 2 };
        warm.status.as_mut().unwrap().progress = Some(moved);
        assert_eq!(asked_anew(&mut standings, &warm), (0, 1), "progress");

        let time = || Some(Time(Timestamp::UNIX_EPOCH));
        let changes: [fn(&mut ImageWarmStatus, Option<Time>); 3] = [
            |status, time| status.started_at = time,
            |status, time| status.finished_at = time,
            |status, _| status.checked_for = Some("token".into()),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            change(warm.status.as_mut().unwrap(), time());
            assert_eq!(asked_anew(&mut standings, &warm), (1, 1), "change {at}");
        }

        writer.apply_watcher_event(&Event::Apply(revision("two")));
        standings.changed("elsewhere");
        assert_eq!(asked_anew(&mut standings, &warm), (0, 1), "another namespace");
        standings.changed("team");
        assert_eq!(asked_anew(&mut standings, &warm), (1, 2));
        assert_eq!(standings.take_changed().len(), 2);
    }
}
