//! List and watch of one type, for as long as the program runs. Own code rather than kube's
//! `watcher`, which does not tell when a watch was renewed, and resumes where it was after a CRD
//! was removed and installed again.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

use super::store::{Listed, Store};
use super::{Change, Synced};
use crate::kubernetes::request::one_line;
use imagewarm_core::api::CachedObject;
use imagewarm_core::api::cached::Shared;

const PAGE: u32 = 500;
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The server ends a watch after this time; a client that hears nothing for longer is cut off.
const WATCH_SECONDS: u32 = 290;
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// How soon a CRD is noticed that was installed later.
const ABSENT_PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(400);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How many of the objects that a new list lacks are asked for before it is believed.
const WITNESSES: usize = 3;

/// The types that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ImageWarm,
    Revision,
    Image,
    Node,
    Namespace,
    RuntimeClass,
}

/// A type that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    const KIND: Kind;
    /// What is kept of it.
    type CachedObject: CachedObject;
    /// Drops what nobody reads.
    fn keep(self, shared: &mut Shared) -> Self::CachedObject;
    /// Whether anything that is kept differs from `old`.
    fn differs(new: &Self::CachedObject, old: &Self::CachedObject) -> bool;
    fn changed(object: Arc<Self::CachedObject>) -> Change;
    fn deleted(object: Arc<Self::CachedObject>) -> Change {
        Self::changed(object)
    }
}

/// How current the list of one type is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Currency {
    #[default]
    Stale,
    Current,
    Absent,
}

/// Sums all sources up.
pub(super) struct Progress {
    sources: Mutex<[Currency; 6]>,
    synced: watch::Sender<Synced>,
}

impl Progress {
    pub(super) fn new() -> (Arc<Self>, watch::Receiver<Synced>) {
        let (synced, receiver) = watch::channel(Synced::default());
        (Arc::new(Progress { sources: Mutex::default(), synced }), receiver)
    }

    fn set(&self, kind: Kind, currency: Currency) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources[kind as usize] = currency;
        let sum = sum(&sources);
        self.synced.send_if_modified(|synced| std::mem::replace(synced, sum) != sum);
    }
}

fn sum(sources: &[Currency; 6]) -> Synced {
    let is = |kind: Kind, currency| sources[kind as usize] == currency;
    let current = |kind| is(kind, Currency::Current);
    let looked_for = |kind| current(kind) || is(kind, Currency::Absent);
    Synced {
        own: [Kind::ImageWarm, Kind::Node, Kind::Namespace, Kind::RuntimeClass]
            .into_iter()
            .all(current),
        revisions: current(Kind::Revision),
        images: current(Kind::Image),
        knative_absent: looked_for(Kind::Revision)
            && looked_for(Kind::Image)
            && !(current(Kind::Revision) && current(Kind::Image)),
    }
}

/// Why watching has to begin anew.
enum End {
    /// The server no longer knows the version, or the type may be gone: list again.
    Relist,
    /// The type is not served.
    Absent,
    /// Something failed; try again later.
    Failed(String),
}

/// List and watch of one type.
pub(super) struct Source<K: Watched> {
    api: Api<K>,
    store: Store<K::CachedObject>,
    shared: Shared,
    changes: broadcast::Sender<Change>,
    progress: Arc<Progress>,
    failures: u32,
    absent: bool,
}

impl<K: Watched> Source<K> {
    pub(super) fn new(
        api: Api<K>,
        changes: broadcast::Sender<Change>,
        progress: Arc<Progress>,
    ) -> Self {
        let (store, shared) = (Store::default(), Shared::default());
        Source { api, store, shared, changes, progress, failures: 0, absent: false }
    }

    pub(super) fn store(&self) -> Store<K::CachedObject> {
        self.store.clone()
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) {
        loop {
            let end = match self.list().await {
                Ok(version) => self.watch(version).await,
                Err(end) => end,
            };
            match end {
                End::Relist => {
                    self.progress.set(K::KIND, Currency::Stale);
                    sleep(PAUSE_MIN).await;
                }
                End::Absent => {
                    self.note_absence();
                    sleep(ABSENT_PAUSE).await;
                }
                End::Failed(error) => self.pause(&error).await,
            }
        }
    }

