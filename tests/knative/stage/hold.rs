//! Holds Knative's Deployments until a test lets them go: which of two processes is faster is left
//! out of the tests. A ValidatingAdmissionPolicy refuses them, and Knative asks again.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::eventually;
use super::objects::REVISION;

/// The label of namespaces whose Deployments are held.
const HELD: &str = "tests.example/deployments-held";

const POLICY: &str = "deployments-held";

/// The Revisions that are in the namespace's ConfigMap of this name may have their Deployment.
const RELEASED: &str = "deployments-released";

/// A namespace in which only [`install`] asks for a Deployment.
const PROBES: &str = "deployments-probed";

/// Refuses the Deployments; returns once the API server enforces it.
pub async fn install(client: &Client) -> Result<()> {
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": ["apps"], "apiVersions": ["v1"],
                    "operations": ["CREATE"], "resources": ["deployments"],
                }],
                "namespaceSelector": {"matchExpressions": [{"key": HELD, "operator": "Exists"}]},
            },
            "validations": [{
                "expression": format!(
                    "object.metadata.labels['{}'] in params.data", REVISION,
                ),
                "message": "held by the test",
            }],
        },
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &policy).await?;
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": POLICY},
        "spec": {
            "policyName": POLICY, "validationActions": ["Deny"],
            "paramRef": {"name": RELEASED, "parameterNotFoundAction": "Deny"},
        },
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &binding).await?;
    namespace(client, PROBES).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), PROBES);
    let (probe, dry_run) = (probe()?, PostParams { dry_run: true, ..PostParams::default() });
    eventually("Deployments are held", async || match deployments.create(&dry_run, &probe).await {
        Err(kube::Error::Api(status)) => status.message.contains(POLICY).then_some(()),
        _ => None,
    })
    .await
}

/// Lets Knative make the Deployment of a Revision.
pub async fn release(client: &Client, namespace: &str, revision: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RELEASED},
        "data": {revision: ""},
    });
    // Each has its own part of the object.
    let manager = PatchParams::apply(revision);
    maps.patch(RELEASED, &manager, &Patch::Apply(map)).await?;
    Ok(())
}

/// Makes a namespace whose Deployments are held, with its default ServiceAccount.
pub async fn namespace(client: &Client, name: &str) -> Result<()> {
    let object: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {HELD: ""}},
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &object).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    eventually("the namespace's default ServiceAccount", async || {
        accounts.get_opt("default").await.ok().flatten()
    })
    .await
    .map(drop)
}

fn probe() -> Result<Deployment> {
    let labels = json!({"app": "probe"});
    Ok(serde_json::from_value(json!({
        "metadata": {"name": "probe", "labels": {REVISION: "probe"}},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "probe", "image": "probe"}]},
            },
        },
    }))?)
}
