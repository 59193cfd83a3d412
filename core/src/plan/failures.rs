//! The failures of a Revision, aggregated over its images and nodes: one for each Revision and
//! reason, however many nodes there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::existing::{ImageWarmIndex, State};
use crate::api::{CachedImageWarm, ConditionStatus, Reason, Revision};
use crate::demand::consumers::{Consumer, ConsumerDemand};
use crate::demand::revision::WantedImage;

/// One reason for which images of a Revision fail on nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The Revision.
    pub revision: Arc<Revision>,
    /// The typed reason.
    pub reason: Reason,
    /// Nodes on which an image of the Revision fails for this reason; 0, as `all_nodes`, for an image
    /// that is no reference.
    pub failing_nodes: usize,
    /// Nodes with an assignment for any image of the Revision.
    pub all_nodes: usize,
    /// The message of the first of these nodes, by name.
    pub message: String,
    /// Whether the pull of some image on some node still waits or runs.
    pub undecided: bool,
}

impl Failure {
    /// The text of the Event.
    pub fn note(&self) -> String {
        let Failure { reason, failing_nodes, all_nodes, message, .. } = self;
        if *all_nodes == 0 {
            return format!("{reason}: {message}");
        }
        let head = format!("{reason} on {failing_nodes} of {all_nodes} nodes");
        if message.is_empty() { head } else { format!("{head}: {message}") }
    }
}

/// The failures of all routable Revisions, sorted by Revision and reason.
pub fn failures(image_warms: &ImageWarmIndex<'_>, demands: &[ConsumerDemand]) -> Vec<Failure> {
    let failing = |warm: &&Arc<CachedImageWarm>| {
        warm.reason().is_some_and(|reason| reason.ready() == ConditionStatus::False)
    };
    let failing_namespaces: BTreeSet<_> =
        image_warms.all.iter().filter(failing).map(|warm| &*warm.namespace).collect();
    let mut found: Vec<Failure> = Vec::new();
    for one in demands {
        if let Consumer::Revision(revision) = &one.by
            && let Some(message) = one.demand.invalid_images.first()
            && one.is_routable()
        {
            found.push(Failure {
                revision: revision.clone(),
                reason: Reason::InvalidImage,
                failing_nodes: 0,
                all_nodes: 0,
                message: message.clone(),
                undecided: false,
            });
        }
        if let Consumer::Revision(revision) = &one.by
            && let Some(namespace) = failing_namespaces.get(one.by.namespace())
            && one.is_routable()
        {
            found.extend(of_revision(revision, namespace, &one.demand.images, image_warms));
        }
    }
    found.sort_by_cached_key(|one| {
        let metadata = &one.revision.metadata;
        (metadata.namespace.clone(), metadata.name.clone(), one.reason)
    });
    found
}

fn of_revision<'a>(
    revision: &Arc<Revision>,
    namespace: &'a str,
    images: &[WantedImage],
    image_warms: &ImageWarmIndex<'a>,
) -> Vec<Failure> {
    let mut all: BTreeSet<&str> = BTreeSet::new();
    let mut by_reason: BTreeMap<Reason, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut undecided = false;
    for image in images {
        let image_warms = image_warms.of(namespace, image);
        for node in image_warms.nodes() {
            all.insert(node);
            match image_warms.state(node) {
                State::Held => {}
                State::Underway(_) => undecided = true,
                State::Failed(reason, warm) => {
                    let message = warm.ready().map_or("", |ready| ready.message.as_str());
                    by_reason.entry(reason).or_default().entry(node).or_insert(message);
                }
            }
        }
    }
    let failure = |(reason, nodes): (Reason, BTreeMap<&str, &str>)| Failure {
        revision: revision.clone(),
        reason,
        failing_nodes: nodes.len(),
        all_nodes: all.len(),
        message: nodes.values().next().copied().unwrap_or_default().to_owned(),
        undecided,
    };
    by_reason.into_iter().map(failure).collect()
}

#[cfg(test)]
mod tests;
