//! Counts how many containers found their image on the node: the proof that warming pays, or that it does
//! not; as metrics, and for the statuses of Knative's Images. Nothing depends on it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock::{sleep_until, wall_clock};
use crate::kubernetes::caches::Stores;
use crate::kubernetes::leadership::{Leadership, Leading};
use imagewarm_core::image::ImageRewrites;
use imagewarm_core::report::container_start::{ContainerStart, Used};
use imagewarm_core::report::image_starts::AllImageStarts;

mod metrics;

pub use self::metrics::StartMetrics;

/// Starts are collected for this long before they are looked up, all of them in one pass.
const BATCH: Duration = Duration::from_secs(1);
/// Interval between two publications of what Images' statuses are to have: each may be one write for each
/// Image.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(60);
/// Starts that wait to be counted. Those beyond are not counted.
const WAITING_MAX: usize = 10_000;

/// Counts container starts.
pub(crate) struct ContainerStarts {
    stores: Stores,
    leading: Leading,
    /// What the cluster makes of the images that Images name.
    rewrites: ImageRewrites,
    metrics: StartMetrics,
    starts: mpsc::Receiver<ContainerStart>,
    of_images: watch::Sender<Arc<AllImageStarts>>,
    batch: Duration,
}

/// What is counted while this replica leads.
struct Term {
    since: Timestamp,
    used: Used,
    of_images: AllImageStarts,
    publish_at: Option<Instant>,
    not_before: Instant,
}

impl Term {
    fn begin() -> Self {
        Term {
            since: wall_clock(),
            used: Used::default(),
            of_images: AllImageStarts::default(),
            publish_at: None,
            not_before: Instant::now(),
        }
    }
}

impl ContainerStarts {
    /// With its metrics in `registry`; and where to send the starts.
    pub(crate) fn new(
        stores: Stores,
        leadership: watch::Receiver<Leadership>,
        rewrites: ImageRewrites,
        registry: &mut Registry,
    ) -> (Self, mpsc::Sender<ContainerStart>) {
        let metrics = StartMetrics::register(registry);
        let (sender, starts) = mpsc::channel(WAITING_MAX);
        let leading = Leading::new(leadership);
        let of_images = watch::Sender::default();
        (
            ContainerStarts { stores, leading, rewrites, metrics, starts, of_images, batch: BATCH },
            sender,
        )
    }

    /// What the statuses of Images are to have, at most once a minute.
    pub(crate) fn of_images(&self) -> watch::Receiver<Arc<AllImageStarts>> {
        self.of_images.subscribe()
    }

    /// Runs until nobody can send starts any more.
    pub(crate) async fn run(mut self) {
        let mut term = Term::begin();
        let (mut waiting, mut count_at) = (Vec::new(), None);
        loop {
            tokio::select! {
                start = self.starts.recv(), if waiting.len() < WAITING_MAX => {
                    let Some(start) = start else { return };
                    waiting.push(start);
                    count_at.get_or_insert(Instant::now() + self.batch);
                }
                // Starts are seen only by the leader. Another may have counted meanwhile.
                changed = self.leading.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    term = Term::begin();
                    self.of_images.send_replace(Arc::default());
                }
                () = sleep_until(count_at), if count_at.is_some() => {
                    self.count(&std::mem::take(&mut waiting), &mut term);
                    count_at = None;
                }
                () = sleep_until(term.publish_at), if term.publish_at.is_some() => {
                    self.of_images.send_replace(Arc::new(term.of_images.clone()));
                    term.publish_at = None;
                    term.not_before = Instant::now() + PUBLISH_INTERVAL;
                }
            }
        }
    }

    fn count(&self, starts: &[ContainerStart], term: &mut Term) {
        let namespaces: BTreeSet<&str> =
            starts.iter().map(|start| start.image.namespace.as_str()).collect();
        let image_warms = self.stores.image_warms.in_namespaces(namespaces);
        let image_warms = image_warms.iter().map(AsRef::as_ref);
        term.used.retain(|namespace| self.stores.namespace(namespace).is_some());
        let counted = term.used.count(starts, image_warms, term.since);
        if counted.is_empty() {
            return;
        }
        counted.iter().for_each(|one| self.metrics.counted(one));
        term.of_images.add(&counted, &self.stores.images.state(), &self.rewrites);
        term.publish_at.get_or_insert(term.not_before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::telemetry::metrics;

    const MOMENT: Duration = Duration::from_millis(1);
    const DEADLINE: Duration = Duration::from_secs(60);
    const WARM: &str = "imagewarm_image_starts_total{result=\"Warm\"}";

    fn stores() -> Stores {
        // Later than any start of this process.
        let finished_at = "2999-01-01T00:00:00Z";
        let warms = ["one", "two"].map(|node| {
            serde_json::from_value(json!({
                "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
                "metadata": {"namespace": "ns", "name": node, "uid": node},
                "spec": {"image": "app:v1", "nodeName": node},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Pulled"}],
                    "took": "2s", "finishedAt": finished_at,
                },
            }))
            .unwrap()
        });
        let image = serde_json::from_value(json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": {"namespace": "ns", "name": "i", "uid": "i"}, "spec": {"image": "app:v1"},
        }))
        .unwrap();
        let namespace = serde_json::from_value(json!({"metadata": {"name": "ns"}})).unwrap();
        Stores::fixed(warms.to_vec(), vec![], vec![image], vec![], vec![namespace])
    }

    fn start(node: &str) -> ContainerStart {
        let event = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "app.1"},
            "involvedObject": {"kind": "Pod", "namespace": "ns", "name": "app"},
            "reason": "Pulled", "message": "Container image \"app:v1\" already present on machine",
            "source": {"component": "kubelet", "host": node},
            "firstTimestamp": "2999-01-01T00:00:30Z",
        }));
        ContainerStart::of(&event.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_leader_whose_address_changes_goes_on_counting() {
        let mut registry = metrics::registry();
        let (sender, leadership) = watch::channel(Leadership::default());
        let rewrites = ImageRewrites::default();
        let (mut counting, starts) =
            ContainerStarts::new(stores(), leadership, rewrites, &mut registry);
        counting.batch = MOMENT;
        let mut of_images = counting.of_images();
        let running = tokio::spawn(counting.run());
        let leads = |leading: bool, address: &str| {
            sender.send_replace(Leadership { leading, leader_address: Some(address.into()) });
        };
        let counted = async |expected: u64| {
            let line = format!("\n{WARM} {expected}\n");
            let counted = async {
                while !metrics::encode(&registry).unwrap().contains(&line) {
                    tokio::time::sleep(MOMENT).await;
                }
            };
            tokio::time::timeout(DEADLINE, counted).await.expect(&line);
        };
        leads(true, "a:1");
        starts.send(start("one")).await.unwrap();
        counted(1).await;
        let published = of_images.wait_for(|all| **all != AllImageStarts::default()).await;
        drop(published.unwrap());
        leads(true, "a:2");
        tokio::task::yield_now().await;
        // The first of the two has counted already: it would count before the other.
        starts.send(start("one")).await.unwrap();
        starts.send(start("two")).await.unwrap();
        counted(2).await;
        assert!(!of_images.has_changed().unwrap(), "published again within a minute, or reset");
        leads(false, "b:1");
        of_images.wait_for(|all| **all == AllImageStarts::default()).await.unwrap();
        leads(true, "a:2");
        of_images.changed().await.unwrap();
        starts.send(start("one")).await.unwrap();
        counted(3).await;
        drop(starts);
        running.await.unwrap();
    }
}
