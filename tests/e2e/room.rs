//! The node's disk, and images that somebody removes from it. ImageWarms are made by hand, so that
//! only one node is looked at.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::Reason;
use xtask::cluster::Fault;

use crate::world::{World, eventually};

crate::tests![
    a_full_disk_is_not_filled_further,
    a_pull_ends_when_its_disk_runs_low,
    a_runtime_out_of_disk_is_reported,
    an_image_removed_from_docker_is_reported_and_comes_back,
];

async fn a_full_disk_is_not_filled_further(world: &World) -> Result<()> {
    let namespace = world.namespace("disk").await?;
    let app = world.registries.push("disk", "v1").await?;
    let node = world.nodes.join_with_disk("disk", 128).await?;
    // 28 MiB are left: more than the image needs, less than with what is to be kept free.
    let ballast = world.nodes.disk(&node)?.join("ballast");
    std::fs::write(&ballast, vec![1; 100 << 20])?;
    namespace.create_image_warm("app", &app.tag, &node, &[]).await?;
    let refused = namespace.reaches("app", Reason::DiskPressure).await?;
    let message = refused.ready().map(|ready| ready.message.clone()).unwrap_or_default();
    for part in ["of 134 MB free", "15% (20.1 MB)"] {
        ensure!(message.contains(part), "no {part:?} in {message:?}");
    }
    let status = refused.status.clone().unwrap_or_default();
    ensure!(status.attempts.is_none(), "it was never begun: {status:?}");
    ensure!(world.nodes.digest(&node, &app.tag).await?.is_none(), "it was pulled");
    std::fs::remove_file(&ballast)?;
    namespace.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &app.tag).await? == Some(app.digest.clone()));
    Ok(())
}

async fn a_pull_ends_when_its_disk_runs_low(world: &World) -> Result<()> {
    let namespace = world.namespace("disk-low").await?;
    let app = world.registries.push("disk-low", "v1").await?;
    let node = world.nodes.join_with_disk("disk-low", 128).await?;
    let proxied = world.registries.behind_proxy("low", "disk-low");
    let image = proxied.image("v1");
    proxied.spoil(Fault::Hold);
    namespace.create_image_warm("app", &image, &node, &[]).await?;
    proxied.until_held().await?;
    let ballast = world.nodes.disk(&node)?.join("ballast");
    std::fs::write(&ballast, vec![1; 110 << 20])?;
    let stopped = namespace.reaches("app", Reason::DiskPressure).await?;
    let message = stopped.ready().map(|ready| ready.message.clone()).unwrap_or_default();
    ensure!(message.contains("larger than expected"), "{message}");
    proxied.heal();
    ensure!(world.nodes.digest(&node, &image).await?.is_none(), "it was pulled to the end");
    std::fs::remove_file(&ballast)?;
    namespace.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &image).await? == Some(app.digest.clone()));
    Ok(())
}

async fn a_runtime_out_of_disk_is_reported(world: &World) -> Result<()> {
    let namespace = world.namespace("disk-out").await?;
    let app = world.registries.push_large("disk-out", "v1").await?;
    let node = world.nodes.join_with_disk("disk-out", 128).await?;
    // Without the guard the runtime itself runs into the wall; alone, since running pulls of other tests'
    // images count as well.
    let flags = ["--keep-free-disk", "0%", "--parallel-pulls", "1"];
    world.warmers.restart_with(&node, &flags).await?;
    let ballast = world.nodes.disk(&node)?.join("ballast");
    std::fs::write(&ballast, vec![1; 95 << 20])?;
    namespace.create_image_warm("app", &app.tag, &node, &[]).await?;
    let failed = namespace.reaches("app", Reason::DiskPressure).await?;
    let message = failed.ready().map(|ready| ready.message.clone()).unwrap_or_default();
    ensure!(message.contains("no space left on device"), "{message}");
    Ok(())
}

async fn an_image_removed_from_docker_is_reported_and_comes_back(world: &World) -> Result<()> {
    let namespace = world.namespace("removed").await?;
    let app = world.registries.push("removed", "v1").await?;
    let image = app.by_digest();
    // Its warmer would not look again within this test: Docker itself has to report it.
    let node = world.nodes.join_with_disk("removed", 128).await?;
    namespace.create_image_warm("app", &image, &node, &[]).await?;
    let first = namespace.reaches("app", Reason::Pulled).await?;
    world.nodes.remove_image(&node, &image).await?;
    eventually("the image is back and reported anew", async || {
        let warm = namespace.image_warms().await?.pop().context("no ImageWarm")?;
        let anew = warm.metadata.resource_version != first.metadata.resource_version;
        let back = world.nodes.digest(&node, &image).await?.is_some();
        Ok((anew && back && warm.reason() == Some(Reason::Pulled)).then_some(()))
    })
    .await?;
    // Who removes it once more means it: then it is not fought.
    world.nodes.remove_image(&node, &image).await?;
    let removed = namespace.reaches("app", Reason::Removed).await?;
    let message = removed.ready().map(|ready| ready.message.clone()).unwrap_or_default();
    ensure!(message.contains("removed 2 times in a row"), "{message}");
    ensure!(world.nodes.digest(&node, &image).await?.is_none(), "it is back already");
    Ok(())
}
