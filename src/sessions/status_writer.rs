//! The bounded writer of ImageWarm statuses: a few writes at a time, at most one for each object. A
//! newer report replaces an older one, and a conflict is retried. A final state is never lost while
//! this replica leads, and does not wait for progress: thousands of pulls that start at once report
//! thousands of times, just when the API server is busy with creations.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::metrics::{DispatchMetrics, WriteResult};
use crate::backoff::Backoff;
use crate::clock::wall_clock;
use crate::kubernetes::writes::{self, ApplyError};
use imagewarm_core::api::{CachedImageWarm, ImageWarm, ImageWarmStatus};
use imagewarm_core::report::status::{Report, next_status};

/// Writes in flight; the API server is fastest with 8 to 32.
const IN_FLIGHT: usize = 16;
/// Of these, writes of anything but final states.
const PROGRESS_IN_FLIGHT: usize = 4;
/// Interval between two of them: 50 a second for the whole cluster, however many pulls run.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A future of a [`StatusSink`] method.
pub type SinkFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApplyError>> + Send + 'a>>;

/// Where statuses are stored.
pub trait StatusSink: Send + Sync + 'static {
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
pub struct ApiServerSink {
    client: Client,
}

impl ApiServerSink {
    /// Writes through `client`.
    pub fn new(client: Client) -> Self {
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

/// A report to be written.
#[derive(Clone, Debug)]
struct Intent {
    warm: Arc<CachedImageWarm>,
    report: Report,
}

#[derive(Default)]
struct Pending {
    /// The report to write next, by uid of its ImageWarm: so bounded by the number of ImageWarms.
    waiting: HashMap<String, Intent>,
    finals: VecDeque<String>,
    /// Uids whose report a final one may have replaced since.
    progress: VecDeque<String>,
    /// Uids that are being written.
    running: HashMap<String, Running>,
}

struct Running {
    is_final: bool,
    cancelled: CancellationToken,
}

impl Pending {
    /// The next report to write: a final state, else progress if `progress_is_next` and fewer than
    /// `PROGRESS_IN_FLIGHT` are being written. Skips objects that are being written.
    fn next(&mut self, progress_is_next: bool) -> Option<(String, Intent)> {
        let in_flight = self.running.values().filter(|one| !one.is_final).count();
        let progress =
            (progress_is_next && in_flight < PROGRESS_IN_FLIGHT).then_some(&mut self.progress);
        let queues = [(true, Some(&mut self.finals)), (false, progress)];
        for (is_final, queue) in queues {
            let Some(queue) = queue else { continue };
            while let Some(at) = queue.iter().position(|uid| !self.running.contains_key(uid)) {
                let uid = queue.remove(at)?;
                if self.waiting.get(&uid).is_some_and(|one| one.report.is_final() == is_final) {
                    let intent = self.waiting.remove(&uid)?;
                    return Some((uid, intent));
                }
            }
        }
        None
    }
}

/// The bounded writer. Cheap to clone.
#[derive(Clone)]
pub struct StatusWriter {
    pending: Arc<Mutex<Pending>>,
    wake: Arc<Notify>,
    sink: Arc<dyn StatusSink>,
    metrics: DispatchMetrics,
}

impl StatusWriter {
    /// A writer into `sink`; it does nothing before [`StatusWriter::run`].
    pub fn new(sink: Arc<dyn StatusSink>, metrics: DispatchMetrics) -> Self {
        StatusWriter { pending: Arc::default(), wake: Arc::default(), sink, metrics }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a report. A final one replaces any queued one; progress never replaces a final one.
    pub fn submit(&self, uid: &str, warm: Arc<CachedImageWarm>, report: Report) {
        let is_final = report.is_final();
        let mut pending = self.lock();
        let replaced = pending.waiting.get(uid).map(|waiting| waiting.report.is_final());
        if replaced == Some(true) && !is_final {
            return;
        }
        pending.waiting.insert(uid.to_owned(), Intent { warm, report });
        if replaced != Some(is_final) {
            let queue = if is_final { &mut pending.finals } else { &mut pending.progress };
            queue.push_back(uid.to_owned());
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Drops everything that is queued or retried: this replica no longer leads.
    pub fn clear(&self) {
        let mut pending = self.lock();
        pending.waiting.clear();
        pending.finals.clear();
        pending.progress.clear();
        pending.running.values().for_each(|one| one.cancelled.cancel());
    }

    /// Writes until `shutdown`, then the queued final states. The caller limits the time for these.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut writes = JoinSet::new();
        let mut pace = interval(PROGRESS_INTERVAL);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress_is_next = false;
        loop {
            while writes.len() < IN_FLIGHT
                && let Some((uid, intent, cancelled)) = self.take(progress_is_next)
            {
                progress_is_next &= intent.report.is_final();
                let writer = self.clone();
                writes.spawn(async move {
                    tokio::select! {
                        () = writer.write(intent) => {}
                        () = cancelled.cancelled() => {}
                    }
                    uid
                });
            }
            if shutdown.is_cancelled() && writes.is_empty() {
                return;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                Some(done) = writes.join_next() => {
                    if let Ok(uid) = done {
                        self.lock().running.remove(&uid);
                    }
                }
                _ = pace.tick(), if !progress_is_next => progress_is_next = true,
                () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
            }
        }
    }

    fn take(&self, progress_is_next: bool) -> Option<(String, Intent, CancellationToken)> {
        let mut pending = self.lock();
        let (uid, intent) = pending.next(progress_is_next)?;
        let cancelled = CancellationToken::new();
        let running = Running { is_final: intent.report.is_final(), cancelled: cancelled.clone() };
        pending.running.insert(uid.clone(), running);
        Some((uid, intent, cancelled))
    }

    async fn write(&self, intent: Intent) {
        let mut warm = intent.warm.to_image_warm();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        loop {
            let Some(status) = next_status(&warm, &intent.report, wall_clock()) else {
                self.metrics.write(WriteResult::Unchanged);
                return;
            };
            let error = match self.sink.write(&warm, &status).await {
                Ok(_) => return self.metrics.write(WriteResult::Written),
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
            match error {
                ApplyError::Retryable(error) if !intent.report.is_final() => {
                    self.metrics.write(WriteResult::Dropped);
                    tracing::debug!(name = %warm.name_any(), %error, "progress not written");
                    return;
                }
                ApplyError::Conflict | ApplyError::Retryable(_) => {
                    self.metrics.write(WriteResult::Retried);
                    tokio::time::sleep(backoff.next_with_jitter()).await;
                }
                // The object or its namespace was deleted: there is nothing to report.
                ApplyError::NotFound | ApplyError::NamespaceTerminating => {
                    return self.metrics.write(WriteResult::Refused);
                }
                error => {
                    self.metrics.write(WriteResult::Refused);
                    tracing::warn!(name = %warm.name_any(), %error, "status not written");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use imagewarm_core::api::Reason;
    use imagewarm_core::report::status::{Outcome, Pulling};

    /// Stores one object; the first writes fail with `failures`.
    struct Memory {
        stored: Mutex<ImageWarm>,
        failures: Mutex<VecDeque<ApplyError>>,
        writes: Mutex<Vec<String>>,
    }

    impl StatusSink for Memory {
        fn write<'a>(
            &'a self,
            warm: &'a ImageWarm,
            status: &'a ImageWarmStatus,
        ) -> SinkFuture<'a, ImageWarm> {
            Box::pin(async move {
                // Long enough for further reports to come in meanwhile.
                tokio::time::sleep(Duration::from_millis(100)).await;
                if let Some(error) = self.failures.lock().unwrap().pop_front() {
                    return Err(error);
                }
                let mut stored = self.stored.lock().unwrap();
                if warm.metadata.resource_version != stored.metadata.resource_version {
                    return Err(ApplyError::Conflict);
                }
                stored.status = Some(status.clone());
                let version = self.writes.lock().unwrap().len() + 1;
                stored.metadata.resource_version = Some(version.to_string());
                self.writes.lock().unwrap().push(stored.reason().unwrap().to_string());
                Ok(stored.clone())
            })
        }

        fn read<'a>(&'a self, _: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
            Box::pin(async move { Ok(self.stored.lock().unwrap().clone()) })
        }
    }

    fn outcome(reason: Reason) -> Report {
        Report::Outcome(Outcome {
            present: reason == Reason::Pulled,
            reason,
            message: String::new(),
            digest: None,
            size_bytes: None,
            attempt: 1,
            started_at: None,
            finished_at: None,
            checked_for: None,
            runtime: Default::default(),
        })
    }

    async fn written(failures: Vec<ApplyError>, reports: Vec<Report>) -> Vec<String> {
        let mut warm = ImageWarm::default();
        warm.metadata.resource_version = Some("0".into());
        let memory = Arc::new(Memory {
            stored: Mutex::new(warm.clone()),
            failures: Mutex::new(failures.into()),
            writes: Mutex::default(),
        });
        let writer = StatusWriter::new(memory.clone(), DispatchMetrics::default());
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(writer.clone().run(shutdown.clone()));
        let warm = Arc::new(CachedImageWarm::from(warm));
        for report in reports {
            // Always the first version of the object, as in a cache that lags.
            writer.submit("uid", warm.clone(), report);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
        run.await.unwrap();
        memory.writes.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn reports_during_a_write_are_merged_and_the_final_state_wins() {
        let pulling = || Report::Pulling(Pulling::default());
        let reports = vec![
            pulling(),
            pulling(),
            outcome(Reason::NotFound),
            outcome(Reason::Pulled),
            pulling(),
        ];
        assert_eq!(written(vec![], reports).await, ["Pulling", "Pulled"]);
    }

    /// Records the names of the objects to write, and answers at once or never.
    struct Recording {
        names: tokio::sync::mpsc::UnboundedSender<String>,
        answers: bool,
    }

    impl StatusSink for Recording {
        fn write<'a>(
            &'a self,
            warm: &'a ImageWarm,
            _: &'a ImageWarmStatus,
        ) -> SinkFuture<'a, ImageWarm> {
            self.names.send(warm.name_any()).unwrap();
            match self.answers {
                true => Box::pin(std::future::ready(Ok(warm.clone()))),
                false => Box::pin(std::future::pending()),
            }
        }

        fn read<'a>(&'a self, _: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
            Box::pin(std::future::pending())
        }
    }

    fn submit(writer: &StatusWriter, name: &str, report: Report) {
        let mut warm = ImageWarm::default();
        warm.metadata.name = Some(name.into());
        writer.submit(name, Arc::new(warm.into()), report);
    }

    /// Runs the writer until it has begun `count` writes. Returns the names of the objects.
    async fn first_writes(writer: StatusWriter, begun: &mut Begun, count: usize) -> Vec<String> {
        let run = tokio::spawn(writer.run(CancellationToken::new()));
        let mut names = Vec::new();
        for _ in 0..count {
            let name = tokio::time::timeout(Duration::from_secs(60), begun.recv()).await;
            names.push(name.unwrap().unwrap());
        }
        run.abort();
        names
    }

    type Begun = tokio::sync::mpsc::UnboundedReceiver<String>;

    fn recording(answers: bool) -> (StatusWriter, Begun) {
        let (names, begun) = tokio::sync::mpsc::unbounded_channel();
        let sink = Arc::new(Recording { names, answers });
        (StatusWriter::new(sink, DispatchMetrics::default()), begun)
    }

    #[tokio::test]
    async fn final_states_do_not_wait_for_progress() {
        let (writer, mut begun) = recording(false);
        for number in 0..100 {
            submit(&writer, &format!("progress-{number}"), Report::Pulling(Pulling::default()));
        }
        // A queued progress report that becomes final precedes the progress of other objects.
        submit(&writer, "progress-99", outcome(Reason::Pulled));
        for number in 1..IN_FLIGHT - PROGRESS_IN_FLIGHT {
            submit(&writer, &format!("final-{number}"), outcome(Reason::Pulled));
        }
        let names = first_writes(writer, &mut begun, IN_FLIGHT).await;
        let (first, rest) = names.split_at(IN_FLIGHT - PROGRESS_IN_FLIGHT);
        assert_eq!(first[0], "progress-99");
        assert!(first[1..].iter().all(|name| name.starts_with("final")), "{names:?}");
        assert!(rest.iter().all(|name| name.starts_with("progress")), "{names:?}");
        assert!(begun.try_recv().is_err(), "more than {IN_FLIGHT} writes");
    }

    #[tokio::test]
    async fn progress_is_written_at_intervals_and_final_states_at_once() {
        let (writer, mut begun) = recording(true);
        for number in 0..50 {
            submit(&writer, &format!("progress-{number}"), Report::Pulling(Pulling::default()));
            submit(&writer, &format!("final-{number}"), outcome(Reason::Pulled));
        }
        let began = tokio::time::Instant::now();
        let names = first_writes(writer, &mut begun, 100).await;
        assert!(names[..50].iter().all(|name| name.starts_with("final")), "{names:?}");
        assert!(began.elapsed() >= PROGRESS_INTERVAL * 49, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_final_state_survives_conflicts_and_an_unavailable_api_server() {
        let failures =
            vec![ApplyError::Conflict, ApplyError::Retryable("down".into()), ApplyError::Conflict];
        assert_eq!(written(failures, vec![outcome(Reason::Pulled)]).await, ["Pulled"]);
        let failures = vec![ApplyError::Retryable("down".into())];
        assert!(written(failures, vec![Report::Pulling(Pulling::default())]).await.is_empty());
        let failures = vec![ApplyError::NotFound];
        assert!(written(failures, vec![outcome(Reason::Pulled)]).await.is_empty());
    }
}
