//! How soon Pods need an image on a node that does not hold it: what schedulers and kubelets report of Pods. It
//! decides about nothing but the order of pulls, since anybody who may create Events can say the same.

use std::collections::HashMap;

use crate::api::names::Uid;
use crate::image::Reference;
use crate::report::pod_image::PodImage;

/// How long a Pod is taken to wait after it was last reported.
const WAITING_MS: i64 = 600_000;
/// Containers that started this long ago count half.
const HALF_LIFE_MS: f64 = 1_800_000.0;
/// Starts below this are as good as none.
const LEAST_STARTS: f64 = 0.5;
/// Images that are followed; further ones are not until others are forgotten.
const MOST_IMAGES: usize = 20_000;

/// How soon an image is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// A Pod waits for it.
    pub(super) pod_waits: bool,
    /// Containers of it that started recently, on all nodes.
    pub(super) recent_starts: u32,
}

/// The needs of all images, by namespace and repository, and of single assignments.
#[derive(Debug, Default)]
pub(super) struct Needs {
    images: HashMap<(String, String), Vec<Use>>,
    count: usize,
    /// Images that Pods wait for that fit no node.
    pending: usize,
    /// Until when a Pod on its node is taken to wait.
    assignments: HashMap<Uid, i64>,
}

/// The use of one image, by the name that Pods or their Revision have for it.
#[derive(Debug)]
struct Use {
    image: Reference,
    waiting_until: i64,
    starts: f64,
    /// When `starts` was right.
    at: i64,
}

impl Use {
    fn starts(&self, now: i64) -> f64 {
        let age = now.saturating_sub(self.at).max(0) as f64;
        self.starts * (-age / HALF_LIFE_MS).exp2()
    }

    fn is_over(&self, now: i64) -> bool {
        self.waiting_until <= now && self.starts(now) < LEAST_STARTS
    }
}

impl Needs {
    /// A container of the image has started: its Pod no longer waits.
    pub(super) fn started(&mut self, image: &PodImage, now: i64) {
        if let Some(used) = self.of_image(&image.namespace, &image.image, now) {
            (used.starts, used.at) = (used.starts(now) + 1.0, now);
            let was_pending = std::mem::take(&mut used.waiting_until) > now;
            self.pending -= usize::from(was_pending).min(self.pending);
        }
    }

    /// A Pod that needs the image fits no node. Whether that is new.
    pub(super) fn pending(&mut self, namespace: &str, image: &Reference, now: i64) -> bool {
        let Some(used) = self.of_image(namespace, image, now) else { return false };
        let is_new = used.waiting_until <= now;
        used.waiting_until = now.saturating_add(WAITING_MS);
        self.pending += usize::from(is_new);
        is_new
    }

    /// A Pod on the node of this assignment waits for its image. Whether that is new.
    pub(super) fn waits(&mut self, uid: &Uid, now: i64) -> bool {
        let until = now.saturating_add(WAITING_MS);
        self.assignments.insert(uid.clone(), until).is_none_or(|before| before <= now)
    }

    /// The assignment is settled, or gone.
    pub(super) fn forget(&mut self, uid: &Uid) {
        self.assignments.remove(uid);
    }

    /// How soon the image of an assignment is needed. `resolved`: the digest of its tag.
    pub(super) fn of(
        &self,
        uid: &str,
        namespace: &str,
        image: &Reference,
        resolved: Option<&str>,
        now: i64,
    ) -> Need {
        let key = (namespace.to_owned(), image.repository().to_owned());
        let digest = image.digest().or(resolved);
        let same =
            |used: &&Use| used.image == *image || digest.is_some() && used.image.digest() == digest;
        let found = self.images.get(&key).into_iter().flatten().filter(same);
        let (mut waits, mut starts) = (self.assignments.get(uid).is_some_and(|at| *at > now), 0.0);
        for used in found {
            waits |= used.waiting_until > now;
            starts += used.starts(now);
        }
        Need { pod_waits: waits, recent_starts: starts.round() as u32 }
    }

    /// Number of images that Pods wait for that fit no node.
    pub(super) fn pending_images(&self) -> usize {
        self.pending
    }

