//! The leader's loop: observe (a snapshot of the caches), plan (pure), apply (bounded writes). Each
//! run considers every object, so the next run repairs what an earlier one missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::events::EventRecorder;
use super::garbage_collection::GarbageCollector;
use super::image_status::ImageStatuses;
use super::node_gate::NodeGate;
use super::owners::without_terminating_owners;
use super::refused_namespaces::RefusedNamespaces;
use super::still_leading::StillLeading;
use super::{ControllerArgs, ControllerMetrics};
use crate::clock::wall_clock;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::caches::{Change, Stores, Synced};
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::writes;
use imagewarm_core::api::names::NodeName;
use imagewarm_core::api::{
    CachedImageWarm, DeploymentConfig, ImageWarm, KnativeImage, Reason, Revision,
};
use imagewarm_core::demand::Cluster;
use imagewarm_core::demand::consumers::demands;
use imagewarm_core::placement::{NodeFacts, RuntimeClasses};
use imagewarm_core::plan::diff::Creation;
use imagewarm_core::plan::failures::{Failure, failures};
use imagewarm_core::plan::node_gate::{GatedNodes, gated_nodes};
use imagewarm_core::plan::rollup::{ImageUpdate, Nodes, rollup};
use imagewarm_core::plan::{ImageWarmIndex, Observed, Plan, diff};
use imagewarm_core::policy::Policy;
use imagewarm_core::policy::bounds::{LIMIT_REACHED, OverLimit};
use imagewarm_core::report::image_starts::AllImageStarts;

/// Changes arrive in bursts; one run covers a whole burst.
const DEBOUNCE: Duration = Duration::from_millis(100);
const DEBOUNCE_MAX: Duration = Duration::from_secs(5);
/// The wait after a run, as a multiple of its planning time: planning takes a third of the time.
/// The time of the writes does not count: it uses no CPU and must not delay the next repair.
const DEBOUNCE_SHARE: u32 = 2;
/// Maximum delay of a run when only the progress of fan-outs and pulls has changed.
const PROGRESS_DELAY: Duration = Duration::from_secs(5);
/// Maximum interval between two runs, whatever the watches report.
const RESYNC: Duration = Duration::from_secs(300);
/// A creation is not repeated for this long; by then the watch has delivered the object.
const CREATED_BACKOFF: Duration = Duration::from_secs(10);
const RETRY_BACKOFF: Duration = Duration::from_secs(2);
/// The API server rejects a rejected object again until a user changes something.
const REFUSED_BACKOFF: Duration = Duration::from_secs(60);

/// The leader's work.
pub struct Controller {
    /// The API server.
    pub client: Client,
    /// The watched objects.
    pub stores: Stores,
    /// Settings.
    pub args: ControllerArgs,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Nodes whose warmer is connected to this replica.
    pub connected: watch::Receiver<Arc<BTreeSet<NodeName>>>,
    /// Container starts for the statuses of Images.
    pub starts: watch::Receiver<Arc<AllImageStarts>>,
    /// Name of this replica, for Events.
    pub instance: String,
    /// The leader's metrics.
    pub metrics: ControllerMetrics,
}

/// State that the leader keeps between runs; dropped when it stops leading.
struct Memory {
    /// When each of these creations may be retried, by namespace and name.
    held_back: HashMap<(String, String), Instant>,
    refused: RefusedNamespaces,
    garbage: GarbageCollector,
    image_statuses: ImageStatuses,
    events: EventRecorder,
    /// Namespaces that have reached their limit, as last logged.
    full: BTreeSet<String>,
    /// What is wrong with Knative's ConfigMap, as last logged.
    problem: Option<String>,
    /// How long the last plan took.
    planning: Duration,
}

