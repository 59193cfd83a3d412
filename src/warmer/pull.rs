//! Runs one job: a presence check, a pull, or a verification against the registry. A pull and a
//! verification wait for a grant and try its credentials in turn, and then the node's own; a pull without
//! progress times out. The job returns its result; the queue decides what follows.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::disk::DiskGuard;
use crate::clock::unix_ms;
use crate::runtime::Runtime;
use crate::runtime::credential_provider::CredentialProviders;
use imagewarm_core::api::Reason;
use imagewarm_core::api::names::Uid;
use imagewarm_core::image::Credential;
use imagewarm_core::node_queue::{Ended, Job, Step};
use imagewarm_core::protocol::{Progress, PullGrant};
use imagewarm_core::runtime::{
    CredentialSources, PresentImage, PullProgress, PulledImage, RuntimeError,
};

const PRESENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Minimum interval of progress reports.
const STEP_MS: i64 = 250;
/// Interval at which the last progress is reported again, to show that the pull is running.
const ALIVE: Duration = Duration::from_secs(2);

/// Timeouts of a pull.
#[derive(Clone, Copy, Debug)]
pub(super) struct PullTimeouts {
    /// Without progress, for a runtime that reports progress.
    pub idle: Duration,
    /// In total, with all credentials.
    pub total: Duration,
}

/// An event of a running job.
pub(super) enum JobEvent {
    /// It needs a grant.
    GrantRequested(Uid, oneshot::Sender<PullGrant>),
    /// Its pull is running.
    Progress(Progress),
}

/// Runs `job` to its end. Dropping the future stops it.
pub(super) async fn run(
    job: &Job,
    runtime: Arc<dyn Runtime>,
    disk: &DiskGuard,
    providers: &CredentialProviders,
    events: mpsc::Sender<JobEvent>,
    timeouts: PullTimeouts,
) -> Ended {
    if job.step != Step::CheckPresence
        && let Err(RuntimeError { reason, message }) = runtime.usable()
    {
        return Ended::Refused(reason, message);
    }
    match job.step {
        Step::CheckPresence => {
            let checked = tokio::time::timeout(PRESENCE_TIMEOUT, present(job, runtime.as_ref()));
            Ended::PresenceChecked(checked.await.unwrap_or_else(|_| {
                let message = "the runtime did not respond in time".into();
                Err(RuntimeError { reason: Reason::RuntimeUnavailable, message })
            }))
        }
        Step::Pull => {
            // Before the grant: a node that cannot pull must not hold a permit that others need.
            let shortage = disk.shortage(runtime.as_ref(), job.room_bytes);
            match tokio::time::timeout(PRESENCE_TIMEOUT, shortage).await {
                Ok(Some(message)) => return Ended::NoRoom(message),
                Ok(None) => {}
                // The pull reports the fault.
                Err(_) => tracing::warn!("disk guard timed out"),
            }
            let (credentials, sources) = match granted(job, providers, &events).await {
                Ok(granted) => granted,
                Err(RuntimeError { reason, message }) => return Ended::Refused(reason, message),
            };
            let (runtime, started) = (runtime.as_ref(), unix_ms());
            let pull = in_turn(&credentials, |credential| {
                watched(job, runtime, credential, &events, timeouts, started)
            });
            let pull = within(timeouts.total, "pull", pull);
            tokio::select! {
                result = pull => {
                    let result = result.map_err(|error| sources.explain(error));
                    unless_present(job, runtime, started, result).await
                }
                message = disk.until_low(runtime) => Ended::OutOfRoom(message),
            }
        }
        Step::Verify => {
            let (credentials, sources) = match granted(job, providers, &events).await {
                Ok(granted) => granted,
                Err(RuntimeError { reason, message }) => return Ended::Refused(reason, message),
            };
            let verify = in_turn(&credentials, |credential| {
                let answer = runtime.verify(&job.image, &job.sandboxes, credential);
                async {
                    tokio::time::timeout(PRESENCE_TIMEOUT, answer).await.unwrap_or_else(|_| {
                        let message = "the registry did not respond in time".into();
                        Err(RuntimeError { reason: Reason::TimedOut, message })
                    })
                }
            });
            let verify = within(timeouts.total, "verification", verify).await;
            Ended::Verified(verify.map_err(|error| sources.explain(error)))
        }
    }
}

