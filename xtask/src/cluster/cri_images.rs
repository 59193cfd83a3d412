//! What a runtime with the container runtime interface says of its images, asked by a client of its
//! own: the tests must not believe the one that they test.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

const ANSWER: Duration = Duration::from_secs(20);

/// The few fields that are of interest here, numbered as in the interface's own definition.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct RemoveImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// The same numbers as of the interface, for a request to pull.
type PullImage = RemoveImage;

/// containerd's own record of an image: what its API calls `UpdateImageRequest`.
#[derive(Clone, PartialEq, Message)]
struct UpdateRecord {
    #[prost(message, optional, tag = "1")]
    record: Option<Record>,
    #[prost(message, optional, tag = "2")]
    mask: Option<Mask>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(map = "string, string", tag = "2")]
    labels: HashMap<String, String>,
    /// containerd needs it, and does not change it.
    #[prost(message, optional, tag = "3")]
    target: Option<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
struct Mask {
    #[prost(string, repeated, tag = "1")]
    paths: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Images {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    digests: Vec<String>,
    #[prost(bool, tag = "8")]
    pinned: bool,
}

impl Image {
    fn is_called(&self, reference: &str) -> bool {
        self.tags.iter().chain(&self.digests).any(|name| name == reference)
    }
}

#[derive(Clone, PartialEq, Message)]
struct InfoRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, Message)]
struct InfoAnswer {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(map = "string, string", tag = "5")]
    labels: HashMap<String, String>,
}

/// The label of an image's configuration for each snapshotter that holds it.
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// The images of one runtime.
pub(super) struct CriImages {
    socket: PathBuf,
}

impl CriImages {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Name and version, such as `containerd://2.2.3`; whether it answers at all.
    pub(super) async fn version(&self) -> Result<String> {
        let version: Version = self.call("RuntimeService/Version", Nothing {}).await?;
        // The images are a part of their own, which may be up a moment later.
        self.all().await?;
        Ok(format!("{}://{}", version.runtime_name, version.runtime_version))
    }

    async fn all(&self) -> Result<Vec<Image>> {
        let images: Images = self.call("ImageService/ListImages", Nothing {}).await?;
        Ok(images.images)
    }

    /// The digest under which it holds the image of exactly this name, or None when it lacks it.
    pub(super) async fn digest(&self, reference: &str) -> Result<Option<String>> {
        let images = self.all().await?;
        let Some(image) = images.iter().find(|image| image.is_called(reference)) else {
            return Ok(None);
        };
        let (name, digest) = reference.split_once('@').unwrap_or((reference, ""));
        if !digest.is_empty() {
            return Ok(Some(digest.to_owned()));
        }
        let repository = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        };
        let of_repository = image.digests.iter().find_map(|name| {
            name.split_once('@').filter(|(its, _)| *its == repository).map(|(_, digest)| digest)
        });
        let of_repository = of_repository.with_context(|| format!("{image:?} has no digest"))?;
        Ok(Some(of_repository.to_owned()))
    }

    /// The snapshotters for which containerd has unpacked the image of exactly this name.
    pub(super) async fn snapshotters(&self, reference: &str) -> Result<BTreeSet<String>> {
        let images = self.all().await?;
        let Some(image) = images.into_iter().find(|image| image.is_called(reference)) else {
            return Ok(BTreeSet::new());
        };
        let method = "containerd.services.content.v1.Content/Info";
        let answer: InfoAnswer = self.call_at(method, InfoRequest { digest: image.id }).await?;
        let labels = answer.info.unwrap_or_default().labels;
        let names = labels.keys().filter_map(|label| label.strip_prefix(SNAPSHOT));
        Ok(names.map(str::to_owned).collect())
    }

    /// Whether the runtime reports the image as pinned, or None when it lacks it.
    pub(super) async fn is_pinned(&self, reference: &str) -> Result<Option<bool>> {
        let images = self.all().await?;
        let image = images.iter().find(|image| image.is_called(reference));
        Ok(image.map(|image| image.pinned))
    }

    /// Pulls an image without credentials.
    pub(super) async fn pull(&self, reference: &str) -> Result<()> {
        let image = Some(ImageSpec { image: reference.to_owned() });
        let _: Nothing = self.call("ImageService/PullImage", PullImage { image }).await?;
        Ok(())
    }

    /// Sets a label of the image in containerd's own records: in that of its name, or in that of its ID.
    /// An empty value removes it.
    pub(super) async fn label(
        &self,
        reference: &str,
        by_id: bool,
        (label, value): (&str, &str),
    ) -> Result<()> {
        let images = self.all().await?;
        let image = images.into_iter().find(|image| image.is_called(reference));
        let image = image.with_context(|| format!("the runtime does not hold {reference}"))?;
        let name = if by_id { image.id } else { reference.to_owned() };
        let labels = HashMap::from([(label.to_owned(), value.to_owned())]);
        let update = UpdateRecord {
            record: Some(Record { name, labels, target: Some(Nothing {}) }),
            mask: Some(Mask { paths: vec![format!("labels.{label}")] }),
        };
        let _: Nothing =
            self.call_at("containerd.services.images.v1.Images/Update", update).await?;
        Ok(())
    }

    /// Removes an image under all its names.
    pub(super) async fn remove(&self, reference: &str) -> Result<()> {
        let images = self.all().await?;
        let Some(image) = images.into_iter().find(|image| image.is_called(reference)) else {
            bail!("the runtime does not hold {reference}");
        };
        // The id stands for all names; by a single name, a runtime may keep the others.
        let names = image.tags.into_iter().chain(image.digests).chain([image.id]);
        for image in names {
            let request = RemoveImage { image: Some(ImageSpec { image }) };
            let _: Nothing = self.call("ImageService/RemoveImage", request).await?;
        }
        Ok(())
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.call_at(&format!("runtime.v1.{method}"), request).await
    }

    async fn call_at<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let answer = tokio::time::timeout(ANSWER, self.ask(method, request));
        answer
            .await
            .with_context(|| format!("{method} is not answered"))?
            .context(method.to_owned())
    }

    async fn ask<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let path: PathAndQuery = format!("/{method}").parse()?;
        let codec = ProstCodec::<Q, A>::default();
        let mut request = tonic::Request::new(request);
        // containerd's own services are asked for a namespace; the interface ignores it.
        request.metadata_mut().insert("containerd-namespace", "k8s.io".parse()?);
        Ok(client.unary(request, path, codec).await?.into_inner())
    }
}
