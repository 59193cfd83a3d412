//! The warmer: one stream to the leading controller, a queue of assignments, concurrent jobs
//! against the node's container runtime, and reports. It needs no Kubernetes permissions and stores
//! nothing on disk.

mod args;
mod disk;
mod introduction;
mod link;
mod metrics;
mod pins;
mod pull;
mod removals;
mod selector;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::runtime;
use crate::clock::{Clock, unix_ms};
use crate::runtime::credential_provider::{CredentialProviderError, CredentialProviders};
use crate::runtime::{EndpointError, Runtime, Selection, Withheld};
pub use args::WarmerArgs;
use disk::DiskGuard;
use imagewarm_core::api::names::Uid;
use imagewarm_core::node_queue::{Ended, Job, Limits, Queue, Step};
use imagewarm_core::protocol::from_controller::Message;
use imagewarm_core::protocol::{FromController, Hello, Outcome, Progress, PullGrant};
use imagewarm_core::report::outbox::Outbox;
use imagewarm_core::runtime::RuntimeVersion;
use imagewarm_core::runtime::pins::{PinSettings, ThresholdsError, Wanted};
use link::{Link, LinkEvent};
pub use metrics::WarmerMetrics;
use pins::Pins;
use pull::{JobEvent, PullTimeouts};
use removals::Removals;
use selector::Selector;
use stream::StreamSettings;
pub use stream::{ServerAddress, StreamError};

/// Capacity of the channel of job events to the main loop.
const EVENTS: usize = 64;
/// Interval of progress reports for queued pulls.
const QUEUED_EVERY_MS: i64 = 3_000;