/// A snapshot of the caches.
struct Snapshot {
    image_warms: Vec<Arc<CachedImageWarm>>,
    revisions: Vec<Arc<Revision>>,
    images: Vec<Arc<KnativeImage>>,
    nodes: Vec<Arc<Node>>,
    runtime_classes: RuntimeClasses,
    cluster: Cluster,
    terminating: BTreeSet<String>,
    connected: Arc<BTreeSet<NodeName>>,
    starts: Arc<AllImageStarts>,
    may_delete: bool,
}

impl Controller {
    /// Runs until `shutdown`; works while this replica leads.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let forever = async {
            while leadership_won(&mut self.leadership).await {
                self.metrics.leading(true);
                let (gated, gate) = self.node_gate();
                tokio::select! {
                    () = self.lead(&gated) => {}
                    () = gate.run() => {}
                }
                self.metrics.leading(false);
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    /// Releases nodes beside the reconciliations, since no write may delay a deadline; and where these
    /// state what is wanted on such nodes.
    fn node_gate(&self) -> (watch::Sender<GatedNodes>, NodeGate) {
        let gated = watch::Sender::default();
        let gate = NodeGate {
            client: self.client.clone(),
            stores: self.stores.clone(),
            policy: self.args.policy(),
            deadline: self.args.node_gate_deadline,
            concurrency: self.args.repair_concurrency.into(),
            still_leading: StillLeading(self.leadership.clone()),
            gated: gated.subscribe(),
            instance: self.instance.clone(),
            metrics: self.metrics.clone(),
        };
        (gated, gate)
    }

    async fn lead(&mut self, gated: &watch::Sender<GatedNodes>) {
        let still_leading = StillLeading(self.leadership.clone());
        let mut changes = self.stores.changes.subscribe();
        let mut memory = Memory {
            held_back: HashMap::new(),
            refused: RefusedNamespaces::default(),
            garbage: GarbageCollector::new(
                self.client.clone(),
                self.args.repair_concurrency,
                still_leading.clone(),
                self.metrics.clone(),
            ),
            image_statuses: ImageStatuses::new(
                self.client.clone(),
                self.args.repair_concurrency,
                still_leading.clone(),
                self.metrics.clone(),
            ),
            events: EventRecorder::new(self.client.clone(), self.instance.clone()),
            full: BTreeSet::new(),
            problem: None,
            planning: Duration::ZERO,
        };
        let mut synced = self.stores.synced.clone();
        while still_leading.get() {
            let began = Instant::now();
            synced.mark_unchanged();
            let next = self.reconcile(&mut memory, &still_leading, gated).await;
            self.metrics.reconciled(began.elapsed());
            sleep((memory.planning * DEBOUNCE_SHARE).clamp(DEBOUNCE, DEBOUNCE_MAX)).await;
            let resync = began + RESYNC;
            let next = next.map_or(resync, |next| next.min(resync));
            self.wait(&mut changes, &mut synced, next).await;
        }
    }

    /// Waits until the next run is due.
    async fn wait(
        &mut self,
        changes: &mut broadcast::Receiver<Change>,
        synced: &mut watch::Receiver<Synced>,
        until: Instant,
    ) {
        let woken = async {
            tokio::select! {
                () = relevant_change(changes, PROGRESS_DELAY) => {}
                Ok(()) = synced.changed() => {}
                Ok(()) = self.connected.changed() => {}
                Ok(()) = self.starts.changed() => {}
                () = leadership_lost(&mut self.leadership) => return,
                () = sleep_until(until.into()) => return,
            }
            sleep(DEBOUNCE).await;
        };
        woken.await;
        // The next run covers the rest of the burst.
        while !matches!(
            changes.try_recv(),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
        ) {}
    }

    /// One run. Returns when the next one is due if nothing changes.
    async fn reconcile(
        &mut self,
        memory: &mut Memory,
        still_leading: &StillLeading,
        gated: &watch::Sender<GatedNodes>,
    ) -> Option<Instant> {
        let snapshot = self.observe()?;
        self.metrics.reads_deployment_config(snapshot.cluster.deployment.is_some());
        memory.log_problem(snapshot.cluster.deployment.as_deref());
        let (policy, grace_periods) = (self.args.policy(), self.args.grace_periods());
        let now = wall_clock();
        // With thousands of nodes, planning occupies a thread for longer than other tasks may wait.
        let began = Instant::now();
        let planned =
            tokio::task::spawn_blocking(move || plan(&snapshot, &policy, grace_periods, now));
        let planned = planned.await;
        memory.planning = began.elapsed();
        let Ok(Planned { plan, images, failures, gated: nodes, reasons }) = planned else {
            tracing::error!("planning failed");
            return Some(Instant::now() + RETRY_BACKOFF);
        };
        gated.send_if_modified(|counted| std::mem::replace(counted, nodes) != *counted);
        self.metrics.states(reasons.into_iter());
        self.metrics.waiting(plan.create.len() + images.len());
        self.metrics.over_limit(plan.over_limit.values().map(|over| over.missing).sum());
        memory.log_limits(&plan.over_limit);
        let planned_at = Instant::now();
        let recheck = plan
            .recheck_at
            .map(|at| planned_at + Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let retry = self.create(plan.create, memory, still_leading).await;
        let deletions = memory.garbage.collect(plan.delete, &self.stores).await;
        let images = memory.image_statuses.write(images).await;
        let events = memory.events.record(failures, &self.stores).await;
        [recheck, retry, deletions, images, events].into_iter().flatten().min()
    }

    /// `None` while the caches are too incomplete even for creations.
    fn observe(&self) -> Option<Snapshot> {
        let mut synced = self.stores.synced.clone();
        let before = *synced.borrow_and_update();
        if !before.own || !before.revisions {
            return None;
        }
        let policy = self.args.policy();
        let mut snapshot = Snapshot {
            image_warms: self.stores.image_warms.state(),
            revisions: self.stores.revisions.state(),
            images: self.stores.images.state(),
            nodes: self.stores.nodes.state(),
            runtime_classes: self.stores.runtime_classes(),
            cluster: Cluster::new(&policy, self.stores.deployment_config()),
            terminating: BTreeSet::new(),
            connected: self.connected.borrow().clone(),
            starts: self.starts.borrow().clone(),
            may_delete: before.may_delete(),
        };
        if !policy.bounds.selects_unknown() {
            let revisions = snapshot.revisions.iter().map(|one| &one.metadata);
            let all = revisions.chain(snapshot.images.iter().map(|one| &one.metadata));
            let unknown = all
                .filter_map(|metadata| metadata.namespace.as_deref())
                .filter(|name| self.stores.namespace(name).is_none());
            snapshot.cluster.opted_out.extend(unknown.map(Into::into));
        }
        for namespace in self.stores.namespaces.state() {
            snapshot.cluster.add(&namespace.metadata, &policy);
            if namespace.metadata.deletion_timestamp.is_some() {
                let name = namespace.metadata.name.clone();
                snapshot.terminating.insert(name.unwrap_or_default());
            }
        }
        // A cache that was emptied or filled during the read does not prove that an object is gone.
        snapshot.may_delete &= !synced.has_changed().unwrap_or(false);
        Some(snapshot)
    }

    async fn create(
        &self,
        planned: Vec<Creation>,
        memory: &mut Memory,
        still_leading: &StillLeading,
    ) -> Option<Instant> {
        let now = Instant::now();
        memory.held_back.retain(|_, until| *until > now);
        memory.refused.retain(|namespace| self.stores.namespace(namespace).is_some());
        let due: Vec<Creation> = planned
            .into_iter()
            .filter(|one| {
                !memory.held_back.contains_key(&key(&one.object))
                    && !memory.refused.contains(namespace(&one.object), now)
            })
            .collect();
        if due.is_empty() {
            return memory.next_creation(now);
        }
        let limit = usize::from(self.args.repair_concurrency);
        let (due, orphans) = without_terminating_owners(&self.client, due, limit).await;
        if !orphans.is_empty() {
            tracing::info!(
                image_warms = orphans.len(),
                "ImageWarms not recreated: their Configuration is terminating or deleted"
            );
            let until = Instant::now() + CREATED_BACKOFF;
            memory.held_back.extend(orphans.iter().map(|one| (key(&one.object), until)));
        }
        let results = self.create_all(due, still_leading).await;
        self.record(results, memory);
        memory.next_creation(Instant::now())
    }

    /// Creates the objects in parallel, as long as this replica leads. After a namespace has
    /// rejected one, its others are not sent.
    async fn create_all(
        &self,
        due: Vec<Creation>,
        still_leading: &StillLeading,
    ) -> Vec<(Creation, Result<writes::Created, ApplyError>)> {
        let refusing = Mutex::new(HashSet::new());
        futures::stream::iter(due)
            .map(async |creation| {
                let locked = || refusing.lock().unwrap_or_else(PoisonError::into_inner);
                if !still_leading.get() || locked().contains(namespace(&creation.object)) {
                    return None;
                }
                let result = writes::create(&self.client, &creation.object).await;
                if result.as_ref().is_err_and(ApplyError::is_of_namespace) {
                    locked().insert(namespace(&creation.object).to_owned());
                }
                Some((creation, result))
            })
            .buffer_unordered(usize::from(self.args.repair_concurrency))
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// Counts and logs the results, and holds each object back for its time.
    fn record(
        &self,
        results: Vec<(Creation, Result<writes::Created, ApplyError>)>,
        memory: &mut Memory,
    ) {
        let (mut created, mut existed, mut failed) = (0_usize, 0_usize, 0_usize);
        for (creation, result) in results {
            let backoff = match &result {
                Ok(done) => {
                    memory.refused.accepted(namespace(&creation.object));
                    match done {
                        writes::Created::New => {
                            created += 1;
                            self.metrics.repaired(creation.repair);
                        }
                        writes::Created::Existed => existed += 1,
                    }
                    CREATED_BACKOFF
                }
                Err(error) => {
                    failed += 1;
                    self.metrics.write_failed();
                    if error.is_of_namespace() {
                        let namespace = namespace(&creation.object);
                        let now = Instant::now();
                        if let Some(backoff) = memory.refused.refused(namespace, error, now) {
                            log_refused(namespace, error, backoff);
                        }
                        continue;
                    }
                    log_failure(&creation.object, error)
                }
            };
            memory.held_back.insert(key(&creation.object), Instant::now() + backoff);
        }
        tracing::info!(created, existed, failed, "missing ImageWarms created");
    }
}

impl Memory {
    /// Logs once why no RuntimeClass can be read from Knative's ConfigMap.
    fn log_problem(&mut self, deployment: Option<&DeploymentConfig>) {
        let problem = deployment.and_then(|deployment| deployment.problem.clone());
        if let Some(error) = problem.as_ref().filter(|_| problem != self.problem) {
            tracing::warn!(%error, "runtime-class-name of config-deployment has no effect");
        }
        self.problem = problem;
    }

    /// Logs each namespace that has newly reached its limit.
    fn log_limits(&mut self, over_limit: &BTreeMap<String, OverLimit>) {
        for (namespace, OverLimit { missing, limit }) in over_limit {
            if !self.full.contains(namespace) {
                let reason = LIMIT_REACHED;
                tracing::warn!(namespace, missing, reason, "ImageWarms not created: {limit}");
            }
        }
        self.full = over_limit.keys().cloned().collect();
    }

    /// When the next of the creations that are held back may be retried.
    fn next_creation(&self, now: Instant) -> Option<Instant> {
        self.held_back.values().copied().chain(self.refused.next(now)).min()
    }
}

/// Waits for a change that a plan may depend on. New ImageWarms and the progress of pulls,
/// thousands a second in a large cluster, are delayed by at most `progress_delay`: they require no
/// repair, and only counts depend on them.
async fn relevant_change(changes: &mut broadcast::Receiver<Change>, progress_delay: Duration) {
    let mut delay = pin!(sleep(Duration::MAX));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) if is_progress(&change) => {
                    let latest = tokio::time::Instant::now() + progress_delay;
                    let due = delay.deadline().min(latest);
                    delay.as_mut().reset(due);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            },
            () = &mut delay => return,
        }
    }
}

