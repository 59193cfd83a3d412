//! The operator's limits: which namespaces are warmed, images of one Revision, ImageWarms of one
//! namespace. Enforced at admission, in the fan-out and in repairs; exceeding a limit never blocks
//! a deploy.

use std::collections::{BTreeMap, HashMap};

use crate::api::{CachedImageWarm, WARM_KEY};

/// Reason on an Image of which some ImageWarms exceed a limit.
pub const LIMIT_REACHED: &str = "LimitReached";

/// Which namespaces are warmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceSelection {
    /// All but those labelled `caching.knative.dev/warm: "false"`.
    #[default]
    OptOut,
    /// None but those labelled `caching.knative.dev/warm: "true"`.
    OptIn,
}

/// The limits; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Which namespaces are warmed.
    pub namespaces: NamespaceSelection,
    /// Images of one Revision, in the order of its containers.
    pub images_per_revision: usize,
    /// ImageWarms of one namespace, hand-made ones counted.
    pub image_warms_per_namespace: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            namespaces: NamespaceSelection::OptOut,
            images_per_revision: 50,
            image_warms_per_namespace: 0,
        }
    }
}

impl Bounds {
    /// Whether a namespace with these labels is warmed.
    pub fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = labels.and_then(|labels| labels.get(WARM_KEY)).map(String::as_str);
        match self.namespaces {
            NamespaceSelection::OptOut => value != Some("false"),
            NamespaceSelection::OptIn => value == Some("true"),
        }
    }

    /// Whether a namespace with unknown labels is warmed.
    pub fn selects_unknown(&self) -> bool {
        self.namespaces == NamespaceSelection::OptOut
    }

    /// How many of a Revision's images are warmed.
    pub fn of_images(&self, images: usize) -> usize {
        match self.images_per_revision {
            0 => images,
            limit => images.min(limit),
        }
    }

    /// Whether a namespace with this number of ImageWarms is at its limit.
    pub fn is_full(&self, image_warms: usize) -> bool {
        self.image_warms_per_namespace != 0 && image_warms >= self.image_warms_per_namespace
    }
}

/// The ImageWarms that may still be created in each namespace. Existing ones are counted.
#[derive(Debug)]
pub struct Room<'a> {
    bounds: Bounds,
    taken: HashMap<&'a str, usize>,
    /// Number of ImageWarms over the limit, by namespace.
    pub refused: BTreeMap<&'a str, usize>,
}

impl<'a> Room<'a> {
    /// The remaining number beside `existing`.
    pub fn new(bounds: Bounds, existing: impl Iterator<Item = &'a CachedImageWarm>) -> Self {
        let mut taken: HashMap<&str, usize> = HashMap::new();
        if bounds.image_warms_per_namespace != 0 {
            for warm in existing {
                *taken.entry(&*warm.namespace).or_default() += 1;
            }
        }
        Room { bounds, taken, refused: BTreeMap::new() }
    }

    /// Counts one more in `namespace`; false when the limit is reached.
    pub fn take(&mut self, namespace: &'a str) -> bool {
        if self.bounds.image_warms_per_namespace == 0 {
            return true;
        }
        let taken = self.taken.entry(namespace).or_default();
        if self.bounds.is_full(*taken) {
            *self.refused.entry(namespace).or_default() += 1;
            return false;
        }
        *taken += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_selected_by_their_label() {
        let labels = |value: &str| BTreeMap::from([(WARM_KEY.to_owned(), value.to_owned())]);
        let opt_out = Bounds::default();
        let opt_in = Bounds { namespaces: NamespaceSelection::OptIn, ..opt_out };
        for (value, out, into) in
            [(None, true, false), (Some("true"), true, true), (Some("false"), false, false)]
        {
            let labels = value.map(labels);
            assert_eq!(opt_out.selects(labels.as_ref()), out, "{value:?}");
            assert_eq!(opt_in.selects(labels.as_ref()), into, "{value:?}");
        }
        assert!(opt_out.selects_unknown() && !opt_in.selects_unknown());
    }

    #[test]
    fn zero_is_no_limit() {
        let none = Bounds { images_per_revision: 0, ..Bounds::default() };
        assert_eq!((none.of_images(5_000), none.is_full(5_000)), (5_000, false));
        let some =
            Bounds { images_per_revision: 3, image_warms_per_namespace: 2, ..Bounds::default() };
        assert_eq!((some.of_images(2), some.of_images(4)), (2, 3));
        assert_eq!((some.is_full(1), some.is_full(2)), (false, true));
        let mut room = Room::new(none, std::iter::empty());
        assert!((0..10_000).all(|_| room.take("ns")) && room.refused.is_empty());
    }

    #[test]
    fn what_exists_keeps_its_place() {
        let bounds = Bounds { image_warms_per_namespace: 3, ..Bounds::default() };
        let warm = CachedImageWarm { namespace: "a".into(), ..CachedImageWarm::default() };
        let existing = [warm.clone(), warm];
        let mut room = Room::new(bounds, existing.iter());
        assert!(room.take("a") && !room.take("a") && !room.take("a"));
        assert!(room.take("b"), "each namespace has its own");
        assert_eq!(room.refused, BTreeMap::from([("a", 2)]));
    }
}
