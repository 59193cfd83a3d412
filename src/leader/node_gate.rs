//! The node gate: removes the taint of nodes that have come with it, when what active Revisions want
//! there is warm or has failed for good, and at the deadline in any case. Nothing is persisted: a new
//! leader decides from what it observes.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, sleep_until};

use super::ControllerMetrics;
use super::events::event_name;
use super::still_leading::StillLeading;
use crate::clock::wall_clock;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::caches::{Change, Stores};
use crate::kubernetes::events::{self, EventText};
use crate::kubernetes::taints;
use imagewarm_core::plan::node_gate::{
    GatedNode, GatedNodes, Release, gate_taints, release, time_left,
};
use imagewarm_core::policy::Policy;

/// Nodes of a pool change at the same time; one run covers all of them.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The wait after a patch that others have overtaken, and after a failure.
const RETRY_BACKOFF: Duration = Duration::from_secs(2);
/// The same where the right is missing, or a policy denies the patch.
const REFUSED_BACKOFF: Duration = Duration::from_secs(30);
/// A release is not repeated for this long; by then the watch has delivered the Node.
const RELEASED_BACKOFF: Duration = Duration::from_secs(10);

/// Removes the taint while this replica leads.
pub(super) struct NodeGate {
    pub(super) client: Client,
    pub(super) stores: Stores,
    pub(super) policy: Policy,
    pub(super) deadline: Duration,
    /// Maximum number of Nodes that are patched at the same time.
    pub(super) concurrency: usize,
    pub(super) still_leading: StillLeading,
    /// What the last reconciliation has counted.
    pub(super) gated: watch::Receiver<GatedNodes>,
    pub(super) instance: String,
    pub(super) metrics: ControllerMetrics,
}

/// A node with the taint.
struct Held {
    /// When this leader first saw the taint.
    since: Instant,
    /// When the next patch may be sent.
    retry_at: Option<Instant>,
}

/// Nodes with the taint, by the uid of the Node.
type HeldNodes = HashMap<String, Held>;

/// A node that is to be released now.
struct Due {
    uid: String,
    node: Arc<Node>,
    reason: Release,
    images: Option<GatedNode>,
    age: Option<SignedDuration>,
}

