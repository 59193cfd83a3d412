//! The operator's limits at admission: a Revision beyond a limit is admitted with a warning; an
//! ImageWarm that a user creates beyond it is denied.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::kubernetes::caches::Stores;
use imagewarm_core::api::{Revision, WARM_KEY};
use imagewarm_core::demand::revision::demand;
use imagewarm_core::policy::Policy;
use imagewarm_core::policy::bounds::{Bounds, Limit};
use imagewarm_core::validation::field_error::{Fault, FieldError};

/// The state of namespaces that the limits depend on. Each is asked for on its own, since every review
/// of a Revision needs the number of ImageWarms, and few need more.
pub(super) trait Namespaces: Send + Sync {
    /// Whether the namespace's label selects it; `None` if the namespace is not cached.
    fn is_selected(&self, namespace: &str) -> Option<bool>;
    /// Number of its ImageWarms, and of all; `None` if they are not cached yet.
    fn image_warms(&self, namespace: &str) -> Option<(usize, usize)>;
}

struct CachedNamespaces {
    stores: Stores,
    bounds: Bounds,
}

impl Namespaces for CachedNamespaces {
    fn is_selected(&self, namespace: &str) -> Option<bool> {
        let cached = self.stores.namespace(namespace)?;
        Some(self.bounds.selects(cached.metadata.labels.as_ref()))
    }

    fn image_warms(&self, namespace: &str) -> Option<(usize, usize)> {
        let is_synced = self.stores.synced.borrow().own;
        is_synced.then(|| self.stores.image_warms.counts(namespace))
    }
}

/// The limits at admission.
#[derive(Clone)]
pub struct AdmissionBounds {
    policy: Arc<Policy>,
    namespaces: Arc<dyn Namespaces>,
}

impl fmt::Debug for AdmissionBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionBounds").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl AdmissionBounds {
    /// The limits of `policy`.
    pub(super) fn new(policy: Arc<Policy>, namespaces: impl Namespaces + 'static) -> Self {
        AdmissionBounds { policy, namespaces: Arc::new(namespaces) }
    }

    /// The limits of `policy`, with the state of namespaces from the caches.
    pub fn watching(policy: Arc<Policy>, stores: Stores) -> Self {
        let cached = CachedNamespaces { stores, bounds: policy.bounds };
        Self::new(policy, cached)
    }

    /// Whether a Revision with this many images is within the limits whatever else it holds, as
    /// nearly all are.
    pub(super) fn always_allow(&self, namespace: &str, images: usize) -> bool {
        self.policy.bounds.of_images(images) == images && self.reached(namespace).is_none()
    }

    fn reached(&self, namespace: &str) -> Option<Limit> {
        let (own, all) = self.namespaces.image_warms(namespace)?;
        self.policy.bounds.reached(own, all)
    }

    /// The warning to the user who creates a Revision that is not warmed, or not completely.
    pub(super) fn warning(&self, namespace: &str, revision: &Revision) -> Option<String> {
        let bounds = self.policy.bounds;
        let selected = self.namespaces.is_selected(namespace);
        if !selected.unwrap_or(bounds.selects_unknown()) {
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
        let limit = self.reached(namespace).filter(|_| warmed > 0)?;
        Some(format!("imagewarm warms no further images: {limit}"))
    }

    /// Why a user may not create one more ImageWarm in the namespace.
    pub(super) fn violation(&self, namespace: &str) -> Option<FieldError> {
        let selected = self.namespaces.is_selected(namespace);
        let bounds = self.policy.bounds;
        let detail = if selected == Some(false) && !bounds.selects_unknown() {
            format!(
                "the namespace is not warmed: it must have the label {WARM_KEY}=true \
                 (--namespace-selection opt-in)"
            )
        } else {
            format!("{}: delete some, or request a higher limit", self.reached(namespace)?)
        };
        let namespace = Value::from(namespace);
        Some(FieldError::new("metadata.namespace", Fault::Forbidden, &namespace, detail))
    }
}
