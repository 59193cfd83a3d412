//! The existing ImageWarms, indexed by image and node, and the state of an image on a node.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::Repair;
use crate::api::{CachedImageWarm, ConditionStatus, Reason};
use crate::demand::revision::WantedImage;
use crate::image::Reference;

/// The ImageWarms of one image.
#[derive(Debug, Default)]
struct OnNodes<'a> {
    /// Sorted by node. May contain hand-made ones beside ours.
    by_node: Vec<&'a CachedImageWarm>,
    /// Creation of the newest.
    newest: Option<Timestamp>,
}

impl<'a> OnNodes<'a> {
    fn on(&self, node: &str) -> &[&'a CachedImageWarm] {
        let from = self.by_node.partition_point(|warm| &*warm.node_name < node);
        let rest = &self.by_node[from..];
        &rest[..rest.partition_point(|warm| &*warm.node_name == node)]
    }
}

/// Whether the ImageWarm is older than its node, whose creation is in seconds since 1970: it is for one of the same
/// name before. Both times are the API server's.
pub(super) fn is_older_than_node(warm: &CachedImageWarm, node_created: Option<i64>) -> bool {
    let created = warm.created.map(|at| at.as_second());
    created.is_some() && created < node_created
}

/// All ImageWarms, and by namespace and image those that are not being deleted.
#[derive(Debug)]
pub struct ImageWarmIndex<'a> {
    pub(super) all: &'a [Arc<CachedImageWarm>],
    by_image: HashMap<(&'a str, Reference), OnNodes<'a>>,
}

impl<'a> ImageWarmIndex<'a> {
    /// Builds the index.
    pub fn new(all: &'a [Arc<CachedImageWarm>]) -> Self {
        let mut parsed: HashMap<&str, Option<Reference>> = HashMap::new();
        let mut by_image: HashMap<(&str, Reference), OnNodes<'a>> = HashMap::new();
        for warm in all.iter().filter(|warm| !warm.is_terminating()) {
            let text = &*warm.image;
            let image = parsed.entry(text).or_insert_with(|| Reference::parse(text).ok());
            let Some(image) = image.clone() else { continue };
            let key = (&*warm.namespace, image);
            let on_nodes = by_image.entry(key).or_default();
            on_nodes.by_node.push(warm);
            on_nodes.newest = on_nodes.newest.max(warm.created);
        }
        for on_nodes in by_image.values_mut() {
            on_nodes
                .by_node
                .sort_unstable_by(|a, b| (&a.node_name, &a.name).cmp(&(&b.node_name, &b.name)));
        }
        ImageWarmIndex { all, by_image }
    }

    /// Whether there is an ImageWarm for exactly this image on the node.
    pub(super) fn is_on(&self, namespace: &str, image: &Reference, node: &str) -> bool {
        let found = self.by_image.get(&(namespace, image.clone()));
        found.is_some_and(|image_warms| !image_warms.on(node).is_empty())
    }

    /// The ImageWarms for one image that is demanded in `namespace`.
    pub(super) fn of<'o, 'w>(
        &'o self,
        namespace: &'a str,
        wanted: &'w WantedImage,
    ) -> ForImage<'o, 'a, 'w> {
        let get = |image: &Reference| self.by_image.get(&(namespace, image.clone()));
        ForImage {
            wanted,
            by_name: get(&wanted.reference),
            by_digest: wanted.resolved.as_ref().and_then(get),
        }
    }
}

/// The ImageWarms for one demanded image.
pub(super) struct ForImage<'o, 'a, 'w> {
    wanted: &'w WantedImage,
    by_name: Option<&'o OnNodes<'a>>,
    by_digest: Option<&'o OnNodes<'a>>,
}

/// The state of an image on a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State<'a> {
    /// The node holds it.
    Held,
    /// The pull waits or runs; the reason says which.
    Underway(Reason),
    /// The pull fails for this reason; with the ImageWarm that reports it.
    Failed(Reason, &'a CachedImageWarm),
}

impl<'o, 'a, 'w> ForImage<'o, 'a, 'w> {
    fn named(&self, node: &str) -> &'o [&'a CachedImageWarm] {
        self.by_name.map_or(&[], |image_warms| image_warms.on(node))
    }

    fn exact(&self, node: &str) -> &'o [&'a CachedImageWarm] {
        self.by_digest.map_or(&[], |image_warms| image_warms.on(node))
    }

    /// The ImageWarm to create so that `node` gets the image, if one is missing.
    pub(super) fn missing(&self, node: &str) -> Option<(&'w Reference, Repair)> {
        let by_name = self.named(node);
        let Some(resolved) = &self.wanted.resolved else {
            return by_name.is_empty().then_some((&self.wanted.reference, Repair::Missing));
        };
        if !self.exact(node).is_empty() || by_name.iter().any(|warm| satisfies(warm, resolved)) {
            return None;
        }
        let repair = if by_name.is_empty() { Repair::Missing } else { Repair::MovedTag };
        Some((resolved, repair))
    }

    /// The state of the image on `node`. ImageWarms by digest take precedence: where one exists,
    /// the state of the tag no longer matters.
    pub(super) fn state(&self, node: &str) -> State<'a> {
        let (by_name, exact) = (self.named(node), self.exact(node));
        let digest = self.wanted.resolved.as_ref().and_then(Reference::digest);
        let holds = |warm: &CachedImageWarm| {
            is_ready(warm) && (digest.is_none() || warm.digest() == digest)
        };
        if exact.iter().any(|warm| is_ready(warm)) || by_name.iter().any(|warm| holds(warm)) {
            return State::Held;
        }
        let decisive = if exact.is_empty() { by_name } else { exact };
        let mut state = State::Underway(Reason::Queued);
        for warm in decisive {
            match warm.reason() {
                Some(Reason::Removed) | None => {} // heals by itself; not begun
                Some(reason) => match reason.ready() {
                    ConditionStatus::True => {} // the tag has moved: an ImageWarm by digest follows
                    ConditionStatus::Unknown => return State::Underway(reason),
                    ConditionStatus::False => state = State::Failed(reason, warm),
                },
            }
        }
        state
    }

    /// Creation of the newest ImageWarm for the image.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.by_name
            .into_iter()
            .chain(self.by_digest)
            .filter_map(|image_warms| image_warms.newest)
            .max()
    }

    /// Nodes with an ImageWarm for the image.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &'a str> + use<'o, 'a> {
        self.by_name
            .into_iter()
            .chain(self.by_digest)
            .flat_map(|image_warms| image_warms.by_node.iter().map(|warm| &*warm.node_name))
    }
}

fn is_ready(warm: &CachedImageWarm) -> bool {
    warm.reason().map(Reason::ready) == Some(ConditionStatus::True)
}

/// Whether an ImageWarm by tag satisfies the digest: it holds that digest, or its pull is not over.
fn satisfies(warm: &CachedImageWarm, resolved: &Reference) -> bool {
    match (warm.digest(), warm.reason()) {
        (Some(digest), _) if Some(digest) == resolved.digest() => true,
        (_, Some(Reason::Pulling)) => true,
        (Some(_), _) => false,
        // Where the pull fails, its warmer goes on with the digest.
        (None, reason) => reason.map(Reason::ready) != Some(ConditionStatus::True),
    }
}
