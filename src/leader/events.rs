//! Records failures as Kubernetes Events: one for each Revision and reason, however many nodes
//! fail, and only once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use kube::Client;
use sha2::{Digest, Sha256};

use crate::clock::wall_clock;
use crate::kubernetes::caches::Stores;
use crate::kubernetes::writes::{self, ApplyError, Warning};
use imagewarm_core::api::{Reason, Revision};
use imagewarm_core::plan::failures::Failure;

/// How long an Event waits for the other nodes, so that it can state how many fail.
const GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Maximum number of Events written in one run; the next run writes the rest.
const AT_ONCE: usize = 50;

/// Writes Events, and keeps which were recorded.
pub(super) struct EventRecorder {
    client: Client,
    instance: String,
    recorded: HashSet<(String, Reason)>,
    failing_since: HashMap<(String, Reason), Instant>,
}

impl EventRecorder {
    pub(super) fn new(client: Client, instance: String) -> Self {
        EventRecorder { client, instance, recorded: HashSet::new(), failing_since: HashMap::new() }
    }

    /// Records the failures that are not recorded yet. Returns when to run again.
    pub(super) async fn record(
        &mut self,
        failures: Vec<Failure>,
        stores: &Stores,
    ) -> Option<Instant> {
        let due = self.due(failures, Instant::now());
        let mut next = due.next;
        for failure in due.now.iter().take(AT_ONCE) {
            let key = key(failure);
            let warning = Warning {
                name: event_name(&failure.revision, failure.reason),
                reason: failure.reason.as_str(),
                note: failure.note(),
                instance: &self.instance,
            };
            let written =
                writes::publish_event(&self.client, &failure.revision, warning, wall_clock());
            match written.await {
                Ok(_) | Err(ApplyError::NotFound | ApplyError::NamespaceTerminating) => {
                    self.recorded.insert(key);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot write Event");
                    next = Some(Instant::now() + GRACE_PERIOD);
                    break;
                }
            }
        }
        if due.now.len() > AT_ONCE {
            next = Some(Instant::now());
        }
        self.forget(stores);
        next
    }

    fn due(&mut self, failures: Vec<Failure>, now: Instant) -> Due {
        let failing: HashSet<_> = failures.iter().map(key).collect();
        self.failing_since.retain(|key, _| failing.contains(key));
        let mut due = Due { now: Vec::new(), next: None };
        for failure in failures {
            let key = key(&failure);
            if self.recorded.contains(&key) {
                continue;
            }
            let due_at = *self.failing_since.entry(key).or_insert(now) + GRACE_PERIOD;
            if !failure.undecided || due_at <= now {
                due.now.push(failure);
            } else {
                due.next = Some(due.next.map_or(due_at, |at: Instant| at.min(due_at)));
            }
        }
        due
    }

    /// Drops Revisions that no longer exist, once there are many of them.
    fn forget(&mut self, stores: &Stores) {
        if self.recorded.len() > 2 * stores.revisions.len() + 100 {
            let revisions = stores.revisions.state();
            let uids: HashSet<&str> =
                revisions.iter().filter_map(|one| one.metadata.uid.as_deref()).collect();
            self.recorded.retain(|(uid, _)| uids.contains(uid.as_str()));
        }
    }
}

struct Due {
    now: Vec<Failure>,
    next: Option<Instant>,
}

fn key(failure: &Failure) -> (String, Reason) {
    (failure.revision.metadata.uid.clone().unwrap_or_default(), failure.reason)
}

/// The same on every replica, so that a new leader does not repeat an Event of the previous one.
fn event_name(revision: &Revision, reason: Reason) -> String {
    let uid = revision.metadata.uid.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{uid}/{reason}"));
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = revision.metadata.name.as_deref().unwrap_or_default();
    // Names of Revisions are labels of at most 63 characters, but nothing here depends on it.
    let name = &name[..name.floor_char_boundary(200)];
    format!("{}.{hash}", name.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn failure(undecided: bool) -> Failure {
        let mut revision = Revision::default();
        revision.metadata.name = Some("hello-00001".into());
        revision.metadata.uid = Some("u".into());
        Failure {
            revision: Arc::new(revision),
            reason: Reason::Unauthorized,
            failing_nodes: 2,
            all_nodes: 3,
            message: "no basic auth credentials".into(),
            undecided,
        }
    }

    fn recorder() -> EventRecorder {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no server"))
        });
        EventRecorder::new(Client::new(service, "default"), "me".into())
    }

    #[tokio::test]
    async fn an_event_waits_for_the_other_nodes_for_the_grace_period() {
        let mut recorder = recorder();
        let start = Instant::now();
        let due = recorder.due(vec![failure(true)], start);
        assert!(due.now.is_empty());
        assert_eq!(due.next, Some(start + GRACE_PERIOD));
        assert_eq!(recorder.due(vec![failure(true)], start + GRACE_PERIOD).now.len(), 1);
        assert_eq!(recorder.due(vec![failure(false)], start).now.len(), 1);
        recorder.recorded.insert(key(&failure(false)));
        assert!(recorder.due(vec![failure(false)], start).now.is_empty());
    }

    #[test]
    fn names_differ_by_reason_only() {
        let revision = failure(false).revision;
        let name = event_name(&revision, Reason::NotFound);
        assert!(name.starts_with("hello-00001."), "{name}");
        assert_eq!(name, event_name(&revision, Reason::NotFound));
        assert_ne!(name, event_name(&revision, Reason::Unauthorized));
        assert_eq!(
            failure(false).note(),
            "Unauthorized on 2 of 3 nodes: no basic auth credentials"
        );
    }
}
