//! Follows what kubelets say of the images of containers that start, and counts how many found theirs on
//! the node: the proof that warming pays, or that it does not.
//!
//! Nothing depends on it: what is lost while the API server does not answer is not counted, and an API
//! server that refuses the right to watch Events is asked again in five minutes.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::clock::{sleep_until, wall_clock};
use crate::kubernetes::caches::Stores;
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::request::one_line;
use imagewarm_core::report::container_start::{ContainerStart, PULLED, Used};

mod metrics;

pub use self::metrics::StartMetrics;

/// Starts are collected for this long before they are looked up, all of them in one pass.
const BATCH: Duration = Duration::from_secs(1);
/// Starts of one batch. Those beyond are not counted.
const BATCH_MAX: usize = 10_000;
/// The server terminates a watch after this time; a stream silent for longer is dropped.
const WATCH_SECONDS: u32 = 290;
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Interval between attempts where Events may not be watched.
const REFUSED_INTERVAL: Duration = Duration::from_secs(300);

/// Counts container starts while this replica leads.
pub(crate) struct ContainerStarts {
    events: Api<Event>,
    stores: Stores,
    leadership: watch::Receiver<Leadership>,
    metrics: StartMetrics,
}

/// Why a watch ended.
enum End {
    Refused(String),
    Failed(String),
    /// The server ended the watch, or no longer knows the version.
    Again,
}

impl ContainerStarts {
    /// With its metrics in `registry`.
    pub(crate) fn new(
        client: Client,
        stores: Stores,
        leadership: watch::Receiver<Leadership>,
        registry: &mut Registry,
    ) -> Self {
        let metrics = StartMetrics::register(registry);
        ContainerStarts { events: Api::all(client), stores, leadership, metrics }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut leadership = self.leadership.clone();
        loop {
            let leads = leadership.borrow_and_update().leading;
            let following = async {
                match leads {
                    true => self.follow().await,
                    false => pending().await,
                }
            };
            tokio::select! {
                () = following => {}
                changed = leadership.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Watches and counts, for ever.
    async fn follow(&mut self) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let since = wall_clock();
        let (mut used, mut version) = (Used::default(), None);
        loop {
            let pause = match self.watch(&mut version, &mut used, since).await {
                End::Again => {
                    backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
                    BACKOFF_MIN
                }
                End::Failed(error) => {
                    tracing::debug!(error, "cannot watch Events");
                    backoff.next_with_jitter()
                }
                End::Refused(error) => {
                    tracing::info!(error, "container starts are not counted");
                    REFUSED_INTERVAL
                }
            };
            sleep(pause).await;
        }
    }

    /// Goes on from `version`, and leaves there where to go on next time.
    async fn watch(&self, version: &mut Option<String>, used: &mut Used, since: Timestamp) -> End {
        let fields = format!("involvedObject.kind=Pod,reason={PULLED}");
        // Only for the version: what was said before is over.
        let newest = ListParams::default().fields(&fields).limit(1);
        let mut seen = match version.take() {
            Some(version) => version,
            None => match timeout(ANSWER_TIMEOUT, self.events.list_metadata(&newest)).await {
                Ok(Ok(list)) => list.metadata.resource_version.unwrap_or_default(),
                Ok(Err(error)) => return end_of(&error),
                Err(_) => return End::Failed("no answer in time".into()),
            },
        };
        let parameters = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
        let stream = match timeout(ANSWER_TIMEOUT, self.events.watch(&parameters, &seen)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return end_of(&error),
            Err(_) => return End::Failed("no answer in time".into()),
        };
        let mut stream = pin!(stream);
        let mut starts = Vec::new();
        let mut count_at = None;
        let end = loop {
            let event = tokio::select! {
                event = timeout(WATCH_TIMEOUT, stream.next()) => event,
                () = sleep_until(count_at) => {
                    self.count(&std::mem::take(&mut starts), used, since);
                    count_at = None;
                    continue;
                }
            };
            match event {
                // An Event that repeats is modified.
                Ok(Some(Ok(WatchEvent::Added(event) | WatchEvent::Modified(event)))) => {
                    if let Some(version) = &event.metadata.resource_version {
                        seen.clone_from(version);
                    }
                    if let Some(start) = ContainerStart::of(&event)
                        && starts.len() < BATCH_MAX
                    {
                        starts.push(start);
                        count_at.get_or_insert(Instant::now() + BATCH);
                    }
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => {}
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    seen = bookmark.metadata.resource_version;
                }
                Ok(Some(Err(kube::Error::SerdeError(error)))) => {
                    break End::Failed(error.to_string());
                }
                Ok(Some(Ok(WatchEvent::Error(_)))) => break End::Again,
                Ok(Some(Err(_)) | None) | Err(_) => {
                    *version = Some(seen);
                    break End::Again;
                }
            }
        };
        self.count(&starts, used, since);
        end
    }

    fn count(&self, starts: &[ContainerStart], used: &mut Used, since: Timestamp) {
        let image_warms = self.stores.image_warms.state();
        let counted = used.count(starts, image_warms.iter().map(AsRef::as_ref), since);
        counted.iter().for_each(|one| self.metrics.counted(one));
    }
}

fn end_of(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if status.code == 403 => End::Refused(one_line(error)),
        kube::Error::Api(status) if status.code == 410 => End::Again,
        error => End::Failed(one_line(error)),
    }
}
