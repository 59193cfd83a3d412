//! A Pod for which no node has room, as the scheduler says in Events `FailedScheduling`: the next new node may be
//! for it. Pure.
//!
//! Anybody who may create Events can say the same. Only the order of pulls follows from it.

use k8s_openapi::api::core::v1::Event;

use crate::api::names::MAX_SUBDOMAIN;

/// `reason` of the scheduler's Event about a Pod that fits no node.
const FAILED_SCHEDULING: &str = "FailedScheduling";

/// A Pod of a Revision that fits no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingPod {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Revision's name.
    pub revision: String,
}

impl PendingPod {
    /// Reads the Event of whatever scheduler. `None` for everything else, and for Pods that are not a Revision's.
    pub fn of(event: &Event) -> Option<Self> {
        let namespace = event.metadata.namespace.clone()?;
        let object = &event.involved_object;
        let is_of_a_pod = object.kind.as_deref() == Some("Pod")
            && object.namespace.as_deref() == Some(&namespace)
            && event.reason.as_deref() == Some(FAILED_SCHEDULING);
        let pod =
            object.name.as_deref().filter(|name| is_of_a_pod && name.len() <= MAX_SUBDOMAIN)?;
        Some(PendingPod { revision: revision_of(pod)?.to_owned(), namespace })
    }
}

/// The Revision whose Pod has this name: Knative names the Deployment after it. `None` for other Pods, and for
/// names that Kubernetes has cut.
pub(super) fn revision_of(pod: &str) -> Option<&str> {
    let (replica_set, _) = pod.rsplit_once('-')?;
    let (deployment, _) = replica_set.rsplit_once('-')?;
    deployment.strip_suffix("-deployment").filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revisions_pod_that_fits_no_node_is_pending() {
        let event = |reason: &str, kind: &str, pod: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {"name": "e", "namespace": "team"},
                "involvedObject": {"kind": kind, "namespace": "team", "name": pod},
                "reason": reason, "reportingComponent": "default-scheduler",
                "message": "0/3 nodes are available: 3 Insufficient cpu.",
            }))
            .unwrap()
        };
        let name = "hello-00001-deployment-6c5c6f7b9-x2x2x";
        let expected = PendingPod { namespace: "team".into(), revision: "hello-00001".into() };
        assert_eq!(PendingPod::of(&event("FailedScheduling", "Pod", name)), Some(expected));
        for (reason, kind, pod) in [
            ("Scheduled", "Pod", name),
            ("FailedScheduling", "Node", name),
            ("FailedScheduling", "Pod", "hello-6c5c6f7b9-x2x2x"),
            ("FailedScheduling", "Pod", "-deployment-6c5c6f7b9-x2x2x"),
            ("FailedScheduling", "Pod", "hello"),
        ] {
            assert_eq!(PendingPod::of(&event(reason, kind, pod)), None, "{reason} {kind} {pod}");
        }
        let mut elsewhere = event("FailedScheduling", "Pod", name);
        elsewhere.involved_object.namespace = Some("other".into());
        assert_eq!(PendingPod::of(&elsewhere), None);
    }
}
