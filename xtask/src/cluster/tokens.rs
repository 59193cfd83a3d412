//! Tokens as a kubelet gets them: real TokenRequests, bound to a Pod that is bound to a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use rcgen::{KeyPair, SigningKey as _};
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

/// The same token, signed anew with the API server's own key (PEM) to end in so many seconds, which
/// may be long ago: TokenRequest grants no less than ten minutes.
pub(super) fn retimed(token: &str, key_pem: &str, ends_in: i64) -> Result<String> {
    let mut parts = token.split('.');
    let (Some(header), Some(claims)) = (parts.next(), parts.next()) else {
        bail!("the token is no JWT");
    };
    let mut claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let now = jiff::Timestamp::now().as_second();
    for (claim, at) in [("iat", now - 7200), ("nbf", now - 7200), ("exp", now + ends_in)] {
        claims[claim] = json!(at);
    }
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = KeyPair::from_pem(key_pem)?.sign(signed.as_bytes())?;
    let signature = raw_signature(&signature).context("no ECDSA signature")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The two numbers of an ECDSA signature (DER) side by side, 32 bytes each (RFC 7518, 3.4).
fn raw_signature(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = der.get(2..)?;
    let mut raw = vec![];
    for _ in 0..2 {
        let (&[_, length], after) = rest.split_first_chunk()?;
        let (number, after) = after.split_at_checked(length.into())?;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        raw.resize(raw.len() + 32_usize.checked_sub(number.len())?, 0);
        raw.extend_from_slice(number);
        rest = after;
    }
    Some(raw)
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
