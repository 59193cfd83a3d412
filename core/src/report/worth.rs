//! What warming was worth in a time: container starts by namespace, Revision and image. Pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::container_start::{ContainerStart, Counted, StartResult, Used};
use crate::api::CachedImageWarm;

/// The container starts of a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Worth {
    /// From when on.
    pub from: Timestamp,
    /// All of them.
    pub all: Starts,
    /// The same by namespace, Revision and image.
    pub rows: BTreeMap<Consumer, Starts>,
}

/// Whose containers started.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer {
    /// The namespace.
    pub namespace: String,
    /// The Revision; `None` for other Pods.
    pub revision: Option<String>,
    /// The image, as in the Pods.
    pub image: String,
}

/// First containers of images on their nodes, added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Starts {
    /// Those that found their image.
    pub warm: usize,
    /// Those that waited for their kubelet to pull it.
    pub cold: usize,
    /// Those that found an image that had been warmed before the time: others may have found it before them.
    pub earlier: usize,
    /// How long the node's own pulls of the images of `warm` took, in seconds.
    pub saved_seconds: f64,
    /// How long those of `cold` waited, in seconds.
    pub waited_seconds: f64,
    /// How long the images of `warm` had been on the node, in seconds, in any order.
    leads: Vec<f64>,
}

impl Worth {
    /// What kubelets have said from `from` on, beside the ImageWarms of now. Starts of images without an
    /// ImageWarm are not counted.
    pub fn of(
        mut starts: Vec<ContainerStart>,
        image_warms: &[CachedImageWarm],
        from: Timestamp,
    ) -> Self {
        starts.retain(|start| start.at >= from);
        starts.sort_by_key(|start| start.at);
        let counted = Used::default().count(&starts, image_warms.iter(), Timestamp::MIN);
        let mut worth = Worth { from, all: Starts::default(), rows: BTreeMap::new() };
        for one in &counted {
            let consumer = Consumer {
                namespace: one.start.image.namespace.clone(),
                revision: one.start.revision().map(str::to_owned),
                image: one.start.image.image.as_str().to_owned(),
            };
            worth.all.add(one, from);
            worth.rows.entry(consumer).or_default().add(one, from);
        }
        worth
    }
}

impl Starts {
    fn add(&mut self, one: &Counted, from: Timestamp) {
        let in_time = one.start.at.duration_since(from).as_secs_f64();
        match (one.result, one.lead_seconds) {
            (StartResult::Cold, _) => self.cold += 1,
            (StartResult::Warm, Some(lead)) if lead > in_time => {
                self.earlier += 1;
                return;
            }
            (StartResult::Warm, seconds) => {
                self.warm += 1;
                self.leads.extend(seconds);
            }
        }
        self.saved_seconds += one.saved_seconds;
        self.waited_seconds += one.waited_seconds;
    }

    /// Those of which it is known whether they found their image first.
    pub fn known(&self) -> usize {
        self.warm + self.cold
    }

    /// The part that found its image; `None` without starts.
    pub fn hit_ratio(&self) -> Option<f64> {
        (self.known() > 0).then(|| self.warm as f64 / self.known() as f64)
    }

    /// How long half of the images that were found had been on the node at least, in seconds.
    pub fn median_lead_seconds(&self) -> Option<f64> {
        let mut leads = self.leads.clone();
        leads.sort_by(f64::total_cmp);
        leads.get(leads.len() / 2).copied()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::api::ImageWarm;
    use crate::report::pod_image::PodImage;
    use crate::sample::{at, reference};

    pub(crate) fn warm(node: &str, finished: i64, took: &str) -> CachedImageWarm {
        let warm: ImageWarm = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"namespace": "ns", "name": node, "uid": node},
            "spec": {"image": "app:v1", "nodeName": node},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "Pulled"}],
                "took": took, "finishedAt": at(finished).to_string(),
            },
        }))
        .unwrap();
        warm.into()
    }

    pub(crate) fn start(pod: &str, node: &str, second: i64, waited: Option<i64>) -> ContainerStart {
        let image = reference("app:v1");
        ContainerStart {
            image: PodImage { namespace: "ns".into(), node: node.into(), image },
            pod: pod.into(),
            at: at(second),
            waited: waited.map(k8s_openapi::jiff::SignedDuration::from_secs),
        }
    }

    pub(crate) fn pod(revision: &str) -> String {
        format!("{revision}-deployment-6d5f9c7b8-x2x4z")
    }

    #[test]
    fn starts_are_added_up_by_revision_in_the_order_of_time() {
        let warms = [
            warm("a", 1_010, "2.5s"),
            warm("b", 1_020, "3s"),
            warm("c", 500, "9s"),
            warm("d", 1_030, "1s"),
        ];
        let starts = vec![
            // Of the two on node a, the earlier one is the first.
            start(&pod("second"), "a", 1_500, None),
            start(&pod("first"), "a", 1_100, None),
            start(&pod("first"), "b", 1_040, None),
            start(&pod("first"), "c", 1_100, None),
            start("by-hand", "d", 1_100, Some(7)),
            start("no-image-warm", "e", 1_100, Some(7)),
            start("before", "d", 999, Some(7)),
        ];
        let worth = Worth::of(starts, &warms, at(1_000));
        let rows: Vec<_> = worth
            .rows
            .iter()
            .map(|(by, starts)| (by.revision.as_deref(), starts.warm, starts.cold, starts.earlier))
            .collect();
        assert_eq!(rows, [(None, 0, 1, 0), (Some("first"), 2, 0, 1)]);
        let all = &worth.all;
        assert_eq!((all.warm, all.cold, all.earlier, all.known()), (2, 1, 1, 3));
        assert_eq!((all.saved_seconds, all.waited_seconds), (5.5, 7.0));
        assert_eq!(all.median_lead_seconds(), Some(90.0));
        assert_eq!(all.hit_ratio(), Some(2.0 / 3.0));
        assert_eq!(Starts::default().hit_ratio(), None);
        assert_eq!(Starts::default().median_lead_seconds(), None);
    }
}
