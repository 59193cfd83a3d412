//! The leader's loop: observe (a snapshot of the stores), plan (pure), apply (bounded writes). Each
//! run looks at everything; what was missed once is put right by the next.

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
use super::owners::without_terminating_owners;
use super::refused_namespaces::RefusedNamespaces;
use super::still_leading::StillLeading;
use super::{ControllerArgs, ControllerMetrics};
use crate::kubernetes::caches::{Change, Stores, Synced};
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::writes::{self, ApplyError};
use imagewarm_core::api::{CachedImageWarm, ImageWarm, KnativeImage, Reason, Revision};
use imagewarm_core::demand::consumers::demands;
use imagewarm_core::placement::{NodeFacts, RuntimeClasses};
use imagewarm_core::plan::diff::Creation;
use imagewarm_core::plan::failures::{Failure, failures};
use imagewarm_core::plan::rollup::{ImageUpdate, Nodes, rollup};
use imagewarm_core::plan::{ImageWarmIndex, Observed, Plan, diff};
use imagewarm_core::policy::Policy;
use imagewarm_core::policy::bounds::LIMIT_REACHED;

/// Changes come in bursts; one run answers for all of a burst.
const DEBOUNCE: Duration = Duration::from_millis(100);
const DEBOUNCE_MAX: Duration = Duration::from_secs(5);
/// Planning may take a third of the time. What is spent on waiting for writes is nobody's CPU, and
/// must not put off the next repair.
const DEBOUNCE_SHARE: u32 = 2;
/// How long the progress of fan-outs and pulls alone may stay without a run.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);
/// Everything is looked at again after this time, whatever was told.
const RESYNC: Duration = Duration::from_secs(300);
/// A creation is taken for granted until the watch must have shown it.
const CREATED_PAUSE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// What was refused will be refused again, until somebody changes something.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// The leader's work.
pub struct Controller {
    /// The API server.
    pub client: Client,
    /// What is watched.
    pub stores: Stores,
    /// Settings.
    pub args: ControllerArgs,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Nodes whose warmer is connected to this replica.
    pub connected: watch::Receiver<Arc<BTreeSet<String>>>,
    /// Name of this replica, for Events.
    pub instance: String,
    /// Counts.
    pub metrics: ControllerMetrics,
}

/// What a leader remembers from run to run; forgotten with the leadership.
struct Memory {
    /// Creations that are not to be tried before this moment, by namespace and name.
    held_back: HashMap<(String, String), Instant>,
    refused: RefusedNamespaces,
    collector: GarbageCollector,
    images: ImageStatuses,
    teller: EventRecorder,
    /// Namespaces that have reached their limit, as told last.
    full: BTreeSet<String>,
    /// How long the last plan took.
    planning: Duration,
}

/// A snapshot of the stores.
struct Snapshot {
    image_warms: Vec<Arc<CachedImageWarm>>,
    revisions: Vec<Arc<Revision>>,
    images: Vec<Arc<KnativeImage>>,
    nodes: Vec<Arc<Node>>,
    runtime_classes: RuntimeClasses,
    opted_out: BTreeSet<String>,
    terminating: BTreeSet<String>,
    connected: Arc<BTreeSet<String>>,
    may_delete: bool,
}