/// What the node holds: the digest that the tag was resolved to, by whatever way that came, before another
/// that the tag names.
async fn present(job: &Job, runtime: &dyn Runtime) -> Result<Option<PresentImage>, RuntimeError> {
    let held = runtime.present(&job.image, &job.sandboxes).await?;
    let held_digest = held.as_ref().and_then(|held| held.digest.as_deref());
    match &job.resolved {
        Some(resolved) if held_digest != resolved.digest() => {
            Ok(runtime.present(resolved, &job.sandboxes).await?.or(held))
        }
        _ => Ok(held),
    }
}

/// The result of a pull; of a tag with what the node holds of it, where the registry answers nothing.
async fn unless_present(
    job: &Job,
    runtime: &dyn Runtime,
    started: i64,
    result: Result<PulledImage, RuntimeError>,
) -> Ended {
    let error = match result {
        Err(error) if job.image.digest().is_none() && error.reason.leaves_image_unknown() => error,
        result => return Ended::Pulled(started, result),
    };
    match tokio::time::timeout(PRESENCE_TIMEOUT, runtime.present(&job.image, &job.sandboxes)).await
    {
        Ok(Ok(Some(held))) => Ended::Unchecked(started, held, error),
        _ => Ended::Pulled(started, Err(error)),
    }
}

/// The credentials to try, those of pull secrets first, and where they are from; or why the job is
/// refused.
async fn granted(
    job: &Job,
    providers: &CredentialProviders,
    events: &mpsc::Sender<JobEvent>,
) -> Result<(Vec<Credential>, CredentialSources), RuntimeError> {
    // Before the grant: a plugin that hangs must not hold a permit that others need.
    let node = providers.lookup(&job.image).await;
    let (sender, grant) = oneshot::channel();
    // The main loop outlives its jobs; without it the process is terminating.
    let _ = events.send(JobEvent::GrantRequested(job.uid.clone(), sender)).await;
    let Ok(grant) = grant.await else {
        let message = "the warmer is terminating".into();
        return Err(RuntimeError { reason: Reason::WaitingForWarmer, message });
    };
    let refusal = (!grant.refused_reason.is_empty()).then(|| RuntimeError {
        reason: Reason::from_name(&grant.refused_reason).unwrap_or(Reason::Unauthorized),
        message: grant.refused_message,
    });
    let missing_secret = match refusal {
        Some(refusal) if refusal.reason != Reason::SecretMissing => return Err(refusal),
        refusal => refusal,
    };
    let mut credentials: Vec<Credential> =
        grant.credentials.into_iter().map(into_credential).collect();
    let of_secrets = credentials.len();
    // What a pull secret has, too, is tried once.
    for credential in &node.credentials {
        if !credentials.contains(credential) {
            credentials.push(credential.clone());
        }
    }
    Ok((credentials, CredentialSources { of_secrets, missing_secret, node }))
}

/// Tries the credentials in turn; without any, anonymously.
async fn in_turn<'a, T, F: Future<Output = Result<T, RuntimeError>>>(
    credentials: &'a [Credential],
    attempt: impl Fn(Option<&'a Credential>) -> F,
) -> Result<T, RuntimeError> {
    let anonymous = credentials.is_empty().then_some(None);
    let mut refused: Option<RuntimeError> = None;
    for credential in credentials.iter().map(Some).chain(anonymous) {
        let error = match attempt(credential).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match (error.reason, &refused) {
            // Registries report an image that a credential may not read as not found.
            (Reason::Unauthorized, _) | (Reason::NotFound, None) => refused = Some(error),
            (Reason::NotFound, Some(_)) => {}
            _ => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| RuntimeError {
        reason: Reason::Unauthorized,
        message: "no credential was accepted".into(),
    }))
}

