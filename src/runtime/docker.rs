//! Docker Engine over its Unix socket. The result of a pull is read from the last lines of the
//! response stream, since dockerd responds with 200 before the pull begins.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{CreateImageOptions, EventsOptions, ListContainersOptions};
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use futures::TryStreamExt;
use http::HeaderValue;
use tokio::sync::OnceCell;

use super::{EndpointError, POD_UID_LABEL, Runtime, RuntimeFuture};
use imagewarm_core::api::Reason;
use imagewarm_core::image::quoted::{printable, quoted};
use imagewarm_core::image::{Credential, Digest, Reference};
use imagewarm_core::runtime::failure::classify;
use imagewarm_core::runtime::{
    LONGEST_MESSAGE, PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion,
    Sandboxes, digest_of,
};

/// Timeout of every request but pulls, in seconds.
const REQUEST_TIMEOUT_SECONDS: u64 = 30;
/// Timeout of a pull. In practice the caller cancels a pull that makes no progress.
const PULL_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A Docker Engine.
pub(crate) struct Docker {
    client: bollard::Docker,
    version: OnceCell<RuntimeVersion>,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker").field("version", &self.version.get()).finish_non_exhaustive()
    }
}

impl Docker {
    /// The engine behind this socket; it may become available later.
    pub(crate) fn connect(socket: &Path) -> Result<Self, EndpointError> {
        let client = socket
            .to_str()
            .ok_or_else(|| EndpointError::Scheme(quoted(&socket.display().to_string())))
            .and_then(|path| {
                bollard::Docker::connect_with_unix(
                    path,
                    REQUEST_TIMEOUT_SECONDS,
                    API_DEFAULT_VERSION,
                )
                .map_err(|error| EndpointError::Client(error.to_string()))
            })?;
        let client = client.with_request_modifier(with_url_safe_credential);
        Ok(Docker { client, version: OnceCell::new() })
    }

    async fn inspect(&self, image: &Reference) -> Result<Option<ImageInspect>, RuntimeError> {
        for name in spellings(image) {
            match self.client.inspect_image(&name).await {
                Ok(found) => return Ok(Some(found)),
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
                Err(error) => return Err(failure(error, Some(image))),
            }
        }
        Ok(None)
    }

    async fn has_container(&self, pod_uid: &str) -> Result<bool, RuntimeError> {
        let filters = [("label".to_owned(), vec![format!("{POD_UID_LABEL}={pod_uid}")])];
        let options = ListContainersOptions { filters: Some(filters.into()), ..Default::default() };
        let found = self.client.list_containers(Some(options)).await;
        Ok(!found.map_err(|error| failure(error, None))?.is_empty())
    }

    async fn request_version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let client =
            self.client.clone().negotiate_version().await.map_err(|error| failure(error, None))?;
        let found = client.version().await.map_err(|error| failure(error, None))?;
        Ok(RuntimeVersion {
            name: "docker".into(),
            version: found.version.unwrap_or_default(),
            os: found.os.unwrap_or_else(|| "linux".into()),
            architecture: found.arch.unwrap_or_default(),
        })
    }

    /// Whether the engine holds the image, for its own platform.
    async fn check_presence(&self, image: &Reference) -> Result<Presence, RuntimeError> {
        let Some(found) = self.inspect(image).await? else { return Ok(Presence::Absent) };
        let version = self.version.get_or_try_init(|| self.request_version()).await?;
        let platform = (found.os.as_deref(), found.architecture.as_deref());
        if !same_platform(platform, version) {
            let (os, architecture) = (platform.0.unwrap_or("?"), platform.1.unwrap_or("?"));
            return Ok(Presence::OtherPlatform(format!("{os}/{architecture}")));
        }
        Ok(Presence::Present(PresentImage {
            digest: digest_of(image, &found.repo_digests.unwrap_or_default()),
            size_bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
        }))
    }

    async fn pull_image(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<PulledImage, RuntimeError> {
        let options = CreateImageOptions {
            from_image: Some(image.repository().to_owned()),
            // Never empty: dockerd would pull every tag.
            tag: Some(image.digest().or(image.tag()).unwrap_or("latest").to_owned()),
            ..CreateImageOptions::default()
        };
        let client = self.client.clone().with_timeout(PULL_TIMEOUT);
        let stream = client.create_image(Some(options), None, credential.map(docker_credentials));
        let mut stream = std::pin::pin!(stream);
        let mut output = PullOutput::default();
        let failed = |error| without(credential, failure(error, Some(image)));
        while let Some(line) = stream.try_next().await.map_err(failed)? {
            if let Some(sum) = output.take(&line) {
                progress(sum);
            }
        }
        let Some(downloaded) = output.downloaded else {
            let message = "docker closed the response before the pull completed".to_owned();
            return Err(RuntimeError { reason: Reason::RuntimeUnavailable, message });
        };
        match self.check_presence(image).await? {
            Presence::Present(mut held) => {
                let named = image.digest().and_then(|digest| digest.parse().ok());
                held.digest = named.or(output.digest).or(held.digest);
                Ok(PulledImage { image: held, downloaded })
            }
            Presence::OtherPlatform(platform) => Err(RuntimeError {
                reason: Reason::PlatformMismatch,
                message: format!("the image is built for {platform} only"),
            }),
            Presence::Absent => Err(RuntimeError {
                reason: Reason::Removed,
                message: "docker pulled the image, but no longer holds it".into(),
            }),
        }
    }
}

