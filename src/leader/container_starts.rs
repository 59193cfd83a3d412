//! Counts how many containers found their image on the node: the proof that warming pays, or that it does
//! not. Nothing depends on it.

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock::{sleep_until, wall_clock};
use crate::kubernetes::caches::Stores;
use crate::kubernetes::leadership::Leadership;
use imagewarm_core::report::container_start::{ContainerStart, Used};

mod metrics;

pub use self::metrics::StartMetrics;

/// Starts are collected for this long before they are looked up, all of them in one pass.
const BATCH: Duration = Duration::from_secs(1);
/// Starts that wait to be counted. Those beyond are not counted.
const WAITING_MAX: usize = 10_000;

/// Counts container starts.
pub(crate) struct ContainerStarts {
    stores: Stores,
    leadership: watch::Receiver<Leadership>,
    metrics: StartMetrics,
    starts: mpsc::Receiver<ContainerStart>,
}

impl ContainerStarts {
    /// With its metrics in `registry`; and where to send the starts.
    pub(crate) fn new(
        stores: Stores,
        leadership: watch::Receiver<Leadership>,
        registry: &mut Registry,
    ) -> (Self, mpsc::Sender<ContainerStart>) {
        let metrics = StartMetrics::register(registry);
        let (sender, starts) = mpsc::channel(WAITING_MAX);
        (ContainerStarts { stores, leadership, metrics, starts }, sender)
    }

    /// Runs until nobody can send starts any more.
    pub(crate) async fn run(mut self) {
        let mut since = wall_clock();
        let (mut used, mut waiting, mut count_at) = (Used::default(), Vec::new(), None);
        loop {
            tokio::select! {
                start = self.starts.recv(), if waiting.len() < WAITING_MAX => {
                    let Some(start) = start else { return };
                    waiting.push(start);
                    count_at.get_or_insert(Instant::now() + BATCH);
                }
                // Starts are seen only by the leader.
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !self.leadership.borrow_and_update().leading {
                        continue;
                    }
                    (since, used) = (wall_clock(), Used::default());
                }
                () = sleep_until(count_at), if count_at.is_some() => {
                    let image_warms = self.stores.image_warms.state();
                    let image_warms = image_warms.iter().map(AsRef::as_ref);
                    let counted = used.count(&std::mem::take(&mut waiting), image_warms, since);
                    counted.iter().for_each(|one| self.metrics.counted(one));
                    count_at = None;
                }
            }
        }
    }
}
