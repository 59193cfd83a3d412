//! Deletes what the plan found to be unwanted, after a live look: a watch may be behind, and a type
//! that is being removed takes its objects along before it goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource};

use super::ControllerMetrics;
use super::still_leading::StillLeading;
use crate::kubernetes::caches::Stores;
use crate::kubernetes::writes::{self, ApplyError, Presence};
use imagewarm_core::api::{CREATED_FOR_ANNOTATION, CachedImageWarm, KnativeImage};
use imagewarm_core::demand::revision::opts_out;
use imagewarm_core::plan::diff::{Cause, Deletion};

/// How long an object must have been found unwanted, run after run.
const SETTLE: Duration = Duration::from_secs(2);
/// When to look again at what could not be deleted, or need not be after all.
const AGAIN: Duration = Duration::from_secs(10);

/// Deletes, and remembers since when objects are unwanted.
pub(super) struct GarbageCollector {
    client: Client,
    concurrency: usize,
    still: StillLeading,
    metrics: ControllerMetrics,
    /// By uid.
    unwanted_since: HashMap<Arc<str>, Instant>,
    /// Until then our lists are not believed.
    doubt_until: Option<Instant>,
}

/// What a live look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Delete,
    Keep,
    /// Something is there that our list lacks: whatever else it seems to say is no ground either.
    WrongList,
}

/// What a deletion depends on, asked once for all objects that share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    /// Is this Node gone?
    Node(String),
    /// Is this Revision (namespace, name) gone, or known not to want the image?
    Revision(String, String),
    /// Is this Image (namespace, name) gone, or known not to want the image?
    Image(String, String),
    /// The Revision was not named yet (`generateName`): does our list have all Revisions of this
    /// namespace?
    Unnamed(String),
}

impl GarbageCollector {
    pub(super) fn new(
        client: Client,
        concurrency: u16,
        still: StillLeading,
        metrics: ControllerMetrics,
    ) -> Self {
        let (unwanted_since, doubt_until) = (HashMap::new(), None);
        let concurrency = concurrency.into();
        GarbageCollector { client, concurrency, still, metrics, unwanted_since, doubt_until }
    }

