//! Docker Engine over its Unix socket. Whether a pull worked is read from the last lines of the
//! stream, since dockerd answers 200 before it knows.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{CreateImageOptions, EventsOptions};
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use futures::TryStreamExt;
use http::HeaderValue;
use tokio::sync::OnceCell;

use super::{EndpointError, Runtime, RuntimeFuture};
use imagewarm_core::api::Reason;
use imagewarm_core::image::quoted::{printable, quoted};
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::failure::classify;
use imagewarm_core::runtime::{
    LONGEST_MESSAGE, PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion,
    digest_of,
};

/// For everything but pulls, in seconds.
const ANSWER: u64 = 30;
/// A pull ends by lack of progress, which the caller watches, not by the clock.
const PULL: Duration = Duration::from_secs(7 * 24 * 3600);

/// A Docker Engine.
pub struct Docker {
    client: bollard::Docker,
    version: OnceCell<RuntimeVersion>,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker").field("version", &self.version.get()).finish_non_exhaustive()
    }
}

impl Docker {
    /// The engine behind this socket; it need not answer yet.
    pub fn connect(socket: &Path) -> Result<Self, EndpointError> {
        let client = socket
            .to_str()
            .ok_or_else(|| EndpointError::Scheme(quoted(&socket.display().to_string())))
            .and_then(|path| {
                bollard::Docker::connect_with_unix(path, ANSWER, API_DEFAULT_VERSION)
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
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(None)
    }

    async fn ask_version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let client = self.client.clone().negotiate_version().await.map_err(failure)?;
        let found = client.version().await.map_err(failure)?;
        Ok(RuntimeVersion {
            name: "docker".into(),
            version: found.version.unwrap_or_default(),
            os: found.os.unwrap_or_else(|| "linux".into()),
            architecture: found.arch.unwrap_or_default(),
        })
    }

    /// The image, unless it is made for another platform than the engine's.
    async fn look(&self, image: &Reference) -> Result<Look, RuntimeError> {
        let Some(found) = self.inspect(image).await? else { return Ok(Look::Absent) };
        let version = self.version.get_or_try_init(|| self.ask_version()).await?;
        let platform = (found.os.as_deref(), found.architecture.as_deref());
        if !same_platform(platform, version) {
            let (os, architecture) = (platform.0.unwrap_or("?"), platform.1.unwrap_or("?"));
            return Ok(Look::OtherPlatform(format!("{os}/{architecture}")));
        }
        Ok(Look::Here(PresentImage {
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
        let client = self.client.clone().with_timeout(PULL);
        let stream = client.create_image(Some(options), None, credential.map(docker_credentials));
        let mut stream = std::pin::pin!(stream);
        let mut told = Told::default();
        let failed = |error| without(credential, failure(error));
        while let Some(line) = stream.try_next().await.map_err(failed)? {
            if let Some(sum) = told.take(&line) {
                progress(sum);
            }
        }
        let Some(downloaded) = told.downloaded else {
            let message = "docker broke off in the middle of the pull".to_owned();
            return Err(RuntimeError { reason: Reason::RuntimeUnavailable, message });
        };
        match self.look(image).await? {
            Look::Here(mut held) => {
                held.digest = image.digest().map(Into::into).or(told.digest).or(held.digest);
                Ok(PulledImage { image: held, downloaded })
            }
            Look::OtherPlatform(platform) => Err(RuntimeError {
                reason: Reason::PlatformMismatch,
                message: format!("the image is made for {platform} only"),
            }),
            Look::Absent => Err(RuntimeError {
                reason: Reason::Removed,
                message: "docker pulled the image, but does not hold it any more".into(),
            }),
        }
    }
}

enum Look {
    Here(PresentImage),
    OtherPlatform(String),
    Absent,
}

impl Runtime for Docker {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        // Demands anew each time: the engine may have been replaced meanwhile.
        Box::pin(self.ask_version())
    }

    fn reports_removals(&self) -> bool {
        true
    }

    fn watch_removals<'a>(
        &'a self,
        told: &'a (dyn Fn() + Send + Sync),
    ) -> RuntimeFuture<'a, RuntimeError> {
        Box::pin(async move {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let filters = HashMap::from([
                ("type".to_owned(), words(&["image"])),
                ("event".to_owned(), words(&["delete", "untag", "prune"])),
            ]);
            let options = EventsOptions { since: None, until: None, filters: Some(filters) };
            let mut events = std::pin::pin!(self.client.events(Some(options)));
            loop {
                match events.try_next().await {
                    Ok(Some(_)) => told(),
                    Ok(None) => {
                        let message = "docker ended its stream of events".into();
                        return RuntimeError { reason: Reason::RuntimeUnavailable, message };
                    }
                    Err(error) => return failure(error),
                }
            }
        })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async move {
            let info = self.client.info().await.map_err(failure)?;
            Ok(info.docker_root_dir.unwrap_or_default().into())
        })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async move {
            Ok(match self.look(image).await? {
                Look::Here(held) => Some(held),
                Look::OtherPlatform(_) | Look::Absent => None,
            })
        })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(self.pull_image(image, credential, progress))
    }

    fn verify<'a>(
        &'a self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        // dockerd does not ask the registry for a digest that it holds: a pull would prove nothing.
        Box::pin(async move {
            let credentials = credential.map(docker_credentials);
            let answer = self.client.inspect_registry_image(image.as_str(), credentials).await;
            answer.map(drop).map_err(|error| without(credential, failure(error)))
        })
    }
}

