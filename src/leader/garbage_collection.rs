//! Deletes the orphans that the plan lists, after a live read: a watch may lag, and when a CRD is
//! removed its objects disappear before the type does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource};

use super::ControllerMetrics;
use super::still_leading::StillLeading;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::caches::Stores;
use crate::kubernetes::live::{self, Presence};
use crate::kubernetes::writes;
use imagewarm_core::api::knative::{REVISION_LABEL, ROUTING_STATE_LABEL};
use imagewarm_core::api::names::Uid;
use imagewarm_core::api::{CREATED_FOR_ANNOTATION, CachedImageWarm, KnativeImage};
use imagewarm_core::demand::revision::opts_out;
use imagewarm_core::plan::diff::{Cause, Deletion};

/// How long an object must be an orphan, in every run, before it is deleted.
const SETTLE: Duration = Duration::from_secs(2);
/// Deletions in one run, about as many as an API server does in a second: repairs wait no longer.
const DELETIONS: usize = 500;
/// Interval after which orphans that were not deleted are checked again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Deletes orphans, and keeps when each is due.
pub(super) struct GarbageCollector {
    client: Client,
    concurrency: usize,
    still_leading: StillLeading,
    metrics: ControllerMetrics,
    /// When each orphan may be deleted, or is to be checked again.
    due_at: HashMap<Uid, Instant>,
    /// Nothing is deleted before this time, since the caches are wrong.
    paused_until: Option<Instant>,
}

/// The result of a live check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Delete,
    Keep,
    /// The cache lacks an object that exists, so nothing else in it justifies a deletion either.
    StaleCache,
}

/// A live check that deletions depend on, made once for all objects that share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    /// Is this Node gone?
    Node(String),
    /// Is this Node the one that the cache holds, or gone?
    ReplacedNode(String),
    /// Is this Revision (namespace, name) gone, or known not to demand the image?
    Revision(String, String),
    /// Is this Image (namespace, name) gone, or known not to demand the image?
    Image(String, String),
    /// Made by hand for a time that is over. That its annotation is still the same is a precondition of the
    /// deletion.
    Expiry,
    /// The Revision had no name yet (`generateName`): does the cache hold all Revisions of this
    /// namespace?
    Unnamed(String),
}

impl GarbageCollector {
    pub(super) fn new(
        client: Client,
        concurrency: u16,
        still_leading: StillLeading,
        metrics: ControllerMetrics,
    ) -> Self {
        let (due_at, paused_until) = (HashMap::new(), None);
        let concurrency = concurrency.into();
        GarbageCollector { client, concurrency, still_leading, metrics, due_at, paused_until }
    }

    /// Deletes the orphans that are due. Returns when to run again.
    pub(super) async fn collect(
        &mut self,
        candidates: Vec<Deletion>,
        stores: &Stores,
    ) -> Option<Instant> {
        let (mut due, next) = self.due(candidates);
        if due.is_empty() {
            return next;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > Instant::now()) {
            return Some(until);
        }
        if !self.knative_is_served().await {
            return Some(Instant::now() + RECHECK_INTERVAL);
        }
        let rest = (due.len() > DELETIONS).then(Instant::now);
        due.truncate(DELETIONS);
        // Those that stay are not in the way of the rest.
        let recheck_at = Instant::now() + RECHECK_INTERVAL;
        self.due_at.extend(due.iter().map(|one| (one.warm.uid.clone(), recheck_at)));
        let mut by_check: BTreeMap<Check, Vec<Deletion>> = BTreeMap::new();
        for deletion in due {
            by_check.entry(check_for(&deletion)).or_default().push(deletion);
        }
        // All checks precede the first deletion: one of them may show that a cache is wrong.
        let mut confirmed = Vec::new();
        let mut retained = 0;
        let this = &*self;
        let checked: Vec<_> = futures::stream::iter(by_check)
            .map(|(check, deletions)| async move {
                (this.check(&check, stores).await, check, deletions)
            })
            .buffer_unordered(self.concurrency)
            .collect()
            .await;
        for (verdict, check, deletions) in checked {
            match verdict {
                Verdict::Delete => confirmed.extend(deletions),
                Verdict::Keep => retained += deletions.len(),
                Verdict::StaleCache => {
                    tracing::warn!(
                        ?check,
                        "garbage collection paused: the cache lacks a live object"
                    );
                    self.paused_until = Some(Instant::now() + RECHECK_INTERVAL);
                    return self.paused_until;
                }
            }
        }
        let (deleted, failed) = self.delete(confirmed).await;
        retained += failed;
        if deleted > 0 {
            tracing::info!(deleted, retained, "orphaned ImageWarms deleted");
        } else {
            tracing::debug!(retained, "orphaned ImageWarms not deleted yet");
        }
        let again = (retained > 0).then_some(recheck_at);
        [again, rest, next].into_iter().flatten().min()
    }

