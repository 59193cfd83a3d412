//! List and watch of one type, for as long as the program runs. Own code rather than kube's
//! `watcher`, which does not report when a watch was renewed, and resumes from the old version
//! after a CRD was removed and installed again.

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
use crate::backoff::Backoff;
use crate::kubernetes::request::one_line;
use imagewarm_core::api::CachedObject;
use imagewarm_core::api::cached::Shared;

const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The server terminates a watch after this time; a stream silent for longer is dropped.
const WATCH_SECONDS: u32 = 290;
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// Interval between checks for the right to read a type that does without.
const FORBIDDEN_INTERVAL: Duration = Duration::from_secs(30);
/// Interval between checks for a CRD that is not installed.
const ABSENT_INTERVAL: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(400);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How many of the objects that a new list lacks are read before the list is accepted.
const MISSING_READS: usize = 3;

/// The watched types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ImageWarm,
    Revision,
    Image,
    Node,
    Namespace,
    RuntimeClass,
    DeploymentConfig,
}

/// Number of [`Kind`]s.
const KINDS: usize = 7;

/// A watched type.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    const KIND: Kind;
    /// Objects in a page of a list. A page is in memory as a whole: of a type whose objects users may make
    /// as large as the API server stores them, 1.5 MiB, it has few.
    const PAGE: u32;
    /// Whether everything works without the right to read it.
    const OPTIONAL: bool = false;
    /// Its cached form.
    type CachedObject: CachedObject;
    /// Drops the fields that nothing reads.
    fn into_cached(self, shared: &mut Shared) -> Self::CachedObject;
    /// Whether any cached field differs from `old`.
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