impl Controller {
    /// Runs until `shutdown`; works while this replica leads.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let forever = async {
            while leadership_won(&mut self.leadership).await {
                self.metrics.leading(true);
                self.lead().await;
                self.metrics.leading(false);
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    async fn lead(&mut self) {
        let still = StillLeading(self.leadership.clone());
        let mut changes = self.stores.changes.subscribe();
        let mut memory = Memory {
            held_back: HashMap::new(),
            refused: RefusedNamespaces::default(),
            collector: GarbageCollector::new(
                self.client.clone(),
                self.args.repair_concurrency,
                still.clone(),
                self.metrics.clone(),
            ),
            images: ImageStatuses::new(
                self.client.clone(),
                self.args.repair_concurrency,
                still.clone(),
                self.metrics.clone(),
            ),
            teller: EventRecorder::new(self.client.clone(), self.instance.clone()),
            full: BTreeSet::new(),
            planning: Duration::ZERO,
        };
        let mut synced = self.stores.synced.clone();
        while still.yes() {
            let began = Instant::now();
            synced.mark_unchanged();
            let next = self.reconcile(&mut memory, &still).await;
            self.metrics.reconciled(began.elapsed());
            sleep((memory.planning * DEBOUNCE_SHARE).clamp(DEBOUNCE, DEBOUNCE_MAX)).await;
            let resync = began + RESYNC;
            let next = next.map_or(resync, |next| next.min(resync));
            self.wait(&mut changes, &mut synced, next).await;
        }
    }

    /// Until there is a reason to look again.
    async fn wait(
        &mut self,
        changes: &mut broadcast::Receiver<Change>,
        synced: &mut watch::Receiver<Synced>,
        until: Instant,
    ) {
        let woken = async {
            tokio::select! {
                () = told(changes, PROGRESS_PAUSE) => {}
                Ok(()) = synced.changed() => {}
                Ok(()) = self.connected.changed() => {}
                () = leadership_lost(&mut self.leadership) => return,
                () = sleep_until(until.into()) => return,
            }
            sleep(DEBOUNCE).await;
        };
        woken.await;
        // The rest of the burst is covered by the run that follows.
        while !matches!(
            changes.try_recv(),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
        ) {}
    }

    /// One run; says when to look again although nothing changes.
    async fn reconcile(&mut self, memory: &mut Memory, still: &StillLeading) -> Option<Instant> {
        let snapshot = self.observe()?;
        let (policy, grace_periods) = (self.args.policy(), self.args.grace_periods());
        let now = Timestamp::now();
        // Thousands of nodes keep a thread busy for longer than others should wait for it.
        let began = Instant::now();
        let planned =
            tokio::task::spawn_blocking(move || plan(&snapshot, &policy, grace_periods, now));
        let planned = planned.await;
        memory.planning = began.elapsed();
        let Ok(Planned { plan, images, failures, reasons }) = planned else {
            tracing::error!("planning failed");
            return Some(Instant::now() + RETRY_PAUSE);
        };
        self.metrics.states(reasons.into_iter());
        self.metrics.waiting(plan.create.len() + images.len());
        self.metrics.over_limit(plan.over_limit.values().sum());
        memory.tell_limits(&plan.over_limit);
        let planned_at = Instant::now();
        let recheck = plan
            .recheck_at
            .map(|at| planned_at + Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let retry = self.create(plan.create, memory, still).await;
        let collect = memory.collector.collect(plan.delete, &self.stores).await;
        let images = memory.images.write(images).await;
        let tell = memory.teller.tell(failures, &self.stores).await;
        [recheck, retry, collect, images, tell].into_iter().flatten().min()
    }

    /// `None` while the lists are not to be trusted even for creations.
    fn observe(&self) -> Option<Snapshot> {
        let mut synced = self.stores.synced.clone();
        let before = *synced.borrow_and_update();
        if !before.own || !before.revisions {
            return None;
        }
        let mut snapshot = Snapshot {
            image_warms: self.stores.image_warms.state(),
            revisions: self.stores.revisions.state(),
            images: self.stores.images.state(),
            nodes: self.stores.nodes.state(),
            runtime_classes: self.stores.runtime_classes(),
            opted_out: BTreeSet::new(),
            terminating: BTreeSet::new(),
            connected: self.connected.borrow().clone(),
            may_delete: before.may_delete(),
        };
        let bounds = self.args.policy().bounds;
        if !bounds.selects_unknown() {
            let revisions = snapshot.revisions.iter().map(|one| &one.metadata);
            let all = revisions.chain(snapshot.images.iter().map(|one| &one.metadata));
            let unknown = all
                .filter_map(|metadata| metadata.namespace.as_deref())
                .filter(|name| self.stores.namespace(name).is_none());
            snapshot.opted_out.extend(unknown.map(Into::into));
        }
        for namespace in self.stores.namespaces.state() {
            let name = || namespace.metadata.name.clone().unwrap_or_default();
            if !bounds.selects(namespace.metadata.labels.as_ref()) {
                snapshot.opted_out.insert(name());
            }
            if namespace.metadata.deletion_timestamp.is_some() {
                snapshot.terminating.insert(name());
            }
        }
        // A list that was emptied or filled while it was read says nothing about what is gone.
        snapshot.may_delete &= !synced.has_changed().unwrap_or(false);
        Some(snapshot)
    }

    async fn create(
        &self,
        wanted: Vec<Creation>,
        memory: &mut Memory,
        still: &StillLeading,
    ) -> Option<Instant> {
        let now = Instant::now();
        memory.held_back.retain(|_, until| *until > now);
        memory.refused.keep(|namespace| self.stores.namespace(namespace).is_some());
        let free: Vec<Creation> = wanted
            .into_iter()
            .filter(|one| {
                !memory.held_back.contains_key(&key(&one.object))
                    && !memory.refused.holds(namespace(&one.object), now)
            })
            .collect();
        if free.is_empty() {
            return memory.next_creation(now);
        }
        let limit = usize::from(self.args.repair_concurrency);
        let (free, going) = without_terminating_owners(&self.client, free, limit).await;
        if !going.is_empty() {
            tracing::info!(
                image_warms = going.len(),
                "not made again: their Configuration is gone"
            );
            let until = Instant::now() + CREATED_PAUSE;
            memory.held_back.extend(going.iter().map(|one| (key(&one.object), until)));
        }
        let refusing = Mutex::new(HashSet::new());
        let results: Vec<_> = futures::stream::iter(free)
            .map(async |creation| {
                let locked = || refusing.lock().unwrap_or_else(PoisonError::into_inner);
                if !still.yes() || locked().contains(namespace(&creation.object)) {
                    return None;
                }
                let result = writes::create(&self.client, &creation.object).await;
                if result.as_ref().is_err_and(ApplyError::is_of_namespace) {
                    locked().insert(namespace(&creation.object).to_owned());
                }
                Some((creation, result))
            })
            .buffer_unordered(limit)
            .filter_map(std::future::ready)
            .collect()
            .await;

        let (mut created, mut existed, mut failed) = (0_usize, 0_usize, 0_usize);
        for (creation, result) in results {
            let pause = match &result {
                Ok(done) => {
                    memory.refused.accepted(namespace(&creation.object));
                    match done {
                        writes::Created::New => {
                            created += 1;
                            self.metrics.repaired(creation.repair);
                        }
                        writes::Created::Existed => existed += 1,
                    }
                    CREATED_PAUSE
                }
                Err(error) => {
                    failed += 1;
                    self.metrics.write_failed();
                    if error.is_of_namespace() {
                        let namespace = namespace(&creation.object);
                        if let Some(pause) = memory.refused.refused(namespace, Instant::now()) {
                            note_refused(namespace, error, pause);
                        }
                        continue;
                    }
                    note_failure(&creation.object, error)
                }
            };
            memory.held_back.insert(key(&creation.object), Instant::now() + pause);
        }
        tracing::info!(created, existed, failed, "missing ImageWarms created");
        memory.next_creation(Instant::now())
    }
}

impl Memory {
    /// Logs which namespaces have reached their limit, when that changed.
    fn tell_limits(&mut self, over_limit: &BTreeMap<String, usize>) {
        for (namespace, missing) in over_limit {
            if !self.full.contains(namespace) {
                tracing::warn!(
                    namespace,
                    missing,
                    reason = LIMIT_REACHED,
                    "the namespace has as many ImageWarms as it may \
                     (--max-image-warms-per-namespace)"
                );
            }
        }
        self.full = over_limit.keys().cloned().collect();
    }

    /// When something that is held back may be tried again.
    fn next_creation(&self, now: Instant) -> Option<Instant> {
        self.held_back.values().copied().chain(self.refused.next(now)).min()
    }
}

/// Until something was told that a plan may depend on. An order that has come, and the bytes that a
/// pull has moved on by, thousands of times a second in a large cluster, can wait: nothing has to be
/// put right for them, only counts depend on them.
async fn told(changes: &mut broadcast::Receiver<Change>, progress_pause: Duration) {
    let mut grace_periods = pin!(sleep(Duration::MAX));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) if is_progress(&change) => {
                    let latest = tokio::time::Instant::now() + progress_pause;
                    let due = grace_periods.deadline().min(latest);
                    grace_periods.as_mut().reset(due);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            },
            () = &mut grace_periods => return,
        }
    }
}