    /// Deletes what is ripe; says when to look again.
    pub(super) async fn collect(
        &mut self,
        candidates: Vec<Deletion>,
        stores: &Stores,
    ) -> Option<Instant> {
        let (ripe, next) = self.ripe(candidates);
        if ripe.is_empty() {
            return next;
        }
        if let Some(until) = self.doubt_until.filter(|until| *until > Instant::now()) {
            return Some(until);
        }
        match writes::knative_is_served(&self.client).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("nothing is deleted while Knative's types are not served");
                return Some(Instant::now() + AGAIN);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot ask for Knative's types before deleting");
                return Some(Instant::now() + AGAIN);
            }
        }
        let mut by_question: BTreeMap<Question, Vec<Deletion>> = BTreeMap::new();
        for deletion in ripe {
            by_question.entry(question(&deletion)).or_default().push(deletion);
        }
        // All looks come before the first deletion: one of them may show that the list is wrong.
        let mut granted = Vec::new();
        let mut kept = 0;
        for (question, deletions) in by_question {
            match self.look(&question, stores).await {
                Verdict::Delete => granted.extend(deletions),
                Verdict::Keep => kept += deletions.len(),
                Verdict::WrongList => {
                    tracing::warn!(?question, "nothing is deleted: our list lacks what is there");
                    self.doubt_until = Some(Instant::now() + AGAIN);
                    return self.doubt_until;
                }
            }
        }
        let (deleted, failed) = self.delete(granted).await;
        kept += failed;
        if deleted > 0 {
            tracing::info!(deleted, kept, "unwanted ImageWarms deleted");
        } else {
            tracing::debug!(kept, "unwanted ImageWarms stay for now");
        }
        let again = (kept > 0).then(|| Instant::now() + AGAIN);
        [again, next].into_iter().flatten().min()
    }

    /// Those that were unwanted for long enough, and when the next ones will have been.
    fn ripe(&mut self, candidates: Vec<Deletion>) -> (Vec<Deletion>, Option<Instant>) {
        let now = Instant::now();
        let uid = |one: &Deletion| one.warm.uid.clone();
        let named: HashSet<Arc<str>> = candidates.iter().map(uid).collect();
        self.unwanted_since.retain(|uid, _| named.contains(uid));
        let mut next = None;
        let mut ripe = Vec::new();
        for candidate in candidates {
            let since = *self.unwanted_since.entry(uid(&candidate)).or_insert(now);
            if since + SETTLE <= now {
                ripe.push(candidate);
            } else {
                next = Some(next.map_or(since + SETTLE, |at: Instant| at.min(since + SETTLE)));
            }
        }
        (ripe, next)
    }

    /// The live look.
    async fn look(&self, question: &Question, stores: &Stores) -> Verdict {
        if !self.still.yes() || !stores.synced.borrow().may_delete() {
            return Verdict::Keep;
        }
        let looked = match question {
            Question::Unnamed(namespace) => self.unnamed(namespace, stores).await,
            Question::Node(node) => {
                let known = stores.nodes.get("", node).is_some();
                let found = writes::find_node(&self.client, node).await;
                // Listed by now: the next run decides anew.
                found.map(|found| verdict(found, known.then_some(Verdict::Keep)))
            }
            Question::Revision(namespace, name) => {
                let ours = stores.revisions.get(namespace, name);
                let found = writes::find_revision(&self.client, namespace, name).await;
                found.map(|found| {
                    let known = ours.map(|ours| known_and_there(&ours.metadata, &found));
                    verdict(found, known)
                })
            }
            Question::Image(namespace, name) => {
                let ours = stores.images.get(namespace, name);
                let found = writes::find_image(&self.client, namespace, name).await;
                found.map(|found| {
                    let known = ours.map(|ours| known_and_there(&ours.metadata, &found));
                    verdict(found, known)
                })
            }
        };
        looked.unwrap_or_else(|error| {
            tracing::warn!(%error, ?question, "cannot look before deleting");
            Verdict::Keep
        })
    }

    /// One that we have not seen yet may be the one that wants the image.
    async fn unnamed(&self, namespace: &str, stores: &Stores) -> Result<Verdict, ApplyError> {
        // No single object can be asked for, and a list without any Revision tells nothing.
        if stores.revisions.is_empty() {
            return Ok(Verdict::Keep);
        }
        let names = writes::revision_names(&self.client, namespace).await?;
        let known = |name: &String| stores.revisions.get(namespace, name).is_some();
        Ok(if names.iter().all(known) { Verdict::Delete } else { Verdict::Keep })
    }

    /// How many were deleted, and how many stay for now.
    async fn delete(&self, deletions: Vec<Deletion>) -> (usize, usize) {
        let results: Vec<bool> = futures::stream::iter(deletions)
            .map(|deletion| async move {
                if !self.still.yes() {
                    return false;
                }
                match writes::delete(&self.client, &deletion.warm.to_image_warm()).await {
                    Ok(_) => {
                        self.metrics.deleted(deletion.cause);
                        true
                    }
                    // Changed since: the next run decides anew.
                    Err(ApplyError::Conflict) => false,
                    Err(error) => {
                        self.metrics.write_failed();
                        note(&deletion.warm, &error);
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

/// What a look means; `known` is the verdict where our list has the object too.
fn verdict(found: Presence, known: Option<Verdict>) -> Verdict {
    match found {
        Presence::Absent => Verdict::Delete,
        Presence::Present(_) => known.unwrap_or(Verdict::WrongList),
        Presence::TypeAbsent => Verdict::Keep,
    }
}

/// Our list has it, and it was found not to want the image: that counts while our list has it as it
/// is now.
fn known_and_there(ours: &ObjectMeta, found: &Presence) -> Verdict {
    match found {
        Presence::Present(live) if asks_as(ours, live) => Verdict::Delete,
        _ => Verdict::Keep,
    }
}

/// Whether what decides about wanting is the same. A spec is counted by its generation; Knative
/// says in a label whether a Revision may get traffic.
fn asks_as(ours: &ObjectMeta, live: &ObjectMeta) -> bool {
    let opts_out = |one: &ObjectMeta| opts_out(one.annotations.as_ref());
    ours.uid == live.uid
        && ours.generation == live.generation
        && ours.labels == live.labels
        && opts_out(ours) == opts_out(live)
}

fn note(warm: &CachedImageWarm, error: &ApplyError) {
    tracing::warn!(
        namespace = &*warm.namespace,
        name = &*warm.name,
        %error,
        "cannot delete ImageWarm"
    );
}

fn question(deletion: &Deletion) -> Question {
    let warm = &deletion.warm;
    if deletion.cause == Cause::NodeGone {
        return Question::Node(warm.node_name.to_string());
    }
    let namespace = warm.namespace.to_string();
    if let Some(image) =
        warm.common.owners.iter().find(|owner| owner.kind == KnativeImage::kind(&()))
    {
        return Question::Image(namespace, image.name.clone());
    }
    match warm.annotation(CREATED_FOR_ANNOTATION).and_then(|token| token.rsplit_once('/')) {
        Some((_, name)) if !name.is_empty() => Question::Revision(namespace, name.to_owned()),
        _ => Question::Unnamed(namespace),
    }
}

#[cfg(test)]
mod tests;
