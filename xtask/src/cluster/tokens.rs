//! Tokens as a kubelet gets them: real TokenRequests, bound to a Pod that is bound to a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::json;

use super::control_plane::write_private;
use crate::wait::wait_for;

/// For whom and what a token is.
#[derive(Clone, Debug)]
pub struct TokenFor<'a> {
    /// Namespace of ServiceAccount and Pod.
    pub namespace: &'a str,
    /// The ServiceAccount; must exist.
    pub service_account: &'a str,
    /// The Pod to bind the token to, made when it does not exist, and the node to bind it to.
    /// None makes a token without Pod.
    pub pod: Option<(&'a str, &'a str)>,
    /// Audience; None is the API server itself.
    pub audience: Option<&'a str>,
    /// Lifetime; the API server grants at least 600.
    pub seconds: i64,
}

pub(super) async fn request(client: &kube::Client, token: &TokenFor<'_>) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), token.namespace);
    let what = format!("ServiceAccount {}/{}", token.namespace, token.service_account);
    wait_for(Duration::from_secs(10), &what, async || {
        accounts.get_opt(token.service_account).await.ok().flatten()
    })
    .await?;
    let mut spec = json!({
        "audiences": token.audience.into_iter().collect::<Vec<_>>(),
        "expirationSeconds": token.seconds,
    });
    if let Some((pod, node)) = token.pod {
        let uid = ensure_pod(client, token, pod, node).await?;
        spec["boundObjectRef"] =
            json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
    }
    let wanted: TokenRequest = serde_json::from_value(json!({"spec": spec}))?;
    let answer = accounts
        .create_token_request(token.service_account, &PostParams::default(), &wanted)
        .await
        .with_context(|| format!("request a token of {what}"))?;
    Ok(answer.status.context("the API server returned no token")?.token)
}

async fn ensure_pod(
    client: &kube::Client,
    token: &TokenFor<'_>,
    name: &str,
    node: &str,
) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), token.namespace);
    let pod = match pods.get_opt(name).await? {
        Some(pod) => pod,
        None => {
            let pod = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "serviceAccountName": token.service_account,
                    "nodeName": node,
                    "containers": [{"name": "main", "image": "imagewarm"}],
                },
            }))?;
            pods.create(&PostParams::default(), &pod).await?
        }
    };
    pod.metadata.uid.context("a Pod without uid")
}

/// Copies one key of a ConfigMap into a file, as the kubelet does for a mounted volume. Waits up
/// to `deadline` for the ConfigMap.
pub(super) async fn copy_config_map(
    client: &kube::Client,
    (namespace, name, key): (&str, &str, &str),
    file: &Path,
    deadline: Duration,
) -> Result<PathBuf> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let what = format!("key {key} of ConfigMap {namespace}/{name}");
    let content =
        wait_for(deadline, &what, async || maps.get_opt(name).await.ok()??.data?.remove(key))
            .await?;
    write_private(file, &content)?;
    Ok(file.to_owned())
}