    async fn knative_is_served(&self) -> bool {
        let served = live::knative_is_served(&self.client).await;
        match &served {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("garbage collection paused while Knative's types are not served");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot check whether Knative's types are served");
            }
        }
        served.unwrap_or(false)
    }

    /// The objects that have been orphans for long enough, and when the next ones are due.
    fn due(&mut self, candidates: Vec<Deletion>) -> (Vec<Deletion>, Option<Instant>) {
        let now = Instant::now();
        let uid = |one: &Deletion| one.warm.uid.clone();
        let named: HashSet<Uid> = candidates.iter().map(uid).collect();
        self.due_at.retain(|uid, _| named.contains(uid));
        let mut next = None;
        let mut due = Vec::new();
        for candidate in candidates {
            let at = *self.due_at.entry(uid(&candidate)).or_insert(now + SETTLE);
            if at <= now {
                due.push(candidate);
            } else {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
        }
        (due, next)
    }

    /// Reads the live objects.
    async fn check(&self, check: &Check, stores: &Stores) -> Verdict {
        if !self.still_leading.get() || !stores.synced.borrow().may_delete() {
            return Verdict::Keep;
        }
        let checked = match check {
            Check::Unnamed(namespace) => self.unnamed(namespace, stores).await,
            Check::Expiry => Ok(Verdict::Delete),
            Check::Node(node) => {
                let known = stores.nodes.get("", node).is_some();
                let found = live::find_node(&self.client, node).await;
                // The cache holds it by now: the next run decides again.
                found.map(|found| verdict(found, known.then_some(Verdict::Keep)))
            }
            Check::ReplacedNode(node) => {
                let cached = stores.nodes.get("", node).and_then(|node| node.metadata.uid.clone());
                let found = live::find_node(&self.client, node).await;
                found.map(|found| match found {
                    Presence::Present(live) if live.uid == cached => Verdict::Delete,
                    Presence::Present(_) | Presence::TypeAbsent => Verdict::Keep,
                    Presence::Absent => Verdict::Delete,
                })
            }
            Check::Revision(namespace, name) => {
                let cached = stores.revisions.get(namespace, name);
                let found = live::find_revision(&self.client, namespace, name).await;
                found.map(|found| {
                    let known = cached.map(|cached| compare(&cached.metadata, &found));
                    verdict(found, known)
                })
            }
            Check::Image(namespace, name) => {
                let cached = stores.images.get(namespace, name);
                let found = live::find_image(&self.client, namespace, name).await;
                found.map(|found| {
                    let known = cached.map(|cached| compare(&cached.metadata, &found));
                    verdict(found, known)
                })
            }
        };
        checked.unwrap_or_else(|error| {
            tracing::warn!(%error, ?check, "live check before deletion failed");
            Verdict::Keep
        })
    }

    /// A Revision that the cache lacks may be the one that demands the image.
    async fn unnamed(&self, namespace: &str, stores: &Stores) -> Result<Verdict, ApplyError> {
        // There is no name to read, and a cache without any Revision proves nothing.
        if stores.revisions.is_empty() {
            return Ok(Verdict::Keep);
        }
        let names = live::revision_names(&self.client, namespace).await?;
        let known = |name: &String| stores.revisions.get(namespace, name).is_some();
        Ok(if names.iter().all(known) { Verdict::Delete } else { Verdict::Keep })
    }

    /// The number of objects deleted, and of those not deleted.
    async fn delete(&self, deletions: Vec<Deletion>) -> (usize, usize) {
        let results: Vec<bool> = futures::stream::iter(deletions)
            .map(|deletion| async move {
                if !self.still_leading.get() {
                    return false;
                }
                match writes::delete(&self.client, &deletion.warm.to_image_warm()).await {
                    Ok(_) => {
                        self.metrics.deleted(deletion.cause);
                        true
                    }
                    // Changed since: the next run decides again.
                    Err(ApplyError::Conflict) => false,
                    Err(error) => {
                        self.metrics.write_failed();
                        log_failure(&deletion.warm, &error);
                        false
                    }
                }
            })
            .buffer_unordered(self.concurrency)
            .collect()
            .await;
        let deleted = results.iter().filter(|deleted| **deleted).count();
        (deleted, results.len() - deleted)
    }
}

