//! The task that owns the index of assignments: events in, effects out. Idle unless this replica
//! leads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::DispatchArgs;
use super::credentials::{ApiServerCredentials, CredentialResolver, CredentialSource};
use super::metrics::DispatchMetrics;
use super::pull_contexts::PullContexts;
use super::status_writer::{ApiServerSink, StatusSink, StatusWriter};
use super::stream::{Input, Opened, Outgoing, PodImages, end_status};
use crate::clock::{Clock, sleep_until};
use crate::kubernetes::caches::{Change, Stores};
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::token_review::WarmerIdentity;
use imagewarm_core::api::names::{NodeName, Uid};
use imagewarm_core::assignment::{
    Budget, CredentialRequest, Effect, Index, Refusal, SessionId, StreamEnd,
};
use imagewarm_core::image::Credential;
use imagewarm_core::policy::Policy;
use imagewarm_core::protocol::{FromController, Hello, PullGrant, from_controller};
use imagewarm_core::report::pending_pod::PendingPod;
use imagewarm_core::throttle::canary;
use imagewarm_core::throttle::limits::RegistryLimits;

/// Messages that a warmer may leave unread, in addition to two for each of its assignments.
const UNREAD: usize = 1024;
/// Capacity of the queue of warmer events; when it is full, the streams wait.
const INPUTS: usize = 1024;
/// Maximum number of events handled before their effects are performed together.
const BATCH: usize = 256;
/// Revisions change in bursts; pull contexts are recomputed once for each burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Interval between checks whether a waiting pull may start.
const WAITING_INTERVAL: Duration = Duration::from_millis(100);
/// How long the last statuses may take to be written at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Target of the log lines about credentials, which `--log-level` can name.
const AUDIT: &str = "imagewarm::audit";

type Found = Result<Vec<Credential>, Refusal>;

/// The result of a credential request.
enum Resolved {
    ForPull(CredentialRequest, Found),
    Recheck(Vec<Uid>, Found),
}

/// An open stream.
struct Session {
    sender: mpsc::Sender<Outgoing>,
    node: NodeName,
    /// Of the Node that its warmer was accepted for.
    node_uid: Option<String>,
    /// Ends its reader and its connection.
    cut: CancellationToken,
}

/// The task that owns the index. Idle unless this replica leads.
pub struct Dispatcher {
    stores: Stores,
    leader: watch::Receiver<Leadership>,
    args: DispatchArgs,
    metrics: DispatchMetrics,
    credentials: CredentialResolver,
    writer: StatusWriter,
    pull_contexts: PullContexts,
    clock: Clock,
    index: Index,
    /// True while this replica leads, from when its caches are filled.
    active: bool,
    sessions: HashMap<SessionId, Session>,
    last_session: SessionId,
    inputs: mpsc::Receiver<Input>,
    inputs_sender: mpsc::Sender<Input>,
    connected: watch::Sender<Arc<BTreeSet<NodeName>>>,
    credential_requests: JoinSet<Resolved>,
    /// When pull contexts are to be recomputed.
    settle_at: Option<Instant>,
}

/// The dependencies of a [`Dispatcher`] that tests replace.
pub(crate) struct Parts {
    pub(crate) sink: Arc<dyn StatusSink>,
    pub(crate) credentials: Arc<dyn CredentialSource>,
}

impl Dispatcher {
    /// A dispatcher that reads Secrets and writes statuses through `client`.
    pub fn new(
        client: Client,
        stores: Stores,
        policy: Policy,
        leader: watch::Receiver<Leadership>,
        args: DispatchArgs,
        metrics: DispatchMetrics,
    ) -> Self {
        let parts = Parts {
            sink: Arc::new(ApiServerSink::new(client.clone())),
            credentials: Arc::new(ApiServerCredentials::new(client)),
        };
        Self::with_parts(parts, stores, policy, leader, args, metrics)
    }

    pub(crate) fn with_parts(
        parts: Parts,
        stores: Stores,
        policy: Policy,
        leader: watch::Receiver<Leadership>,
        args: DispatchArgs,
        metrics: DispatchMetrics,
    ) -> Self {
        let (inputs_sender, inputs) = mpsc::channel(INPUTS);
        Dispatcher {
            credentials: CredentialResolver::new(parts.credentials),
            writer: StatusWriter::new(parts.sink, metrics.clone()),
            pull_contexts: PullContexts::new(policy),
            clock: Clock::start(),
            index: empty_index(&args, 0),
            active: false,
            sessions: HashMap::new(),
            last_session: 0,
            inputs,
            inputs_sender,
            connected: watch::Sender::default(),
            credential_requests: JoinSet::new(),
            settle_at: None,
            stores,
            leader,
            args,
            metrics,
        }
    }

