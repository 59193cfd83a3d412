//! Works out whose behalf each ImageWarm stands for, from the Revisions of its namespace, and
//! keeps the answers while nothing that they depend on changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kube::ResourceExt;

use crate::api::ImageWarm;
use crate::cluster::watch::Stores;
use crate::plan::Policy;
use crate::plan::want::{Asking, Standing, asking};

/// `plan::want::standing_among`, or a test's own.
pub(crate) type StandingFn = fn(&ImageWarm, &[Asking], &Policy) -> Standing;

/// What the Revisions of one namespace ask for: read once, for all ImageWarms of the namespace.
type Asked = Arc<Vec<Asking>>;

struct Known {
    asked: Asked,
    warm: Arc<ImageWarm>,
    standing: Standing,
}

pub(crate) struct Standings {
    work_out: StandingFn,
    policy: Policy,
    asked: HashMap<String, Asked>,
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

    /// Sorts the Revisions of all namespaces at once.
    pub(crate) fn group(&mut self, stores: &Stores) {
        let mut groups: HashMap<String, Vec<_>> = HashMap::new();
        for revision in stores.revisions.state() {
            groups.entry(revision.namespace().unwrap_or_default()).or_default().push(revision);
        }
        let policy = &self.policy;
        let ask = |(name, group): (String, Vec<_>)| (name, Arc::new(asking(&group, policy)));
        self.asked = groups.into_iter().map(ask).collect();
    }

    /// Revisions of the namespace changed.
    pub(crate) fn changed(&mut self, namespace: &str) {
        self.asked.remove(namespace);
        self.changed.insert(namespace.to_owned());
    }

    /// Namespaces whose Revisions changed since the last call.
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
                let mut all = stores.revisions.state();
                all.retain(|revision| revision.metadata.namespace.as_deref() == Some(namespace));
                let asked = Arc::new(asking(&all, &self.policy));
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
        let standing = (self.work_out)(warm, &asked, &self.policy);
        let known = Known { asked, warm: warm.clone(), standing: standing.clone() };
        self.known.insert(uid, known);
        standing
    }
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
    use crate::api::{ImageWarmStatus, Progress, Revision};

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
