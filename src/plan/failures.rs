//! What goes wrong for a Revision, summed up over its images and nodes: one finding for each
//! Revision and reason, however many nodes there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Policy;
use super::demand::{WantedImage, demand, is_routable};
use crate::api::{ConditionStatus, ImageWarm, Reason, Revision};
use crate::image::Reference;

/// One reason for which images of a Revision are not on its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The Revision.
    pub revision: Arc<Revision>,
    /// The typed reason.
    pub reason: Reason,
    /// Nodes on which an image of the Revision fails for this reason.
    pub failing_nodes: usize,
    /// Nodes that were ordered any image of the Revision.
    pub all_nodes: usize,
    /// What the first of these nodes (by name) says.
    pub message: String,
    /// Some image of the Revision is still on its way to some node.
    pub undecided: bool,
}

impl Failure {
    /// One sentence for people.
    pub fn note(&self) -> String {
        let Failure { reason, failing_nodes, all_nodes, message, .. } = self;
        let head = format!("{reason} on {failing_nodes} of {all_nodes} nodes");
        if message.is_empty() { head } else { format!("{head}: {message}") }
    }
}

/// Sums up the failures of all routable Revisions, ordered by Revision and reason.
pub fn failures(
    image_warms: &[Arc<ImageWarm>],
    revisions: &[Arc<Revision>],
    policy: &Policy,
) -> Vec<Failure> {
    let failing = |warm: &&Arc<ImageWarm>| {
        warm.reason().is_some_and(|reason| reason.ready() == ConditionStatus::False)
    };
    let troubled: BTreeSet<_> = image_warms
        .iter()
        .filter(failing)
        .filter_map(|warm| warm.metadata.namespace.as_deref())
        .collect();
    if troubled.is_empty() {
        return Vec::new();
    }
    let mut parsed: HashMap<&str, Option<Reference>> = HashMap::new();
    let mut by_image = ByImage::new();
    for warm in image_warms {
        let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
        if !troubled.contains(namespace) || warm.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let text = warm.spec.image.as_str();
        let image = parsed.entry(text).or_insert_with(|| Reference::parse(text).ok());
        if let Some(image) = image.clone() {
            by_image.entry((namespace, image)).or_default().push(warm);
        }
    }
    let mut found: Vec<Failure> = revisions
        .iter()
        .filter(|revision| is_routable(revision))
        .flat_map(|revision| of_revision(revision, &by_image, policy))
        .collect();
    found.sort_by_cached_key(|one| {
        let metadata = &one.revision.metadata;
        (metadata.namespace.clone(), metadata.name.clone(), one.reason)
    });
    found
}

type ByImage<'a> = HashMap<(&'a str, Reference), Vec<&'a ImageWarm>>;

fn of_revision(revision: &Arc<Revision>, by_image: &ByImage<'_>, policy: &Policy) -> Vec<Failure> {
    let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
    let mut all: BTreeSet<&str> = BTreeSet::new();
    let mut by_reason: BTreeMap<Reason, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut undecided = false;
    for image in &demand(revision, false, policy).images {
        for (node, warms) in decisive(image, namespace, by_image) {
            all.insert(node);
            let ready = |warm: &&ImageWarm| warm.reason().map(Reason::ready);
            if warms.iter().any(|warm| ready(warm) == Some(ConditionStatus::True)) {
                continue;
            }
            for warm in warms {
                match warm.reason() {
                    Some(Reason::Removed) => {} // heals by itself
                    Some(reason) if reason.ready() == ConditionStatus::False => {
                        let message = warm.ready().map_or("", |ready| ready.message.as_str());
                        by_reason.entry(reason).or_default().entry(node).or_insert(message);
                    }
                    _ => undecided = true,
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

/// The orders that decide about the image, by node: those by digest where there are any, for then
/// it no longer matters what became of the tag.
fn decisive<'a>(
    image: &WantedImage,
    namespace: &str,
    by_image: &ByImage<'a>,
) -> BTreeMap<&'a str, Vec<&'a ImageWarm>> {
    let orders = |name: &Reference| by_image.get(&(namespace, name.clone())).into_iter().flatten();
    let mut by_node: BTreeMap<&str, Vec<&ImageWarm>> = BTreeMap::new();
    for warm in image.resolved.iter().flat_map(orders) {
        by_node.entry(&warm.spec.node_name).or_default().push(warm);
    }
    let by_digest: BTreeSet<&str> = by_node.keys().copied().collect();
    for warm in orders(&image.reference) {
        if !by_digest.contains(warm.spec.node_name.as_str()) {
            by_node.entry(&warm.spec.node_name).or_default().push(warm);
        }
    }
    by_node
}

#[cfg(test)]
mod tests;