/// One pull with one credential, until it completes or times out.
async fn watched(
    job: &Job,
    runtime: &dyn Runtime,
    credential: Option<&Credential>,
    events: &mpsc::Sender<JobEvent>,
    timeouts: PullTimeouts,
    started: i64,
) -> Result<PulledImage, RuntimeError> {
    let begin = Instant::now();
    let elapsed = move || i64::try_from(begin.elapsed().as_millis()).unwrap_or(i64::MAX);
    let moved_at = AtomicI64::new(0);
    let reported_at = AtomicI64::new(-STEP_MS);
    let last = Mutex::new(PullProgress::default());
    let report = |progress: PullProgress| {
        reported_at.store(elapsed(), Ordering::Relaxed);
        // A full channel drops this report; a later one supersedes it.
        let _ = events.try_send(JobEvent::Progress(Progress {
            uid: job.uid.to_string(),
            queued: false,
            downloaded_bytes: progress.downloaded_bytes,
            total_bytes: progress.total_bytes,
            started_at_unix_ms: started,
            attempt: job.attempt,
        }));
    };
    let progress = |progress: PullProgress| {
        let now = elapsed();
        moved_at.store(now, Ordering::Relaxed);
        *last.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        if now - reported_at.load(Ordering::Relaxed) >= STEP_MS {
            report(progress);
        }
    };
    let alive = async {
        loop {
            tokio::time::sleep(ALIVE).await;
            report(*last.lock().unwrap_or_else(PoisonError::into_inner));
        }
    };
    progress(PullProgress::default());
    let pull = runtime.pull(&job.image, &job.sandboxes, credential, &progress);
    let pull = Box::pin(async {
        tokio::select! {
            result = pull => result,
            () = alive => std::future::pending().await,
        }
    });
    if runtime.reports_progress() {
        until_idle(pull, begin, &moved_at, timeouts.idle).await
    } else {
        pull.await
    }
}

/// Waits at most `total` for all attempts together: a registry that holds each of them, or sends a byte
/// now and then, must not hold the node's places.
async fn within<T>(
    total: Duration,
    what: &str,
    attempts: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    tokio::time::timeout(total, attempts).await.unwrap_or_else(|_| {
        let seconds = total.as_secs();
        Err(timed_out(format!("the {what} did not complete within {seconds} s")))
    })
}

/// Waits for `pull`, but not longer than `idle` after the last progress: `moved_at` is its time in
/// milliseconds after `begin`.
async fn until_idle(
    mut pull: Pin<Box<impl Future<Output = Result<PulledImage, RuntimeError>>>>,
    begin: Instant,
    moved_at: &AtomicI64,
    idle: Duration,
) -> Result<PulledImage, RuntimeError> {
    loop {
        let moved = moved_at.load(Ordering::Relaxed);
        let deadline = begin + Duration::from_millis(u64::try_from(moved).unwrap_or(0)) + idle;
        tokio::select! {
            result = &mut pull => return result,
            () = tokio::time::sleep_until(deadline) => {}
        }
        if moved_at.load(Ordering::Relaxed) == moved {
            let seconds = idle.as_secs();
            return Err(timed_out(format!("the pull made no progress for {seconds} s")));
        }
    }
}

fn timed_out(message: String) -> RuntimeError {
    RuntimeError { reason: Reason::TimedOut, message }
}