fn is_progress(change: &Change) -> bool {
    let Change::ImageWarm(warm) = change else { return false };
    let in_progress =
        warm.ready().is_none() || matches!(warm.reason(), Some(Reason::Queued | Reason::Pulling));
    !warm.is_terminating() && in_progress
}

/// False when the election has stopped, so that this replica never leads again.
async fn leadership_won(leadership: &mut watch::Receiver<Leadership>) -> bool {
    leadership.wait_for(|now| now.leading).await.is_ok()
}

async fn leadership_lost(leadership: &mut watch::Receiver<Leadership>) {
    drop(leadership.wait_for(|now| !now.leading).await);
}

fn key(warm: &ImageWarm) -> (String, String) {
    let metadata = &warm.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn namespace(warm: &ImageWarm) -> &str {
    warm.metadata.namespace.as_deref().unwrap_or_default()
}

fn log_refused(namespace: &str, error: &ApplyError, backoff: Duration) {
    tracing::warn!(
        namespace,
        reason = error.reason(),
        %error,
        retry_after = ?backoff,
        "ImageWarms rejected in the whole namespace"
    );
}

/// Logs a failed creation. Returns its back-off.
fn log_failure(warm: &ImageWarm, error: &ApplyError) -> Duration {
    tracing::warn!(
        namespace = warm.metadata.namespace.as_deref().unwrap_or_default(),
        image = %warm.spec.image,
        node = %warm.spec.node_name,
        reason = error.reason(),
        %error,
        "cannot create ImageWarm"
    );
    match error {
        ApplyError::Retryable(_) | ApplyError::Conflict => RETRY_BACKOFF,
        _ => REFUSED_BACKOFF,
    }
}

/// The results of planning from one snapshot.
struct Planned {
    plan: Plan,
    images: Vec<ImageUpdate>,
    failures: Vec<Failure>,
    gated: GatedNodes,
    reasons: Vec<Option<Reason>>,
}

fn plan(
    snapshot: &Snapshot,
    policy: &Policy,
    grace_periods: imagewarm_core::plan::diff::GracePeriods,
    now: Timestamp,
) -> Planned {
    let nodes: Vec<_> =
        snapshot.nodes.iter().map(|node| NodeFacts::new(node, &snapshot.connected)).collect();
    let image_warms = ImageWarmIndex::new(&snapshot.image_warms);
    let demanded = demands(&snapshot.revisions, &snapshot.images, &snapshot.cluster, policy);
    let observed = Observed {
        image_warms: &image_warms,
        demands: &demanded.consumers,
        nodes: &nodes,
        runtime_classes: &snapshot.runtime_classes,
        terminating: &snapshot.terminating,
        may_delete: snapshot.may_delete,
    };
    let plan = diff(&observed, policy, grace_periods, now);
    let cluster = Nodes {
        image_warms: &image_warms,
        nodes: &nodes,
        runtime_classes: &snapshot.runtime_classes,
        terminating: &snapshot.terminating,
        full: &plan.over_limit,
        starts: &snapshot.starts,
    };
    Planned {
        // A stale list yields wrong statuses.
        images: match snapshot.may_delete {
            true => rollup(&cluster, &demanded, policy, grace_periods, now),
            false => Vec::new(),
        },
        failures: failures(&image_warms, &demanded.consumers),
        gated: gated_nodes(&snapshot.nodes, &observed, &plan.over_limit, policy),
        reasons: snapshot.image_warms.iter().map(|warm| warm.reason()).collect(),
        plan,
    }
}

#[cfg(test)]
mod tests;
