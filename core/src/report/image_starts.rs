//! Container starts of Knative's Images, added up for their statuses: what warming was worth to whoever
//! reads one Image. Pure.
//!
//! The sums go on from what the status has, so that they survive a change of leader.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::container_start::{Counted, StartResult};
use crate::api::KnativeImage;
use crate::api::names::Uid;
use crate::image::{ImageRewrites, Reference};

/// Annotation of an Image's status: how many nodes' first containers found the image.
pub const WARM_STARTS: &str = "caching.knative.dev/warm-starts";
/// Annotation of an Image's status: how many containers waited for their kubelet to pull the image.
pub const COLD_STARTS: &str = "caching.knative.dev/cold-starts";
/// Annotation of an Image's status: the seconds that those of [`WARM_STARTS`] did not wait.
pub const SAVED_SECONDS: &str = "caching.knative.dev/saved-seconds";
/// Annotation of an Image's status: the seconds that those of [`COLD_STARTS`] waited.
pub const WAITED_SECONDS: &str = "caching.knative.dev/waited-seconds";
/// Annotation of an Image's status: for how many seconds the image had been on the node, of those of
/// [`WARM_STARTS`] the one for which it came last.
pub const SHORTEST_LEAD_SECONDS: &str = "caching.knative.dev/shortest-lead-seconds";
/// Annotation of an Image's status: when the first of these starts was, RFC 3339.
pub const STARTS_SINCE: &str = "caching.knative.dev/starts-since";

/// The starts of one Image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageStarts {
    warm: u64,
    cold: u64,
    saved_seconds: f64,
    waited_seconds: f64,
    shortest_lead_seconds: Option<f64>,
    since: Timestamp,
}

impl ImageStarts {
    /// None yet.
    fn from(since: Timestamp) -> Self {
        ImageStarts {
            warm: 0,
            cold: 0,
            saved_seconds: 0.0,
            waited_seconds: 0.0,
            shortest_lead_seconds: None,
            since,
        }
    }

    /// Those that the Image's status has. What cannot be read counts as absent.
    fn stored(image: &KnativeImage) -> Option<Self> {
        let annotations = &image.status.as_ref()?.annotations;
        let text = |key: &str| annotations.get(key);
        let count = |key: &str| text(key).and_then(|text| text.parse().ok()).unwrap_or(0);
        let seconds = |key: &str| {
            let seconds = text(key).and_then(|text| text.parse::<f64>().ok());
            seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
        };
        Some(ImageStarts {
            warm: count(WARM_STARTS),
            cold: count(COLD_STARTS),
            saved_seconds: seconds(SAVED_SECONDS).unwrap_or(0.0),
            waited_seconds: seconds(WAITED_SECONDS).unwrap_or(0.0),
            shortest_lead_seconds: seconds(SHORTEST_LEAD_SECONDS),
            since: text(STARTS_SINCE)?.parse().ok()?,
        })
    }

    fn add(&mut self, one: &Counted) {
        match one.result {
            StartResult::Warm => self.warm = self.warm.saturating_add(1),
            StartResult::Cold => self.cold = self.cold.saturating_add(1),
        }
        self.saved_seconds += one.saved_seconds;
        self.waited_seconds += one.waited_seconds;
        let leads = [self.shortest_lead_seconds, one.lead_seconds];
        self.shortest_lead_seconds = leads.into_iter().flatten().reduce(f64::min);
    }

    /// Puts them into a status.
    pub fn annotate(&self, annotations: &mut BTreeMap<String, String>) {
        let seconds = |seconds: f64| format!("{seconds:.1}");
        let since = Timestamp::from_second(self.since.as_second()).unwrap_or(self.since);
        let values = [
            (WARM_STARTS, self.warm.to_string()),
            (COLD_STARTS, self.cold.to_string()),
            (SAVED_SECONDS, seconds(self.saved_seconds)),
            (WAITED_SECONDS, seconds(self.waited_seconds)),
            (STARTS_SINCE, since.to_string()),
        ];
        let lead = self.shortest_lead_seconds.map(|lead| (SHORTEST_LEAD_SECONDS, seconds(lead)));
        annotations.extend(values.into_iter().chain(lead).map(|(key, value)| (key.into(), value)));
    }
}

/// The starts of all Images of which this leader has seen one, by the Image's uid; each with the Image's
/// namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllImageStarts(HashMap<Uid, (Arc<str>, ImageStarts)>);

