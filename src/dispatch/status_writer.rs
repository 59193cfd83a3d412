//! Writes what `status` works out: a few writes at a time, one for each object, the newest report
//! in place of older ones, and again after a conflict. A final state is never lost while this
//! replica leads.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::{DispatchMetrics, WriteResult};
use super::status::{Report, next_status};
use crate::api::{ImageWarm, ImageWarmStatus};

/// Writes in flight; the API server is fastest with 8 to 32.
const IN_FLIGHT: usize = 16;
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Somebody else wrote in between: read it again.
    #[error("the ImageWarm was changed in between")]
    Conflict,
    /// There is nothing left to write to, or it may not be written at all.
    #[error("the status cannot be written: {0}")]
    Refused(String),
    /// The API server does not answer now.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
}

/// A future of a [`StatusSink`] method.
pub type SinkFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SinkError>> + Send + 'a>>;

/// Where statuses are stored.
pub trait StatusSink: Send + Sync + 'static {
    /// Replaces the status of exactly this version of `warm`; returns what is stored now.
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

    fn api(&self, warm: &ImageWarm) -> Api<ImageWarm> {
        Api::namespaced(self.client.clone(), warm.namespace().as_deref().unwrap_or_default())
    }
}

impl StatusSink for ApiServerSink {
    fn write<'a>(
        &'a self,
        warm: &'a ImageWarm,
        status: &'a ImageWarmStatus,
    ) -> SinkFuture<'a, ImageWarm> {
        Box::pin(async move {
            let patch = status_patch(warm, status)
                .map_err(|error| SinkError::Refused(error.to_string()))?;
            let (api, name) = (self.api(warm), warm.name_any());
            let parameters = PatchParams::default();
            let patch = Patch::Merge(&patch);
            finish(api.patch_status(&name, &parameters, &patch)).await
        })
    }

    fn read<'a>(&'a self, warm: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
        Box::pin(async move {
            let (api, name) = (self.api(warm), warm.name_any());
            finish(api.get(&name)).await
        })
    }
}

async fn finish(
    call: impl Future<Output = kube::Result<ImageWarm>>,
) -> Result<ImageWarm, SinkError> {
    let answer = tokio::time::timeout(WRITE_TIMEOUT, call)
        .await
        .map_err(|_| SinkError::Unavailable("no answer in time".into()))?;
    answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 409 => SinkError::Conflict,
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            SinkError::Refused(status.message.clone())
        }
        error => SinkError::Unavailable(error.to_string()),
    })
}

/// A merge patch that makes the status of exactly this version of `warm` equal to `status`. The
/// uid keeps it from an object that was made anew under the same name.
fn status_patch(warm: &ImageWarm, status: &ImageWarmStatus) -> serde_json::Result<Value> {
    let mut next = serde_json::to_value(status)?;
    let old = serde_json::to_value(&warm.status)?;
    if let (Some(next), Some(old)) = (next.as_object_mut(), old.as_object()) {
        for key in old.keys() {
            next.entry(key.clone()).or_insert(Value::Null);
        }
    }
    Ok(json!({
        "metadata": {
            "uid": warm.metadata.uid,
            "resourceVersion": warm.metadata.resource_version,
        },
        "status": next,
    }))
}

/// A report to be written.
#[derive(Clone, Debug)]
struct Intent {
    warm: Arc<ImageWarm>,
    report: Report,
}

#[derive(Default)]
struct Pending {
    /// The report to write next, by uid of its ImageWarm: so bounded by the number of ImageWarms.
    waiting: HashMap<String, Intent>,
    order: VecDeque<String>,
    /// Uids that are being written.
    running: HashMap<String, CancellationToken>,
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

