//! Images that do not fit: warming them makes no node run out of disk. The kubelet has its usual
//! thresholds on a small disk of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use xtask::cluster::{Cluster, Knative, KubeletNode, Options};
use xtask::images::TestImage;
use xtask::wait::wait_for;

use crate::{BINARY, DEADLINE, NAMESPACE, Pods, TURNS, create_namespace, nothing_is_left, push};

const DISK: u64 = 1024;
/// The kubelet evicts Pods below these, in per cent of bytes and inodes.
const BYTES_THRESHOLD: f64 = 15.0;
const INODES_THRESHOLD: f64 = 5.0;

#[tokio::test(flavor = "multi_thread")]
async fn images_that_do_not_fit_bring_no_disk_pressure() -> Result<()> {
    let _alone = TURNS.lock().await;
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: true };
    let cluster = Cluster::start(options).await?;
    let folder = cluster.folder().to_owned();
    let settings = json!({
        "evictionHard": {
            "memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": format!("{BYTES_THRESHOLD}%"),
            "imagefs.inodesFree": format!("{INODES_THRESHOLD}%"),
        },
        "imageGCHighThresholdPercent": 85,
        "imageGCLowThresholdPercent": 80,
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1s",
    });
    let node = cluster.add_kubelet_node_with_disk("small-disk", DISK, &settings).await?;
    let tested = warm_too_much(&cluster, &node).await;
    let tested = tested.with_context(|| format!("log of the kubelet:\n{}", node.log_tail()));
    let stopped = node.stop().await;
    drop(cluster);
    tested?;
    stopped?;
    nothing_is_left(&folder, &[])
}

async fn warm_too_much(cluster: &Cluster, node: &KubeletNode) -> Result<()> {
    let disk = node.image_folder()?;
    let shown = disk.display().to_string();
    // What is shipped keeps so much free; the tests' own default is nothing.
    let flags = ["--image-folder", &shown, "--keep-free-disk", "20%"];
    for process in [
        cluster.start_controller(BINARY.as_ref(), "controller-1", &[]).await?,
        cluster.start_warmer(BINARY.as_ref(), node, &flags).await?,
    ] {
        let health = process.health().context("no health port")?;
        process.wait_ready(health, "/readyz", DEADLINE).await?;
    }
    create_namespace(&cluster.client(), NAMESPACE).await?;
    // An image of somebody else that no Pod uses just now: what the kubelet would collect first.
    let foreign = push(cluster, "foreign", 10 << 20).await?;
    let pods = Pods { client: cluster.client(), node: &node.name };
    pods.start("foreign", &foreign).await?;
    pods.remove("foreign").await?;

    let disk_bytes = usize::try_from(DISK << 20)?;
    let images = [
        // Two thirds of the disk to download, and as much again to unpack.
        ("two-thirds", TestImage::new(&[disk_bytes / 3, disk_bytes / 3])),
        ("bomb", TestImage::new(&[]).bomb(3 * disk_bytes)),
        ("files", TestImage::new(&[]).files(70_000)),
    ];
    for (name, image) in images {
        cluster.registry_plain.push(&image, name, "v1").await?;
        wait_for(DEADLINE, "containerd to remove what was left of a pull", async || {
            free(&disk).ok().filter(|free| free.bytes > 80.0 && free.inodes > 80.0)
        })
        .await?;
        let watched = Watched::start(disk.clone());
        let warm = warm(cluster, node, name).await?;
        let least = watched.end()?;
        let message = warm.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        println!(
            "{name}: stopped with {:.1}% of the bytes and {:.1}% of the inodes free at least; {message}",
            least.bytes, least.inodes
        );
        ensure!(least.bytes.min(least.inodes) < 20.0, "{name} was never begun: {message}");
        ensure!(least.bytes > BYTES_THRESHOLD, "{name}: {:.1}% of the bytes", least.bytes);
        ensure!(least.inodes > INODES_THRESHOLD, "{name}: {:.1}% of the inodes", least.inodes);
        ensure!(!node.holds(&cluster.registry_plain.image(name, "v1")).await, "{name} was pulled");
    }
    let pressure = pressure_after_a_look(cluster, &node.name).await?;
    ensure!(pressure.status == "False", "{pressure:?}");
    ensure!(node.holds(&foreign).await, "an image of somebody else was collected");
    Ok(())
}

/// An ImageWarm of the image, once its pull was stopped for want of space.
async fn warm(cluster: &Cluster, node: &KubeletNode, name: &str) -> Result<ImageWarm> {
    let warms: Api<ImageWarm> = Api::namespaced(cluster.client(), NAMESPACE);
    let image = cluster.registry_plain.image(name, "v1");
    let body = serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": name}, "spec": {"image": image, "nodeName": node.name},
    }))?;
    warms.create(&PostParams::default(), &body).await?;
    let stopped = wait_for(DEADLINE, &format!("the pull of {name} to be stopped"), async || {
        let warm = warms.get(name).await.ok()?;
        (warm.reason() == Some(Reason::DiskPressure)).then_some(warm)
    })
    .await;
    let last = warms.get(name).await?;
    warms.delete(name, &Default::default()).await?;
    stopped.with_context(|| format!("{:?}", last.status))
}

/// The kubelet's condition, once it has looked at the disk since now: it does so every ten seconds,
/// and would keep what it found then for five minutes.
pub(crate) async fn pressure_after_a_look(cluster: &Cluster, node: &str) -> Result<NodeCondition> {
    let nodes: Api<Node> = Api::all(cluster.client());
    let condition = async || {
        let conditions = nodes.get(node).await.ok()?.status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == "DiskPressure")
    };
    let heartbeat = |condition: &NodeCondition| condition.last_heartbeat_time.clone().map(|t| t.0);
    let now = condition().await.context("no condition DiskPressure")?;
    let look = heartbeat(&now).context("no heartbeat")? + jiff::SignedDuration::from_secs(15);
    wait_for(DEADLINE, "the kubelet to look at its disk", async || {
        condition().await.filter(|found| heartbeat(found).is_some_and(|at| at > look))
    })
    .await
}

/// The least that was free, in per cent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Least {
    pub(crate) bytes: f64,
    pub(crate) inodes: f64,
}

/// Watches the free space of a file system.
struct Watched {
    ends: Arc<AtomicBool>,
    watch: std::thread::JoinHandle<Result<Least>>,
}

impl Watched {
    fn start(folder: PathBuf) -> Watched {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = ends.clone();
        let watch = std::thread::spawn(move || {
            let mut least = Least { bytes: 100.0, inodes: 100.0 };
            while !ended.load(Ordering::Relaxed) {
                let now = free(&folder)?;
                least.bytes = least.bytes.min(now.bytes);
                least.inodes = least.inodes.min(now.inodes);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Ok(least)
        });
        Watched { ends, watch }
    }

    fn end(self) -> Result<Least> {
        self.ends.store(true, Ordering::Relaxed);
        self.watch.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?
    }
}

pub(crate) fn free(folder: &Path) -> Result<Least> {
    let output = Command::new("stat").args(["-f", "-c", "%a %b %d %c"]).arg(folder).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [free, all, free_inodes, inodes] = numbers[..] else {
        anyhow::bail!("stat -f {}: {text:?}", folder.display());
    };
    Ok(Least { bytes: 100.0 * free / all, inodes: 100.0 * free_inodes / inodes })
}
