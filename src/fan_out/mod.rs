//! The fan-out of an admitted Revision to its ImageWarms: a bounded queue that never delays the
//! webhook, and a worker that plans and writes. The leader repairs what is lost here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::caches::Stores;
use crate::kubernetes::live;
use crate::kubernetes::writes::{self, Created};
use imagewarm_core::api::knative::configuration_owner;
use imagewarm_core::api::names::Namespace;
use imagewarm_core::api::{CachedObject, ImageWarm, Revision};
use imagewarm_core::demand::Cluster;
use imagewarm_core::demand::admitted::{AdmittedRevision, Unconfirmed, confirmed};
use imagewarm_core::demand::revision::demand;
use imagewarm_core::placement::NodeFacts;
use imagewarm_core::plan::fan_out::fan_out;
use imagewarm_core::policy::Policy;
use imagewarm_core::policy::bounds::{LIMIT_REACHED, OverLimit, Room};
use rate_limit::RateLimit;

mod metrics;
mod rate_limit;

pub use metrics::FanOutMetrics;
use metrics::{LeftToLeader, Outcome};

/// Revisions that are fanned out concurrently; their writes share one limit.
const REVISIONS_AT_ONCE: usize = 8;
/// Each further write at the same time is for so many ImageWarms: a small fan-out uses few connections.
/// The API server is busy with Knative's own objects at that moment, and Pods come some 100 ms later.
const WRITES_PER_CONNECTION: usize = 8;
/// Maximum size of all queued Revisions, in bytes: each is queued undecoded.
const BYTES_WAITING: usize = 32 * 1024 * 1024;

/// How Revisions become ImageWarms.
#[derive(clap::Args, Clone, Debug)]
pub struct FanOutArgs {
    /// Maximum number of admitted Revisions in the queue for fan-out. When the queue is full, the
    /// leader creates a Revision's ImageWarms a few seconds later
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = imagewarm_core::settings::at_least_one,
          env = "IMAGEWARM_FAN_OUT_QUEUE")]
    pub fan_out_queue: usize,

    /// Maximum number of ImageWarms created at the same time, each over a connection of its own
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = imagewarm_core::settings::at_least_one,
          env = "IMAGEWARM_FAN_OUT_CONCURRENCY")]
    pub fan_out_concurrency: usize,

    /// Maximum number of Revisions of one namespace that are fanned out at admission within a
    /// minute. Further ones, which may be forged, are left to the leader: it knows the Revisions
    /// that exist
    #[arg(long, value_name = "COUNT", default_value_t = 300, value_parser = imagewarm_core::settings::at_least_one,
          env = "IMAGEWARM_FAN_OUT_PER_MINUTE")]
    pub fan_out_per_minute: usize,
}

impl Default for FanOutArgs {
    fn default() -> Self {
        FanOutArgs { fan_out_queue: 1024, fan_out_concurrency: 16, fan_out_per_minute: 300 }
    }
}

/// The sending end of the queue, for admission.
#[derive(Clone, Debug)]
pub struct FanOut {
    sender: mpsc::Sender<AdmittedRevision>,
    bytes: Arc<AtomicUsize>,
    rate_limit: Arc<RateLimit>,
    metrics: FanOutMetrics,
}

impl FanOut {
    /// Queues an admitted Revision without waiting. Returns false if it is larger than what is stored,
    /// exceeds the rate limit, or the queue is full.
    pub fn offer(&self, admitted: AdmittedRevision) -> bool {
        if !admitted.is_storable() {
            return false;
        }
        if !self.rate_limit.admit(&admitted.namespace, Instant::now()) {
            self.metrics.rate_limited.inc();
            return false;
        }
        let size = admitted.size();
        let fits = self.bytes.fetch_add(size, Ordering::Relaxed) + size <= BYTES_WAITING;
        let taken = fits && self.sender.try_send(admitted).is_ok();
        if taken {
            self.metrics.queued.inc();
        } else {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        taken
    }
}

/// The receiving end of the queue.
#[derive(Debug)]
pub struct FanOutQueue {
    receiver: mpsc::Receiver<AdmittedRevision>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends of a queue.
pub fn queue(args: &FanOutArgs, metrics: &FanOutMetrics) -> (FanOut, FanOutQueue) {
    let (sender, receiver) = mpsc::channel(args.fan_out_queue);
    let rate_limit = Arc::new(RateLimit::new(args.fan_out_per_minute));
    let bytes = Arc::<AtomicUsize>::default();
    let queue = FanOutQueue { receiver, bytes: bytes.clone() };
    (FanOut { sender, bytes, rate_limit, metrics: metrics.clone() }, queue)
}

/// Plans and writes the ImageWarms of queued Revisions.
#[derive(Clone)]
pub struct FanOutWorker {
    /// The API server.
    pub client: Client,
    /// The watched objects.
    pub stores: Stores,
    /// The operator's policy.
    pub policy: Arc<Policy>,
    /// Metrics of the fan-out.
    pub metrics: FanOutMetrics,
}

impl FanOutWorker {
    /// Runs until `shutdown`, then completes the queued Revisions.
    pub async fn run(self, args: FanOutArgs, queue: FanOutQueue, shutdown: CancellationToken) {
        let mut receiver = queue.receiver;
        let writes = Arc::new(Semaphore::new(args.fan_out_concurrency));
        let mut running = JoinSet::new();
        loop {
            while running.len() >= REVISIONS_AT_ONCE {
                running.join_next().await;
            }
            let admitted = tokio::select! {
                biased;
                admitted = receiver.recv() => admitted,
                () = shutdown.cancelled(), if !receiver.is_closed() => {
                    receiver.close();
                    continue;
                }
                Some(_) = running.join_next() => continue,
            };
            let Some(admitted) = admitted else { break };
            self.metrics.queued.dec();
            queue.bytes.fetch_sub(admitted.size(), Ordering::Relaxed);
            let (worker, writes) = (self.clone(), writes.clone());
            let limit = args.fan_out_concurrency;
            running.spawn(async move { worker.fan_out(admitted, &writes, limit).await });
        }
        while running.join_next().await.is_some() {}
    }

