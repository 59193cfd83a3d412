//! containerd's content store, on the same socket: the bytes of a running pull, and labels of blobs. Downloads of the
//! same image by others, such as the kubelet, count: containerd shares them.
//!
//! They only inform. The store shows neither the unpacking of layers nor that a layer waits for
//! containerd's own limits, and some layers are never stored (unpacked before, or mounted from afar):
//! bytes that stand still do not mean that a pull is stuck. Whatever fails here, the pull goes on.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tonic::codegen::InterceptedService;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::content_api::content_client::ContentClient;
use super::content_api::{
    Info, InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest,
};
use imagewarm_core::image::{Digest, Reference};
use imagewarm_core::runtime::PullProgress;
use imagewarm_core::runtime::containerd::{
    Blob, Download, Ingest, LONGEST_MANIFEST, Manifest, filter_of_digest, filter_of_repository,
};

/// The runtime's name for which there is such a store.
const CONTAINERD: &str = "containerd";
/// containerd's namespace for the images of the container runtime interface.
const NAMESPACE: &str = "k8s.io";
/// Interval between two polls of the store.
const INTERVAL: Duration = Duration::from_millis(250);
/// The longest poll before a pull, which waits for it. It takes a millisecond or two, beside the
/// presence check.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest poll while a pull runs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of the ingests, and of the blobs, that are read at a time.
const MOST_ENTRIES: usize = 10_000;

type Client =
    ContentClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

/// containerd's content store; one of another runtime is never asked.
pub(super) struct ContentStore {
    client: Client,
    is_there: AtomicBool,
    failure_logged: AtomicBool,
}

impl ContentStore {
    /// The store behind this channel, if `belongs_to` finds that there is one.
    pub(super) fn new(channel: Channel) -> Self {
        ContentStore {
            client: ContentClient::with_interceptor(channel, in_namespace),
            is_there: AtomicBool::new(false),
            failure_logged: AtomicBool::new(false),
        }
    }

    /// The runtime's name.
    pub(super) fn belongs_to(&self, runtime: &str) {
        self.is_there.store(runtime == CONTAINERD, Ordering::Relaxed);
    }