    /// The queue of warmer events, for the server.
    pub(crate) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs_sender.clone()
    }

    /// Takes what kubelets and schedulers report of Pods.
    pub(crate) fn pod_images(&self) -> PodImages {
        PodImages(self.inputs_sender.clone())
    }

    /// Names of the nodes whose warmer has an open stream to this replica.
    pub fn connected(&self) -> watch::Receiver<Arc<BTreeSet<NodeName>>> {
        self.connected.subscribe()
    }

    /// Runs until `shutdown`; then terminates every stream and writes the last statuses.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.stores.changes.subscribe();
        let mut synced = self.stores.synced.clone();
        let mut leader = self.leader.clone();
        // A dropped sender changes no more.
        let (mut synced_open, mut leader_open) = (true, true);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut soon = tokio::time::interval(WAITING_INTERVAL);
        soon.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let writer_end = CancellationToken::new();
        let mut writes = JoinSet::new();
        writes.spawn(self.writer.clone().run(writer_end.clone()));

        loop {
            self.perform_effects();
            // Before the leadership check: leadership ends at the same moment, and the statuses
            // that remain to be written must not be dropped for that.
            if shutdown.is_cancelled() {
                break;
            }
            self.follow_leadership(&mut changes);
            self.perform_effects();
            let settle_at = self.settle_at;
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = leader.changed(), if leader_open => leader_open = changed.is_ok(),
                changed = synced.changed(), if synced_open => synced_open = changed.is_ok(),
                change = changes.recv(), if self.active => self.on_changes(change, &mut changes),
                Some(input) = self.inputs.recv() => self.on_inputs(input),
                Some(Ok(resolved)) = self.credential_requests.join_next() => {
                    self.on_resolved(resolved);
                }
                () = sleep_until(settle_at), if settle_at.is_some() => self.settle(),
                _ = soon.tick(), if self.index.has_waiting() => self.index.begin_waiting(self.now()),
                _ = tick.tick() => {
                    self.index.tick(self.now());
                    self.credentials.sweep();
                    self.drop_abandoned();
                }
            }
        }
        self.inputs.close();
        while let Ok(input) = self.inputs.try_recv() {
            if let Input::Message(session, message) = input {
                self.index.message(session, &message, self.now());
            }
        }
        self.perform_effects();
        self.end_streams(StreamEnd::Shutdown);
        writer_end.cancel();
        if tokio::time::timeout(DRAIN, writes.join_next()).await.is_err() {
            tracing::warn!("statuses not written before shutdown");
        }
    }

    fn follow_leadership(&mut self, changes: &mut broadcast::Receiver<Change>) {
        let leading = self.leader.borrow().leading;
        if self.active && !leading {
            self.active = false;
            self.end_streams(StreamEnd::NotLeading);
            self.writer.clear();
            self.credential_requests.abort_all();
            self.index = empty_index(&self.args, self.now());
            self.pull_contexts.clear();
            self.settle_at = None;
            tracing::info!("dispatch stopped: leadership lost");
        } else if !self.active && leading && self.stores.synced.borrow().ready() {
            self.active = true;
            self.index = empty_index(&self.args, self.now());
            *changes = self.stores.changes.subscribe();
            self.resync();
            tracing::info!(assignments = self.index.assignments(), "dispatch started");
        }
    }

    fn on_changes(
        &mut self,
        first: Result<Change, RecvError>,
        changes: &mut broadcast::Receiver<Change>,
    ) {
        let mut next = first;
        for handled in 1.. {
            match next {
                Ok(Change::ImageWarm(warm)) if warm.is_terminating() => {
                    self.writer.forget(&warm.uid);
                    self.pull_contexts.forget(&warm.uid);
                    self.index.delete(&warm.uid, self.now());
                }
                Ok(Change::ImageWarm(warm)) => {
                    let pull_context = self.pull_contexts.of(&warm, &self.stores);
                    self.index.apply(warm, pull_context, self.now());
                }
                Ok(Change::ImageWarmDeleted(warm)) => {
                    self.writer.forget(&warm.uid);
                    self.pull_contexts.forget(&warm.uid);
                    self.index.delete(&warm.uid, self.now());
                }
                Ok(Change::Revision(namespace, _)) => {
                    self.pull_contexts.changed(&namespace);
                    self.settle_at.get_or_insert(Instant::now() + SETTLE);
                }
                // The last two change seldom, and decide about runtime handlers everywhere.
                Ok(Change::Relisted | Change::RuntimeClass(_) | Change::DeploymentConfig)
                | Err(RecvError::Lagged(_)) => self.resync(),
                Ok(Change::Image(namespace, name)) => {
                    if self.pull_contexts.image_changed(&namespace, &name, &self.stores) {
                        self.settle_at.get_or_insert(Instant::now() + SETTLE);
                    }
                }
                Ok(Change::Node(name)) => self.drop_departed(Some(&name)),
                Ok(Change::Namespace(_)) => {}
                Err(RecvError::Closed) => return,
            }
            if handled == BATCH {
                return;
            }
            next = match changes.try_recv() {
                Ok(change) => Ok(change),
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            };
        }
    }

    fn on_resolved(&mut self, resolved: Resolved) {
        match resolved {
            Resolved::ForPull(request, found) => {
                if found.is_err() {
                    self.metrics.credentials_refused.inc();
                }
                self.index.resolved(&request, found, self.now());
            }
            Resolved::Recheck(uids, found) => self.index.rechecked(&uids, &found, self.now()),
        }
    }

    fn on_inputs(&mut self, first: Input) {
        let mut next = Some(first);
        let mut handled = 0;
        let mut sessions_changed = false;
        while let Some(input) = next {
            match input {
                Input::Open { warmer, hello, reply } => {
                    sessions_changed = true;
                    self.open(&warmer, &hello, reply);
                }
                Input::Message(session, message) => {
                    self.index.message(session, &message, self.now())
                }
                Input::PodWaits(image) => self.index.pod_waits(&image, self.now()),
                Input::PodStarted(image) => self.index.pod_started(&image, self.now()),
                Input::PodPending(PendingPod { namespace, revision }) => {
                    let images = self.pull_contexts.images_of(&namespace, &revision, &self.stores);
                    self.index.pod_pending(&namespace, &images, self.now());
                }
                Input::Closed(session, end) => {
                    sessions_changed = true;
                    self.end_stream(session, end);
                    self.index.close(session, self.now());
                }
            }
            handled += 1;
            next = if handled < BATCH { self.inputs.try_recv().ok() } else { None };
        }
        if sessions_changed {
            self.publish_connected();
        }
    }

    fn open(
        &mut self,
        warmer: &WarmerIdentity,
        hello: &Hello,
        reply: oneshot::Sender<Result<Opened, Status>>,
    ) {
        let node = &warmer.node;
        if !self.active {
            let _ =
                reply.send(Err(Status::unavailable("this replica is not ready to dispatch yet")));
            return;
        }
        // The warmer of a new node may be faster than the watch on Nodes; it reconnects.
        let found = self.stores.nodes.get("", node);
        let rejected = match &found {
            None => Some(StreamEnd::UnknownNode),
            Some(found)
                if warmer.node_uid.is_some()
                    && warmer.node_uid.as_deref() != found.metadata.uid.as_deref() =>
            {
                Some(StreamEnd::OtherNode)
            }
            Some(_) => None,
        };
        if let Some(end) = rejected {
            self.metrics.stream_end(end);
            tracing::warn!(node = &**node, reason = end.as_str(), "warmer rejected");
            let _ = reply.send(Err(end_status(end, &self.leader.borrow())));
            return;
        }
        self.last_session += 1;
        let session = self.last_session;
        // Room for the initial burst; a channel allocates memory only for the messages in it.
        let capacity = UNREAD + 2 * self.index.assignments_of(node);
        let (sender, messages) = mpsc::channel(capacity);
        let cut = CancellationToken::new();
        if reply.send(Ok(Opened { session, messages, cut: cut.clone() })).is_ok() {
            tracing::debug!(
                node = &**node,
                session,
                runtime = hello.runtime_name,
                "warmer connected"
            );
            let node_uid = found.and_then(|found| found.metadata.uid.clone());
            self.sessions.insert(session, Session { sender, node: node.clone(), node_uid, cut });
            self.index.open(session, node, hello, self.now());
        }
    }

    /// Applies every cached ImageWarm, and drops those that are no longer cached.
    fn resync(&mut self) {
        self.settle_at = None;
        self.drop_departed(None);
        self.pull_contexts.clear();
        self.pull_contexts.group(&self.stores);
        let mut gone: BTreeSet<Uid> = self.index.uids().into_iter().collect();
        for warm in self.stores.image_warms.state() {
            gone.remove(&warm.uid);
            let pull_context = self.pull_contexts.of(&warm, &self.stores);
            self.index.apply(warm, pull_context, self.now());
        }
        for uid in gone {
            self.index.delete(&uid, self.now());
        }
    }

    /// Recomputes the pull contexts of namespaces whose Revisions or Images changed.
    fn settle(&mut self) {
        self.settle_at = None;
        let namespaces = self.pull_contexts.take_changed(&self.stores);
        let namespaces = namespaces.iter().map(String::as_str);
        for warm in self.stores.image_warms.in_namespaces(namespaces) {
            let pull_context = self.pull_contexts.of(&warm, &self.stores);
            self.index.apply(warm, pull_context, self.now());
        }
    }

    /// The time that the index is given: monotonic, in milliseconds.
    fn now(&self) -> i64 {
        self.clock.monotonic_ms()
    }

    fn perform_effects(&mut self) {
        loop {
            let effects = self.index.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Send(session, message) => self.send(session, message),
                    Effect::Close(
                        session,
                        end @ (StreamEnd::Misbehaved | StreamEnd::Excessive),
                    ) => self.cut_off(session, end),
                    Effect::Close(session, end) => self.end_stream(session, end),
                    Effect::Resolve(request) => {
                        let credentials = self.credentials.clone();
                        self.credential_requests.spawn(async move {
                            let found = credentials.resolve(&request).await;
                            Resolved::ForPull(request, found)
                        });
                    }
                    Effect::RecheckCredentials(request, uids) => {
                        let credentials = self.credentials.clone();
                        self.credential_requests.spawn(async move {
                            let found = credentials.resolve(&request).await;
                            Resolved::Recheck(uids, found)
                        });
                    }
                    Effect::Status(uid, warm, report) => self.writer.submit(&uid, warm, report),
                }
            }
        }
        self.metrics.reports_ignored.inc_by(self.index.take_ignored());
        let (backoffs, refused) = self.index.take_savings();
        self.metrics.registry_backoffs.inc_by(backoffs);
        self.metrics.canary_refusals.inc_by(refused);
        self.metrics.pull_retries.inc_by(self.index.take_retries());
        self.metrics.pulls_suspended.inc_by(self.index.take_suspended());
        self.metrics.pods_waiting.set(self.index.waiting_pods() as i64);
        self.metrics.images_pending.set(self.index.pending_images() as i64);
        self.metrics.assignments.set(self.index.assignments() as i64);
        let (running, waiting) = self.index.pulls();
        self.metrics.pulls_in_flight.set(running as i64);
        self.metrics.pulls_waiting.set(waiting as i64);
    }

    fn send(&mut self, session: SessionId, mut message: from_controller::Message) {
        if let from_controller::Message::Welcome(welcome) = &mut message {
            welcome.kubelet_runtime = self.kubelet_runtime(&welcome.node_name);
        }
        let Some(open) = self.sessions.get(&session) else { return };
        if let from_controller::Message::PullGrant(grant) = &message
            && !grant.credentials.is_empty()
        {
            self.record_grant(session, grant);
        }
        if open.sender.try_send(Ok(FromController { message: Some(message) })).is_err() {
            self.end_stream(session, StreamEnd::TooSlow);
            self.index.close(session, self.now());
            self.publish_connected();
        }
    }

    /// Who received which credentials, and for what.
    fn record_grant(&self, session: SessionId, grant: &PullGrant) {
        let Some(node) = self.index.node_of(session) else { return };
        let Some(warm) = self.index.image_warm(&grant.uid) else { return };
        self.metrics.credentials_granted(node);
        tracing::info!(
            target: AUDIT,
            node = &**node,
            namespace = &*warm.namespace,
            name = &*warm.name,
            image = &*warm.image,
            credentials = grant.credentials.len(),
            "credentials granted"
        );
    }

    /// The runtime that the kubelet of a node reports, such as `containerd://2.2.3`.
    fn kubelet_runtime(&self, node: &str) -> String {
        let node = self.stores.nodes.get("", node);
        let info = node.as_ref().and_then(|node| node.status.as_ref()?.node_info.as_ref());
        info.map(|info| info.container_runtime_version.clone()).unwrap_or_default()
    }

    fn cut_off(&mut self, session: SessionId, end: StreamEnd) {
        let node = self.index.node_of(session).map(|node| &**node).unwrap_or_default();
        let reason = end.as_str();
        tracing::warn!(node, reason, "warmer cut off: it is hostile or broken");
        self.end_stream(session, end);
        self.index.close(session, self.now());
        self.publish_connected();
    }

    /// Ends the streams of nodes that have left or were replaced by others of their name, and drops what is still
    /// to be written for those that have left. Of one node, or of all.
    fn drop_departed(&mut self, name: Option<&str>) {
        let is_other = |open: &Session| {
            let found = self.stores.nodes.get("", &open.node);
            found.is_none_or(|found| found.metadata.uid != open.node_uid)
        };
        let sessions = self.sessions.iter();
        let ended = sessions.filter(|(_, open)| name.is_none_or(|name| *open.node == *name));
        let ended: Vec<_> = ended.filter(|(_, open)| is_other(open)).collect();
        let ended: Vec<(SessionId, NodeName)> =
            ended.into_iter().map(|(session, open)| (*session, open.node.clone())).collect();
        let mut left: BTreeSet<NodeName> = ended.iter().map(|(_, node)| node.clone()).collect();
        left.extend(name.map(NodeName::from));
        for (session, _) in &ended {
            self.end_stream(*session, StreamEnd::NodeLeft);
            self.index.close(*session, self.now());
        }
        if !ended.is_empty() {
            self.publish_connected();
        }
        for node in left {
            if self.stores.nodes.get("", &node).is_none() {
                let uids = self.index.node_left(&node);
                uids.iter().for_each(|uid| self.writer.forget(uid));
            }
        }
    }

    /// Drops sessions whose call was cancelled while its stream was being opened.
    fn drop_abandoned(&mut self) {
        let closed = self.sessions.iter().filter(|(_, open)| open.sender.is_closed());
        let closed: Vec<SessionId> = closed.map(|(session, _)| *session).collect();
        for session in closed {
            self.end_stream(session, StreamEnd::Closed);
            self.index.close(session, self.now());
            self.publish_connected();
        }
    }

    fn end_stream(&mut self, session: SessionId, end: StreamEnd) {
        if let Some(Session { sender, cut, .. }) = self.sessions.remove(&session) {
            self.metrics.stream_end(end);
            // A full channel has no room for the status; the stream then ends without one.
            let _ = sender.try_send(Err(end_status(end, &self.leader.borrow())));
            if matches!(end, StreamEnd::Misbehaved | StreamEnd::Excessive | StreamEnd::TooSlow) {
                cut.cancel();
            }
        }
    }

    fn end_streams(&mut self, end: StreamEnd) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.end_stream(session, end);
            self.index.close(session, self.now());
        }
        self.publish_connected();
    }

    fn publish_connected(&self) {
        let connected = self.index.connected();
        self.metrics.nodes_connected.set(connected.len() as i64);
        self.connected.send_if_modified(|published| {
            let differs = **published != connected;
            if differs {
                published.difference(&connected).for_each(|node| self.metrics.forget_node(node));
                *published = Arc::new(connected);
            }
            differs
        });
    }
}

fn empty_index(args: &DispatchArgs, now: i64) -> Index {
    Index::new(
        Budget {
            registry: RegistryLimits {
                pulls: args.registry_pulls.clone(),
                per_second: args.registry_pulls_per_second.clone(),
            },
            canary: canary::Settings {
                nodes: args.canary_nodes,
                timeout_ms: i64::try_from(args.canary_timeout.as_millis()).unwrap_or(i64::MAX),
            },
        },
        i64::try_from(args.waiting_after.as_millis()).unwrap_or(i64::MAX),
        now,
    )
}

#[cfg(test)]
mod tests;