    async fn list(&mut self) -> Result<String, End> {
        let mut parameters = ListParams::default().limit(PAGE);
        let mut listed = Listed::new();
        let version = loop {
            let page = match timeout(PAGE_TIMEOUT, self.api.list(&parameters)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(end_of_list(&error)),
                Err(_) => return Err(End::Failed("no answer in time".into())),
            };
            for object in page.items {
                listed.add(object.keep(&mut self.shared), &self.store);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        self.ask_for_missing(&listed).await?;
        self.store.replace(listed);
        if self.absent {
            self.absent = false;
            tracing::info!(kind = ?K::KIND, "type is served now");
        }
        self.current();
        let _ = self.changes.send(Change::Relisted); // nobody listening is no error
        Ok(version)
    }

    /// A list that lacks what is still there is wrong, and nothing is concluded from it.
    async fn ask_for_missing(&self, listed: &Listed<K::CachedObject>) -> Result<(), End> {
        let known = self.store.state();
        let missing = known.iter().filter(|one| !listed.has(one, &self.store));
        for object in missing.take(WITNESSES) {
            let client = self.api.clone().into_client();
            let kind = ApiResource::erase::<K>(&());
            let api: Api<DynamicObject> = match object.namespace() {
                "" => Api::all_with(client, &kind),
                namespace => Api::namespaced_with(client, namespace, &kind),
            };
            let (name, (uid, _)) = (object.name(), object.version());
            match timeout(START_TIMEOUT, api.get_metadata(name)).await {
                Ok(Ok(found)) if found.metadata.uid.as_deref().unwrap_or_default() == uid => {
                    return Err(End::Failed(format!("the list lacks {name}, which is there")));
                }
                // Another of the same name may have been made since.
                Ok(Ok(_)) => {}
                // Who may list and not get has no better source.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {}
                Ok(Err(error)) => return Err(End::Failed(one_line(&error))),
                Err(_) => return Err(End::Failed("no answer in time".into())),
            }
        }
        Ok(())
    }

    fn current(&mut self) {
        if self.failures > 0 {
            tracing::info!(kind = ?K::KIND, failures = self.failures, "watching again");
        }
        self.failures = 0;
        self.progress.set(K::KIND, Currency::Current);
    }

    /// Only what was there for certain may be missed: an absent type makes the list untrusted first.
    fn note_absence(&mut self) {
        self.progress.set(K::KIND, Currency::Absent);
        if !self.absent || !self.store.is_empty() {
            self.absent = true;
            tracing::info!(kind = ?K::KIND, "type is not served; looking for it from time to time");
            self.store.replace(Listed::new());
            let _ = self.changes.send(Change::Relisted);
        }
    }

    async fn pause(&mut self, error: &str) {
        self.progress.set(K::KIND, Currency::Stale);
        if self.failures == 0 {
            tracing::warn!(kind = ?K::KIND, %error, "cannot list or watch; trying again");
        } else {
            tracing::debug!(kind = ?K::KIND, %error, failures = self.failures, "still cannot list or watch");
        }
        let most = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        sleep(most.mul_f64(rand::random_range(0.5..1.0))).await;
    }

    /// Watches until only a new list can help.
    async fn watch(&mut self, mut version: String) -> End {
        let parameters = WatchParams::default().timeout(WATCH_SECONDS);
        loop {
            let began = Instant::now();
            let api = self.api.clone();
            let stream = match timeout(START_TIMEOUT, api.watch(&parameters, &version)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 410) => {
                    return End::Relist;
                }
                Ok(Err(error)) => {
                    self.pause(&one_line(&error)).await;
                    continue;
                }
                Err(_) => {
                    self.pause("no answer in time").await;
                    continue;
                }
            };
            self.current();
            let mut stream = pin!(stream);
            // An end, a silence or a broken connection alike: go on from the last version.
            while let Ok(Some(event)) = timeout(WATCH_TIMEOUT, stream.next()).await {
                let event = match event {
                    Ok(event) => event,
                    // The same event would only come again.
                    Err(error @ kube::Error::SerdeError(_)) => {
                        return End::Failed(one_line(&error));
                    }
                    Err(_) => break,
                };
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        remember(&mut version, &object);
                        self.apply(object);
                    }
                    WatchEvent::Deleted(object) => {
                        remember(&mut version, &object);
                        self.delete(object);
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == 410 => return End::Relist,
                    WatchEvent::Error(status) => return End::Failed(status.message),
                }
            }
            if began.elapsed() < Duration::from_secs(1) {
                sleep(PAUSE_MIN).await; // a server that ends each watch at once
            }
        }
    }

    fn apply(&mut self, object: K) {
        let object = Arc::new(object.keep(&mut self.shared));
        let old = self.store.put(object.clone());
        if old.is_none_or(|old| K::differs(&object, &old)) {
            let _ = self.changes.send(K::changed(object));
        }
    }

    fn delete(&mut self, object: K) {
        let object = object.keep(&mut self.shared);
        self.store.take(object.namespace(), object.name());
        let _ = self.changes.send(K::deleted(Arc::new(object)));
    }
}

fn remember<K: Resource>(version: &mut String, object: &K) {
    if let Some(new) = &object.meta().resource_version {
        version.clone_from(new);
    }
}

fn end_of_list(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if status.code == 404 => End::Absent,
        kube::Error::Api(status) if status.code == 410 => End::Relist,
        other => End::Failed(one_line(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::caches::source::Currency::{Absent, Current, Stale};

    #[test]
    fn readiness_and_the_right_to_delete() {
        // ImageWarms, Revisions, Images, Nodes, Namespaces, RuntimeClasses; ready; may delete
        let cases = [
            ([Stale, Stale, Stale, Stale, Stale, Stale], false, false),
            ([Current, Stale, Stale, Current, Current, Current], false, false),
            ([Current, Current, Stale, Current, Current, Current], false, false),
            ([Current, Current, Current, Current, Stale, Current], false, false),
            ([Current, Current, Current, Current, Current, Current], true, true),
            ([Current, Absent, Absent, Current, Current, Current], true, false),
            ([Current, Absent, Stale, Current, Current, Current], false, false),
            ([Current, Current, Absent, Current, Current, Current], true, false),
            ([Absent, Current, Current, Current, Current, Current], false, false),
            ([Current, Current, Current, Current, Current, Stale], false, false),
        ];
        for (sources, ready, may_delete) in cases {
            let synced = sum(&sources);
            assert_eq!((synced.ready(), synced.may_delete()), (ready, may_delete), "{sources:?}");
        }
    }
}