    /// The names of the labels of a blob; `None` where there is no such blob.
    pub(super) async fn labels(&self, digest: &str) -> Result<Option<Vec<String>>, Status> {
        let request = InfoRequest { digest: digest.to_owned() };
        match self.client.clone().info(request).await {
            Ok(answer) => {
                let labels = answer.into_inner().info.unwrap_or_default().labels;
                Ok(Some(labels.into_keys().collect()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Whether there is such a store.
    pub(super) fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    /// Looks what is there before a pull of `image`; None if its bytes are not shown.
    pub(super) async fn before_pull(&self, image: &Reference) -> Option<Download> {
        if !self.is_there() {
            return None;
        }
        let ingests = self.or_log(within(FIRST_TIMEOUT, self.ingests()).await)?;
        Some(Download::new(image, ingests))
    }

    /// Calls `progress` whenever more of the download is there; returns when that is not shown.
    pub(super) async fn watch(
        &self,
        download: Option<Download>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) {
        if let Some(download) = download {
            let Err(status) = self.follow(download, progress).await;
            self.or_log::<()>(Err(status));
        }
    }

    async fn follow(
        &self,
        mut download: Download,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Infallible, Status> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            within(TIMEOUT, self.poll(&mut download)).await?;
            if let Some(more) = download.progress() {
                progress(more);
            }
        }
    }

    async fn poll(&self, download: &mut Download) -> Result<(), Status> {
        download.ingests(self.ingests().await?);
        if download.needs_blobs() {
            let blobs = self.blobs(vec![filter_of_repository(download.image())]).await?;
            for digest in download.unread(&blobs) {
                let manifest = self.manifest(&digest).await?;
                download.read(digest, manifest);
            }
        }
        let missing = download.missing();
        if !missing.is_empty() {
            let stored = self.blobs(missing.iter().map(filter_of_digest).collect()).await?;
            download.stored(stored.into_iter().map(|blob| blob.digest));
        }
        Ok(())
    }

    async fn ingests(&self) -> Result<Vec<Ingest>, Status> {
        let request = ListStatusesRequest { filters: Vec::new() };
        let statuses = self.client.clone().list_statuses(request).await?.into_inner().statuses;
        let ingests = statuses.iter().filter_map(|one| Ingest::parse(&one.r#ref, one.offset));
        Ok(ingests.take(MOST_ENTRIES).collect())
    }

    async fn blobs(&self, filters: Vec<String>) -> Result<Vec<Blob>, Status> {
        let request = ListContentRequest { filters };
        let mut answers = self.client.clone().list(request).await?.into_inner();
        let mut blobs = Vec::new();
        while let Some(answer) = answers.message().await? {
            blobs.extend(answer.info.into_iter().filter_map(blob));
            if blobs.len() > MOST_ENTRIES {
                return Err(Status::resource_exhausted("too many blobs of one repository"));
            }
        }
        Ok(blobs)
    }

    /// The manifest that is stored under this digest; None if it has another form, or is gone.
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Status> {
        let size = i64::try_from(LONGEST_MANIFEST).unwrap_or(i64::MAX);
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size };
        let mut parts = match self.client.clone().read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        let mut json = Vec::new();
        loop {
            match parts.message().await {
                Ok(Some(part)) if json.len() + part.data.len() > LONGEST_MANIFEST => {
                    return Ok(None);
                }
                Ok(Some(part)) => json.extend_from_slice(&part.data),
                Ok(None) => return Ok(Manifest::parse(&json)),
                Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
                Err(status) => return Err(status),
            }
        }
    }

    fn or_log<T>(&self, result: Result<T, Status>) -> Option<T> {
        let status = match result {
            Ok(value) => return Some(value),
            Err(status) => status,
        };
        if !self.failure_logged.swap(true, Ordering::Relaxed) {
            let (code, error) = (status.code(), status.message());
            tracing::debug!(?code, error, "containerd does not show the bytes of pulls");
        }
        None
    }
}

async fn within<T>(
    longest: Duration,
    poll: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(longest, poll)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("the content store did not respond")))
}

pub(super) fn in_namespace(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    Ok(request)
}

fn blob(info: Info) -> Option<Blob> {
    Some(Blob {
        digest: info.digest.parse().ok()?,
        size: u64::try_from(info.size).ok()?,
        labels: info.labels,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use tokio::net::UnixListener;
    use tonic::transport::Server;
    use tonic::transport::server::Router;

    use super::*;
    use crate::runtime::cri::Cri;

    fn store(socket: &Path) -> ContentStore {
        let store = Cri::connect(socket).content;
        store.belongs_to(CONTAINERD);
        store
    }

    fn image() -> Reference {
        Reference::parse("r.test/app:v1").unwrap()
    }

    /// Serves nothing: every call is unimplemented.
    fn empty() -> Router {
        Server::builder().add_routes(tonic::service::Routes::default())
    }

    #[tokio::test]
    async fn a_store_that_refuses_or_is_silent_shows_nothing_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("refusing.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tokio::spawn(empty().serve_with_incoming(incoming));
        let refusing = store(&socket);
        assert!(refusing.before_pull(&image()).await.is_none());
        assert!(refusing.failure_logged.load(Ordering::Relaxed));
        let download = Download::new(&image(), Vec::new());
        // It returns: the pull is waited for alone.
        refusing.watch(Some(download), &|_| unreachable!("nothing is shown")).await;
        server.abort();

        let socket = folder.path().join("silent.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(store(&socket).before_pull(&image()).await.is_none());
        let absent = folder.path().join("absent.sock");
        assert!(store(&absent).before_pull(&image()).await.is_none());
    }

    #[tokio::test]
    async fn other_runtimes_are_not_asked() {
        let store = Cri::connect(Path::new("/nonexistent/crio.sock")).content;
        for runtime in ["cri-o", "docker", ""] {
            store.belongs_to(runtime);
            assert!(store.before_pull(&image()).await.is_none());
            assert!(!store.failure_logged.load(Ordering::Relaxed), "{runtime}");
        }
    }
}
