//! What a garbage collection leaves: a pinned image survives the one that takes the same image unpinned. When the
//! disk is full and nothing else is left to collect, pins go, the oldest first.
//!
//! The kubelet's thresholds are low, so that a file of zeros reaches them on a small disk. It collects all unused
//! images as soon as it would have to evict Pods, which it looks for every ten seconds.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use xtask::cluster::{Cluster, Imagewarm, Knative, KubeletNode, Options};
use xtask::images::TestImage;
use xtask::wait::wait_for;

use crate::disk::{free, pressure_after_a_look};
use crate::{BINARY, DEADLINE, NAMESPACE, Pods, TURNS, create_namespace, nothing_is_left, push};

const NODE: &str = "pins";
const DISK: u64 = 1024;
/// Of the images that are warmed; on the disk each takes up twice as much.
const SIZE: usize = 60 << 20;
/// What is free, in per cent, when the warmer takes the disk for full, as the kubelet rounds it; and when the kubelet
/// collects, down to 45%: a little less than one image is to be freed.
const ALMOST_FULL: f64 = 40.9;
const FULL: f64 = 39.2;
/// Of the image of a running Pod, which the kubelet cannot remove; it would suffice.
const RUNNING: usize = 72 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_image_survives_collections_until_nothing_else_is_left() -> Result<()> {
    let _alone = TURNS.lock().await;
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: true };
    let cluster = Cluster::start(options).await?;
    let folder = cluster.folder().to_owned();
    let settings = json!({
        "evictionHard": {
            "memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "40%", "imagefs.inodesFree": "0%",
        },
        "evictionPressureTransitionPeriod": "1s",
        "imageGCHighThresholdPercent": 60,
        "imageGCLowThresholdPercent": 55,
        "imageMinimumGCAge": "1ms",
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1s",
    });
    let node = cluster.add_kubelet_node_with_containerd_2(NODE, DISK, &settings).await?;
    let disk = node.image_folder()?;
    let tested = async {
        let stage = Stage::enter(&cluster, &node, disk).await?;
        stage.survives().await?;
        stage.oldest_goes_first().await
    };
    let tested = tested.await.with_context(|| format!("log of the kubelet:\n{}", node.log_tail()));
    let containers = node.containers()?;
    let stopped = node.stop().await;
    drop(cluster);
    tested?;
    stopped?;
    nothing_is_left(&folder, &containers)
}

struct Stage<'a> {
    cluster: &'a Cluster,
    node: &'a KubeletNode,
    disk: PathBuf,
    warms: Api<ImageWarm>,
}

