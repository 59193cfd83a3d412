//! What the operator's limits mean for a request: a Revision is warned, never refused; an ImageWarm
//! that a person makes beyond them is denied.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::kubernetes::caches::Stores;
use imagewarm_core::api::{Revision, WARM_KEY};
use imagewarm_core::demand::revision::demand;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::policy::Policy;
use imagewarm_core::validation::field_error::{Fault, FieldError};

/// What is known of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Whether it is warmed, by its label; `None` while nobody has seen it.
    pub selected: Option<bool>,
    /// Its ImageWarms; `None` while that is not known, or not limited.
    pub image_warms: Option<usize>,
}

/// The limits at admission.
#[derive(Clone)]
pub struct AdmissionBounds {
    policy: Arc<Policy>,
    look: Arc<dyn Fn(&str) -> NamespaceFacts + Send + Sync>,
}

impl fmt::Debug for AdmissionBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBounds").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl AdmissionBounds {
    /// The limits of `policy`, with `look` to tell of namespaces.
    pub fn new(
        policy: Arc<Policy>,
        look: impl Fn(&str) -> NamespaceFacts + Send + Sync + 'static,
    ) -> Self {
        AdmissionBounds { policy, look: Arc::new(look) }
    }

    /// With what the watches have seen.
    pub fn watching(policy: Arc<Policy>, stores: Stores) -> Self {
        let bounds = policy.bounds;
        Self::new(policy, move |name| {
            let seen = stores.namespace(name);
            let counts = bounds.image_warms_per_namespace != 0 && stores.synced.borrow().own;
            NamespaceFacts {
                selected: seen.map(|seen| bounds.selects(seen.metadata.labels.as_ref())),
                image_warms: counts.then(|| count(&stores, name)),
            }
        })
    }

    /// Whether a Revision of so many containers is within the limits whatever is in it, as nearly
    /// all are.
    pub(super) fn hold(&self, containers: usize) -> bool {
        let bounds = self.policy.bounds;
        bounds.of_images(containers) == containers && bounds.image_warms_per_namespace == 0
    }

    /// What is not warmed of a Revision that is being made, in words for who deploys it.
    pub(super) fn warning(&self, namespace: &str, revision: &Revision) -> Option<String> {
        let bounds = self.policy.bounds;
        let facts = (self.look)(namespace);
        if !facts.selected.unwrap_or(bounds.selects_unknown()) {
            return None;
        }
        let demand = demand(revision, false, &self.policy);
        let (kept, beyond) = (demand.images.len(), demand.beyond_limit);
        if beyond > 0 {
            return Some(format!(
                "imagewarm warms the first {kept} of this Revision's {} images, and no more of one \
                 Revision (--max-images-per-revision)",
                kept + beyond
            ));
        }
        let full = facts.image_warms.is_some_and(|count| bounds.is_full(count));
        (full && kept > 0).then(|| {
            format!(
                "imagewarm warms no further images in namespace {}: it has {} ImageWarms, \
                 and may have no more (--max-image-warms-per-namespace)",
                quoted(namespace),
                bounds.image_warms_per_namespace
            )
        })
    }

    /// What stands against one more ImageWarm made by hand.
    pub(super) fn objection(&self, namespace: &str) -> Option<FieldError> {
        let facts = (self.look)(namespace);
        let bounds = self.policy.bounds;
        let detail = if facts.selected == Some(false) && !bounds.selects_unknown() {
            format!(
                "this namespace is not warmed: only those labelled {WARM_KEY}=true are \
                 (--namespace-selection opt-in)"
            )
        } else if facts.image_warms.is_some_and(|count| bounds.is_full(count)) {
            format!(
                "this namespace has as many ImageWarms as it may have, {} \
                 (--max-image-warms-per-namespace): delete some, or ask for a higher limit",
                bounds.image_warms_per_namespace
            )
        } else {
            return None;
        };
        let namespace = Value::from(namespace);
        Some(FieldError::new("metadata.namespace", Fault::Forbidden, &namespace, detail))
    }
}

fn count(stores: &Stores, namespace: &str) -> usize {
    let all = stores.image_warms.state();
    all.iter().filter(|warm| &*warm.namespace == namespace).count()
}
