//! Removes the taint of the node gate.

use k8s_openapi::api::core::v1::Node;
use kube::api::Patch;
use kube::core::Status;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::apply_error::ApplyError;
use super::request::{RequestError, request};
use super::writes::{CALL_TIMEOUT, patch_parameters};
use imagewarm_core::plan::node_gate::gate_taints;

/// Removes the taints of this key from the Node, as it is in `node`. [`ApplyError::Conflict`] when its
/// taints have changed since; taints that others add or remove meanwhile are never lost.
pub(crate) async fn remove_taint(
    client: &Client,
    node: &Node,
    key: &str,
) -> Result<(), ApplyError> {
    let mut operations = vec![json!({
        "op": "test", "path": "/metadata/uid", "value": node.metadata.uid,
    })];
    // From the last, so that the positions of the others stay.
    for (at, _) in gate_taints(node, key).rev() {
        let path = format!("/spec/taints/{at}");
        operations.push(json!({"op": "test", "path": format!("{path}/key"), "value": key}));
        operations.push(json!({"op": "remove", "path": path}));
    }
    let patch = serde_json::from_value(Value::Array(operations))
        .map_err(|error| ApplyError::Invalid(error.to_string()))?;
    let api: Api<Node> = Api::all(client.clone());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Json::<()>(patch);
    match request(CALL_TIMEOUT, api.patch_metadata(name, &patch_parameters(), &patch)).await {
        Ok(_) => Ok(()),
        Err(RequestError::Failed(error)) => match *error {
            kube::Error::Api(status) if is_outdated(&status) => Err(ApplyError::Conflict),
            error => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Whether a test of a JSON patch failed. The 422 of a policy or a validation names the object.
fn is_outdated(status: &Status) -> bool {
    status.code == 422 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    fn refused(code: u16, name: &str) -> Status {
        let details = StatusDetails {
            name: name.into(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        Status { code, details: Some(details), ..Status::default() }
    }

    #[test]
    fn a_patch_is_outdated_where_a_422_names_no_object() {
        assert!(is_outdated(&refused(422, "")));
        assert!(is_outdated(&Status { code: 422, ..Status::default() }));
        assert!(!is_outdated(&refused(422, "node-1")));
        assert!(!is_outdated(&refused(403, "")));
    }
}
