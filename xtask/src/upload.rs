//! Uploads to a registry over its HTTP API: blobs, manifests, and whole OCI layouts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request, Response, StatusCode, header};
use kube::client::Body;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One repository of a registry, reached over its HTTP API.
pub(crate) struct Target<'a> {
    pub(crate) registry: &'a kube::Client,
    pub(crate) repository: &'a str,
}

impl Target<'_> {
    /// Uploads a blob that is not there, and returns its descriptor.
    pub(crate) async fn blob(&self, media_type: &str, content: Vec<u8>) -> Result<Value> {
        let descriptor = descriptor(media_type, &content);
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        if self.send(Method::HEAD, &path, "", Vec::new()).await?.status().is_success() {
            return Ok(descriptor);
        }
        let path = format!("/v2/{}/blobs/uploads/", self.repository);
        let started = self.send(Method::POST, &path, "", Vec::new()).await?;
        let started = expect(started, StatusCode::ACCEPTED).await?;
        let location = started.headers().get(header::LOCATION).context("no upload location")?;
        let location: http::Uri = location.to_str()?.parse()?;
        let upload = location.path_and_query().context("no upload path")?.as_str();
        let separator = if upload.contains('?') { '&' } else { '?' };
        let upload = format!("{upload}{separator}digest={digest}");
        let done = self.send(Method::PUT, &upload, "application/octet-stream", content).await?;
        expect(done, StatusCode::CREATED).await?;
        Ok(descriptor)
    }

    /// Uploads a manifest or an index, and returns its descriptor.
    pub(crate) async fn manifest(
        &self,
        kind: &str,
        tag: Option<&str>,
        manifest: &Value,
    ) -> Result<Value> {
        self.manifest_bytes(kind, tag, manifest.to_string().into_bytes()).await
    }

    async fn manifest_bytes(
        &self,
        kind: &str,
        tag: Option<&str>,
        content: Vec<u8>,
    ) -> Result<Value> {
        let descriptor = descriptor(kind, &content);
        let reference = tag.or(descriptor["digest"].as_str()).unwrap_or_default();
        let path = format!("/v2/{}/manifests/{reference}", self.repository);
        let answer = self.send(Method::PUT, &path, kind, content).await?;
        expect(answer, StatusCode::CREATED).await?;
        Ok(descriptor)
    }

    /// Uploads the image of an OCI layout, as its index has it, and returns its digest.
    pub(crate) async fn layout(&self, folder: &Path, tag: &str) -> Result<String> {
        let index = std::fs::read(folder.join("index.json"))
            .with_context(|| format!("{} is no OCI layout", folder.display()))?;
        let index: Value = serde_json::from_slice(&index)?;
        let [image] = list(&index["manifests"]) else {
            bail!("{} must have one image", folder.display())
        };
        let content = read_blob(folder, image)?;
        let platforms: Value = serde_json::from_slice(&content)?;
        for descriptor in list(&platforms["manifests"]) {
            let manifest = read_blob(folder, descriptor)?;
            let parts: Value = serde_json::from_slice(&manifest)?;
            for part in list(&parts["layers"]).iter().chain([&parts["config"]]) {
                self.blob(text(&part["mediaType"]), read_blob(folder, part)?).await?;
            }
            self.manifest_bytes(text(&descriptor["mediaType"]), None, manifest).await?;
        }
        let pushed = self.manifest_bytes(text(&image["mediaType"]), Some(tag), content).await?;
        Ok(text(&pushed["digest"]).to_owned())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        content: Vec<u8>,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method.clone()).uri(path);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(Body::from(content))?;
        let answer = tokio::time::timeout(Duration::from_secs(60), self.registry.send(request));
        answer
            .await
            .context("the registry does not answer")?
            .with_context(|| format!("{method} {path}"))
    }
}

async fn expect(answer: Response<Body>, wanted: StatusCode) -> Result<Response<Body>> {
    let status = answer.status();
    if status == wanted {
        return Ok(answer);
    }
    let body = answer.into_body().collect_bytes().await.unwrap_or_default();
    bail!("the registry answered {status}: {}", String::from_utf8_lossy(&body))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"mediaType": media_type, "size": content.len(), "digest": format!("sha256:{hex}")})
}

/// A blob of a layout; an error if it is not what the descriptor says.
fn read_blob(folder: &Path, wanted: &Value) -> Result<Vec<u8>> {
    let path = folder.join("blobs").join(text(&wanted["digest"]).replace(':', "/"));
    let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let found = descriptor(text(&wanted["mediaType"]), &content);
    if found["digest"] != wanted["digest"] || found["size"] != wanted["size"] {
        bail!("{} is not the blob {wanted}", path.display());
    }
    Ok(content)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
