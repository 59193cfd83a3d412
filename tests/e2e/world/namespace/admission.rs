//! What admission answers to an ImageWarm that somebody writes. Nothing of it is stored.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Namespace;

/// What the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The message of the status when the object was refused.
    pub denial: Option<String>,
    /// What `kubectl` would show.
    pub warnings: Vec<String>,
    /// The object as it would be stored.
    pub object: Value,
}

impl Verdict {
    pub fn is_accepted(&self) -> bool {
        self.denial.is_none()
    }

    /// The message of the denial, which our webhook has written: neither the API server by the
    /// CRD's rules, nor because no webhook has answered.
    pub fn denial_by_webhook(&self) -> Result<&str> {
        let denial = self.denial.as_deref().context("the object was accepted")?;
        let (_, message) = denial
            .split_once("denied the request: ")
            .with_context(|| format!("no webhook has denied it: {denial}"))?;
        Ok(message)
    }
}

/// An ImageWarm as a person writes it.
pub fn image_warm(image: &str, node: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"generateName": "by-hand-"},
        "spec": {"image": image, "nodeName": node, "imagePullSecrets": secrets},
    })
}

impl Namespace {
    /// Creates the ImageWarm as a dry run. Takes any JSON, so that objects can be sent that our own
    /// types could not hold.
    pub async fn dry_run(&self, object: &Value) -> Result<Verdict> {
        let path = format!(
            "/apis/caching.knative.dev/v1alpha1/namespaces/{}/imagewarms?dryRun=All",
            self.name
        );
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(kube::client::Body::from(serde_json::to_vec(object)?))?;
        let response = self.client().send(request).await?;
        let is_accepted = response.status().is_success();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.filter_map(|w| w.to_str().ok()).map(str::to_owned).collect();
        let body = response.into_body().collect_bytes().await?;
        let object: Value = serde_json::from_slice(&body)?;
        let message = object["message"].as_str().unwrap_or_default().to_owned();
        Ok(Verdict { denial: (!is_accepted).then_some(message), warnings, object })
    }
}
