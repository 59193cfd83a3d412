//! containerd and CRI-O over the Container Runtime Interface (gRPC on a Unix socket). A pull is one
//! call without progress reports; a presence check follows it. The bytes of a pull by containerd are
//! read beside it (`content`).

pub mod api;
mod content;
mod content_api;
mod handlers;
mod image_records;
mod image_records_api;

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::{POD_UID_LABEL, Runtime, RuntimeFuture};
use api::image_service_client::ImageServiceClient;
use api::runtime_service_client::RuntimeServiceClient;
use api::{
    AuthConfig, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, PodSandboxConfig,
    PodSandboxFilter, PodSandboxMetadata, PullImageRequest, VersionRequest,
};
use content::ContentStore;
use handlers::Handlers;
use image_records::{ImageRecords, held};
use imagewarm_core::api::Reason;
use imagewarm_core::error_chain::root_cause;
use imagewarm_core::image::quoted::printable;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::pins::{HeldImage, honours_pins};
use imagewarm_core::runtime::{
    LONGEST_MESSAGE, PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion,
    Sandboxes, cri_failure, digest_of, platform,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of every call but pulls.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The version that the kubelet sends; runtimes ignore it.
const KUBELET_API_VERSION: &str = "0.1.0";
/// How containerd before 2.2 is given the runtime handler of a pull.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// A runtime that serves the Container Runtime Interface.
pub struct Cri {
    socket: PathBuf,
    channel: Channel,
    content: ContentStore,
    handlers: Handlers,
    records: ImageRecords,
}

impl fmt::Debug for Cri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cri").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Cri {
    /// The runtime behind this socket; it may become available later. Reconnects by itself after
    /// the runtime restarts.
    pub fn connect(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is not resolved; the server only has to accept it.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect_with_connector_lazy(connector);
        Cri {
            socket: socket.to_owned(),
            content: ContentStore::new(channel.clone()),
            handlers: Handlers::default(),
            records: ImageRecords::new(channel.clone()),
            channel,
        }
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    async fn request_version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        let request = VersionRequest { version: KUBELET_API_VERSION.into() };
        let found = in_time(client.version(request), None).await?;
        let version = &found.runtime_version;
        self.content.belongs_to(&found.runtime_name);
        Ok(RuntimeVersion {
            name: found.runtime_name,
            version: version.strip_prefix('v').unwrap_or(version).to_owned(),
            // The interface does not report the platform; the warmer runs on the same node.
            os: std::env::consts::OS.into(),
            architecture: architecture().into(),
        })
    }

    async fn has_sandbox(&self, pod_uid: &str) -> Result<bool, RuntimeError> {
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        let label_selector = [(POD_UID_LABEL.to_owned(), pod_uid.to_owned())].into();
        let filter = Some(PodSandboxFilter { label_selector });
        let request = ListPodSandboxRequest { filter };
        Ok(!in_time(client.list_pod_sandbox(request), None).await?.items.is_empty())
    }

    async fn list_images(&self) -> Result<Option<Vec<HeldImage>>, RuntimeError> {
        // On the same socket there may be another version by now.
        if !honours_pins(&self.request_version().await?) {
            return Ok(None);
        }
        let mut images = self.images();
        let mut containers = RuntimeServiceClient::new(self.channel.clone());
        let (images, containers, own) = tokio::try_join!(
            in_time(images.list_images(ListImagesRequest { filter: None }), None),
            in_time(containers.list_containers(ListContainersRequest {}), None),
            self.records.own(),
        )?;
        Ok(Some(held(images.images, &containers.containers, own)))
    }

    /// Whether the runtime holds the image, for whatever Pods.
    async fn check_presence(&self, image: &Reference) -> Result<Presence, RuntimeError> {
        let request = ImageStatusRequest { image: Some(spec(image, None)), verbose: true };
        Ok(read(image, in_time(self.images().image_status(request), Some(image)).await?))
    }

    async fn default_image_folder(&self) -> Result<PathBuf, RuntimeError> {
        let answer = in_time(self.images().image_fs_info(ImageFsInfoRequest {}), None).await?;
        let first = answer.image_filesystems.into_iter().find_map(|system| system.fs_id);
        Ok(first.map(|id| id.mountpoint.into()).unwrap_or_default())
    }

    async fn pull_image(
        &self,
        image: &Reference,
        sandboxes: &Sandboxes,
        credential: Option<&Credential>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<PulledImage, RuntimeError> {
        let before = match self.check_presence(image).await? {
            Presence::Present(id, _) => Some(id),
            Presence::OtherPlatform(_) | Presence::Absent => None,
        };
        for handler in self.handlers_to_pull(sandboxes).await? {
            let request = PullImageRequest {
                image: Some(spec(image, handler.as_deref())),
                auth: credential.map(auth_config),
                sandbox_config: Some(sandbox_config(&sandboxes.namespace, handler)),
            };
            self.pull_once(image, request, progress).await?;
        }
        match self.check_presence(image).await? {
            Presence::Present(id, image) => {
                self.unpacked_for_all(&id, sandboxes).await?;
                Ok(PulledImage { image, downloaded: before.as_ref() != Some(&id) })
            }
            Presence::OtherPlatform(platform) => Err(RuntimeError {
                reason: Reason::PlatformMismatch,
                message: format!("the image is built for {platform} only"),
            }),
            Presence::Absent => Err(RuntimeError {
                reason: Reason::Removed,
                message: "the runtime pulled the image, but no longer holds it".into(),
            }),
        }
    }

    async fn pull_once(
        &self,
        image: &Reference,
        request: PullImageRequest,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let download = self.content.before_pull(image).await;
        // No timeout here: the caller sets one.
        let mut images = self.images();
        let mut pull = std::pin::pin!(images.pull_image(request));
        let answer = tokio::select! {
            biased;
            answer = &mut pull => answer,
            // It has nothing more to report.
            () = self.content.watch(download, progress) => pull.await,
        };
        answer.map(drop).map_err(|status| failure(&status, Some(image)))
    }
}

impl Runtime for Cri {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        Box::pin(self.request_version())
    }

    fn runs_pod<'a>(&'a self, uid: &'a str) -> RuntimeFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(self.has_sandbox(uid))
    }

    // containerd's bytes show that a pull moves, but not that it is stuck: see `content`.
    fn reports_progress(&self) -> bool {
        false
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(self.default_image_folder())
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async move {
            Ok(match self.check_presence(image).await? {
                Presence::Present(id, held) => {
                    self.is_unpacked(&id, sandboxes).await?.then_some(held)
                }
                Presence::OtherPlatform(_) | Presence::Absent => None,
            })
        })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(self.pull_image(image, sandboxes, credential, progress))
    }

    fn held_images(&self) -> RuntimeFuture<'_, Result<Option<Vec<HeldImage>>, RuntimeError>> {
        Box::pin(self.list_images())
    }

    fn set_pin<'a>(
        &'a self,
        id: &'a str,
        since_unix_ms: Option<i64>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.records.set_pin(id, since_unix_ms))
    }
}

