//! The time that imagewarm adds to a pull, compared with a direct pull by the runtime.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::TryStreamExt as _;
use hyper_util::rt::TokioIo;
use imagewarm::runtime::cri::api::image_service_client::ImageServiceClient;
use imagewarm::runtime::cri::api::{ImageSpec, PullImageRequest};
use imagewarm_core::api::{ConditionStatus, ImageWarm};
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;
use xtask::cluster::{ContainerdVersion, Node};
use xtask::images::TestImage;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{BINARY, DEADLINE, Stage, milliseconds};
use crate::tap::Tap;

/// Rows for each runtime and size: milliseconds from the ImageWarm to its readiness beside the
/// runtime's own pull, and what of it is not the runtime's.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(1).await?;
    for node in nodes(&stage).await? {
        of_node(&stage, &node, scale, report).await.context(node.runtime_name())?;
    }
    Ok(())
}

/// A node with each runtime.
pub async fn nodes(stage: &Stage) -> Result<Vec<Arc<Node>>> {
    let docker = stage.cluster.node(1)?;
    let version = ContainerdVersion::V2_2;
    let containerd = stage.cluster.add_containerd_node("containerd", version).await?;
    let crio = stage.cluster.add_crio_node("crio").await?;
    Ok(vec![docker, containerd, crio])
}

async fn of_node(stage: &Stage, node: &Node, scale: Scale, report: &mut Report) -> Result<()> {
    let tap = Tap::open(&node.socket)?;
    let warmer = stage.cluster.start_warmer_at(BINARY.as_ref(), node, &tap.socket, &[]).await?;
    warmer.wait_ready(warmer.health().context("no health port")?, "/readyz", DEADLINE).await?;
    let namespace = stage.namespace(&format!("pulls-{}", node.name)).await?.namespace;
    let registry = &stage.cluster.registry_plain;
    let runtime = node.runtime_name();
    for (megabytes, rounds) in
        scale.pick([(1, 11), (50, 5), (500, 1)], [(1, 31), (50, 11), (500, 5)])
    {
        let (mut whole, mut added) = (Series::default(), Series::default());
        // The first round of the smallest opens connections and does not count.
        let first = usize::from(megabytes > 1);
        for round in first..=rounds {
            // New content each time: the node holds nothing of it.
            let name = format!("{megabytes}mb-{round}");
            let image = || TestImage::new(&[megabytes * 1_000_000]);
            let (mine, other) = (format!("{}/ours", node.name), format!("{}/own", node.name));
            registry.push(&image(), &mine, &name).await?;
            registry.push(&image(), &other, &name).await?;
            let (ours, theirs) = (registry.image(&mine, &name), registry.image(&other, &name));

            // Whoever is first finds a machine that has just pushed: they take turns.
            let mut baseline = None;
            if round % 2 == 1 {
                baseline = Some(own_pull(node, &theirs).await?);
            }
            tap.clear();
            let order = Order { stage, namespace: &namespace, name: &name, image: &ours };
            let total = order.until_ready(&node.name).await?;
            let pulling = tap.longest().context("the warmer made no request to its runtime")?;
            let baseline = match baseline {
                Some(baseline) => baseline,
                None => own_pull(node, &theirs).await?,
            };
            if round > 0 {
                whole.round(total, baseline);
                added.ours.push(total - pulling.as_secs_f64() * 1_000.0);
            }
            if megabytes >= 100 {
                delete(stage, &namespace, &name).await?;
                node.remove_image(&ours).await?;
                node.remove_image(&theirs).await?;
            }
        }
        let name = format!("ImageWarm of {megabytes} MB, creation to Ready, {runtime}");
        report.add(name, "ms", whole, Limit::None);
        let name = format!("of it before and after the pull call, {megabytes} MB, {runtime}");
        report.add(name, "ms", added, Limit::Most(50.0));
    }
    warmer.terminate(DEADLINE).await?;
    Ok(())
}

/// Creates an ImageWarm as a user does.
pub async fn order(
    stage: &Stage,
    namespace: &str,
    name: &str,
    image: &str,
    node: &str,
) -> Result<()> {
    let warms: Api<ImageWarm> = Api::namespaced(stage.cluster.client(), namespace);
    let warm = serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": name}, "spec": {"image": image, "nodeName": node},
    }))?;
    warms.create(&PostParams::default(), &warm).await?;
    Ok(())
}

/// Otherwise the node would be assigned the image again once it is removed.
async fn delete(stage: &Stage, namespace: &str, name: &str) -> Result<()> {
    let warms: Api<ImageWarm> = Api::namespaced(stage.cluster.client(), namespace);
    warms.delete(name, &Default::default()).await?;
    Ok(())
}

struct Order<'a> {
    stage: &'a Stage,
    namespace: &'a str,
    name: &'a str,
    image: &'a str,
}

impl Order<'_> {
    async fn until_ready(&self, node: &str) -> Result<f64> {
        let warms: Api<ImageWarm> = Api::namespaced(self.stage.cluster.client(), self.namespace);
        let now = warms.list_metadata(&Default::default()).await?.metadata.resource_version;
        let params = WatchParams::default().fields(&format!("metadata.name={}", self.name));
        let since = now.context("a list without resourceVersion")?;
        let events = warms.watch(&params, &since).await?;
        // The watch has taken a connection; opening another is no part of what is measured.
        warms.list_metadata(&Default::default()).await?;
        let began = Instant::now();
        order(self.stage, self.namespace, self.name, self.image, node).await?;
        let ready = async {
            futures::pin_mut!(events);
            while let Some(event) = events.try_next().await? {
                let (WatchEvent::Added(warm) | WatchEvent::Modified(warm)) = event else {
                    continue;
                };
                if warm.ready().is_some_and(|ready| ready.status == ConditionStatus::True) {
                    return Ok(milliseconds(began, Instant::now()));
                }
            }
            bail!("the watch has ended")
        };
        tokio::time::timeout(DEADLINE, ready).await?
    }
}

/// Pulls the image with the runtime's own API; returns milliseconds.
async fn own_pull(node: &Node, image: &str) -> Result<f64> {
    let began = Instant::now();
    let pulled = async {
        if node.has_cri() {
            cri_pull(&node.socket, image).await
        } else {
            docker_pull(node, image).await
        }
    };
    tokio::time::timeout(DEADLINE, pulled).await?.with_context(|| image.to_owned())?;
    Ok(milliseconds(began, Instant::now()))
}

async fn docker_pull(node: &Node, image: &str) -> Result<()> {
    let (from, tag) = image.rsplit_once(':').context("a name without tag")?;
    let options = CreateImageOptionsBuilder::default().from_image(from).tag(tag).build();
    let docker = node.docker()?;
    docker.create_image(Some(options), None, None).try_for_each(async |_| Ok(())).await?;
    Ok(())
}

async fn cri_pull(socket: &Path, image: &str) -> Result<()> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let mut client = ImageServiceClient::new(endpoint.connect_with_connector(connector).await?);
    let image = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    client.pull_image(request).await?;
    Ok(())
}
