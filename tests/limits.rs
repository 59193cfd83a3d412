//! As many ImageWarms as the limits allow that are set without a flag, in the memory limit that is
//! shipped: the leader is not killed, denies what goes beyond, and everything else goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use imagewarm_core::policy::Bounds;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Options};
use xtask::images::TestImage;
use xtask::memory_limit::MemoryLimit;
use xtask::wait::wait_for;

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");
/// A debug build reads two hundred thousand objects for a while.
const DEADLINE: Duration = Duration::from_secs(300);
const MODEST: &str = "modest";

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_limits_fit_into_the_shipped_memory_limit() -> Result<()> {
    let options = Options { nodes: 1, ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let client = cluster.client();
    let Bounds { image_warms: all, image_warms_per_namespace: each, .. } = Bounds::default();
    let greedy: Vec<String> = (1..=all / each).map(|number| format!("greedy-{number}")).collect();
    for namespace in greedy.iter().map(String::as_str).chain([MODEST]) {
        let body = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &body).await?;
    }
    // Room for one more in all, and none in the first namespace.
    let objects = (0..all - 1).map(|number| stored(&greedy[number / each], number));
    let began = Instant::now();
    cluster.store(objects).await?;
    println!("{} ImageWarms stored in {:.0} s", all - 1, began.elapsed().as_secs_f32());

    let began = Instant::now();
    let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &[]).await?;
    let limit = MemoryLimit::as_shipped(controller.pid())?;
    let health = controller.health().context("no health port")?;
    controller.wait_ready(health, "/readyz", DEADLINE).await?;
    println!("ready after {:.0} s with {} MiB", began.elapsed().as_secs_f32(), limit.peak()?);
    the_last_one_is_warmed(&cluster).await?;
    let text = format!("no more than {each} ImageWarms (--max-image-warms-per-namespace)");
    is_denied(&client, &greedy[0], &text).await?;
    let text = format!("no more than {all} ImageWarms (--max-image-warms)");
    is_denied(&client, MODEST, &text).await?;
    println!("{} MiB at most", limit.peak()?);
    ensure!(limit.kills()? == 0, "the controller was killed for want of memory");
    ensure!(controller.exit_status().is_none(), "it ended:\n{}", controller.log_tail());
    Ok(())
}

/// An ImageWarm as a tenant makes it, with an image's name as long as some are.
fn stored(namespace: &str, number: usize) -> (String, Value) {
    let name = format!("by-hand-{number:06}");
    let image = format!("registry.example.com/{}/app-{number}:v1", "team".repeat(25));
    let object = json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {
            "name": name, "namespace": namespace, "generation": 1,
            "uid": format!("00000000-0000-0000-0000-{number:012x}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"image": image, "nodeName": "no-such-node"},
    });
    (format!("caching.knative.dev/imagewarms/{namespace}/{name}"), object)
}

/// A deploy of somebody else, beside all that.
async fn the_last_one_is_warmed(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(1)?;
    let warmer = cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
    let health = warmer.health().context("no health port")?;
    warmer.wait_ready(health, "/readyz", DEADLINE).await?;
    let image = TestImage::new(&[20_000]);
    cluster.registry_plain.push(&image, "modest", "v1").await?;
    let image = cluster.registry_plain.image("modest", "v1");
    let warms: Api<ImageWarm> = Api::namespaced(cluster.client(), MODEST);
    let began = Instant::now();
    wait_for(DEADLINE, "the last ImageWarm to be admitted", async || {
        warms.create(&PostParams::default(), &warm("last", &image, &node.name)).await.ok()
    })
    .await?;
    wait_for(DEADLINE, "the last ImageWarm to be Ready", async || {
        let warm = warms.get("last").await.ok()?;
        (warm.reason() == Some(Reason::Pulled)).then_some(())
    })
    .await?;
    println!("the last ImageWarm was Ready after {:.1} s", began.elapsed().as_secs_f32());
    Ok(())
}

async fn is_denied(client: &Client, namespace: &str, text: &str) -> Result<()> {
    let warms: Api<ImageWarm> = Api::namespaced(client.clone(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let warm = warm("beyond", "app", "node-1");
    wait_for(DEADLINE, &format!("a denial in {namespace} with {text:?}"), async || {
        let denied = warms.create(&dry_run, &warm).await.err()?;
        denied.to_string().contains(text).then_some(())
    })
    .await
}

fn warm(name: &str, image: &str, node: &str) -> ImageWarm {
    serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": name}, "spec": {"image": image, "nodeName": node},
    }))
    .expect("it has every field")
}
