//! Works out whose behalf each ImageWarm stands for, from the Revisions of its namespace, and
//! keeps the answers while nothing that they depend on changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kube::ResourceExt;

use crate::api::{ImageWarm, Revision};
use crate::cluster::watch::Stores;
use crate::plan::Policy;
use crate::plan::want::Standing;

/// `plan::want::standing`, or a test's own.
pub(crate) type StandingFn = fn(&ImageWarm, &[Arc<Revision>], &Policy) -> Standing;

type Revisions = Arc<Vec<Arc<Revision>>>;

struct Known {
    revisions: Revisions,
    warm: Arc<ImageWarm>,
    standing: Standing,
}

pub(crate) struct Standings {
    work_out: StandingFn,
    policy: Policy,
    revisions: HashMap<String, Revisions>,
    known: HashMap<String, Known>,
    changed: BTreeSet<String>,
}

impl Standings {
    pub(crate) fn new(work_out: StandingFn, policy: Policy) -> Self {
        Standings {
            work_out,
            policy,
            revisions: HashMap::new(),
            known: HashMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.revisions.clear();
        self.known.clear();
        self.changed.clear();
    }

    /// Sorts the Revisions of all namespaces at once.
    pub(crate) fn group(&mut self, stores: &Stores) {
        let mut groups: HashMap<String, Vec<Arc<Revision>>> = HashMap::new();
        for revision in stores.revisions.state() {
            groups.entry(revision.namespace().unwrap_or_default()).or_default().push(revision);
        }
        self.revisions = groups.into_iter().map(|(name, group)| (name, Arc::new(group))).collect();
    }

    /// Revisions of the namespace changed.
    pub(crate) fn changed(&mut self, namespace: &str) {
        self.revisions.remove(namespace);
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
        let revisions = match self.revisions.get(namespace) {
            Some(revisions) => revisions.clone(),
            None => {
                let mut all = stores.revisions.state();
                all.retain(|revision| revision.metadata.namespace.as_deref() == Some(namespace));
                let all = Arc::new(all);
                self.revisions.insert(namespace.to_owned(), all.clone());
                all
            }
        };
        let uid = warm.metadata.uid.clone().unwrap_or_default();
        if let Some(known) = self.known.get(&uid)
            && Arc::ptr_eq(&known.revisions, &revisions)
            && decides_the_same(&known.warm, warm)
        {
            return known.standing.clone();
        }
        let standing = (self.work_out)(warm, &revisions, &self.policy);
        let known = Known { revisions, warm: warm.clone(), standing: standing.clone() };
        self.known.insert(uid, known);
        standing
    }
}

/// Progress in a status, the commonest change of all, changes no standing.
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