/// Combines the state of all sources.
pub(super) struct Progress {
    sources: Mutex<[Currency; KINDS]>,
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

fn sum(sources: &[Currency; KINDS]) -> Synced {
    let is = |kind: Kind, currency| sources[kind as usize] == currency;
    let current = |kind| is(kind, Currency::Current);
    let checked = |kind| current(kind) || is(kind, Currency::Absent);
    Synced {
        own: [Kind::ImageWarm, Kind::Node, Kind::Namespace, Kind::RuntimeClass]
            .into_iter()
            .all(current)
            && checked(Kind::DeploymentConfig),
        revisions: current(Kind::Revision),
        images: current(Kind::Image),
        knative_absent: checked(Kind::Revision)
            && checked(Kind::Image)
            && !(current(Kind::Revision) && current(Kind::Image)),
    }
}

/// Why a watch has to be restarted.
enum End {
    /// The server no longer knows the version, or the type may be gone: list again.
    Relist,
    /// The type is not served.
    Absent,
    /// It may not be read, and need not be.
    Forbidden,
    /// A request failed; retry after a back-off.
    Failed(String),
}

/// List and watch of one type.
pub(super) struct Source<K: Watched> {
    api: Api<K>,
    fields: Option<String>,
    store: Store<K::CachedObject>,
    shared: Shared,
    changes: broadcast::Sender<Change>,
    progress: Arc<Progress>,
    failures: u32,
    backoff: Backoff,
    absent: bool,
    forbidden: bool,
}

impl<K: Watched> Source<K> {
    /// Of the objects with these fields (a field selector), or of all.
    pub(super) fn new(
        api: Api<K>,
        fields: Option<String>,
        changes: broadcast::Sender<Change>,
        progress: Arc<Progress>,
    ) -> Self {
        let (store, shared) = (Store::default(), Shared::default());
        Source {
            api,
            fields,
            store,
            shared,
            changes,
            progress,
            failures: 0,
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
            absent: false,
            forbidden: false,
        }
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
                    sleep(BACKOFF_MIN).await;
                }
                End::Absent => {
                    self.note_absence();
                    sleep(ABSENT_INTERVAL).await;
                }
                End::Forbidden => {
                    self.note_denial();
                    sleep(FORBIDDEN_INTERVAL).await;
                }
                End::Failed(error) => self.back_off(&error).await,
            }
        }
    }

    async fn list(&mut self) -> Result<String, End> {
        let mut parameters = ListParams::default().limit(K::PAGE);
        parameters.field_selector.clone_from(&self.fields);
        let mut listed = Listed::new();
        let version = loop {
            let page = match timeout(PAGE_TIMEOUT, self.api.list(&parameters)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(end_of_list::<K>(&error)),
                Err(_) => return Err(End::Failed("no answer in time".into())),
            };
            for object in page.items {
                listed.add(object.into_cached(&mut self.shared), &self.store);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        self.verify_missing(&listed).await?;
        self.store.replace(listed);
        if self.absent {
            self.absent = false;
            tracing::info!(kind = ?K::KIND, "type is served now");
        }
        self.current();
        let _ = self.changes.send(Change::Relisted); // there may be no receiver
        Ok(version)
    }

    /// Rejects a list that lacks an object that still exists.
    async fn verify_missing(&self, listed: &Listed<K::CachedObject>) -> Result<(), End> {
        let known = self.store.state();
        let missing = known.iter().filter(|one| !listed.has(one, &self.store));
        for object in missing.take(MISSING_READS) {
            let client = self.api.clone().into_client();
            let kind = ApiResource::erase::<K>(&());
            let api: Api<DynamicObject> = match object.namespace() {
                "" => Api::all_with(client, &kind),
                namespace => Api::namespaced_with(client, namespace, &kind),
            };
            let (name, (uid, _)) = (object.name(), object.version());
            match timeout(START_TIMEOUT, api.get_metadata(name)).await {
                Ok(Ok(found)) if found.metadata.uid.as_deref().unwrap_or_default() == uid => {
                    return Err(End::Failed(format!("the list lacks {name}, which exists")));
                }
                // Another object of the same name may have been created since.
                Ok(Ok(_)) => {}
                // Without the right to get, the list is the only source.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {}
                Ok(Err(error)) => return Err(End::Failed(one_line(&error))),
                Err(_) => return Err(End::Failed("no answer in time".into())),
            }
        }
        Ok(())
    }

    fn current(&mut self) {
        if self.failures > 0 {
            tracing::info!(kind = ?K::KIND, failures = self.failures, "watch recovered");
        }
        self.failures = 0;
        self.backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        self.progress.set(K::KIND, Currency::Current);
        if std::mem::take(&mut self.forbidden) {
            tracing::info!(kind = ?K::KIND, "may be read now");
        }
    }

    /// What was read before still counts: nobody says that it has changed.
    fn note_denial(&mut self) {
        self.progress.set(K::KIND, Currency::Absent);
        if !std::mem::replace(&mut self.forbidden, true) {
            tracing::warn!(kind = ?K::KIND, "may not be read; doing without, checking periodically");
        }
    }

    /// Marks the type as absent before emptying the store, so that nothing is concluded from that.
    fn note_absence(&mut self) {
        self.progress.set(K::KIND, Currency::Absent);
        if !self.absent || !self.store.is_empty() {
            self.absent = true;
            tracing::info!(kind = ?K::KIND, "type is not served; checking periodically");
            self.store.replace(Listed::new());
            let _ = self.changes.send(Change::Relisted);
        }
    }

    async fn back_off(&mut self, error: &str) {
        self.progress.set(K::KIND, Currency::Stale);
        if self.failures == 0 {
            tracing::warn!(kind = ?K::KIND, %error, "cannot list or watch; retrying");
        } else {
            tracing::debug!(kind = ?K::KIND, %error, failures = self.failures, "still cannot list or watch");
        }
        self.failures = self.failures.saturating_add(1);
        sleep(self.backoff.next_with_jitter()).await;
    }

    /// Watches until a new list is required.
    async fn watch(&mut self, mut version: String) -> End {
        let mut parameters = WatchParams::default().timeout(WATCH_SECONDS);
        parameters.field_selector.clone_from(&self.fields);
        loop {
            let began = Instant::now();
            let api = self.api.clone();
            let stream = match timeout(START_TIMEOUT, api.watch(&parameters, &version)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 410) => {
                    return End::Relist;
                }
                Ok(Err(kube::Error::Api(status))) if K::OPTIONAL && status.code == 403 => {
                    return End::Forbidden;
                }
                Ok(Err(error)) => {
                    self.back_off(&one_line(&error)).await;
                    continue;
                }
                Err(_) => {
                    self.back_off("no answer in time").await;
                    continue;
                }
            };
            self.current();
            let mut stream = pin!(stream);
            // After an end, a timeout or a broken connection, the watch resumes from the last
            // version.
            while let Ok(Some(event)) = timeout(WATCH_TIMEOUT, stream.next()).await {
                let event = match event {
                    Ok(event) => event,
                    // Resuming would deliver the same event again.
                    Err(error @ kube::Error::SerdeError(_)) => {
                        return End::Failed(one_line(&error));
                    }
                    Err(_) => break,
                };
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        update_version(&mut version, &object);
                        self.apply(object);
                    }
                    WatchEvent::Deleted(object) => {
                        update_version(&mut version, &object);
                        self.delete(object);
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == 410 => return End::Relist,
                    WatchEvent::Error(status) => return End::Failed(status.message),
                }
            }
            if began.elapsed() < Duration::from_secs(1) {
                sleep(BACKOFF_MIN).await; // the server terminates each watch at once
            }
        }
    }

    fn apply(&mut self, object: K) {
        let object = Arc::new(object.into_cached(&mut self.shared));
        let old = self.store.put(object.clone());
        if old.is_none_or(|old| K::differs(&object, &old)) {
            let _ = self.changes.send(K::changed(object));
        }
    }

    fn delete(&mut self, object: K) {
        let object = object.into_cached(&mut self.shared);
        self.store.take(object.namespace(), object.name());
        let _ = self.changes.send(K::deleted(Arc::new(object)));
    }
}

fn update_version<K: Resource>(version: &mut String, object: &K) {
    if let Some(new) = &object.meta().resource_version {
        version.clone_from(new);
    }
}

fn end_of_list<K: Watched>(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if K::OPTIONAL && status.code == 403 => End::Forbidden,
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
    fn readiness_and_permission_to_delete() {
        // ImageWarms, Revisions, Images, Nodes, Namespaces, RuntimeClasses, Knative's ConfigMap; ready; may
        // delete
        let cases = [
            ([Stale, Stale, Stale, Stale, Stale, Stale, Stale], false, false),
            ([Current, Stale, Stale, Current, Current, Current, Current], false, false),
            ([Current, Current, Stale, Current, Current, Current, Current], false, false),
            ([Current, Current, Current, Current, Stale, Current, Current], false, false),
            ([Current, Current, Current, Current, Current, Current, Current], true, true),
            ([Current, Absent, Absent, Current, Current, Current, Current], true, false),
            ([Current, Absent, Stale, Current, Current, Current, Current], false, false),
            ([Current, Current, Absent, Current, Current, Current, Current], true, false),
            ([Absent, Current, Current, Current, Current, Current, Current], false, false),
            ([Current, Current, Current, Current, Current, Stale, Current], false, false),
            ([Current, Current, Current, Current, Current, Current, Stale], false, false),
            ([Current, Current, Current, Current, Current, Current, Absent], true, true),
        ];
        for (sources, ready, may_delete) in cases {
            let synced = sum(&sources);
            assert_eq!((synced.ready(), synced.may_delete()), (ready, may_delete), "{sources:?}");
        }
    }
}