enum Presence {
    Present(PresentImage),
    OtherPlatform(String),
    Absent,
}

impl Runtime for Docker {
    fn runs_pod<'a>(&'a self, uid: &'a str) -> RuntimeFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(self.has_container(uid))
    }

    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        // Not cached: the engine may have been upgraded.
        Box::pin(self.request_version())
    }

    fn reports_removals(&self) -> bool {
        true
    }

    fn watch_removals<'a>(
        &'a self,
        removed: &'a (dyn Fn() + Send + Sync),
    ) -> RuntimeFuture<'a, RuntimeError> {
        Box::pin(async move {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let filters = HashMap::from([
                ("type".to_owned(), list(&["image"])),
                ("event".to_owned(), list(&["delete", "untag", "prune"])),
            ]);
            let options = EventsOptions { since: None, until: None, filters: Some(filters) };
            let mut events = std::pin::pin!(self.client.events(Some(options)));
            loop {
                match events.try_next().await {
                    Ok(Some(_)) => removed(),
                    Ok(None) => {
                        let message = "docker closed the stream of events".into();
                        return RuntimeError { reason: Reason::RuntimeUnavailable, message };
                    }
                    Err(error) => return failure(error, None),
                }
            }
        })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async move {
            let info = self.client.info().await.map_err(|error| failure(error, None))?;
            Ok(info.docker_root_dir.unwrap_or_default().into())
        })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async move {
            Ok(match self.check_presence(image).await? {
                Presence::Present(held) => Some(held),
                Presence::OtherPlatform(_) | Presence::Absent => None,
            })
        })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(self.pull_image(image, credential, progress))
    }

    fn verify<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        // dockerd pulls a digest that it holds without the registry, which verifies nothing.
        Box::pin(async move {
            let credentials = credential.map(docker_credentials);
            let answer = self.client.inspect_registry_image(image.as_str(), credentials).await;
            answer.map(drop).map_err(|error| without(credential, failure(error, Some(image))))
        })
    }
}

/// The state read from the response stream of a pull.
#[derive(Debug, Default)]
struct PullOutput {
    layers: HashMap<String, PullProgress>,
    digest: Option<Digest>,
    /// Set by the last line, which alone shows that the pull succeeded.
    downloaded: Option<bool>,
}

impl PullOutput {
    /// Applies a line. Returns the sum over the layers if the line shows progress.
    fn take(&mut self, line: &CreateImageInfo) -> Option<PullProgress> {
        let status = line.status.as_deref().unwrap_or_default();
        if let Some(digest) = status.strip_prefix("Digest: ") {
            self.digest = digest.trim().parse().ok();
        }
        if let Some(end) = status.strip_prefix("Status: ") {
            self.downloaded = Some(!end.starts_with("Image is up to date"));
        }
        // Waiting for a slot or for a retry is no progress.
        if status.starts_with("Retrying") || status == "Waiting" {
            return None;
        }
        if let Some(id) = &line.id {
            let bytes = |value: Option<i64>| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
            let detail = line.progress_detail.as_ref();
            let current = bytes(detail.and_then(|detail| detail.current));
            let total = bytes(detail.and_then(|detail| detail.total));
            match status {
                "Downloading" => {
                    let layer = self.layers.entry(id.clone()).or_default();
                    layer.downloaded_bytes = current;
                    layer.total_bytes = total.max(current);
                }
                "Download complete" | "Verifying Checksum" | "Extracting" | "Pull complete" => {
                    if let Some(layer) = self.layers.get_mut(id) {
                        layer.downloaded_bytes = layer.total_bytes;
                    }
                }
                _ => {}
            }
        }
        let sum = |part: fn(&PullProgress) -> u64| {
            self.layers.values().map(part).fold(0, u64::saturating_add)
        };
        Some(PullProgress {
            downloaded_bytes: sum(|layer| layer.downloaded_bytes),
            total_bytes: sum(|layer| layer.total_bytes),
        })
    }
}