    /// Forgets what is long over.
    pub(super) fn tick(&mut self, now: i64) {
        self.assignments.retain(|_, until| *until > now);
        let (mut count, mut pending) = (0, 0);
        self.images.retain(|_, uses| {
            uses.retain(|used| !used.is_over(now));
            count += uses.len();
            pending += uses.iter().filter(|used| used.waiting_until > now).count();
            !uses.is_empty()
        });
        (self.count, self.pending) = (count, pending);
    }

    fn of_image(&mut self, namespace: &str, image: &Reference, now: i64) -> Option<&mut Use> {
        let key = (namespace.to_owned(), image.repository().to_owned());
        let is_known = |uses: &Vec<Use>| uses.iter().any(|used| used.image == *image);
        if !self.images.get(&key).is_some_and(is_known) {
            if self.count >= MOST_IMAGES {
                return None;
            }
            self.count += 1;
            let new = Use { image: image.clone(), waiting_until: 0, starts: 0.0, at: now };
            self.images.entry(key.clone()).or_default().push(new);
        }
        self.images.get_mut(&key)?.iter_mut().find(|used| used.image == *image)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINUTE: i64 = 60_000;

    fn reference(image: &str) -> Reference {
        Reference::parse(image).unwrap()
    }

    fn started(needs: &mut Needs, image: &str, now: i64) {
        let image = reference(image);
        needs.started(&PodImage { namespace: "team".into(), node: "a".into(), image }, now);
    }

    fn need(needs: &Needs, image: &str, resolved: Option<&str>, now: i64) -> (bool, u32) {
        let need = needs.of("uid", "team", &reference(image), resolved, now);
        (need.pod_waits, need.recent_starts)
    }

    #[test]
    fn starts_count_for_a_tag_that_was_resolved_to_their_digest_and_less_with_time() {
        let mut needs = Needs::default();
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("r.test/app@{digest}");
        for _ in 0..4 {
            started(&mut needs, &by_digest, 0);
        }
        assert_eq!(need(&needs, &by_digest, None, 0), (false, 4));
        assert_eq!(need(&needs, "r.test/app:v1", Some(&digest), 0), (false, 4));
        assert_eq!(need(&needs, "r.test/app:v1", None, 0), (false, 0), "another image perhaps");
        assert_eq!(need(&needs, "r.test/other:v1", Some(&digest), 0), (false, 0));
        assert_eq!(need(&needs, &by_digest, None, 30 * MINUTE), (false, 2));
        needs.tick(60 * MINUTE);
        assert_eq!(need(&needs, &by_digest, None, 60 * MINUTE), (false, 1));
        needs.tick(600 * MINUTE);
        assert!(needs.images.is_empty());
        assert_eq!(needs.count, 0);
    }

    #[test]
    fn a_pod_waits_until_it_starts_or_is_no_longer_reported() {
        let mut needs = Needs::default();
        let image = reference("r.test/app:v1");
        assert!(needs.pending("team", &image, 0));
        assert!(!needs.pending("team", &image, MINUTE), "known");
        assert!(need(&needs, "r.test/app:v1", None, 10 * MINUTE).0);
        assert!(!need(&needs, "r.test/app:v1", None, 11 * MINUTE).0);
        needs.tick(12 * MINUTE);
        assert_eq!(needs.pending_images(), 0);
        assert!(needs.pending("team", &image, 20 * MINUTE));
        assert_eq!(needs.pending_images(), 1);
        started(&mut needs, "r.test/app:v1", 21 * MINUTE);
        assert_eq!(need(&needs, "r.test/app:v1", None, 21 * MINUTE), (false, 1));
        assert_eq!(needs.pending_images(), 0);

        assert!(needs.waits(&"uid".into(), 30 * MINUTE));
        assert!(!needs.waits(&"uid".into(), 31 * MINUTE));
        assert!(need(&needs, "r.test/app:v1", None, 32 * MINUTE).0);
        needs.forget(&"uid".into());
        assert!(!need(&needs, "r.test/app:v1", None, 32 * MINUTE).0);
    }

    #[test]
    fn what_anybody_can_say_is_bounded() {
        let mut needs = Needs::default();
        for at in 0..MOST_IMAGES + 5 {
            needs.pending("team", &reference(&format!("r.test/app:v{at}")), 0);
        }
        assert_eq!(needs.images.values().map(Vec::len).sum::<usize>(), MOST_IMAGES);
        needs.tick(11 * MINUTE);
        assert!(needs.images.is_empty());
    }
}
