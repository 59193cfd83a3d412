//! Records failures as Kubernetes Events: one for each Revision and reason, however many nodes
//! fail, and only once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use sha2::{Digest, Sha256};

use super::refused_namespaces::RefusedNamespaces;
use crate::clock::wall_clock;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::caches::Stores;
use crate::kubernetes::events::{self, EventText};
use imagewarm_core::api::Reason;
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
    /// Namespaces that refuse Events.
    refused: RefusedNamespaces,
}

impl EventRecorder {
    pub(super) fn new(client: Client, instance: String) -> Self {
        EventRecorder {
            client,
            instance,
            recorded: HashSet::new(),
            failing_since: HashMap::new(),
            refused: RefusedNamespaces::default(),
        }
    }

    /// Records the failures that are not recorded yet. Returns when to run again.
    pub(super) async fn record(
        &mut self,
        failures: Vec<Failure>,
        stores: &Stores,
    ) -> Option<Instant> {
        let now = Instant::now();
        self.refused.retain(|namespace| stores.namespace(namespace).is_some());
        let Due { now: due, mut next } = self.due(failures, now);
        let wait_until = |next: &mut Option<Instant>, at: Instant| {
            *next = Some(next.map_or(at, |next| next.min(at)));
        };
        for failure in due.iter().take(AT_ONCE) {
            let key = key(failure);
            let namespace = failure.revision.metadata.namespace.as_deref().unwrap_or_default();
            if self.refused.contains(namespace, now) {
                continue;
            }
            let reason = failure.reason.as_str();
            let text = EventText {
                name: event_name(&failure.revision.metadata, reason),
                is_warning: true,
                action: "WarmImages",
                reason,
                note: failure.note(),
                instance: &self.instance,
            };
            let regarding = events::regarding_revision(&failure.revision);
            match events::publish_event(&self.client, regarding, text, wall_clock()).await {
                Ok(_) => {
                    self.refused.accepted(namespace);
                    self.recorded.insert(key);
                }
                Err(ApplyError::NotFound | ApplyError::NamespaceTerminating) => {
                    self.recorded.insert(key);
                }
                // The API server does not answer: the next ones would fail, too.
                Err(error @ ApplyError::Retryable(_)) => {
                    tracing::warn!(namespace, %error, "cannot write Event");
                    wait_until(&mut next, now + GRACE_PERIOD);
                    break;
                }
                // This namespace refuses it; those after it have their turn.
                Err(error) => {
                    if let Some(backoff) = self.refused.refused(namespace, &error, now) {
                        tracing::warn!(namespace, %error, retry_in = ?backoff, "cannot write Event");
                    }
                }
            }
        }
        if due.len() > AT_ONCE {
            next = Some(now);
        } else if let Some(at) = self.refused.next(now) {
            wait_until(&mut next, at);
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
            let namespace = failure.revision.metadata.namespace.as_deref().unwrap_or_default();
            if self.recorded.contains(&key) || self.refused.contains(namespace, now) {
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
pub(super) fn event_name(of: &ObjectMeta, reason: &str) -> String {
    let uid = of.uid.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{uid}/{reason}"));
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = of.name.as_deref().unwrap_or_default();
    // Names of Nodes are longer than those of Revisions.
    let name = &name[..name.floor_char_boundary(200)];
    format!("{}.{hash}", name.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn failure(undecided: bool) -> Failure {
        let mut revision = imagewarm_core::api::Revision::default();
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

    /// Thirty failures in a namespace that takes no Events, and one in another: that one is written,
    /// and the first costs one request.
    #[tokio::test]
    async fn a_namespace_that_refuses_events_stops_those_of_no_other() {
        let paths = Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = paths.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let path = request.uri().path().to_owned();
            let refused = path.contains("/namespaces/quota/");
            if let Ok(mut log) = log.lock() {
                log.push(path);
            }
            async move {
                let (code, body) = match refused {
                    true => (
                        403,
                        serde_json::json!({"kind": "Status", "status": "Failure",
                        "code": 403, "reason": "Forbidden",
                        "message": "events.events.k8s.io \"x\" is forbidden: exceeded quota: q"}),
                    ),
                    false => (
                        201,
                        serde_json::json!({"apiVersion": "events.k8s.io/v1",
                        "kind": "Event", "metadata": {"name": "x"}, "eventTime": null}),
                    ),
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                http::Response::builder().status(code).body(body)
            }
        });
        let mut recorder = EventRecorder::new(Client::new(service, "default"), "me".into());
        let namespaces = ["quota", "team"].map(|name| {
            let mut namespace = k8s_openapi::api::core::v1::Namespace::default();
            namespace.metadata.name = Some(name.into());
            kube::core::PartialObjectMetaExt::into_response_partial(namespace.metadata)
        });
        let stores = Stores::fixed(vec![], vec![], vec![], vec![], namespaces.into());
        let failures = |count: usize| -> Vec<Failure> {
            (0..count)
                .map(|number| {
                    let mut failure = failure(false);
                    let mut revision = (*failure.revision).clone();
                    let last = number + 1 == count;
                    revision.metadata.namespace = Some(if last { "team" } else { "quota" }.into());
                    revision.metadata.uid = Some(format!("u{number}"));
                    failure.revision = Arc::new(revision);
                    failure
                })
                .collect()
        };
        let next = recorder.record(failures(31), &stores).await;
        let written = |name: &str| {
            let paths = paths.lock().map(|paths| paths.clone()).unwrap_or_default();
            paths.iter().filter(|path| path.contains(&format!("/namespaces/{name}/"))).count()
        };
        assert_eq!((written("quota"), written("team")), (1, 1));
        assert!(next.is_some_and(|at| at > Instant::now()), "it is tried again later");
        recorder.record(failures(31), &stores).await;
        assert_eq!((written("quota"), written("team")), (1, 1));
    }

    #[test]
    fn names_differ_by_reason_only() {
        let revision = &failure(false).revision.metadata;
        let name = event_name(revision, "NotFound");
        assert!(name.starts_with("hello-00001."), "{name}");
        assert_eq!(name, event_name(revision, "NotFound"));
        assert_ne!(name, event_name(revision, "Unauthorized"));
        assert_eq!(
            failure(false).note(),
            "Unauthorized on 2 of 3 nodes: no basic auth credentials"
        );
    }
}
