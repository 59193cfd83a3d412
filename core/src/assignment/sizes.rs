//! Image sizes, as reported by the nodes that hold them, so that the disk space of a pull can be
//! estimated on nodes that never held the image.

use std::collections::HashMap;

use crate::api::CachedImageWarm;
use crate::image::Reference;

/// Sizes of the images of all assignments.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: HashMap<Reference, Known>,
}

#[derive(Debug, Default)]
struct Known {
    assignments: usize,
    bytes: u64,
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
        known.bytes = known.bytes.max(reported.unwrap_or(0));
        (image, known.bytes)
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
