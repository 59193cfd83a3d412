//! The leader's loop: observe (a snapshot of the caches), plan (pure), apply (bounded writes). Each run
//! considers every object of the namespaces in which something has changed or is still to be done, and from time
//! to time all, so that the next run repairs what an earlier one missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
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
use imagewarm_core::api::{DeploymentConfig, ImageWarm, Reason};
use imagewarm_core::demand::Cluster;
use imagewarm_core::plan::diff::Creation;
use imagewarm_core::plan::node_gate::GatedNodes;
use imagewarm_core::plan::planner::{Outcome, Planner, Scope, Snapshot};
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
/// Maximum interval between two runs over all namespaces, whatever the watches report.
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
    planner: Planner,
    /// When all namespaces are planned again.
    resync_at: Instant,
    /// What the last plan was made from.
    synced: Synced,
    connected: Arc<BTreeSet<NodeName>>,
    starts: Arc<AllImageStarts>,
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
            planner: Planner::default(),
            resync_at: Instant::now() + RESYNC,
            synced: Synced::default(),
            connected: Arc::default(),
            starts: Arc::default(),
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
            let next = next.map_or(memory.resync_at, |next| next.min(memory.resync_at));
            self.wait(&mut changes, &mut synced, next, &mut memory.planner).await;
            if memory.resync_at <= Instant::now() {
                memory.planner.all_changed();
                memory.resync_at = Instant::now() + RESYNC;
            }
        }
    }

    /// Waits until the next run is due. What has changed until then is noted.
    async fn wait(
        &mut self,
        changes: &mut broadcast::Receiver<Change>,
        synced: &mut watch::Receiver<Synced>,
        until: Instant,
        planner: &mut Planner,
    ) {
        let woken = async {
            tokio::select! {
                () = relevant_change(changes, PROGRESS_DELAY, planner) => {}
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
        loop {
            match changes.try_recv() {
                Ok(change) => note(&change, planner),
                Err(broadcast::error::TryRecvError::Lagged(_)) => planner.all_changed(),
                Err(
                    broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed,
                ) => break,
            }
        }
    }

    /// One run. Returns when the next one is due if nothing changes.
    async fn reconcile(
        &mut self,
        memory: &mut Memory,
        still_leading: &StillLeading,
        gated: &watch::Sender<GatedNodes>,
    ) -> Option<Instant> {
        let (scope, snapshot) = self.observe(memory)?;
        self.metrics.reads_deployment_config(snapshot.cluster.deployment.is_some());
        memory.log_problem(snapshot.cluster.deployment.as_deref());
        let (policy, grace_periods) = (self.args.policy(), self.args.grace_periods());
        let now = wall_clock();
        // With thousands of nodes, planning occupies a thread for longer than other tasks may wait.
        let began = Instant::now();
        let mut planner = std::mem::take(&mut memory.planner);
        let planned = tokio::task::spawn_blocking(move || {
            let plan = planner.plan(&scope, &snapshot, &policy, grace_periods, now);
            if !snapshot.may_delete {
                // What was left out is made up for once the lists are complete.
                planner.all_changed();
            }
            (planner, plan)
        });
        let planned = planned.await;
        memory.planning = began.elapsed();
        // Of a planner that is lost nothing is known any more: the next run plans all.
        let Ok((planner, plan)) = planned else {
            tracing::error!("planning failed");
            return Some(Instant::now() + RETRY_BACKOFF);
        };
        memory.planner = planner;
        let Outcome { images, failures, gated: nodes, .. } = plan;
        gated.send_if_modified(|counted| std::mem::replace(counted, nodes) != *counted);
        self.metrics.states(&plan.reasons);
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

    /// The namespaces to be planned and what the caches hold of them; `None` while the caches are too incomplete
    /// even for creations.
    fn observe(&self, memory: &mut Memory) -> Option<(Scope, Snapshot)> {
        let mut synced = self.stores.synced.clone();
        let before = *synced.borrow_and_update();
        if !before.own || !before.revisions {
            return None;
        }
        let (policy, stores) = (self.args.policy(), &self.stores);
        let (nodes, connected) = (stores.nodes.state(), self.connected.borrow().clone());
        let starts = self.starts.borrow().clone();
        memory.note(before, &connected, &starts);
        let scope = memory.planner.scope(&nodes, &connected, &policy, wall_clock());
        let (all, cluster) =
            (stores.image_warms.len(), Cluster::new(&policy, stores.deployment_config()));
        let (image_warms, revisions, images, namespaces) = match &scope {
            Scope::All => (
                stores.image_warms.state(),
                stores.revisions.state(),
                stores.images.state(),
                stores.namespaces.state(),
            ),
            Scope::Only(names) => {
                let names = || names.iter().map(AsRef::as_ref);
                (
                    stores.image_warms.in_namespaces(names()),
                    stores.revisions.in_namespaces(names()),
                    stores.images.in_namespaces(names()),
                    names().filter_map(|name| stores.namespace(name)).collect(),
                )
            }
        };
        let mut snapshot = Snapshot {
            elsewhere: all.saturating_sub(image_warms.len()),
            image_warms,
            revisions,
            images,
            nodes,
            runtime_classes: stores.runtime_classes(),
            cluster,
            terminating: BTreeSet::new(),
            connected,
            starts,
            may_delete: before.may_delete(),
        };
        if !policy.bounds.selects_unknown() {
            let revisions = snapshot.revisions.iter().map(|one| &one.metadata);
            let all = revisions.chain(snapshot.images.iter().map(|one| &one.metadata));
            let unknown = all
                .filter_map(|metadata| metadata.namespace.as_deref())
                .filter(|name| stores.namespace(name).is_none());
            snapshot.cluster.opted_out.extend(unknown.map(Into::into));
        }
        for namespace in namespaces {
            snapshot.cluster.add(&namespace.metadata, &policy);
            if namespace.metadata.deletion_timestamp.is_some() {
                let name = namespace.metadata.name.clone();
                snapshot.terminating.insert(name.unwrap_or_default());
            }
        }
        // A cache that was emptied or filled during the read does not prove that an object is gone.
        snapshot.may_delete &= !synced.has_changed().unwrap_or(false);
        Some((scope, snapshot))
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
    /// Notes what has changed since the last plan, beside the changes of objects.
    fn note(
        &mut self,
        synced: Synced,
        connected: &Arc<BTreeSet<NodeName>>,
        starts: &Arc<AllImageStarts>,
    ) {
        if std::mem::replace(&mut self.synced, synced) != synced {
            self.planner.all_changed();
        }
        if !Arc::ptr_eq(&self.connected, connected) {
            self.connected = connected.clone();
            self.planner.nodes_changed();
        }
        let before = std::mem::replace(&mut self.starts, starts.clone());
        starts.changed_since(&before).for_each(|namespace| self.planner.changed(namespace));
    }

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
/// repair, and only counts depend on them. All are noted.
async fn relevant_change(
    changes: &mut broadcast::Receiver<Change>,
    progress_delay: Duration,
    planner: &mut Planner,
) {
    let mut delay = pin!(sleep(Duration::MAX));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => {
                    note(&change, planner);
                    if !is_progress(&change) {
                        return;
                    }
                    let latest = tokio::time::Instant::now() + progress_delay;
                    let due = delay.deadline().min(latest);
                    delay.as_mut().reset(due);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => return planner.all_changed(),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            },
            () = &mut delay => return,
        }
    }
}

/// Notes what is to be planned after a change.
fn note(change: &Change, planner: &mut Planner) {
    match change {
        Change::ImageWarm(warm) | Change::ImageWarmDeleted(warm) => {
            planner.changed(&warm.namespace)
        }
        Change::Revision(namespace, _) | Change::Image(namespace, _) => planner.changed(namespace),
        Change::Namespace(name) => planner.changed(name),
        Change::Node(_) => planner.nodes_changed(),
        Change::RuntimeClass(_) | Change::DeploymentConfig | Change::Relisted => {
            planner.all_changed();
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

#[cfg(test)]
mod tests;