/// The image's canonical name, and the short name that dockerd uses for Docker Hub's images.
fn spellings(image: &Reference) -> Vec<String> {
    let name = image.as_str();
    let familiar =
        name.strip_prefix("docker.io/library/").or_else(|| name.strip_prefix("docker.io/"));
    std::iter::once(name).chain(familiar).map(Into::into).collect()
}

/// Whether the platforms match; a value that either side does not report matches any.
fn same_platform(image: (Option<&str>, Option<&str>), engine: &RuntimeVersion) -> bool {
    let same = |image: Option<&str>, engine: &str| match image {
        None | Some("") => true,
        Some(image) => engine.is_empty() || image == engine,
    };
    // 64-bit machines also run these, and runtimes fall back to them.
    let smaller =
        matches!((image.1, &*engine.architecture), (Some("386"), "amd64") | (Some("arm"), "arm64"));
    same(image.0, &engine.os) && (smaller || same(image.1, &engine.architecture))
}

fn docker_credentials(credential: &Credential) -> DockerCredentials {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    DockerCredentials {
        username: some(&credential.username),
        password: some(&credential.password),
        identitytoken: some(&credential.identity_token),
        registrytoken: some(&credential.registry_token),
        // No server address: newer engines drop the credential where it differs from the image's.
        ..DockerCredentials::default()
    }
}

/// bollard encodes credentials in standard base64. dockerd decodes the URL-safe alphabet, and
/// treats a credential that it cannot decode as none.
fn with_url_safe_credential(mut request: BollardRequest) -> BollardRequest {
    if let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") {
        let safe: Vec<u8> = value
            .as_bytes()
            .iter()
            .map(|byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                other => *other,
            })
            .collect();
        if let Ok(mut safe) = HeaderValue::from_bytes(&safe) {
            safe.set_sensitive(true);
            *value = safe;
        }
    }
    request
}

fn failure(error: Error, image: Option<&Reference>) -> RuntimeError {
    let (reason, message) = match error {
        Error::DockerResponseServerError { status_code, message } => {
            (classify(Some(status_code), &message, image), message)
        }
        Error::DockerStreamError { error } => (classify(None, &error, image), error),
        // Every other error is one of the client or the connection.
        error => (Reason::RuntimeUnavailable, format!("docker does not respond: {error}")),
    };
    RuntimeError { reason, message: without_secrets(&message) }
}

/// A message for a status and a log: short, on one line, and without the secrets of URLs: signed
/// queries of blob stores, and `user:password@`.
fn without_secrets(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        let Some((scheme, rest)) = word.split_once("://") else {
            line.push_str(word);
            continue;
        };
        let end = rest.find(['"', '\'', '>']).unwrap_or(rest.len());
        let (url, after) = rest.split_at(end);
        let (path, query) = url.split_once('?').map_or((url, ""), |(path, _)| (path, "?…"));
        let authority = path.split('/').next().unwrap_or_default();
        let host = authority.rfind('@').map_or(0, |at| at + 1);
        let colon = if query.is_empty() || !after.is_empty() { "" } else { ":" };
        let colon = if word.ends_with(':') { colon } else { "" };
        for part in [scheme, "://", path.get(host..).unwrap_or_default(), query, after, colon] {
            line.push_str(part);
        }
    }
    printable(&line, LONGEST_MESSAGE)
}

/// Removes the credential from the message. No engine is known to repeat one.
fn without(credential: Option<&Credential>, mut error: RuntimeError) -> RuntimeError {
    let Some(credential) = credential else { return error };
    for secret in [&credential.password, &credential.identity_token, &credential.registry_token] {
        // A shorter secret may be part of ordinary text, and its removal would reveal it.
        if secret.len() >= 6 {
            error.message = error.message.replace(secret.as_str(), "…");
        }
    }
    error
}

#[cfg(test)]
mod tests;
