//! What a pull takes longer when it is ordered by an ImageWarm than when dockerd is asked itself.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::TryStreamExt as _;
use imagewarm::api::{ConditionStatus, ImageWarm};
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use serde_json::json;
use xtask::cluster::Node;
use xtask::images::TestImage;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{BINARY, DEADLINE, Stage, milliseconds};

/// Rows: milliseconds from the ImageWarm to its readiness, beside `docker pull`, for two sizes.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(1).await?;
    let node = stage.cluster.node(1)?;
    let warmer = stage.cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
    warmer.wait_ready(warmer.health().context("no health port")?, "/readyz", DEADLINE).await?;
    let namespace = stage.namespace("pulls").await?.namespace;
    let registry = &stage.cluster.registry_plain;
    for (megabytes, rounds) in scale.pick([(1, 15), (50, 5)], [(1, 31), (50, 11)]) {
        let mut series = Series::default();
        for round in 0..=rounds {
            // New content each time: the node holds nothing of it.
            let name = format!("{megabytes}mb-{round}");
            let image = || TestImage::new(&[megabytes * 1_000_000]);
            registry.push(&image(), "ours", &name).await?;
            registry.push(&image(), "docker", &name).await?;
            let (ours, theirs) = (registry.image("ours", &name), registry.image("docker", &name));

            // Whoever is first finds a machine that has just pushed: they take turns.
            let (ours, theirs) = if round % 2 == 0 {
                let ours = until_ready(&stage, &namespace, &name, &ours, &node.name).await?;
                (ours, docker_pull(&node, "docker", &name, &theirs).await?)
            } else {
                let theirs = docker_pull(&node, "docker", &name, &theirs).await?;
                (until_ready(&stage, &namespace, &name, &ours, &node.name).await?, theirs)
            };
            if round > 0 {
                series.round(ours, theirs);
            }
        }
        let name = format!("ImageWarm of {megabytes} MB, creation to Ready");
        report.add(name, "ms", series, Limit::Added(50.0));
    }
    Ok(())
}

/// Makes an ImageWarm as a person does.
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

async fn until_ready(
    stage: &Stage,
    namespace: &str,
    name: &str,
    image: &str,
    node: &str,
) -> Result<f64> {
    let warms: Api<ImageWarm> = Api::namespaced(stage.cluster.client(), namespace);
    let now = warms.list_metadata(&Default::default()).await?.metadata.resource_version;
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let since = now.context("a list without resourceVersion")?;
    let events = warms.watch(&params, &since).await?;
    let began = Instant::now();
    order(stage, namespace, name, image, node).await?;
    let ready = async {
        futures::pin_mut!(events);
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(warm) | WatchEvent::Modified(warm)) = event else { continue };
            if warm.ready().is_some_and(|ready| ready.status == ConditionStatus::True) {
                return Ok(milliseconds(began, Instant::now()));
            }
        }
        bail!("the watch has ended")
    };
    tokio::time::timeout(DEADLINE, ready).await?
}

async fn docker_pull(node: &Node, repository: &str, tag: &str, image: &str) -> Result<f64> {
    let docker = node.docker()?;
    let from = image.rsplit_once(':').map_or(image, |(name, _)| name);
    let options = CreateImageOptionsBuilder::default().from_image(from).tag(tag).build();
    let began = Instant::now();
    let pulled = docker.create_image(Some(options), None, None).try_for_each(async |_| Ok(()));
    tokio::time::timeout(DEADLINE, pulled).await?.with_context(|| repository.to_owned())?;
    Ok(milliseconds(began, Instant::now()))
}
