//! The way from a Revision that admission has seen to its ImageWarms: a bounded queue, and a
//! worker that plans from the caches and creates. What the queue drops or a write loses, the
//! leader repairs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use kube::Client;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Sightings;
use crate::api::Revision;
use crate::cluster::apply::{self, ApplyError, Created};
use crate::cluster::watch::Stores;
use crate::plan::eligible::NodeFacts;
use crate::plan::{Policy, demand, fan_out};

/// Revisions that may wait for the worker; one waits for a few milliseconds at most.
const QUEUE: usize = 1024;

/// What the fan-out counts.
#[derive(Clone, Debug)]
pub struct FanOutMetrics {
    queued: Gauge,
    dropped: Counter,
    writes: Family<WriteLabels, Counter>,
    seconds: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    result: &'static str,
}

impl FanOutMetrics {
    /// Adds the metrics to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = FanOutMetrics {
            queued: Gauge::default(),
            dropped: Counter::default(),
            writes: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
        };
        registry.register(
            "fan_out_queued",
            "Revisions seen at admission that wait for their fan-out",
            metrics.queued.clone(),
        );
        registry.register(
            "fan_out_dropped",
            "Revisions left to the leader's repair because the queue was full",
            metrics.dropped.clone(),
        );
        registry.register(
            "fan_out_writes",
            "ImageWarms written at admission, by result",
            metrics.writes.clone(),
        );
        registry.register(
            "fan_out_seconds",
            "Time from a Revision's admission to its last ImageWarm",
            metrics.seconds.clone(),
        );
        metrics
    }

    fn wrote(&self, result: &'static str) {
        self.writes.get_or_create(&WriteLabels { result }).inc();
    }
}

/// The webhook's end of the queue.
#[derive(Clone, Debug)]
pub struct FanOutQueue {
    sender: mpsc::Sender<(Revision, Instant)>,
    metrics: FanOutMetrics,
}

impl Sightings for FanOutQueue {
    /// Hands a Revision over without waiting; false when the queue is full.
    fn offer(&self, revision: Revision) -> bool {
        let taken = self.sender.try_send((revision, Instant::now())).is_ok();
        if taken {
            self.metrics.queued.inc();
        } else {
            self.metrics.dropped.inc();
        }
        taken
    }
}

/// The worker's end of the queue, and all that it plans from.
#[derive(Debug)]
pub struct FanOutWorker {
    receiver: mpsc::Receiver<(Revision, Instant)>,
    metrics: FanOutMetrics,
}

/// What the worker reads and writes.
#[derive(Clone)]
pub struct FanOutContext {
    /// Writes the ImageWarms.
    pub client: Client,
    /// Nodes and namespaces.
    pub stores: Stores,
    /// The operator's settings.
    pub policy: Arc<Policy>,
    /// Nodes whose warmer is connected; known on the leader, empty elsewhere.
    pub connected: watch::Receiver<Arc<BTreeSet<String>>>,
    /// Creates in flight for one Revision.
    pub concurrency: usize,
}

/// A queue and its worker.
pub fn queue(metrics: FanOutMetrics) -> (FanOutQueue, FanOutWorker) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (FanOutQueue { sender, metrics: metrics.clone() }, FanOutWorker { receiver, metrics })
}

impl FanOutWorker {
    /// Works until `stop`, then finishes what is queued.
    pub async fn run(mut self, context: FanOutContext, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                next = self.receiver.recv() => next,
                () = stop.cancelled() => self.receiver.try_recv().ok(),
            };
            let Some((revision, seen)) = next else { return };
            self.metrics.queued.dec();
            self.fan_out(&context, &revision, seen).await;
        }
    }

    async fn fan_out(&self, context: &FanOutContext, revision: &Revision, seen: Instant) {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let name = revision.metadata.name.as_deref().unwrap_or("(not named yet)");
        let opted_out = context.stores.namespace_opted_out(namespace);
        let demand = demand::demand(revision, opted_out, &context.policy);
        let nodes: Vec<_> =
            context.stores.nodes.state().iter().map(|node| NodeFacts::of(node)).collect();
        let connected = context.connected.borrow().clone();
        let warms = fan_out::fan_out(
            &demand,
            &nodes,
            &|node: &str| connected.contains(node),
            &context.policy,
        );
        if warms.is_empty() {
            tracing::debug!(namespace, revision = name, "nothing to warm for the Revision");
            return;
        }
        let total = warms.len();
        let (mut created, mut existed, mut failed) = (0_usize, 0_usize, 0_usize);
        let mut writes = futures::stream::iter(&warms)
            .map(|warm| apply::create_image_warm(&context.client, warm))
            .buffer_unordered(context.concurrency);
        let mut first_error = None;
        while let Some(result) = writes.next().await {
            match result {
                Ok(Created::New) => {
                    created += 1;
                    self.metrics.wrote("created");
                }
                Ok(Created::Existed) => {
                    existed += 1;
                    self.metrics.wrote("existed");
                }
                Err(error) => {
                    failed += 1;
                    self.metrics.wrote("failed");
                    // Nothing can be made there: the rest would only fail as well.
                    let hopeless =
                        matches!(error, ApplyError::NamespaceTerminating | ApplyError::Forbidden(_));
                    first_error.get_or_insert(error);
                    if hopeless {
                        break;
                    }
                }
            }
        }
        self.metrics.seconds.observe(seen.elapsed().as_secs_f64());
        let (images, took_ms) = (demand.images.len(), seen.elapsed().as_millis() as u64);
        match first_error {
            None => tracing::info!(
                namespace, revision = name, images, orders = total, created, existed, took_ms,
                "fanned a Revision out"
            ),
            Some(error) => tracing::warn!(
                namespace, revision = name, images, orders = total, created, existed, failed,
                took_ms, %error, "fanned a Revision out in part; the leader repairs the rest"
            ),
        }
    }
}
