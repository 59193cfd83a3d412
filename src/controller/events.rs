//! Events for people who ask `kubectl describe revision`: one for each Revision and failing
//! reason, however many nodes fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Controller;
use crate::api::{ImageWarm, Reason};
use crate::cluster::apply;
use crate::plan::diff::Observed;
use crate::plan::{demand, rollup};

/// Which (Revision uid, reason) an Event was written for in this term of leadership. The Event's
/// own name is made of the same two, so that a new leader writes none twice.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeSet<(String, Reason)>);

/// Writes the Events that are due.
pub(super) async fn tell(controller: &Controller, observed: &Observed, told: &mut Told) {
    let mut by_namespace: BTreeMap<&str, Vec<Arc<ImageWarm>>> = BTreeMap::new();
    for warm in &observed.image_warms {
        if warm.reason().is_some_and(|reason| is_told(reason))
            && let Some(namespace) = warm.metadata.namespace.as_deref()
        {
            by_namespace.entry(namespace).or_default();
        }
    }
    if by_namespace.is_empty() {
        told.0.clear();
        return;
    }
    for warm in &observed.image_warms {
        let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(warms) = by_namespace.get_mut(namespace) {
            warms.push(warm.clone());
        }
    }
    let mut failing = BTreeSet::new();
    for revision in &observed.revisions {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let (Some(warms), Some(uid)) = (by_namespace.get(namespace), &revision.metadata.uid) else {
            continue;
        };
        let opted_out = observed.opted_out_namespaces.contains(namespace);
        let demand = demand::demand(revision, opted_out, &controller.policy);
        for failure in rollup::failures(&demand, warms) {
            if !is_told(failure.reason) {
                continue;
            }
            let key = (uid.clone(), failure.reason);
            failing.insert(key.clone());
            if told.0.contains(&key) {
                continue;
            }
            let note = format!(
                "{} on {} of {} nodes: {}",
                failure.reason, failure.failed_nodes, failure.total_nodes, failure.message
            );
            match apply::publish_event(&controller.client, revision, failure.reason, &note).await {
                Ok(()) => {
                    told.0.insert(key);
                }
                Err(error) => tracing::debug!(%error, "could not write an Event"),
            }
        }
    }
    // What has healed may be told again when it comes back.
    told.0.retain(|key| failing.contains(key));
}

/// Whether people should hear of it: not of what heals by itself within moments.
fn is_told(reason: Reason) -> bool {
    use crate::api::ConditionStatus;
    reason.ready() == ConditionStatus::False && !matches!(reason, Reason::Removed | Reason::NodeGone)
}