fn is_progress(change: &Change) -> bool {
    let Change::ImageWarm(warm) = change else { return false };
    let goes_well =
        warm.ready().is_none() || matches!(warm.reason(), Some(Reason::Queued | Reason::Pulling));
    !warm.is_terminating() && goes_well
}

/// False when nobody will tell any more.
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

fn note_refused(namespace: &str, error: &ApplyError, pause: Duration) {
    tracing::warn!(
        namespace,
        reason = error.reason(),
        %error,
        next_try_after = ?pause,
        "the namespace takes no ImageWarms"
    );
}

/// How long not to try this again.
fn note_failure(warm: &ImageWarm, error: &ApplyError) -> Duration {
    tracing::warn!(
        namespace = warm.metadata.namespace.as_deref().unwrap_or_default(),
        image = %warm.spec.image,
        node = %warm.spec.node_name,
        reason = error.reason(),
        %error,
        "cannot create ImageWarm"
    );
    match error {
        ApplyError::Retryable(_) | ApplyError::Conflict => RETRY_PAUSE,
        _ => REFUSED_PAUSE,
    }
}

/// All that follows from a snapshot.
struct Planned {
    plan: Plan,
    images: Vec<ImageUpdate>,
    failures: Vec<Failure>,
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
    let demanded = demands(&snapshot.revisions, &snapshot.images, &snapshot.opted_out, policy);
    let observed = Observed {
        image_warms: &image_warms,
        demands: &demanded.consumers,
        nodes: &nodes,
        runtime_classes: &snapshot.runtime_classes,
        terminating: &snapshot.terminating,
        may_delete: snapshot.may_delete,
    };
    let plan = diff(&observed, policy, grace_periods, now);
    let looked = Nodes {
        image_warms: &image_warms,
        nodes: &nodes,
        runtime_classes: &snapshot.runtime_classes,
        terminating: &snapshot.terminating,
        full: &plan.over_limit,
    };
    Planned {
        // A list that is behind makes for statuses that are not true.
        images: match snapshot.may_delete {
            true => rollup(&looked, &demanded, policy, grace_periods, now),
            false => Vec::new(),
        },
        failures: failures(&image_warms, &demanded.consumers),
        reasons: snapshot.image_warms.iter().map(|warm| warm.reason()).collect(),
        plan,
    }
}

#[cfg(test)]
mod tests;
