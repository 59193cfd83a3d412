//! The node's disk, and images that somebody removes from it. Orders are made by hand, so that only
//! one node is looked at.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use xtask::cluster::Fault;

use crate::world::World;

crate::tests![
    a_full_disk_is_not_filled_further,
    a_pull_ends_when_its_disk_runs_low,
    a_runtime_out_of_disk_is_told_by_name,
    an_image_removed_from_docker_is_told_and_comes_back,
];

async fn a_full_disk_is_not_filled_further(world: &World) -> Result<()> {
    let namespace = world.namespace("disk").await?;
    let app = world.push("disk", "v1").await?;
    let node = world.join_node_with_disk("disk", 128).await?;
    let checked = async {
        // 28 MiB are left: more than the image needs, less than with what is to be kept free.
        let ballast = world.disk(&node)?.join("ballast");
        std::fs::write(&ballast, vec![1; 100 << 20])?;
        world.hand_made(&namespace, "app", &app.tag, &node, &[]).await?;
        let refused = reaches(world, &namespace, &node, Reason::DiskPressure).await?;
        let message = refused.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        for part in ["of 134 MB free", "15% (20.1 MB)"] {
            ensure!(message.contains(part), "no {part:?} in {message:?}");
        }
        let status = refused.status.clone().unwrap_or_default();
        ensure!(status.attempts.is_none(), "it was never begun: {status:?}");
        ensure!(world.node_digest(&node, &app.tag).await?.is_none(), "it was pulled");
        std::fs::remove_file(&ballast)?;
        reaches(world, &namespace, &node, Reason::Pulled).await?;
        ensure!(world.node_digest(&node, &app.tag).await? == Some(app.digest.clone()));
        Ok(())
    }
    .await;
    world.remove_node(&node).await?;
    checked
}

async fn a_pull_ends_when_its_disk_runs_low(world: &World) -> Result<()> {
    let namespace = world.namespace("disk-low").await?;
    let app = world.push("disk-low", "v1").await?;
    let node = world.join_node_with_disk("disk-low", 128).await?;
    let proxy = &world.cluster.registry_proxy;
    // As the proxy reads paths: what comes first tells who asks.
    let repository = "low/disk-low";
    let image = format!("{}/{repository}:v1", proxy.address());
    let checked = async {
        proxy.set(repository, Some(Fault::Hold));
        world.hand_made(&namespace, "app", &image, &node, &[]).await?;
        let held = async || Ok((proxy.holding(repository) > 0).then_some(()));
        world.eventually("the layer is on its way", held).await?;
        let ballast = world.disk(&node)?.join("ballast");
        std::fs::write(&ballast, vec![1; 110 << 20])?;
        let stopped = reaches(world, &namespace, &node, Reason::DiskPressure).await?;
        let message = stopped.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        ensure!(message.contains("larger than expected"), "{message}");
        proxy.set(repository, None);
        ensure!(world.node_digest(&node, &image).await?.is_none(), "it was pulled to the end");
        std::fs::remove_file(&ballast)?;
        reaches(world, &namespace, &node, Reason::Pulled).await?;
        ensure!(world.node_digest(&node, &image).await? == Some(app.digest.clone()));
        Ok(())
    }
    .await;
    proxy.set(repository, None);
    world.remove_node(&node).await?;
    checked
}

async fn a_runtime_out_of_disk_is_told_by_name(world: &World) -> Result<()> {
    let namespace = world.namespace("disk-out").await?;
    let app = world.push_large("disk-out", "v1").await?;
    let node = world.join_node_with_disk("disk-out", 128).await?;
    let checked = async {
        // Without the guard the runtime itself runs into the wall.
        world.stop_warmer(&node).await?;
        world.start_warmer_with(&node, &["--keep-free-disk", "0%"]).await?;
        let ballast = world.disk(&node)?.join("ballast");
        std::fs::write(&ballast, vec![1; 95 << 20])?;
        world.hand_made(&namespace, "app", &app.tag, &node, &[]).await?;
        let failed = reaches(world, &namespace, &node, Reason::DiskPressure).await?;
        let message = failed.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        ensure!(message.contains("no space left on device"), "{message}");
        Ok(())
    }
    .await;
    world.remove_node(&node).await?;
    checked
}

async fn an_image_removed_from_docker_is_told_and_comes_back(world: &World) -> Result<()> {
    let namespace = world.namespace("removed").await?;
    let app = world.push("removed", "v1").await?;
    let image = app.by_digest();
    // Its warmer would not look again within this test: Docker itself has to tell.
    let node = world.join_node_with_disk("removed", 128).await?;
    let checked = async {
        world.hand_made(&namespace, "app", &image, &node, &[]).await?;
        let first = reaches(world, &namespace, &node, Reason::Pulled).await?;
        world.remove_image(&node, &image).await?;
        world
            .eventually("the image is back and told anew", async || {
                let warm = world.warms(&namespace).await?.pop().context("no order")?;
                let anew = warm.metadata.resource_version != first.metadata.resource_version;
                let back = world.node_digest(&node, &image).await?.is_some();
                Ok((anew && back && warm.reason() == Some(Reason::Pulled)).then_some(()))
            })
            .await?;
        // Who removes it once more means it: then it is not fought.
        world.remove_image(&node, &image).await?;
        let removed = reaches(world, &namespace, &node, Reason::Removed).await?;
        let message = removed.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        ensure!(message.contains("removed 2 times in a row"), "{message}");
        ensure!(world.node_digest(&node, &image).await?.is_none(), "it is back already");
        Ok(())
    }
    .await;
    world.remove_node(&node).await?;
    checked
}

/// Waits until the order for the node has this reason.
async fn reaches(world: &World, namespace: &str, node: &str, reason: Reason) -> Result<ImageWarm> {
    let found = world
        .eventually("the order has its reason", async || {
            let warms = world.warms(namespace).await?;
            let warm = warms.into_iter().find(|warm| warm.spec.node_name == node);
            Ok(warm.filter(|warm| warm.reason() == Some(reason)))
        })
        .await;
    match found {
        Ok(warm) => Ok(warm),
        Err(error) => Err(error.context(format!("{:?}", world.warms(namespace).await?))),
    }
}