impl<'a> Stage<'a> {
    async fn enter(cluster: &'a Cluster, node: &'a KubeletNode, disk: PathBuf) -> Result<Self> {
        let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &[]).await?;
        ready(&controller).await?;
        create_namespace(&cluster.client(), NAMESPACE).await?;
        for (name, size, seed) in
            [("app", SIZE, 1), ("second", SIZE, 2), ("third", SIZE, 3), ("garbage", 110 << 20, 4)]
        {
            let image = TestImage::new(&[size]).seed(seed);
            cluster.registry_plain.push(&image, name, "v1").await?;
        }
        push(cluster, "running", RUNNING).await?;
        let warms = Api::namespaced(cluster.client(), NAMESPACE);
        Ok(Stage { cluster, node, disk, warms })
    }

    /// First the collection without a pin, then the same with one.
    async fn survives(&self) -> Result<()> {
        let warmer = self.start_warmer("0%").await?;
        self.create_warm("app").await?;
        self.until_held("app", true).await?;
        ensure!(!self.is_pinned("app").await?, "pinned without a share");
        // It would pull the image again.
        warmer.kill();
        let ballast = self.fill(FULL)?;
        self.until_held("app", false).await?;
        ballast.remove()?;

        self.start_warmer("80%").await?;
        self.until_pinned("app", true).await?;
        self.create_warm("garbage").await?;
        self.until_pinned("garbage", true).await?;
        self.warms.delete("garbage", &DeleteParams::default()).await?;
        self.until_pinned("garbage", false).await?;
        let ballast = self.fill(FULL)?;
        self.until_held("garbage", false).await?;
        self.still_pinned(&["app"]).await?;
        ballast.remove()
    }

    async fn oldest_goes_first(&self) -> Result<()> {
        let pods = Pods { client: self.cluster.client(), node: &self.node.name };
        pods.start("running", &self.image("running")).await?;
        for name in ["second", "third"] {
            self.create_warm(name).await?;
            self.until_pinned(name, true).await?;
        }
        self.fill(ALMOST_FULL)?;
        self.until_pinned("app", false).await?;
        let ballast = self.fill(FULL)?;
        self.until_held("app", false).await?;
        self.still_pinned(&["second", "third"]).await?;
        let running = pods.api().get("running").await?;
        let phase = running.status.and_then(|status| status.phase);
        ensure!(phase.as_deref() == Some("Running"), "the Pod was evicted: {phase:?}");
        ballast.remove()
    }

    async fn start_warmer(&self, share: &str) -> Result<std::sync::Arc<Imagewarm>> {
        let disk = self.disk.display().to_string();
        let flags = [
            ["--image-folder", &disk],
            // What was collected from a full disk does not fit again.
            ["--keep-free-disk", "42%"],
            ["--presence-interval", "1s"],
            ["--pin-share", share],
            ["--image-gc-high-threshold", "60%"],
            ["--image-gc-low-threshold", "55%"],
        ];
        let warmer =
            self.cluster.start_warmer(BINARY.as_ref(), self.node, flags.as_flattened()).await?;
        ready(&warmer).await?;
        Ok(warmer)
    }

    fn image(&self, name: &str) -> String {
        self.cluster.registry_plain.image(name, "v1")
    }

    async fn create_warm(&self, name: &str) -> Result<()> {
        let body = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": name},
            "spec": {"image": self.image(name), "nodeName": self.node.name},
        }))?;
        self.warms.create(&PostParams::default(), &body).await?;
        wait_for(DEADLINE, &format!("{name} to be warm"), async || {
            let warm = self.warms.get(name).await.ok()?;
            (warm.reason() == Some(Reason::Pulled)).then_some(())
        })
        .await
    }

    async fn is_pinned(&self, name: &str) -> Result<bool> {
        Ok(self.node.is_pinned(&self.image(name)).await?.unwrap_or_default())
    }

    async fn until_pinned(&self, name: &str, pinned: bool) -> Result<()> {
        wait_for(DEADLINE, &format!("{name} to be pinned: {pinned}"), async || {
            let found = self.node.is_pinned(&self.image(name)).await.ok()?;
            (found == Some(pinned)).then_some(())
        })
        .await
    }

    async fn until_held(&self, name: &str, held: bool) -> Result<()> {
        wait_for(DEADLINE, &format!("{name} to be there: {held}"), async || {
            let found = self.node.is_pinned(&self.image(name)).await.ok()?;
            (found.is_some() == held).then_some(())
        })
        .await
    }

    /// These images are there, after the kubelet has looked once more.
    async fn still_pinned(&self, names: &[&str]) -> Result<()> {
        pressure_after_a_look(self.cluster, &self.node.name).await?;
        for name in names {
            let found = self.node.is_pinned(&self.image(name)).await?;
            ensure!(found == Some(true), "{name}: {found:?}, {:?}", free(&self.disk)?);
        }
        Ok(())
    }

    /// Writes a file until no more than so many per cent are free.
    fn fill(&self, least: f64) -> Result<Ballast> {
        let ballast = Ballast(self.disk.join("ballast"));
        let mut file = File::options().append(true).create(true).open(&ballast.0)?;
        let before = free(&self.disk)?;
        while free(&self.disk)?.bytes > least {
            file.write_all(&[0; 1 << 20])?;
            file.sync_data()?;
        }
        println!("filled: {:.1}% of {:.1}% is free", free(&self.disk)?.bytes, before.bytes);
        Ok(ballast)
    }
}

/// A file that takes up space.
struct Ballast(PathBuf);

impl Ballast {
    fn remove(self) -> Result<()> {
        let path: &Path = &self.0;
        Ok(std::fs::remove_file(path)?)
    }
}

async fn ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}
