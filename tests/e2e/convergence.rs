//! Whatever is killed, doubled, cut off or answered wrongly: in the end every ImageWarm is there
//! once, and none was deleted by mistake.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::cluster::ApiProxy;
use xtask::cluster::api_proxy::Verb;

use crate::world::{World, containers};

crate::tests![every_crash_point_of_a_fan_out_converges];

const DEADLINE: Duration = Duration::from_secs(60);

/// Images × nodes of each Revision whose fan-out is cut short.
const IMAGES: usize = 3;
const NODES: usize = 8;

/// Odd crash points lie in the fan-out at admission, even ones in the next leader's repair of it.
async fn every_crash_point_of_a_fan_out_converges(world: &World) -> Result<()> {
    world.stop_controllers().await?;
    let nodes = world.fake_nodes("crash", NODES).await?;
    let checked = crash_points(world, &nodes).await;
    world.kill_controllers().await?;
    world.delete_nodes(&nodes).await?;
    world.start_controllers().await?;
    checked
}

async fn crash_points(world: &World, nodes: &[String]) -> Result<()> {
    let proxy = world.api_proxy().await?;
    start_behind(world, &proxy).await?;
    for point in (1..=20).step_by(2) {
        let namespace = world.namespace("crash").await?;
        proxy.cut_off_after(point, Verb::Create, "imagewarms");
        world.revision(&namespace, "hello-00001", fake_images(&namespace, "crash")).await?;
        crash(world, &proxy).await.with_context(|| format!("fan-out, write {point}"))?;
        ensure!(world.warms(&namespace).await?.len() == point, "crash point {point} was missed");

        let repaired = (point + 1).min(IMAGES * NODES - point);
        proxy.end_cut_off();
        proxy.cut_off_after(repaired, Verb::Create, "imagewarms");
        world.start_controller_through(&proxy, "controller-1", &["--repair-delay", "1s"]).await?;
        crash(world, &proxy).await.with_context(|| format!("repair, write {repaired}"))?;
        let made = world.warms(&namespace).await?.len();
        ensure!(made == point + repaired, "{made} ImageWarms after {point} and {repaired} writes");

        proxy.end_cut_off();
        start_behind(world, &proxy).await?;
        is_complete(world, &namespace, nodes).await?;
    }
    Ok(())
}

async fn start_behind(world: &World, proxy: &ApiProxy) -> Result<()> {
    world.start_controller_through(proxy, "controller-1", &["--repair-delay", "1s"]).await?;
    world.controllers_are_ready().await
}

/// Waits for the cut-off and kills what is cut off.
async fn crash(world: &World, proxy: &ApiProxy) -> Result<()> {
    proxy.is_cut_off(DEADLINE).await?;
    world.kill_controllers().await
}

/// Images that nobody pulls, since the nodes of the pool have no warmers.
fn fake_images(name: &str, pool: &str) -> Value {
    let images: Vec<_> =
        (1..=IMAGES).map(|n| format!("registry.example/{name}/app-{n}:v1")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut spec = containers(&images);
    spec["nodeSelector"] = json!({"pool": pool});
    spec
}

/// Waits until there is exactly one ImageWarm for each of the images on each of the nodes.
async fn is_complete(world: &World, namespace: &str, nodes: &[String]) -> Result<()> {
    world
        .eventually("one ImageWarm for each image and node", async || {
            let warms = world.warms(namespace).await?;
            let pairs: BTreeSet<_> =
                warms.iter().map(|w| (&w.spec.image, &w.spec.node_name)).collect();
            ensure!(pairs.len() == warms.len(), "some are there twice: {pairs:?}");
            ensure!(warms.len() <= IMAGES * nodes.len(), "{} ImageWarms", warms.len());
            Ok((warms.len() == IMAGES * nodes.len()).then_some(()))
        })
        .await
}