    async fn fan_out(&self, admitted: AdmittedRevision, writes: &Semaphore, limit: usize) {
        let began = Instant::now();
        let (namespace, revision) = (admitted.namespace.clone(), admitted.name.clone());
        let confirmed = match self.confirm(admitted).await {
            Ok(confirmed) => confirmed,
            Err(reason) => {
                self.metrics.left_to_leader(reason);
                let reason = reason.as_str();
                tracing::info!(%namespace, revision, reason, "Revision left to the leader");
                return;
            }
        };
        let planned = self.plan(&namespace, confirmed).await;
        if planned.is_empty() {
            return;
        }
        let images: BTreeSet<&str> = planned.iter().map(|warm| warm.spec.image.as_str()).collect();
        let nodes: BTreeSet<&str> =
            planned.iter().map(|warm| warm.spec.node_name.as_str()).collect();
        let (images, nodes) = (images.len(), nodes.len());

        let tally = Tally::default();
        let namespace_refused = CancellationToken::new();
        let at_once = writes_at_once(planned.len(), limit);
        futures::stream::iter(planned)
            .for_each_concurrent(at_once, |warm| {
                let (tally, namespace_refused) = (&tally, &namespace_refused);
                async move {
                    let Ok(_permit) = writes.acquire().await else { return };
                    if !namespace_refused.is_cancelled() {
                        self.create(&warm, tally, namespace_refused).await;
                    }
                }
            })
            .await;
        let took = began.elapsed();
        self.metrics.duration.observe(took.as_secs_f64());
        let (created, existed, failed) = tally.read();
        tracing::info!(
            %namespace,
            revision,
            images,
            nodes,
            created,
            existed,
            failed,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "revision fanned out"
        );
    }

    /// The Revision as the API server confirms it. Whoever reaches the port may post a review; what
    /// is not in a live Configuration has no effect here, and the leader makes the ImageWarms of
    /// every Revision that exists.
    async fn confirm(&self, admitted: AdmittedRevision) -> Result<Revision, LeftToLeader> {
        let (namespace, name) = (admitted.namespace.clone(), admitted.name.clone());
        // It may be megabytes long.
        let decoded = tokio::task::spawn_blocking(move || admitted.revision()).await;
        let decoded = decoded.map_err(|error| error.to_string());
        let revision = decoded
            .and_then(|decoded| decoded.map_err(|error| error.to_string()))
            .map_err(|error| {
                tracing::warn!(%namespace, name, error, "cannot decode admitted Revision");
                LeftToLeader::Undecodable
            })?;
        let owner = configuration_owner(&revision.metadata).ok_or(LeftToLeader::NoOwner)?;
        let live = live::read_configuration(&self.client, &namespace, &owner.name).await;
        let live = live.map_err(|error| {
            let configuration = owner.name.as_str();
            tracing::warn!(%namespace, configuration, %error, "cannot read Configuration");
            LeftToLeader::OwnerUnreadable
        })?;
        let live = live.ok_or(LeftToLeader::OwnerNotFound)?;
        confirmed(revision, &live).map_err(|unconfirmed| match unconfirmed {
            Unconfirmed::OtherOwner => LeftToLeader::OwnerNotFound,
            Unconfirmed::OtherImages => LeftToLeader::OtherImages,
        })
    }

