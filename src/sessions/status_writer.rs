//! The bounded writer of ImageWarm statuses: a few writes at a time, at most one for each object. A
//! newer report replaces an older one, and a conflict is retried. A final state is never lost while
//! this replica leads, and does not wait for progress: thousands of pulls that start at once report
//! thousands of times, just when the API server is busy with creations. Namespaces take turns.

mod pending;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::metrics::{DispatchMetrics, WriteResult};
use crate::clock::wall_clock;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::writes;
use imagewarm_core::api::names::Uid;
use imagewarm_core::api::{CachedImageWarm, ImageWarm, ImageWarmStatus};
use imagewarm_core::report::status::{Report, next_status};
use pending::{Intent, Pending};

/// Writes in flight; the API server is fastest with 8 to 32.
const IN_FLIGHT: usize = 16;
/// Of these, writes of anything but final states.
const PROGRESS_IN_FLIGHT: usize = 4;
/// Interval between two of them: 50 a second for the whole cluster, however many pulls run.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);
/// Attempts of one write while others change the object.
const CONFLICTS: usize = 10;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A future of a [`StatusSink`] method.
pub(crate) type SinkFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, ApplyError>> + Send + 'a>>;

/// Where statuses are stored.
pub(crate) trait StatusSink: Send + Sync + 'static {
    /// Replaces the status of exactly this version of `warm`. Returns the stored object.
    fn write<'a>(
        &'a self,
        warm: &'a ImageWarm,
        status: &'a ImageWarmStatus,
    ) -> SinkFuture<'a, ImageWarm>;

    /// The latest version of `warm`.
    fn read<'a>(&'a self, warm: &'a ImageWarm) -> SinkFuture<'a, ImageWarm>;
}

/// The API server as a [`StatusSink`].
pub(crate) struct ApiServerSink {
    client: Client,
}

impl ApiServerSink {
    /// Writes through `client`.
    pub(crate) fn new(client: Client) -> Self {
        ApiServerSink { client }
    }
}

impl StatusSink for ApiServerSink {
    fn write<'a>(
        &'a self,
        warm: &'a ImageWarm,
        status: &'a ImageWarmStatus,
    ) -> SinkFuture<'a, ImageWarm> {
        Box::pin(writes::patch_status(&self.client, warm, status))
    }

    fn read<'a>(&'a self, warm: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
        Box::pin(writes::read(&self.client, warm))
    }
}

/// The bounded writer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StatusWriter {
    pending: Arc<Mutex<Pending>>,
    wake: Arc<Notify>,
    sink: Arc<dyn StatusSink>,
    metrics: DispatchMetrics,
}

impl StatusWriter {
    /// A writer into `sink`; it does nothing before [`StatusWriter::run`].
    pub(crate) fn new(sink: Arc<dyn StatusSink>, metrics: DispatchMetrics) -> Self {
        StatusWriter { pending: Arc::default(), wake: Arc::default(), sink, metrics }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a report. A final one replaces any queued one; progress never replaces a final one.
    pub(crate) fn submit(&self, uid: &Uid, warm: Arc<CachedImageWarm>, report: Report) {
        self.lock().submit(uid, Intent { warm, report }, Instant::now());
        self.wake.notify_one();
    }

    /// Drops the report of an object that is deleted or terminating: nobody will read it.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().forget(uid);
    }

    /// Drops everything that is queued or retried: this replica no longer leads.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Writes until `shutdown`, then the queued final states. The caller limits the time for these.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut writes = JoinSet::new();
        let mut delays = JoinSet::new();
        let mut pace = interval(PROGRESS_INTERVAL);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measure = interval(Duration::from_secs(1));
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut progress_is_next, mut is_ending) = (false, false);
        loop {
            while writes.len() < IN_FLIGHT
                && let Some((uid, intent, cancelled)) = self.lock().next(progress_is_next)
            {
                progress_is_next &= intent.report.is_final();
                let writer = self.clone();
                writes.spawn(async move {
                    let failed = tokio::select! {
                        failed = writer.write(&intent) => failed,
                        () = cancelled.cancelled() => false,
                    };
                    (uid, failed.then_some(intent))
                });
            }
            if shutdown.is_cancelled() && writes.is_empty() && !self.lock().has_unwritten() {
                return;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                Some(done) = writes.join_next() => {
                    if let Ok((uid, failed)) = done
                        && let Some(delay) = self.ended(&uid, failed)
                    {
                        delays.spawn(async move {
                            tokio::time::sleep(delay).await;
                            uid
                        });
                    }
                }
                Some(Ok(uid)) = delays.join_next() => self.lock().retry(&uid),
                _ = pace.tick(), if !progress_is_next => progress_is_next = true,
                _ = measure.tick() => {
                    let oldest = self.lock().oldest().map_or(0.0, |at| at.elapsed().as_secs_f64());
                    self.metrics.oldest_unwritten_status.set(oldest);
                }
                () = shutdown.cancelled(), if !is_ending => {
                    is_ending = true;
                    self.lock().retry_all();
                }
            }
        }
    }

    /// A write ended. Returns the delay after which it is retried, outside of the writes in flight:
    /// what is never taken must not keep others from being written.
    fn ended(&self, uid: &Uid, failed: Option<Intent>) -> Option<Duration> {
        let mut pending = self.lock();
        match failed {
            Some(intent) => pending.failed(uid, intent),
            None => {
                pending.done(uid);
                None
            }
        }
    }

    /// Writes the report. True when it has to be written again later.
    async fn write(&self, intent: &Intent) -> bool {
        let mut warm = intent.warm.to_image_warm();
        for _ in 0..CONFLICTS {
            let Some(status) = next_status(&warm, &intent.report, wall_clock()) else {
                self.metrics.write(WriteResult::Unchanged);
                return false;
            };
            let error = match self.sink.write(&warm, &status).await {
                Ok(_) => {
                    self.metrics.write(WriteResult::Written);
                    return false;
                }
                Err(ApplyError::Conflict) => {
                    self.metrics.write(WriteResult::Conflict);
                    match self.sink.read(&warm).await {
                        Ok(latest) => {
                            warm = latest;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            return self.rejected(&warm, intent, &error);
        }
        // Others write all the time.
        self.metrics.write(WriteResult::Retried);
        intent.report.is_final()
    }

    /// What becomes of a rejected write. True when it has to be written again later.
    fn rejected(&self, warm: &ImageWarm, intent: &Intent, error: &ApplyError) -> bool {
        match error {
            ApplyError::Retryable(error) if !intent.report.is_final() => {
                self.metrics.write(WriteResult::Dropped);
                tracing::debug!(name = %warm.name_any(), %error, "progress not written");
                false
            }
            ApplyError::Conflict | ApplyError::Retryable(_) => {
                self.metrics.write(WriteResult::Retried);
                true
            }
            // The object or its namespace was deleted: there is nothing to report.
            ApplyError::NotFound | ApplyError::NamespaceTerminating => {
                self.metrics.write(WriteResult::Refused);
                false
            }
            error => {
                self.metrics.write(WriteResult::Refused);
                tracing::warn!(name = %warm.name_any(), %error, "status not written");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