/// The verdict on a live read; `known` is the verdict if the cache holds the object too.
fn verdict(found: Presence, known: Option<Verdict>) -> Verdict {
    match found {
        Presence::Absent => Verdict::Delete,
        Presence::Present(_) => known.unwrap_or(Verdict::StaleCache),
        Presence::TypeAbsent => Verdict::Keep,
    }
}

/// The verdict on an object that the cache holds. The plan found that it does not demand the image,
/// which counts only while the cached object is current.
fn compare(cached: &ObjectMeta, found: &Presence) -> Verdict {
    match found {
        Presence::Present(live) if demands_the_same(cached, live) => Verdict::Delete,
        _ => Verdict::Keep,
    }
}

/// Whether everything that demand depends on is equal. The generation stands for the spec; a label
/// of Knative states whether a Revision may get traffic.
fn demands_the_same(cached: &ObjectMeta, live: &ObjectMeta) -> bool {
    let opts_out = |one: &ObjectMeta| opts_out(one.annotations.as_ref());
    // Of the others none is cached.
    fn labels(metadata: &ObjectMeta) -> [Option<&String>; 2] {
        let labels = metadata.labels.as_ref();
        [ROUTING_STATE_LABEL, REVISION_LABEL].map(|key| labels?.get(key))
    }
    cached.uid == live.uid
        && cached.generation == live.generation
        && labels(cached) == labels(live)
        && opts_out(cached) == opts_out(live)
}

fn log_failure(warm: &CachedImageWarm, error: &ApplyError) {
    tracing::warn!(
        namespace = &*warm.namespace,
        name = &*warm.name,
        %error,
        "cannot delete ImageWarm"
    );
}

fn check_for(deletion: &Deletion) -> Check {
    let warm = &deletion.warm;
    match deletion.cause {
        Cause::NodeGone => return Check::Node(warm.node_name.to_string()),
        Cause::NodeReplaced => return Check::ReplacedNode(warm.node_name.to_string()),
        Cause::Expired => return Check::Expiry,
        Cause::NotDemanded | Cause::Reserve | Cause::Resolved => {}
    }
    let namespace = warm.namespace.to_string();
    if let Some(image) =
        warm.common.owners.iter().find(|owner| owner.kind == KnativeImage::kind(&()))
    {
        return Check::Image(namespace, image.name.clone());
    }
    match warm.annotation(CREATED_FOR_ANNOTATION).and_then(|token| token.rsplit_once('/')) {
        Some((_, name)) if !name.is_empty() => Check::Revision(namespace, name.to_owned()),
        _ => Check::Unnamed(namespace),
    }
}

#[cfg(test)]
mod tests;