/// What the stream of a pull told so far.
#[derive(Debug, Default)]
struct Told {
    layers: HashMap<String, PullProgress>,
    digest: Option<String>,
    /// Set by the last line, the only sign that all went well.
    downloaded: Option<bool>,
}

impl Told {
    /// Takes a line in; a sum over the layers if the line shows that something moved.
    fn take(&mut self, line: &CreateImageInfo) -> Option<PullProgress> {
        let status = line.status.as_deref().unwrap_or_default();
        if let Some(digest) = status.strip_prefix("Digest: ") {
            self.digest = Some(digest.trim().to_owned());
        }
        if let Some(end) = status.strip_prefix("Status: ") {
            self.downloaded = Some(!end.starts_with("Image is up to date"));
        }
        // Waiting, and waiting to try again, is no progress.
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

/// The image's canonical name, and the short one under which dockerd knows Docker Hub's images.
fn spellings(image: &Reference) -> Vec<String> {
    let name = image.as_str();
    let familiar =
        name.strip_prefix("docker.io/library/").or_else(|| name.strip_prefix("docker.io/"));
    std::iter::once(name).chain(familiar).map(Into::into).collect()
}

/// What an image or the engine does not tell is not held against it.
fn same_platform(image: (Option<&str>, Option<&str>), engine: &RuntimeVersion) -> bool {
    let same = |image: Option<&str>, engine: &str| match image {
        None | Some("") => true,
        Some(image) => engine.is_empty() || image == engine,
    };
    // What a 64-bit machine runs as well, and what runtimes take where there is nothing better.
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

/// bollard encodes credentials in plain base64, dockerd reads the URL-safe alphabet and takes what
/// it cannot read for no credential at all.
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

fn failure(error: Error) -> RuntimeError {
    let (reason, message) = match error {
        Error::DockerResponseServerError { status_code, message } => {
            (classify(Some(status_code), &message), message)
        }
        Error::DockerStreamError { error } => (classify(None, &error), error),
        // Everything else happened between here and the socket.
        error => (Reason::RuntimeUnavailable, format!("docker does not answer: {error}")),
    };
    RuntimeError { reason, message: one_line(&message) }
}

/// For a status and a log: short, on one line, and without what makes a URL a key: signed queries
/// of blob stores, and `user:password@`.
fn one_line(text: &str) -> String {
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

/// No engine is known to repeat a credential; if one does, it ends here.
fn without(credential: Option<&Credential>, mut error: RuntimeError) -> RuntimeError {
    let Some(credential) = credential else { return error };
    for secret in [&credential.password, &credential.identity_token, &credential.registry_token] {
        // Shorter ones would tear ordinary words apart, and show themselves by it.
        if secret.len() >= 6 {
            error.message = error.message.replace(secret.as_str(), "…");
        }
    }
    error
}

#[cfg(test)]
mod tests;