impl AllImageStarts {
    /// Those of one Image.
    pub fn of(&self, image: &KnativeImage) -> Option<&ImageStarts> {
        self.0.get(image.metadata.uid.as_deref()?).map(|(_, starts)| starts)
    }

    /// The namespaces of Images that have other starts than `before`.
    pub fn changed_since<'a>(
        &'a self,
        before: &'a AllImageStarts,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        self.differing(before).chain(before.differing(self))
    }

    fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let differing = self.0.iter().filter(|(uid, starts)| other.0.get(*uid) != Some(*starts));
        differing.map(|(_, (namespace, _))| &**namespace)
    }

    /// Adds the starts to the Images of their namespace that name the same image, or one that is rewritten to
    /// it. Of Images that are gone nothing is kept.
    pub fn add(
        &mut self,
        counted: &[Counted],
        images: &[Arc<KnativeImage>],
        rewrites: &ImageRewrites,
    ) {
        let mut of_image: HashMap<(&str, &Reference), Vec<&Counted>> = HashMap::new();
        for one in counted {
            let image = &one.start.image;
            of_image.entry((&image.namespace, &image.image)).or_default().push(one);
        }
        let namespaces: HashSet<&str> = of_image.keys().map(|(namespace, _)| *namespace).collect();
        let mut all = HashMap::with_capacity(self.0.len());
        for image in images {
            let Some(uid) = image.metadata.uid.as_deref().map(Uid::from) else { continue };
            let known = self.0.remove(&uid).map(|(_, starts)| starts);
            let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
            let reference = Some(&image.spec.image).filter(|_| namespaces.contains(namespace));
            let reference = reference.and_then(|image| Reference::parse(image).ok());
            let reference = reference.map(|image| rewrites.of(image));
            let new = reference.as_ref().and_then(|image| of_image.get(&(namespace, image)));
            let first = new.and_then(|new| new.first());
            let begun = || ImageStarts::stored(image).or(Some(ImageStarts::from(first?.start.at)));
            let Some(mut starts) = known.or_else(|| first.and_then(|_| begun())) else { continue };
            new.into_iter().flatten().for_each(|one| starts.add(one));
            all.insert(uid, (namespace.into(), starts));
        }
        self.0 = all;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::knative::KnativeImageStatus;
    use crate::report::container_start::ContainerStart;
    use crate::report::pod_image::PodImage;
    use crate::sample::{at, by_digest, knative_image, reference};

    pub(crate) fn counted(image: &str, second: i64, found_after: Option<f64>) -> Counted {
        let image = PodImage { namespace: "ns".into(), node: "a".into(), image: reference(image) };
        Counted {
            start: ContainerStart { image, pod: "pod".into(), at: at(second), waited: None },
            result: found_after.map_or(StartResult::Cold, |_| StartResult::Warm),
            lead_seconds: found_after,
            saved_seconds: found_after.map_or(0.0, |_| 2.25),
            waited_seconds: found_after.map_or(7.0, |_| 0.0),
        }
    }

    fn annotations(starts: &AllImageStarts, image: &KnativeImage) -> Vec<String> {
        let mut annotations = BTreeMap::new();
        starts.of(image).unwrap().annotate(&mut annotations);
        let short = |key: &str| key.replace("caching.knative.dev/", "");
        annotations.into_iter().map(|(key, value)| format!("{}: {value}", short(&key))).collect()
    }

    pub(crate) fn add(
        starts: &mut AllImageStarts,
        counted: &[Counted],
        images: &[Arc<KnativeImage>],
    ) {
        starts.add(counted, images, &ImageRewrites::default());
    }

    #[test]
    fn the_starts_of_a_rewritten_image_are_those_of_the_image_that_knative_names() {
        let image = Arc::new(knative_image("i", "docker.io/team/app:v1", None));
        let pods = counted("mirror.test/hub/team/app:v1", 9, Some(3.0));
        let rewrites = "docker.io=mirror.test/hub".parse().unwrap();
        let mut starts = AllImageStarts::default();
        starts.add(std::slice::from_ref(&pods), std::slice::from_ref(&image), &rewrites);
        assert_eq!(annotations(&starts, &image)[5], "warm-starts: 1");
        let mut starts = AllImageStarts::default();
        add(&mut starts, &[pods], std::slice::from_ref(&image));
        assert_eq!(starts.of(&image), None);
    }

    #[test]
    fn namespaces_whose_images_have_other_starts_are_known() {
        let image = Arc::new(knative_image("i", &by_digest("app", '1'), None));
        let images = std::slice::from_ref(&image);
        let (none, mut one) = (AllImageStarts::default(), AllImageStarts::default());
        add(&mut one, &[counted(&by_digest("app", '1'), 1, Some(3.0))], images);
        let mut more = one.clone();
        add(&mut more, &[counted(&by_digest("app", '1'), 2, None)], images);
        for (now, before) in [(&one, &none), (&more, &one), (&none, &more)] {
            assert_eq!(now.changed_since(before).collect::<HashSet<_>>(), HashSet::from(["ns"]));
            assert_eq!(now.changed_since(now).count(), 0);
        }
    }

    #[test]
    fn starts_are_added_to_what_the_status_has() {
        let app = by_digest("app", '1');
        let mut image = knative_image("i", &app, None);
        let other = Arc::new(knative_image("other", &by_digest("other", '1'), None));
        let mut elsewhere = knative_image("elsewhere", &app, None);
        elsewhere.metadata.namespace = Some("elsewhere".into());
        let elsewhere = Arc::new(elsewhere);
        let images =
            |image: &KnativeImage| [Arc::new(image.clone()), other.clone(), elsewhere.clone()];
        let mut starts = AllImageStarts::default();
        add(&mut starts, &[counted(&app, 9, Some(40.0)), counted(&app, 12, None)], &images(&image));
        add(&mut starts, &[counted(&app, 20, Some(30.5))], &images(&image));
        let expected = [
            "cold-starts: 1",
            "saved-seconds: 4.5",
            "shortest-lead-seconds: 30.5",
            "starts-since: 1970-01-01T00:00:09Z",
            "waited-seconds: 7.0",
            "warm-starts: 2",
        ];
        assert_eq!(annotations(&starts, &image), expected);
        assert_eq!((starts.of(&other), starts.of(&elsewhere)), (None, None));

        // The next leader goes on from there.
        let status = image.status.get_or_insert_default();
        starts.of(&knative_image("i", &app, None)).unwrap().annotate(&mut status.annotations);
        let mut next = AllImageStarts::default();
        add(&mut next, &[], &images(&image));
        assert_eq!(next.of(&image), None, "without a start there is nothing to write");
        add(&mut next, &[counted(&app, 99, None)], &images(&image));
        let both = annotations(&next, &image);
        assert_eq!(
            (&*both[0], &*both[3], &*both[4]),
            ("cold-starts: 2", expected[3], "waited-seconds: 14.0")
        );
        add(&mut next, &[], std::slice::from_ref(&other));
        assert_eq!(next, AllImageStarts::default(), "nothing is kept of Images that are gone");
    }

    #[test]
    fn what_others_wrote_there_is_no_number_of_ours() {
        let app = by_digest("app", '1');
        let mut image = knative_image("i", &app, None);
        let odd = [
            (WARM_STARTS, "-1"),
            (SAVED_SECONDS, "inf"),
            (WAITED_SECONDS, "NaN"),
            (SHORTEST_LEAD_SECONDS, "-2"),
            (STARTS_SINCE, "1970-01-01T00:00:01Z"),
        ];
        let annotations_of = |odd: &[(&str, &str)]| {
            odd.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        image.status = Some(KnativeImageStatus {
            annotations: annotations_of(&odd),
            ..KnativeImageStatus::default()
        });
        let mut starts = AllImageStarts::default();
        add(&mut starts, &[counted(&app, 5, Some(3.0))], &[Arc::new(image.clone())]);
        let expected = [
            "cold-starts: 0",
            "saved-seconds: 2.2",
            "shortest-lead-seconds: 3.0",
            "starts-since: 1970-01-01T00:00:01Z",
            "waited-seconds: 0.0",
            "warm-starts: 1",
        ];
        assert_eq!(annotations(&starts, &image), expected);
        image.status = Some(KnativeImageStatus {
            annotations: annotations_of(&[(WARM_STARTS, "7"), (STARTS_SINCE, "yesterday")]),
            ..KnativeImageStatus::default()
        });
        let mut starts = AllImageStarts::default();
        add(&mut starts, &[counted(&app, 5, Some(3.0))], &[Arc::new(image.clone())]);
        assert_eq!(annotations(&starts, &image)[5], "warm-starts: 1", "since when is not known");
    }
}
