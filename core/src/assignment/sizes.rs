//! Image sizes, as reported by the nodes that hold them, so that the disk space of a pull can be
//! estimated on nodes that never held the image.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::api::CachedImageWarm;
use crate::api::names::NodeName;
use crate::image::Reference;

/// The largest size that counts while one node alone reports it: 4 GiB.
const UNCONFIRMED_MAX: u64 = 4 << 30;

/// Sizes of the images of all assignments.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: HashMap<Reference, Known>,
}

#[derive(Debug, Default)]
struct Known {
    assignments: usize,
    /// The largest size that a node reported, and the largest that another one did.
    largest: Option<(NodeName, u64)>,
    second: Option<(NodeName, u64)>,
}

impl Known {
    fn report(&mut self, node: &NodeName, bytes: u64) {
        let reports = [self.largest.take(), self.second.take(), Some((node.clone(), bytes))];
        let mut reports: Vec<_> = reports.into_iter().flatten().collect();
        reports.sort_by_key(|(_, bytes)| Reverse(*bytes));
        reports.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut reports = reports.into_iter();
        (self.largest, self.second) = (reports.next(), reports.next());
    }

    /// What one node alone reports counts up to a bound: it may be mistaken, or lie, and a size that no
    /// disk has room for would stop the pull everywhere else.
    fn bytes(&self) -> u64 {
        match (&self.largest, &self.second) {
            (_, Some((_, confirmed))) => *confirmed,
            (Some((_, unconfirmed)), None) => (*unconfirmed).min(UNCONFIRMED_MAX),
            (None, None) => 0,
        }
    }
}

impl Sizes {
    /// Records an assignment of the image. Returns the image as shared by all its assignments, and
    /// its size in bytes: 0 while unknown.
    pub(super) fn note(
        &mut self,
        image: Reference,
        warm: &CachedImageWarm,
        is_new: bool,
    ) -> (Reference, u64) {
        let reported =
            warm.status.as_ref().and_then(|status| u64::try_from(status.size_bytes?).ok());
        let image = self.known.get_key_value(&image).map_or(image, |(shared, _)| shared.clone());
        let known = self.known.entry(image.clone()).or_default();
        known.assignments += usize::from(is_new);
        // Runtimes count differently; the larger size is the safer estimate.
        if let Some(bytes) = reported {
            known.report(&warm.node_name, bytes);
        }
        (image, known.bytes())
    }

    /// Removes an assignment of the image; the last one removes its size.
    pub(super) fn forget(&mut self, image: &Reference) {
        if let Some(known) = self.known.get_mut(image) {
            known.assignments = known.assignments.saturating_sub(1);
            if known.assignments == 0 {
                self.known.remove(image);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::cached::CachedStatus;

    #[test]
    fn a_size_counts_within_what_another_node_reported() {
        let image = Reference::parse("r.test/app:v1").unwrap();
        let mut sizes = Sizes::default();
        let mut note = |node: &str, size_bytes: u64| {
            let size_bytes = i64::try_from(size_bytes).ok();
            let warm = CachedImageWarm {
                node_name: node.into(),
                status: Some(CachedStatus { size_bytes, ..CachedStatus::default() }),
                ..CachedImageWarm::default()
            };
            sizes.note(image.clone(), &warm, false).1
        };
        assert_eq!(note("liar", 1 << 60), UNCONFIRMED_MAX);
        assert_eq!(note("liar", 1 << 61), UNCONFIRMED_MAX, "its own second report");
        assert_eq!(note("a", 70), 70);
        assert_eq!(note("b", 90), 90, "the larger of what two or more support");
        assert_eq!(note("c", 30), 90);
        assert_eq!(note("a", 95), 95);
    }

    #[test]
    fn a_size_is_known_while_an_assignment_of_the_image_exists() {
        let image = Reference::parse("r.test/app:v1").unwrap();
        let warm = |size_bytes| CachedImageWarm {
            status: Some(CachedStatus { size_bytes, ..CachedStatus::default() }),
            ..CachedImageWarm::default()
        };
        let mut sizes = Sizes::default();
        let note = |sizes: &mut Sizes, size, is_new| {
            let (shared, bytes) = sizes.note(image.clone(), &warm(size), is_new);
            assert_eq!(shared, image);
            bytes
        };
        assert_eq!(note(&mut sizes, None, true), 0);
        assert_eq!(note(&mut sizes, Some(70), false), 70);
        assert_eq!(note(&mut sizes, Some(30), true), 70);
        sizes.forget(&image);
        assert_eq!(note(&mut sizes, None, true), 70);
        sizes.forget(&image);
        sizes.forget(&image);
        assert!(sizes.known.is_empty());
        assert_eq!(note(&mut sizes, None, true), 0);
    }
}