fn into_credential(credential: imagewarm_core::protocol::Credential) -> Credential {
    Credential {
        username: credential.username,
        password: credential.password,
        identity_token: credential.identity_token,
        registry_token: credential.registry_token,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::runtime::fake::{FakeRuntime, Script};
    use imagewarm_core::image::Reference;
    use imagewarm_core::runtime::Sandboxes;

    fn job(image: &str) -> Job {
        Job {
            uid: "u".into(),
            step: Step::Pull,
            image: Reference::parse(image).unwrap(),
            resolved: None,
            sandboxes: Sandboxes::new("team", &[]),
            attempt: 1,
            check_for: String::new(),
            room_bytes: 1,
        }
    }

    fn credential(username: &str) -> imagewarm_core::protocol::Credential {
        imagewarm_core::protocol::Credential {
            username: username.into(),
            ..imagewarm_core::protocol::Credential::default()
        }
    }

    async fn ended(runtime: FakeRuntime, grant: PullGrant, idle: Duration) -> Ended {
        ended_as(&job("r.test/app:v1"), runtime, grant, idle).await
    }

    async fn ended_as(job: &Job, runtime: FakeRuntime, grant: PullGrant, idle: Duration) -> Ended {
        let timeouts = PullTimeouts { idle, total: 60 * idle };
        ended_within(job, runtime, grant, timeouts).await
    }

    async fn ended_within(
        job: &Job,
        runtime: FakeRuntime,
        grant: PullGrant,
        timeouts: PullTimeouts,
    ) -> Ended {
        let (events, mut received) = mpsc::channel(8);
        let grant_it = async {
            if let Some(JobEvent::GrantRequested(_, reply)) = received.recv().await {
                let _ = reply.send(grant);
            }
            while received.recv().await.is_some() {}
        };
        let disk = DiskGuard::new(0, None);
        let providers = CredentialProviders::default();
        let run = run(job, Arc::new(runtime), &disk, &providers, events, timeouts);
        let (ended, ()) = tokio::join!(run, grant_it);
        ended
    }

    fn reason(ended: Ended) -> Result<bool, Reason> {
        match ended {
            Ended::Pulled(_, Ok(pulled)) => Ok(pulled.downloaded),
            Ended::Pulled(_, Err(error)) => Err(error.reason),
            Ended::Refused(reason, _) => Err(reason),
            Ended::Unchecked(_, _, error) => Err(error.reason),
            Ended::NoRoom(_) | Ended::OutOfRoom(_) => Err(Reason::DiskPressure),
            Ended::PresenceChecked(_) | Ended::Verified(_) => Err(Reason::Removed),
        }
    }

    #[tokio::test]
    async fn a_missing_secret_does_not_prevent_the_pull_of_a_public_image() {
        let grant = |reason: Reason| PullGrant {
            refused_reason: reason.as_str().into(),
            refused_message: "Secret regcred does not exist".into(),
            ..PullGrant::default()
        };
        let idle = Duration::from_secs(5);
        let missing = || grant(Reason::SecretMissing);
        assert_eq!(reason(ended(FakeRuntime::default(), missing(), idle).await), Ok(true));
        let cases = [
            (Script::Needs("right"), Reason::SecretMissing),
            (Script::Fails(Reason::NotFound), Reason::SecretMissing),
            (Script::Fails(Reason::RegistryUnreachable), Reason::RegistryUnreachable),
        ];
        for (script, expected) in cases {
            let runtime = FakeRuntime::default().with("r.test/app:v1", script);
            let Ended::Pulled(_, Err(error)) = ended(runtime, missing(), idle).await else {
                panic!("{script:?} was not tried");
            };
            assert_eq!(error.reason, expected, "{script:?}");
            assert_eq!(
                error.message.starts_with("Secret regcred does not exist; without it: "),
                expected == Reason::SecretMissing
            );
        }
        let ended = ended(FakeRuntime::default(), grant(Reason::InvalidImage), idle).await;
        assert!(matches!(ended, Ended::Refused(Reason::InvalidImage, _)));
    }

    #[tokio::test]
    async fn credentials_are_tried_in_turn() {
        let idle = Duration::from_secs(5);
        let grant = |names: &[&str]| PullGrant {
            credentials: names.iter().map(|name| credential(name)).collect(),
            ..PullGrant::default()
        };
        let private = || FakeRuntime::default().with("r.test/app:v1", Script::Needs("right"));
        assert_eq!(reason(ended(private(), grant(&["wrong", "right"]), idle).await), Ok(true));
        for (names, expected) in
            [(&["wrong", "other"][..], Reason::Unauthorized), (&[], Reason::NoCredentials)]
        {
            let ended = ended(private(), grant(names), idle).await;
            assert_eq!(reason(ended), Err(expected), "{names:?}");
        }
        let down = FakeRuntime::default()
            .with("r.test/app:v1", Script::Fails(Reason::RegistryUnreachable));
        let calls = down.calls();
        let ended = ended(down, grant(&["a", "b"]), idle).await;
        assert_eq!(reason(ended), Err(Reason::RegistryUnreachable));
        assert_eq!(calls.lock().unwrap().len(), 1, "another credential would not help");
    }

    #[tokio::test]
    async fn a_present_image_is_verified_by_the_right_credential_only() {
        let private = || FakeRuntime::default().with("r.test/app:v1", Script::Needs("right"));
        for (names, expected) in [
            (&["wrong", "right"][..], Ok(())),
            (&["wrong"], Err(Reason::Unauthorized)),
            (&[], Err(Reason::NoCredentials)),
        ] {
            let credentials = names.iter().map(|name| credential(name)).collect();
            let grant = PullGrant { credentials, ..PullGrant::default() };
            let job = Job { step: Step::Verify, ..job("r.test/app:v1") };
            let Ended::Verified(result) =
                ended_as(&job, private(), grant, Duration::from_secs(5)).await
            else {
                panic!("{names:?} were not tried");
            };
            assert_eq!(result.map_err(|error| error.reason), expected, "{names:?}");
        }
    }

    #[tokio::test]
    async fn a_pull_times_out_without_progress_but_not_by_its_length() {
        let idle = Duration::from_millis(300);
        let stuck = FakeRuntime::default().with("r.test/app:v1", Script::Stuck);
        let ended_stuck = ended(stuck, PullGrant::default(), idle).await;
        assert_eq!(reason(ended_stuck), Err(Reason::TimedOut));
        let slow = FakeRuntime::default().with("r.test/app:v1", Script::Slow(10));
        assert_eq!(reason(ended(slow, PullGrant::default(), idle).await), Ok(true));
    }

    #[tokio::test]
    async fn without_progress_reports_a_pull_times_out_by_its_length_only() {
        let timeouts =
            PullTimeouts { idle: Duration::from_millis(300), total: Duration::from_millis(600) };
        let job = job("r.test/app:v1");
        let silent = |script| FakeRuntime::default().silent().with("r.test/app:v1", script);
        for (script, expected) in
            [(Script::Slow(4), Ok(true)), (Script::Stuck, Err(Reason::TimedOut))]
        {
            let ended = ended_within(&job, silent(script), PullGrant::default(), timeouts).await;
            assert_eq!(reason(ended), expected, "{script:?}");
        }
    }

    /// A registry that keeps each attempt going for a while does not hold a place for longer than one
    /// deadline, whatever the runtime and the number of credentials.
    #[tokio::test]
    async fn one_deadline_holds_for_all_credentials_of_a_pull() {
        let timeouts =
            PullTimeouts { idle: Duration::from_secs(1), total: Duration::from_millis(1_000) };
        let credentials = ["a", "b", "c", "d"].map(credential).to_vec();
        let grant = PullGrant { credentials, ..PullGrant::default() };
        let tarpit = || FakeRuntime::default().with("r.test/app:v1", Script::RefusesSlowly(4));
        for runtime in [tarpit(), tarpit().silent()] {
            let (job, calls) = (job("r.test/app:v1"), runtime.calls());
            let ended = ended_within(&job, runtime, grant.clone(), timeouts).await;
            assert_eq!(reason(ended), Err(Reason::TimedOut));
            assert!(calls.lock().unwrap().len() <= 3, "the last would begin after the deadline");
        }
    }

    #[tokio::test]
    async fn without_space_no_grant_is_requested_and_nothing_is_pulled() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskGuard::new(0, Some(folder.path().to_owned()));
        let (events, mut received) = mpsc::channel(8);
        let providers = CredentialProviders::default();
        let runtime = FakeRuntime::default();
        let calls = runtime.calls();
        let huge = Job { room_bytes: u64::MAX, ..job("r.test/app:v1") };
        let timeouts = PullTimeouts { idle: Duration::from_secs(5), total: Duration::from_secs(5) };
        let ended = run(&huge, Arc::new(runtime), &disk, &providers, events, timeouts).await;
        assert!(matches!(ended, Ended::NoRoom(_)), "{ended:?}");
        assert!(received.recv().await.is_none() && calls.lock().unwrap().is_empty());
    }
}