    /// The ImageWarms of the Revision; none if its namespace or the Revision has opted out. For
    /// thousands of nodes this takes milliseconds, so it runs on a thread for blocking work.
    async fn plan(&self, namespace: &Namespace, revision: Revision) -> Vec<ImageWarm> {
        let Some(metadata) = self.namespace(namespace).await else { return Vec::new() };
        let worker = self.clone();
        let planned =
            tokio::task::spawn_blocking(move || worker.plan_now(&revision, &metadata)).await;
        planned.unwrap_or_else(|error| {
            tracing::error!(%error, "fan-out planning failed");
            Vec::new()
        })
    }

    fn plan_now(&self, revision: &Revision, namespace: &ObjectMeta) -> Vec<ImageWarm> {
        let mut demand = demand(revision, false, &self.policy);
        if demand.images.is_empty() {
            return Vec::new();
        }
        let mut cluster = Cluster::new(&self.policy, self.stores.deployment_config());
        cluster.add(namespace, &self.policy);
        let placement = cluster.constrain(revision, demand.placement);
        demand.placement = self.stores.runtime_classes().constrain(placement);
        let nodes = self.stores.nodes.state();
        let connected = BTreeSet::new();
        let nodes: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &connected)).collect();
        let mut planned = fan_out(revision, &demand, &nodes, &self.policy);
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        self.keep_within_limit(namespace, &mut planned);
        planned
    }

    /// Removes what exceeds the namespace's limit.
    fn keep_within_limit(&self, namespace: &str, planned: &mut Vec<ImageWarm>) {
        let (own, all) = self.stores.image_warms.counts(namespace);
        let mut room = Room::of_namespace(self.policy.bounds, namespace, own, all);
        planned.retain(|warm| {
            let exists = self.exists(warm);
            exists || room.take(namespace)
        });
        for OverLimit { missing, limit } in room.refused.into_values() {
            self.metrics.count_many(Outcome::OverLimit, missing);
            let reason = LIMIT_REACHED;
            tracing::warn!(namespace, missing, reason, "ImageWarms not created: {limit}");
        }
    }

    fn exists(&self, warm: &ImageWarm) -> bool {
        self.stores.image_warms.get(warm.namespace(), warm.name()).is_some()
    }

    /// The metadata of the namespace; `None` if it is left out. Of a new one, whose event may follow, it is
    /// read.
    async fn namespace(&self, namespace: &Namespace) -> Option<ObjectMeta> {
        let bounds = self.policy.bounds;
        let is_warmed = |metadata: &ObjectMeta| {
            bounds.selects(metadata.labels.as_ref()) && metadata.deletion_timestamp.is_none()
        };
        if let Some(found) = self.stores.namespace(namespace) {
            return Some(found.metadata.clone()).filter(is_warmed);
        }
        match live::read_namespace(&self.client, namespace).await {
            Ok(found) => found.filter(is_warmed),
            Err(error) => {
                tracing::warn!(%namespace, %error, "cannot read Namespace");
                let name = Some(namespace.to_string());
                bounds.selects_unknown().then(|| ObjectMeta { name, ..ObjectMeta::default() })
            }
        }
    }

    async fn create(&self, warm: &ImageWarm, tally: &Tally, namespace_refused: &CancellationToken) {
        if self.exists(warm) {
            tally.existed.fetch_add(1, Ordering::Relaxed);
            self.metrics.count(Outcome::Existed);
            return;
        }
        match writes::create(&self.client, warm).await {
            Ok(Created::New) => {
                tally.created.fetch_add(1, Ordering::Relaxed);
                self.metrics.count(Outcome::Created);
            }
            Ok(Created::Existed) => {
                tally.existed.fetch_add(1, Ordering::Relaxed);
                self.metrics.count(Outcome::Existed);
            }
            Err(error) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                self.metrics.count(Outcome::Failed);
                if error.is_of_namespace() {
                    namespace_refused.cancel();
                }
                tracing::warn!(
                    namespace = warm.metadata.namespace.as_deref().unwrap_or_default(),
                    image = %warm.spec.image,
                    node = %warm.spec.node_name,
                    %error,
                    "cannot create ImageWarm"
                );
            }
        }
    }
}

/// How many of `count` ImageWarms are written at the same time, at most `limit`.
fn writes_at_once(count: usize, limit: usize) -> usize {
    count.div_ceil(WRITES_PER_CONNECTION).max(2).min(limit)
}

#[derive(Default)]
struct Tally {
    created: AtomicUsize,
    existed: AtomicUsize,
    failed: AtomicUsize,
}

impl Tally {
    fn read(&self) -> (usize, usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (read(&self.created), read(&self.existed), read(&self.failed))
    }
}

#[cfg(test)]
mod tests;
