//! The operator's limits: which namespaces are warmed, images of one Revision, ImageWarms of one
//! namespace and of all. Enforced at admission, in the fan-out and in repairs; exceeding a limit never blocks
//! a deploy.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

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
    /// ImageWarms of all namespaces.
    pub image_warms: usize,
}

/// A limit on ImageWarms that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The namespace has this many.
    Namespace(usize),
    /// The cluster has this many.
    Cluster(usize),
}

impl fmt::Display for Limit {
    /// `the namespace may have no more than 3 ImageWarms (--max-image-warms-per-namespace)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, limit, flag) = match self {
            Limit::Namespace(limit) => ("namespace", limit, "--max-image-warms-per-namespace"),
            Limit::Cluster(limit) => ("cluster", limit, "--max-image-warms"),
        };
        write!(f, "the {whose} may have no more than {limit} ImageWarms ({flag})")
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            namespaces: NamespaceSelection::OptOut,
            images_per_revision: 50,
            // Ten images on 2,500 nodes. One namespace alone never takes all places.
            image_warms_per_namespace: 25_000,
            // What fits into the shipped memory limit, though all of them be as large as can be, beside
            // the streams of 2,000 nodes (65 kB each) and all request bodies (64 MiB).
            image_warms: 100_000,
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

    /// The limit that is reached by a namespace with this number of ImageWarms, of `all` in the cluster.
    pub fn reached(&self, image_warms: usize, all: usize) -> Option<Limit> {
        let is_reached = |limit: usize, count: usize| limit != 0 && count >= limit;
        if is_reached(self.image_warms_per_namespace, image_warms) {
            return Some(Limit::Namespace(self.image_warms_per_namespace));
        }
        is_reached(self.image_warms, all).then_some(Limit::Cluster(self.image_warms))
    }
}

/// The ImageWarms that may still be created in each namespace. Existing ones are counted.
#[derive(Debug)]
pub struct Room<'a> {
    bounds: Bounds,
    taken: HashMap<&'a str, usize>,
    all: usize,
    /// ImageWarms over a limit, by namespace.
    pub refused: BTreeMap<&'a str, OverLimit>,
}

/// ImageWarms of one namespace that exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// How many are not created.
    pub missing: usize,
    /// The limit.
    pub limit: Limit,
}

impl<'a> Room<'a> {
    /// The remaining number beside `existing`, and so many in other namespaces.
    pub fn new(
        bounds: Bounds,
        existing: impl Iterator<Item = &'a CachedImageWarm>,
        elsewhere: usize,
    ) -> Self {
        let (taken, refused) = (HashMap::new(), BTreeMap::new());
        let mut room = Room { bounds, taken, all: elsewhere, refused };
        for warm in existing {
            *room.taken.entry(&*warm.namespace).or_default() += 1;
            room.all += 1;
        }
        room
    }

    /// The remaining number for one namespace that has `image_warms`, of `all` in the cluster.
    pub fn of_namespace(
        bounds: Bounds,
        namespace: &'a str,
        image_warms: usize,
        all: usize,
    ) -> Self {
        let taken = HashMap::from([(namespace, image_warms)]);
        Room { bounds, taken, all, refused: BTreeMap::new() }
    }

    /// Counts one more in `namespace`; false when the limit is reached.
    pub fn take(&mut self, namespace: &'a str) -> bool {
        let taken = self.taken.entry(namespace).or_default();
        if let Some(limit) = self.bounds.reached(*taken, self.all) {
            self.refused.entry(namespace).or_insert(OverLimit { missing: 0, limit }).missing += 1;
            return false;
        }
        *taken += 1;
        self.all += 1;
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
        let none = Bounds {
            images_per_revision: 0,
            image_warms_per_namespace: 0,
            image_warms: 0,
            ..Bounds::default()
        };
        assert_eq!((none.of_images(5_000), none.reached(500_000, 900_000)), (5_000, None));
        let some =
            Bounds { images_per_revision: 3, image_warms_per_namespace: 2, ..Bounds::default() };
        assert_eq!((some.of_images(2), some.of_images(4)), (2, 3));
        assert_eq!((some.reached(1, 9), some.reached(2, 9)), (None, Some(Limit::Namespace(2))));
        let mut room = Room::new(none, std::iter::empty(), 0);
        assert!((0..10_000).all(|_| room.take("ns")) && room.refused.is_empty());
    }

    #[test]
    fn what_exists_keeps_its_place() {
        let bounds = Bounds { image_warms_per_namespace: 3, ..Bounds::default() };
        let warm = CachedImageWarm { namespace: "a".into(), ..CachedImageWarm::default() };
        let existing = [warm.clone(), warm];
        let mut room = Room::new(bounds, existing.iter(), 0);
        assert!(room.take("a") && !room.take("a") && !room.take("a"));
        assert!(room.take("b"), "each namespace has its own");
        let refused = OverLimit { missing: 2, limit: Limit::Namespace(3) };
        assert_eq!(room.refused, BTreeMap::from([("a", refused)]));
    }

    #[test]
    fn the_cluster_has_a_limit_that_no_namespace_reaches_alone() {
        let default = Bounds::default();
        assert!(default.image_warms_per_namespace * 2 <= default.image_warms);
        let bounds = Bounds { image_warms_per_namespace: 3, image_warms: 4, ..default };
        let mut room = Room::of_namespace(bounds, "a", 2, 2);
        assert!(room.take("a") && !room.take("a") && room.take("b") && !room.take("b"));
        let limits: Vec<Limit> = room.refused.values().map(|refused| refused.limit).collect();
        assert_eq!(limits, [Limit::Namespace(3), Limit::Cluster(4)]);
        let text = "the cluster may have no more than 4 ImageWarms (--max-image-warms)";
        assert_eq!(limits[1].to_string(), text);
    }
}