    /// Takes a report in. A final one replaces any that waits; another never replaces a final one.
    pub fn submit(&self, uid: &str, warm: Arc<ImageWarm>, report: Report) {
        let mut pending = self.lock();
        match pending.waiting.get_mut(uid) {
            Some(waiting) if waiting.report.is_final() && !report.is_final() => return,
            Some(waiting) => *waiting = Intent { warm, report },
            None => {
                pending.waiting.insert(uid.to_owned(), Intent { warm, report });
                pending.order.push_back(uid.to_owned());
            }
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Forgets everything that waits or is tried again: this replica does not lead any more.
    pub fn clear(&self) {
        let mut pending = self.lock();
        pending.waiting.clear();
        pending.order.clear();
        pending.running.values().for_each(CancellationToken::cancel);
    }

    /// Writes until `shutdown`, then what still waits, for a moment.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut writes = JoinSet::new();
        loop {
            while writes.len() < IN_FLIGHT
                && let Some((uid, intent, cancelled)) = self.take()
            {
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
                () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
            }
        }
    }

    fn take(&self) -> Option<(String, Intent, CancellationToken)> {
        let mut pending = self.lock();
        let at = pending.order.iter().position(|uid| !pending.running.contains_key(uid))?;
        let uid = pending.order.remove(at)?;
        let intent = pending.waiting.remove(&uid)?;
        let cancelled = CancellationToken::new();
        pending.running.insert(uid.clone(), cancelled.clone());
        Some((uid, intent, cancelled))
    }

    async fn write(&self, intent: Intent) {
        let mut warm = intent.warm;
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(status) = next_status(&warm, &intent.report, Timestamp::now()) else {
                self.metrics.write(WriteResult::Unchanged);
                return;
            };
            let error = match self.sink.write(&warm, &status).await {
                Ok(_) => return self.metrics.write(WriteResult::Written),
                Err(SinkError::Conflict) => {
                    self.metrics.write(WriteResult::Conflict);
                    match self.sink.read(&warm).await {
                        // Made anew under the same name: not what the report speaks of.
                        Ok(latest) if latest.metadata.uid != warm.metadata.uid => return,
                        Ok(latest) => {
                            warm = Arc::new(latest);
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            match error {
                SinkError::Refused(error) => {
                    self.metrics.write(WriteResult::Refused);
                    tracing::debug!(name = %warm.name_any(), %error, "status not written");
                    return;
                }
                SinkError::Unavailable(error) if !intent.report.is_final() => {
                    self.metrics.write(WriteResult::Dropped);
                    tracing::debug!(name = %warm.name_any(), %error, "progress not written");
                    return;
                }
                SinkError::Conflict | SinkError::Unavailable(_) => {
                    self.metrics.write(WriteResult::Retried);
                    let jitter = rand::random_range(0.5..1.0);
                    tokio::time::sleep(pause.mul_f64(jitter)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::Reason;
    use crate::dispatch::status::{Outcome, Pulling};

    /// Stores one object; the first writes fail as told.
    struct Memory {
        stored: Mutex<ImageWarm>,
        failures: Mutex<VecDeque<SinkError>>,
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
                    return Err(SinkError::Conflict);
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
        })
    }

    async fn written(failures: Vec<SinkError>, reports: Vec<Report>) -> Vec<String> {
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
        let warm = Arc::new(warm);
        for report in reports {
            // Always the first version of the object, as a store that lags behind would show it.
            writer.submit("uid", warm.clone(), report);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
        run.await.unwrap();
        memory.writes.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn what_comes_meanwhile_is_joined_and_the_final_state_wins() {
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

    #[tokio::test]
    async fn a_final_state_survives_conflicts_and_an_absent_api_server() {
        let failures =
            vec![SinkError::Conflict, SinkError::Unavailable("down".into()), SinkError::Conflict];
        assert_eq!(written(failures, vec![outcome(Reason::Pulled)]).await, ["Pulled"]);
        let failures = vec![SinkError::Unavailable("down".into())];
        assert!(written(failures, vec![Report::Pulling(Pulling::default())]).await.is_empty());
        let failures = vec![SinkError::Refused("not found".into())];
        assert!(written(failures, vec![outcome(Reason::Pulled)]).await.is_empty());
    }

    #[test]
    fn the_patch_removes_what_is_no_more_and_names_the_version() {
        let mut warm = ImageWarm::default();
        warm.metadata.resource_version = Some("7".into());
        warm.metadata.uid = Some("u".into());
        let progress = crate::api::Progress::default();
        warm.status = Some(ImageWarmStatus {
            progress: Some(progress),
            took: Some("1.0s".into()),
            ..ImageWarmStatus::default()
        });
        let next = ImageWarmStatus { took: Some("2.0s".into()), ..ImageWarmStatus::default() };
        assert_eq!(
            status_patch(&warm, &next).unwrap(),
            json!({
                "metadata": {"uid": "u", "resourceVersion": "7"},
                "status": {"progress": null, "took": "2.0s"},
            })
        );
    }
}