/// What the runtime holds under a name.
#[derive(Debug, PartialEq, Eq)]
enum Presence {
    /// The image's ID and properties.
    Present(String, PresentImage),
    OtherPlatform(String),
    Absent,
}

fn read(image: &Reference, answer: ImageStatusResponse) -> Presence {
    let Some(found) = answer.image else { return Presence::Absent };
    if let Some(built_for) = answer.info.get("info").and_then(|info| built_for(info))
        && !platform::runs(architecture(), &built_for)
    {
        return Presence::OtherPlatform(format!("{}/{built_for}", std::env::consts::OS));
    }
    let digest = digest_of(image, &found.repo_digests);
    Presence::Present(found.id, PresentImage { digest, size_bytes: found.size })
}

/// The architecture in the runtime's verbose image information, if present.
fn built_for(info: &str) -> Option<String> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    let architecture = info.pointer("/imageSpec/architecture")?.as_str()?;
    (!architecture.is_empty()).then(|| architecture.to_owned())
}

/// This machine's architecture as in OCI platforms.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

/// Without a handler: for the runtime's default snapshotter.
fn spec(image: &Reference, handler: Option<&str>) -> ImageSpec {
    ImageSpec {
        image: image.as_str().into(),
        runtime_handler: handler.unwrap_or_default().to_owned(),
    }
}

