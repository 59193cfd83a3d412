//! The operator's limits at admission: a Revision beyond a limit is admitted with a warning; an
//! ImageWarm that a user creates beyond it is denied.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::kubernetes::caches::Stores;
use imagewarm_core::api::{Revision, WARM_KEY};
use imagewarm_core::demand::revision::demand;
use imagewarm_core::policy::Policy;
use imagewarm_core::policy::bounds::Limit;
use imagewarm_core::validation::field_error::{Fault, FieldError};

/// The state of a namespace that the limits depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Whether its label selects it; `None` if the namespace is not cached.
    pub selected: Option<bool>,
    /// Number of its ImageWarms, and of all; `None` if they are not cached yet.
    pub image_warms: Option<(usize, usize)>,
}

/// The limits at admission.
#[derive(Clone)]
pub struct AdmissionBounds {
    policy: Arc<Policy>,
    facts: Arc<dyn Fn(&str) -> NamespaceFacts + Send + Sync>,
}

impl fmt::Debug for AdmissionBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBounds").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl AdmissionBounds {
    /// The limits of `policy`; `facts` returns the state of a namespace.
    pub fn new(
        policy: Arc<Policy>,
        facts: impl Fn(&str) -> NamespaceFacts + Send + Sync + 'static,
    ) -> Self {
        AdmissionBounds { policy, facts: Arc::new(facts) }
    }

    /// The limits of `policy`, with the state of namespaces from the caches.
    pub fn watching(policy: Arc<Policy>, stores: Stores) -> Self {
        let bounds = policy.bounds;
        Self::new(policy, move |name| {
            let cached = stores.namespace(name);
            let is_synced = stores.synced.borrow().own;
            NamespaceFacts {
                selected: cached.map(|cached| bounds.selects(cached.metadata.labels.as_ref())),
                image_warms: is_synced.then(|| stores.image_warms.counts(name)),
            }
        })
    }

    /// Whether a Revision with this many containers is within the limits whatever else it holds, as
    /// nearly all are.
    pub(super) fn always_allow(&self, namespace: &str, containers: usize) -> bool {
        self.policy.bounds.of_images(containers) == containers
            && self.reached((self.facts)(namespace)).is_none()
    }

    fn reached(&self, facts: NamespaceFacts) -> Option<Limit> {
        let (own, all) = facts.image_warms?;
        self.policy.bounds.reached(own, all)
    }

    /// The warning to the user who creates a Revision that is not warmed, or not completely.
    pub(super) fn warning(&self, namespace: &str, revision: &Revision) -> Option<String> {
        let bounds = self.policy.bounds;
        let facts = (self.facts)(namespace);
        if !facts.selected.unwrap_or(bounds.selects_unknown()) {
            return None;
        }
        let demand = demand(revision, false, &self.policy);
        let (warmed, beyond) = (demand.images.len(), demand.beyond_limit);
        if beyond > 0 {
            return Some(format!(
                "imagewarm warms only the first {warmed} of this Revision's {} images \
                 (--max-images-per-revision)",
                warmed + beyond
            ));
        }
        let limit = self.reached(facts).filter(|_| warmed > 0)?;
        Some(format!("imagewarm warms no further images: {limit}"))
    }

    /// Why a user may not create one more ImageWarm in the namespace.
    pub(super) fn violation(&self, namespace: &str) -> Option<FieldError> {
        let facts = (self.facts)(namespace);
        let bounds = self.policy.bounds;
        let detail = if facts.selected == Some(false) && !bounds.selects_unknown() {
            format!(
                "the namespace is not warmed: it must have the label {WARM_KEY}=true \
                 (--namespace-selection opt-in)"
            )
        } else {
            format!("{}: delete some, or request a higher limit", self.reached(facts)?)
        };
        let namespace = Value::from(namespace);
        Some(FieldError::new("metadata.namespace", Fault::Forbidden, &namespace, detail))
    }
}