/// Why a warmer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WarmerError {
    /// The runtime's endpoint is unusable.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The server's name is invalid.
    #[error("--dispatch-server-name: {0}")]
    ServerName(String),
    /// The credential providers cannot be used.
    #[error(transparent)]
    CredentialProvider(#[from] CredentialProviderError),
    /// The kubelet's thresholds are impossible.
    #[error(transparent)]
    Thresholds(#[from] ThresholdsError),
}

/// A warmer, ready to run.
pub struct Warmer {
    runtime: Arc<dyn Runtime>,
    selector: Selector,
    /// The runtime's version, logged once.
    logged_version: Arc<OnceLock<RuntimeVersion>>,
    removals: Removals,
    pins: Pins,
    /// Whether the controller has listed all assignments once.
    synced: bool,
    link: Link,
    clock: Clock,
    queue: Queue,
    outbox: Outbox,
    metrics: WarmerMetrics,
    timeouts: PullTimeouts,
    disk: Arc<DiskGuard>,
    providers: CredentialProviders,
    epoch: u64,
    jobs: JoinSet<Ended>,
    running: HashMap<Id, (Job, AbortHandle)>,
    /// Jobs that wait for their grant, by assignment.
    awaiting_grant: HashMap<Uid, oneshot::Sender<PullGrant>>,
    /// Assignments whose pull is running.
    pulling: HashSet<Uid>,
    events: mpsc::Receiver<JobEvent>,
    events_sender: mpsc::Sender<JobEvent>,
    connected: watch::Sender<bool>,
    queued_reported_at: i64,
}

impl Warmer {
    /// A warmer over the runtime that `args` names. Returns an error for settings that can never
    /// work; files, the controller and the runtime may become available later.
    pub fn new(args: &WarmerArgs, metrics: WarmerMetrics) -> Result<Self, WarmerError> {
        let warmer = Self::with_runtime(Arc::new(Withheld::undecided()), args, metrics)?;
        let selector = Selector::new(
            runtime::sockets(args.runtime_endpoint.as_deref())?,
            args.pod_uid.clone(),
        );
        Ok(Warmer { selector, ..warmer })
    }

    /// The same over a given runtime; ignores the endpoint in `args`.
    pub fn with_runtime(
        runtime: Arc<dyn Runtime>,
        args: &WarmerArgs,
        metrics: WarmerMetrics,
    ) -> Result<Self, WarmerError> {
        let name = args.dispatch_server_name.as_deref();
        let settings = StreamSettings {
            server: args.dispatch_server.clone(),
            server_name: StreamSettings::server_name(&args.dispatch_server, name)
                .map_err(WarmerError::ServerName)?,
            ca_file: args.dispatch_ca_file.clone(),
            token_file: args.token_file.clone(),
        };
        let providers = CredentialProviders::load(
            args.image_credential_provider_config.as_deref(),
            args.image_credential_provider_bin_dir.as_deref(),
            &metrics.credential_providers,
        )?;
        let (events_sender, events) = mpsc::channel(EVENTS);
        let limits = Limits {
            parallel_pulls: args.parallel_pulls.into(),
            pulls_per_registry: args.max_pulls_per_registry.into(),
            presence_interval_ms: i64::try_from(args.presence_interval.as_millis())
                .unwrap_or(i64::MAX / 4),
            assumed_bytes: args.assumed_image_size,
        };
        let disk = Arc::new(DiskGuard::new(args.keep_free_disk, args.image_folder.clone()));
        let pin_settings = PinSettings::new(
            args.pin_share,
            args.image_gc_high_threshold,
            args.image_gc_low_threshold,
        )?;
        let mut pins =
            Pins::new(pin_settings, args.presence_interval, disk.clone(), metrics.pins.clone());
        pins.keep_in(runtime.clone());
        Ok(Warmer {
            removals: Removals::listen(runtime.clone()),
            pins,
            synced: false,
            runtime,
            selector: Selector::new(Vec::new(), None),
            logged_version: Arc::default(),
            link: Link::new(settings),
            clock: Clock::start(),
            queue: Queue::new(limits),
            outbox: Outbox::default(),
            metrics,
            timeouts: PullTimeouts { idle: args.pull_idle_timeout, total: args.pull_deadline },
            disk,
            providers,
            epoch: 0,
            jobs: JoinSet::new(),
            running: HashMap::new(),
            awaiting_grant: HashMap::new(),
            pulling: HashSet::new(),
            events,
            events_sender,
            connected: watch::Sender::new(false),
            queued_reported_at: i64::MIN / 2,
        })
    }

    /// Whether the stream to the controller is open. Readiness depends on it.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Runs until `shutdown`, then cancels running pulls. Returns an error when several runtimes
    /// exist and the kubelet's cannot be determined.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), WarmerError> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            self.start_jobs();
            if self.link.is_closed() && !self.selector.is_busy() {
                let hello = self.hello();
                self.link.begin(hello);
            }
            let wake_at = self.queue.wake_at(self.clock.now());
            let wants_room = !self.outbox.is_empty();
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                event = self.link.next(wants_room) => self.on_link(event),
                Some(event) = self.events.recv() => self.on_job_event(event),
                Some(ended) = self.jobs.join_next_with_id() => self.on_ended(ended),
                () = self.clock.sleep_until(wake_at) => {}
                () = self.removals.seen() => self.queue.removal_seen(self.clock.now()),
                selection = self.selector.selected() => if let Err(error) = self.on_selected(selection) {
                    break Err(error.into());
                },
                _ = tick.tick() => {
                    if self.selector.again() {
                        // The next Welcome says what the kubelet reports by then.
                        self.link.close();
                    }
                    self.report_waiting();
                    self.pins.want(|| Wanted {
                        images: self.queue.wanted(),
                        is_complete: self.synced,
                    });
                }
            }
        };
        self.show_connected(false);
        // Dropping the jobs cancels their pulls, dropping the link closes the stream.
        self.jobs.shutdown().await;
        self.providers.shutdown().await;
        ended
    }

    fn start_jobs(&mut self) {
        while let Some(job) = self.queue.next(self.clock.now()) {
            let (runtime, disk) = (self.runtime.clone(), self.disk.clone());
            let (providers, timeouts) = (self.providers.clone(), self.timeouts);
            let (task, events) = (job.clone(), self.events_sender.clone());
            let handle = self.jobs.spawn(async move {
                pull::run(&task, runtime, &disk, &providers, events, timeouts).await
            });
            self.running.insert(handle.id(), (job, handle));
        }
        let pulls = self.running.values().filter(|(job, _)| job.step == Step::Pull).count();
        self.metrics.pulls_running.set(pulls as i64);
        self.metrics.assignments.set(self.queue.assignments() as i64);
    }

    /// The next `Hello`, with the runtime's version; that request has a timeout.
    fn hello(&mut self) -> BoxFuture<'static, Hello> {
        // From the wall clock, so that it also increases across restarts.
        let unix_ms = u64::try_from(unix_ms()).unwrap_or(0);
        self.epoch = unix_ms.max(self.epoch + 1);
        let pulling = self.pulling.iter().map(Uid::to_string).collect();
        let (runtime, epoch) = (self.runtime.clone(), self.epoch);
        Box::pin(introduction::hello(runtime, epoch, pulling, self.logged_version.clone()))
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            // Connected only after the Welcome: until then the controller may reject the stream.
            LinkEvent::Opened => {}
            LinkEvent::Lost(error) => {
                self.show_connected(false);
                self.metrics.stream_failures.inc();
                match error {
                    StreamError::NotLeading(Some(_)) => {
                        tracing::debug!("another replica leads, connecting to it");
                    }
                    error => tracing::warn!(%error, "no stream to the controller"),
                }
            }
            LinkEvent::Message(message) => self.on_message(message),
            LinkEvent::Room(permit) => {
                if let Some(message) = self.outbox.pop() {
                    permit.send(message);
                }
            }
        }
    }

    /// Uses the runtime that was selected. The next stream begins with its version.
    fn on_selected(
        &mut self,
        selection: Result<Selection, EndpointError>,
    ) -> Result<(), EndpointError> {
        let Selection { runtime, again } = selection?;
        self.selector.ended(again);
        if again.is_none() {
            self.link.close();
        }
        let was_usable = self.runtime.usable().is_ok();
        self.removals = Removals::listen(runtime.clone());
        self.pins.keep_in(runtime.clone());
        self.runtime = runtime;
        if was_usable || again.is_none() {
            self.queue.runtime_changed(self.clock.now());
        }
        Ok(())
    }

    fn on_message(&mut self, message: FromController) {
        match message.message {
            Some(Message::Welcome(welcome)) if self.selector.begin(&welcome.kubelet_runtime) => {
                self.link.close();
            }
            Some(Message::Welcome(welcome)) => {
                let (node, controller) = (welcome.node_name, welcome.controller_version);
                tracing::info!(node, controller, "connected to the controller");
                self.show_connected(true);
                self.queue.welcome();
                self.outbox.clear();
                for uid in self.awaiting_grant.keys() {
                    // The controller may not know yet that the image is gone.
                    if let Some(absent) = self.queue.last_absent(uid) {
                        self.outbox.outcome(absent.clone());
                    }
                    self.outbox.request(uid);
                }
            }
            Some(Message::Assign(assign)) => {
                let report = self.queue.assign(assign, self.clock.now());
                self.report(report);
            }
            Some(Message::Withdraw(withdraw)) => self.withdraw(&withdraw.uid.into()),
            Some(Message::Synced(_)) => {
                self.synced = true;
                for uid in self.queue.synced() {
                    self.withdraw(&uid);
                }
            }
            Some(Message::PullGrant(grant)) => {
                if let Some(reply) = self.awaiting_grant.remove(grant.uid.as_str()) {
                    if grant.refused_reason.is_empty() {
                        self.pulling.insert(grant.uid.as_str().into());
                    }
                    // A job that has been stopped needs no grant.
                    let _ = reply.send(grant);
                }
            }
            Some(Message::RetryPull(retry)) => self.queue.retry(&retry.uid, self.clock.now()),
            Some(Message::SuspendPull(suspend)) => self.suspend(&suspend.uid),
            Some(Message::ReportProgress(report)) => {
                self.report_every(&report.uid.into(), report.interval_ms);
            }
            // From a newer controller.
            None => {}
        }
    }

    fn on_job_event(&mut self, event: JobEvent) {
        match event {
            // Withdrawn: no grant will follow. Dropping `reply` ends the job.
            JobEvent::GrantRequested(uid, _) if !self.queue.knows(&uid) => {}
            JobEvent::GrantRequested(uid, reply) => {
                self.outbox.request(&uid);
                self.awaiting_grant.insert(uid, reply);
            }
            JobEvent::Progress(progress) => {
                if self.link.is_open() && self.pulling.contains(progress.uid.as_str()) {
                    self.outbox.progress(progress, self.clock.monotonic_ms());
                }
            }
        }
    }

    fn on_ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Some(ended)),
            // Cancelled.
            Err(error) => (error.id(), None),
        };
        let Some((job, _)) = self.running.remove(&id) else { return };
        self.awaiting_grant.remove(&job.uid);
        self.pulling.remove(&job.uid);
        match ended {
            Some(ended) => {
                let report = self.queue.ended(&job, ended, self.clock.now(), rand::random());
                if let Some(outcome) = &report {
                    self.metrics.outcome(&outcome.reason);
                    log_outcome(&job, outcome);
                }
                self.report(report);
            }
            None => self.queue.stopped(&job.uid, self.clock.now()),
        }
    }

    /// Cancels a running pull; it is due again, and waits for its next grant.
    fn suspend(&mut self, uid: &str) {
        if self.pulling.contains(uid)
            && let Some((job, handle)) = self.running.values().find(|(job, _)| job.uid == *uid)
        {
            tracing::info!(image = job.image.as_str(), "pull suspended: a Pod waits elsewhere");
            handle.abort();
        }
    }

    fn report_every(&mut self, uid: &Uid, interval_ms: u32) {
        if self.queue.knows(uid) {
            self.outbox.report_every(uid, interval_ms);
        }
    }

    fn withdraw(&mut self, uid: &Uid) {
        self.outbox.forget(uid);
        // Without an assignment no grant follows: the job ends. Another assignment of the image
        // requests its own grant.
        self.awaiting_grant.remove(uid);
        if self.queue.withdraw(uid)
            && let Some((_, handle)) = self.running.values().find(|(job, _)| job.uid == *uid)
        {
            handle.abort();
        }
    }

    fn report(&mut self, report: Option<Outcome>) {
        if let Some(outcome) = report {
            self.outbox.outcome(outcome);
        }
    }

    fn report_waiting(&mut self) {
        let now = self.clock.now();
        for outcome in self.queue.held_up(now) {
            self.outbox.outcome(outcome);
        }
        if !self.link.is_open() || now.monotonic_ms - self.queued_reported_at < QUEUED_EVERY_MS {
            return;
        }
        self.queued_reported_at = now.monotonic_ms;
        // They wait for a free place on this node, or for a grant.
        for uid in self.queue.queued(now).chain(self.awaiting_grant.keys()) {
            let progress = Progress { uid: uid.to_string(), queued: true, ..Progress::default() };
            self.outbox.progress(progress, now.monotonic_ms);
        }
    }

    fn show_connected(&self, connected: bool) {
        self.metrics.connected.set(connected.into());
        self.connected.send_if_modified(|shown| std::mem::replace(shown, connected) != connected);
    }
}

fn log_outcome(job: &Job, outcome: &Outcome) {
    let (image, reason) = (job.image.as_str(), outcome.reason.as_str());
    if outcome.present {
        tracing::info!(image, reason, digest = outcome.digest, "image is on the node");
    } else {
        let (attempt, error) = (outcome.attempt, outcome.message.as_str());
        tracing::warn!(image, reason, attempt, error, "image is not on the node");
    }
}