/// For whose Pods a pull is.
fn sandbox_config(namespace: &str, handler: Option<String>) -> PodSandboxConfig {
    let annotation = handler.map(|handler| (HANDLER_ANNOTATION.to_owned(), handler));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { namespace: namespace.to_owned() }),
        annotations: annotation.into_iter().collect(),
    }
}

fn auth_config(credential: &Credential) -> AuthConfig {
    AuthConfig {
        username: credential.username.clone(),
        password: credential.password.clone(),
        identity_token: credential.identity_token.clone(),
        registry_token: credential.registry_token.clone(),
        // No server address: containerd drops the credential where it differs from the image's.
        ..AuthConfig::default()
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
    image: Option<&Reference>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failure(&status, image)),
        Err(_) => Err(RuntimeError {
            reason: Reason::RuntimeUnavailable,
            message: format!("the runtime did not respond within {} s", CALL_TIMEOUT.as_secs()),
        }),
    }
}

fn failure(status: &Status, image: Option<&Reference>) -> RuntimeError {
    // A status with a source was created by the client: the runtime sent none.
    let (reason, message) = match status.source() {
        Some(source) => {
            let message = format!("the runtime does not respond: {}", root_cause(source));
            (Reason::RuntimeUnavailable, message)
        }
        None => (
            cri_failure::classify((status.code() as i32).into(), status.message(), image),
            status.message().to_owned(),
        ),
    };
    RuntimeError { reason, message: printable(&message, LONGEST_MESSAGE) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(info: &str) -> ImageStatusResponse {
        let image = api::Image {
            id: "sha256:00".into(),
            repo_digests: vec![format!("r.test/app@sha256:{}", "a".repeat(64))],
            size: 7,
            ..api::Image::default()
        };
        let info = [("info".to_owned(), info.to_owned())].into();
        ImageStatusResponse { image: Some(image), info }
    }

    #[test]
    fn an_image_is_present_unless_it_is_built_for_another_platform() {
        let image = Reference::parse("r.test/app:v1").unwrap();
        let here = Presence::Present(
            "sha256:00".into(),
            PresentImage {
                digest: format!("sha256:{}", "a".repeat(64)).parse().ok(),
                size_bytes: 7,
            },
        );
        let ours = format!(r#"{{"imageSpec": {{"architecture": "{}"}}}}"#, architecture());
        for info in ["", "{}", r#"{"imageSpec": {"architecture": ""}}"#, &ours] {
            assert_eq!(read(&image, answer(info)), here, "{info}");
        }
        let other = r#"{"imageSpec": {"architecture": "pdp11"}}"#;
        assert_eq!(read(&image, answer(other)), Presence::OtherPlatform("linux/pdp11".into()));
        assert_eq!(read(&image, ImageStatusResponse::default()), Presence::Absent);
    }

    #[tokio::test]
    async fn a_runtime_that_is_down_is_unavailable() {
        let runtime = Cri::connect(Path::new("/nonexistent/runtime.sock"));
        let error = runtime.version().await.unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeUnavailable, "{error}");
        let image = Reference::parse("r.test/app:v1").unwrap();
        let sandboxes = Sandboxes::new("team", &[]);
        let error = runtime.pull(&image, &sandboxes, None, &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeUnavailable, "{error}");
        assert!(error.message.contains("No such file"), "{error}");
    }
}
