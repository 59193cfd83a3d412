//! Merging, order and retries of status writes.
#![allow(clippy::unwrap_used)]
use std::collections::VecDeque;

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
        unchecked: None,
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
        writer.submit(&"uid".into(), warm.clone(), report);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shutdown.cancel();
    run.await.unwrap();
    memory.writes.lock().unwrap().clone()
}

#[tokio::test]
async fn reports_during_a_write_are_merged_and_the_final_state_wins() {
    let pulling = || Report::Pulling(Pulling::default());
    let reports =
        vec![pulling(), pulling(), outcome(Reason::NotFound), outcome(Reason::Pulled), pulling()];
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
    submit_in(writer, "ns", name, report);
}

fn submit_in(writer: &StatusWriter, namespace: &str, name: &str, report: Report) {
    let mut warm = ImageWarm::default();
    warm.metadata.name = Some(name.into());
    warm.metadata.namespace = Some(namespace.into());
    writer.submit(&name.into(), Arc::new(warm.into()), report);
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
async fn namespaces_take_turns() {
    let (writer, mut begun) = recording(true);
    for number in 0..10_000 {
        submit_in(&writer, "greedy", &format!("greedy-{number}"), outcome(Reason::InvalidImage));
    }
    for number in 0..2 {
        submit_in(&writer, "modest", &format!("modest-{number}"), outcome(Reason::Pulled));
    }
    submit_in(&writer, "third", "third-0", outcome(Reason::Pulled));
    let names = first_writes(writer, &mut begun, 6).await;
    let expected = ["greedy-0", "modest-0", "third-0", "greedy-1", "modest-1", "greedy-2"];
    assert_eq!(names, expected);
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

/// The API server never takes what is called `bad`, and everything else at once.
struct Refusing(tokio::sync::mpsc::UnboundedSender<String>);

impl StatusSink for Refusing {
    fn write<'a>(
        &'a self,
        warm: &'a ImageWarm,
        _: &'a ImageWarmStatus,
    ) -> SinkFuture<'a, ImageWarm> {
        let name = warm.name_any();
        Box::pin(async move {
            if name.starts_with("bad") {
                return Err(ApplyError::Retryable("etcdserver: request is too large".into()));
            }
            let _ = self.0.send(name);
            Ok(warm.clone())
        })
    }

    fn read<'a>(&'a self, _: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn what_is_never_taken_keeps_nothing_else_from_being_written() {
    let (names, mut written) = tokio::sync::mpsc::unbounded_channel();
    let writer = StatusWriter::new(Arc::new(Refusing(names)), DispatchMetrics::default());
    for number in 0..2 * IN_FLIGHT {
        submit(&writer, &format!("bad-{number}"), outcome(Reason::Pulled));
    }
    let run = tokio::spawn(writer.clone().run(CancellationToken::new()));
    for number in 0..3 {
        submit(&writer, &format!("good-{number}"), outcome(Reason::Pulled));
        let name = tokio::time::timeout(Duration::from_secs(60), written.recv()).await;
        assert_eq!(name.unwrap().unwrap(), format!("good-{number}"));
    }
    assert!(writer.lock().oldest().is_some(), "those are still to be written");
    run.abort();
}

#[test]
fn a_failed_final_state_waits_and_only_a_newer_one_replaces_it() {
    let intent = |report| Intent { warm: Arc::new(CachedImageWarm::default()), report };
    let now = Instant::now();
    let mut pending = Pending::default();
    let reason = |taken: Option<(Uid, Intent, CancellationToken)>| match taken?.1.report {
        Report::Outcome(outcome) => Some(outcome.reason),
        _ => None,
    };
    pending.submit(&"u".into(), intent(outcome(Reason::NotFound)), now);
    let (uid, failed, _) = pending.next(true).unwrap();
    pending.submit(&"u".into(), intent(Report::Pulling(Pulling::default())), now);
    assert!(pending.failed(&uid, failed).is_some());
    assert!(pending.next(true).is_none(), "it waits, and its progress does not overtake it");
    pending.submit(&"u".into(), intent(outcome(Reason::Pulled)), now);
    assert!(pending.next(true).is_none(), "the delay holds for the newer one, too");
    pending.retry(&"u".into());
    assert_eq!(reason(pending.next(true)), Some(Reason::Pulled));
    assert_eq!(pending.oldest(), Some(now));
    pending.done("u");
    assert_eq!(pending.oldest(), None);
    pending.retry(&"u".into());
    assert!(pending.next(true).is_none());
}

#[tokio::test]
async fn nothing_is_written_of_what_was_deleted() {
    let (writer, mut begun) = recording(true);
    for name in ["deleted", "kept"] {
        submit(&writer, name, outcome(Reason::Pulled));
    }
    submit(&writer, "pulling", Report::Pulling(Pulling::default()));
    writer.forget("deleted");
    writer.forget("pulling");
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    writer.run(shutdown).await;
    assert_eq!((begun.recv().await.as_deref(), begun.try_recv().ok()), (Some("kept"), None));
}
