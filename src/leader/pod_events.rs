//! Follows what kubelets say in Events of the images of Pods (that one is being pulled, and that one is there), and
//! schedulers of Pods that fit no node.
//!
//! What is lost while the API server does not answer is lost, and an API server that refuses the right to
//! watch Events is asked again in five minutes: nothing that has to be right depends on it.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::kubernetes::leadership::{Leadership, Leading};
use crate::kubernetes::request::one_line;
use imagewarm_core::report::pod_image::pod_events_selector;

/// The server terminates a watch after this time; a stream silent for longer is dropped.
const WATCH_SECONDS: u32 = 290;
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Interval between attempts where Events may not be watched.
const REFUSED_INTERVAL: Duration = Duration::from_secs(300);

/// The Events about Pods, while this replica leads: those of kubelets about images, those of schedulers about Pods
/// that fit no node, and others.
pub(crate) struct PodEvents {
    events: Api<Event>,
    leadership: watch::Receiver<Leadership>,
}

/// Why a watch ended.
enum End {
    Refused(String),
    Failed(String),
    /// The server ended the watch, or no longer knows the version.
    Again,
}

impl PodEvents {
    /// Read through `client`.
    pub(crate) fn new(client: Client, leadership: watch::Receiver<Leadership>) -> Self {
        PodEvents { events: Api::all(client), leadership }
    }

    /// Calls `seen` for each, until `stop`.
    pub(crate) async fn run(self, seen: impl Fn(&Event), stop: CancellationToken) {
        let mut leading = Leading::new(self.leadership.clone());
        let mut leads = false;
        loop {
            let following = async {
                match leads {
                    true => self.follow(&seen).await,
                    false => pending().await,
                }
            };
            tokio::select! {
                () = following => {}
                changed = leading.changed() => match changed {
                    Ok(now) => leads = now,
                    Err(_) => return,
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Watches, for ever.
    async fn follow(&self, seen: &impl Fn(&Event)) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut version = None;
        loop {
            let pause = match self.watch(&mut version, seen).await {
                End::Again => {
                    backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
                    BACKOFF_MIN
                }
                End::Failed(error) => {
                    tracing::debug!(error, "cannot watch Events");
                    backoff.next_with_jitter()
                }
                End::Refused(error) => {
                    tracing::info!(error, "Events about Pods are not seen");
                    REFUSED_INTERVAL
                }
            };
            sleep(pause).await;
        }
    }

    /// Goes on from `version`, and leaves there where to go on next time.
    async fn watch(&self, version: &mut Option<String>, seen: &impl Fn(&Event)) -> End {
        let fields = pod_events_selector();
        // Only for the version: what was said before is over.
        let newest = ListParams::default().fields(&fields).limit(1);
        let mut last = match version.take() {
            Some(version) => version,
            None => match timeout(ANSWER_TIMEOUT, self.events.list_metadata(&newest)).await {
                Ok(Ok(list)) => list.metadata.resource_version.unwrap_or_default(),
                Ok(Err(error)) => return end_of(&error),
                Err(_) => return End::Failed("no answer in time".into()),
            },
        };
        let parameters = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
        let stream = match timeout(ANSWER_TIMEOUT, self.events.watch(&parameters, &last)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return end_of(&error),
            Err(_) => return End::Failed("no answer in time".into()),
        };
        let mut stream = pin!(stream);
        loop {
            match timeout(WATCH_TIMEOUT, stream.next()).await {
                // An Event that repeats is modified.
                Ok(Some(Ok(WatchEvent::Added(event) | WatchEvent::Modified(event)))) => {
                    if let Some(version) = &event.metadata.resource_version {
                        last.clone_from(version);
                    }
                    seen(&event);
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => {}
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    last = bookmark.metadata.resource_version;
                }
                Ok(Some(Err(kube::Error::SerdeError(error)))) => {
                    return End::Failed(error.to_string());
                }
                Ok(Some(Ok(WatchEvent::Error(_)))) => return End::Again,
                Ok(Some(Err(_)) | None) | Err(_) => {
                    *version = Some(last);
                    return End::Again;
                }
            }
        }
    }
}

fn end_of(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if status.code == 403 => End::Refused(one_line(error)),
        kube::Error::Api(status) if status.code == 410 => End::Again,
        error => End::Failed(one_line(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Everything that can be done without waiting is done.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_leader_whose_address_changes_goes_on_with_its_watch() {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let (sender, receiver) = watch::channel(Leadership::default());
        let events = PodEvents::new(Client::new(service, "default"), receiver);
        let stop = CancellationToken::new();
        let running = tokio::spawn(events.run(|_| {}, stop.clone()));
        let leads = |leading: bool, address: &str| {
            let leader_address = Some(address.to_owned());
            sender.send_replace(Leadership { leading, leader_address });
        };
        for (leading, address, expected) in [
            (false, "a:1", 0),
            (true, "b:1", 1),
            (true, "b:2", 1),
            (false, "a:1", 1),
            (false, "a:2", 1),
            (true, "b:2", 2),
        ] {
            leads(leading, address);
            settle().await;
            assert_eq!(requests.load(Ordering::Relaxed), expected, "{leading} {address}");
        }
        stop.cancel();
        running.await.unwrap();
    }
}