impl NodeGate {
    /// Works until it is dropped.
    pub(super) async fn run(mut self) {
        let Some(key) = self.policy.gate_taint.clone() else { return pending().await };
        let mut changes = self.stores.changes.subscribe();
        let mut held = HeldNodes::new();
        loop {
            self.gated.mark_unchanged();
            let next = self.release_nodes(&key, &mut held).await;
            sleep(DEBOUNCE).await;
            let timer = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = node_change(&mut changes) => {}
                Ok(()) = self.gated.changed() => {}
                () = timer => {}
            }
        }
    }

    /// Releases the nodes that are due. Returns when the next one is.
    async fn release_nodes(&self, key: &str, held: &mut HeldNodes) -> Option<Instant> {
        let (now, wall_clock) = (Instant::now(), wall_clock());
        let (due, next) = self.due(key, held, now, wall_clock);
        self.metrics.held(held.len());
        let released: Vec<(String, Duration)> = futures::stream::iter(due)
            .filter(|_| std::future::ready(self.still_leading.get()))
            .map(|due| self.release(key, due))
            .buffer_unordered(self.concurrency)
            .collect()
            .await;
        let mut retries = next;
        for (uid, backoff) in released {
            let retry_at = Instant::now() + backoff;
            retries = Some(retries.map_or(retry_at, |next| next.min(retry_at)));
            if let Some(held) = held.get_mut(&uid) {
                held.retry_at = Some(retry_at);
            }
        }
        retries
    }

    /// The nodes to release now, and when the next one may have to be. Updates which nodes have the taint.
    fn due(
        &self,
        key: &str,
        held: &mut HeldNodes,
        now: Instant,
        wall_clock: Timestamp,
    ) -> (Vec<Due>, Option<Instant>) {
        let mut nodes = self.stores.nodes.state();
        // Of one that is being deleted nobody needs the release.
        nodes.retain(|node| {
            node.metadata.deletion_timestamp.is_none() && gate_taints(node, key).next().is_some()
        });
        let nodes: HashMap<String, Arc<Node>> = nodes
            .into_iter()
            .map(|node| (node.metadata.uid.clone().unwrap_or_default(), node))
            .collect();
        held.retain(|uid, _| nodes.contains_key(uid));
        let gated = self.gated.borrow();
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (uid, node) in nodes {
            let held = held.entry(uid.clone()).or_insert_with(|| {
                tracing::info!(node = name(&node), "node held until it is warm");
                Held { since: now, retry_at: None }
            });
            let created = node.metadata.creation_timestamp.as_ref();
            let age = created.map(|created| wall_clock.duration_since(created.0));
            let left = time_left(self.deadline, now.duration_since(held.since), age);
            let images = gated.get(&uid);
            match (release(self.policy.paused, images, left), held.retry_at) {
                (Some(_), Some(at)) if at > now => next = Some(next.map_or(at, |it| it.min(at))),
                (Some(reason), _) => {
                    due.push(Due { images: images.cloned(), uid, node, reason, age });
                }
                (None, _) => {
                    let at = now + left;
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
        }
        (due, next)
    }

    /// Returns the uid, and for how long no further patch of this Node is sent.
    async fn release(&self, key: &str, due: Due) -> (String, Duration) {
        let Due { uid, node, reason, images, age } = due;
        let name = name(&node);
        let backoff = match taints::remove_taint(&self.client, &node, key).await {
            Ok(()) => {
                let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
                self.metrics.released(reason, age);
                let note = note(reason, age, images.as_ref());
                tracing::info!(node = name, reason = reason.as_str(), note, "node released");
                self.publish(&node, reason, note).await;
                RELEASED_BACKOFF
            }
            Err(ApplyError::NotFound) => RELEASED_BACKOFF,
            // The watch delivers what has changed.
            Err(ApplyError::Conflict) => {
                tracing::info!(node = name, "node changed before its release");
                RETRY_BACKOFF
            }
            Err(error) => {
                self.metrics.write_failed();
                let backoff = match error {
                    ApplyError::Retryable(_) => RETRY_BACKOFF,
                    _ => REFUSED_BACKOFF,
                };
                let reason = error.reason();
                tracing::warn!(node = name, reason, %error, retry_in = ?backoff, "cannot release node");
                backoff
            }
        };
        (uid, backoff)
    }

    /// An Event on the Node; its loss is not repaired.
    async fn publish(&self, node: &Node, reason: Release, note: String) {
        let text = EventText {
            name: event_name(&node.metadata, reason.as_str()),
            is_warning: reason.is_warning(),
            action: "ReleaseNode",
            reason: reason.as_str(),
            note,
            instance: &self.instance,
        };
        let regarding = events::regarding_node(node);
        let written = events::publish_event(&self.client, regarding, text, wall_clock()).await;
        if let Err(error) = written {
            tracing::warn!(node = name(node), %error, "cannot write Event");
        }
    }
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

/// The text of the Event.
fn note(reason: Release, age: Duration, images: Option<&GatedNode>) -> String {
    let after = format!("Node released {} s after its creation", age.as_secs());
    match (reason, images) {
        (Release::Paused, _) => format!("{after}: warming is paused"),
        (Release::NothingWanted, _) => format!("{after}: no active Revision wants an image here"),
        (Release::DeadlineExceeded, None) => {
            format!("{after}: deadline exceeded; which images are wanted is unknown")
        }
        (Release::DeadlineExceeded, Some(images)) => {
            format!("{after}: deadline exceeded; {images}")
        }
        (Release::Warm | Release::Failed, images) => {
            format!("{after}: {}", images.cloned().unwrap_or_default())
        }
    }
}

/// Waits for a change of a Node.
async fn node_change(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Node(_) | Change::Relisted) => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
