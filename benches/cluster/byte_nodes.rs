//! Nodes in this process whose runtime pulls real bytes over a link, and stores nothing: the real client
//! of the warmers' protocol around it. A pull that ends early goes on where it was, as Docker's do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use imagewarm::runtime::{Runtime, RuntimeFuture};
use imagewarm::warmer::{Warmer, WarmerMetrics};
use imagewarm_core::api::Reason;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion, Sandboxes,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xtask::cluster::{Cluster, Link};

use crate::fake_warmers::{args, docker_version, tokens};
use crate::stage::{DEADLINE, plain_nodes};

/// Running warmers.
pub struct ByteNodes {
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl ByteNodes {
    /// Makes so many nodes, each with one of these links, and waits until all are connected.
    pub async fn connect(
        cluster: &Cluster,
        count: usize,
        link: impl Fn() -> Link,
    ) -> Result<ByteNodes> {
        let names: Vec<String> = (0..count).map(|at| format!("bytes-{at:03}")).collect();
        plain_nodes(cluster.client(), names.clone()).await?;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut connected = vec![];
        for token in tokens(cluster, &names).await? {
            let runtime = Downloading { link: link(), images: Mutex::default() };
            let metrics = WarmerMetrics::register(&mut Default::default());
            let warmer = Warmer::with_runtime(Arc::new(runtime), &args(cluster, token)?, metrics)?;
            connected.push(warmer.connected());
            let run = warmer.run(stop.clone());
            tasks.spawn(async move {
                // A given runtime is always one that can be used.
                let _ = run.await;
            });
        }
        for mut connected in connected {
            tokio::time::timeout(DEADLINE, connected.wait_for(|open| *open)).await??;
        }
        Ok(ByteNodes { stop, _tasks: tasks })
    }
}

impl Drop for ByteNodes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Of one image.
#[derive(Debug, Default)]
struct Stored {
    /// Bytes of each layer, by digest.
    layers: BTreeMap<String, u64>,
    is_complete: bool,
}

#[derive(Debug)]
struct Downloading {
    link: Link,
    images: Mutex<BTreeMap<String, Stored>>,
}

impl Downloading {
    fn images(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn download(
        &self,
        image: &Reference,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<()> {
        let layers = layers(image).await?;
        let total_bytes = layers.iter().map(|(_, size)| size).sum();
        let mut buffer = vec![0; 64 << 10];
        for (digest, size) in &layers {
            let stored = |images: &BTreeMap<String, Stored>| {
                images.get(image.as_str()).and_then(|one| one.layers.get(digest).copied())
            };
            let mut at = stored(&self.images()).unwrap_or(0);
            if at == *size {
                continue;
            }
            let mut body = get(image, &format!("blobs/{digest}"), at).await?;
            while at < *size {
                let read = body.read(&mut buffer).await?;
                ensure!(read > 0, "the registry ended {digest} after {at} of {size} bytes");
                self.link.pass(read).await;
                at += read as u64;
                let downloaded_bytes = {
                    let mut images = self.images();
                    let layers = &mut images.entry(image.to_string()).or_default().layers;
                    layers.insert(digest.clone(), at);
                    layers.values().sum()
                };
                progress(PullProgress { downloaded_bytes, total_bytes });
            }
        }
        self.images().entry(image.to_string()).or_default().is_complete = true;
        Ok(())
    }
}

/// Digest and size of each layer.
async fn layers(image: &Reference) -> Result<BTreeSet<(String, u64)>> {
    let version = image.digest().or(image.tag()).unwrap_or("latest");
    let mut manifest = Vec::new();
    get(image, &format!("manifests/{version}"), 0).await?.read_to_end(&mut manifest).await?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().context("a manifest without layers")?;
    layers
        .iter()
        .map(|layer| {
            let digest = layer["digest"].as_str().context("a layer without digest")?;
            Ok((digest.to_owned(), layer["size"].as_u64().context("a layer without size")?))
        })
        .collect()
}

/// The body of an answer of the image's registry, from this byte on.
async fn get(image: &Reference, what: &str, from: u64) -> Result<BufReader<TcpStream>> {
    let (registry, path) = (image.domain(), image.path());
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let request = format!(
        "GET /v2/{path}/{what} HTTP/1.0\r\nHost: {registry}\r\nRange: bytes={from}-\r\n\
         Accept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
    );
    let mut stream = BufReader::new(TcpStream::connect(registry).await?);
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.contains(" 200 ") || head.contains(" 206 "), "{what}: {head}");
    Ok(stream)
}

fn held() -> PresentImage {
    PresentImage { digest: None, size_bytes: 1 }
}

impl Runtime for Downloading {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        Box::pin(async { Ok(docker_version()) })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async { Ok("/".into()) })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        let is_complete = self.images().get(image.as_str()).is_some_and(|one| one.is_complete);
        Box::pin(async move { Ok(is_complete.then(held)) })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        _credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(async move {
            self.download(image, progress).await.map_err(|error| RuntimeError {
                reason: Reason::RegistryUnreachable,
                message: format!("{error:#}"),
            })?;
            Ok(PulledImage { image: held(), downloaded: true })
        })
    }
}
