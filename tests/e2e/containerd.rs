//! A node with containerd beside those with Docker. What each runtime does by itself is the
//! conformance suite's part.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Progress, Reason};
use xtask::cluster::Fault;

use crate::world::{Namespace, World, containers};

crate::tests![
    a_containerd_node_is_warmed,
    of_two_runtimes_the_kubelets_is_taken,
    the_bytes_of_a_running_pull_are_shown,
];

async fn a_containerd_node_is_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("containerd").await?;
    let (tag, digest) = (
        world.registries.push("cri-tag", "v1").await?,
        world.registries.push("cri-digest", "v1").await?,
    );
    let private = world.registries.push_private("cri-private", "v1").await?;
    namespace.pull_secret("regcred", None).await?;
    let node = world.nodes.join_with_containerd("containerd").await?;
    // Beside the Docker nodes, by a Revision; and what only a person asks for.
    namespace.revision("hello-00001", containers(&[&tag.tag])).await?;
    namespace.all_ready(4).await?;
    namespace.create_image_warm("digest", &digest.by_digest(), &node, &[]).await?;
    namespace.create_image_warm("private", &private.tag, &node, &["regcred"]).await?;
    let warms = namespace.all_ready(6).await?;
    for (name, pushed) in
        [(&tag.tag, &tag), (&digest.by_digest(), &digest), (&private.tag, &private)]
    {
        ensure!(
            world.nodes.digest(&node, name).await?.as_ref() == Some(&pushed.digest),
            "{node} does not hold {name}"
        );
        let warm = warms.iter().find(|w| w.spec.node_name == node && w.spec.image == *name);
        let status = warm.and_then(|warm| warm.status.as_ref()).context("no status")?;
        ensure!(status.digest.as_ref() == Some(&pushed.digest), "{name}: {status:?}");
        ensure!(warm.and_then(ImageWarm::reason) == Some(Reason::Pulled), "{name}: {warm:?}");
    }
    Ok(())
}

async fn of_two_runtimes_the_kubelets_is_taken(world: &World) -> Result<()> {
    let namespace = world.namespace("two-runtimes").await?;
    let app = world.registries.push("two-runtimes", "v1").await?;
    let docker = world.nodes.names()[0];
    let node = world.nodes.join_between("two-runtimes", docker).await?;
    namespace.create_image_warm("app", &app.tag, &node, &[]).await?;
    namespace.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &app.tag).await? == Some(app.digest.clone()));
    ensure!(world.nodes.digest(docker, &app.tag).await?.is_none(), "the other one has it");
    let (_, output) =
        world.commands.imagewarm(&["status", "-n", &namespace.name, "--nodes"]).await?;
    ensure!(output.contains(&node) && output.contains("containerd 1."), "{output}");
    let (_, output) = world
        .commands
        .imagewarm(&["status", "-n", &namespace.name, "--nodes", "-o", "json"])
        .await?;
    let value: serde_json::Value = serde_json::from_str(&output)?;
    ensure!(value["nodes"][0]["images"]["ready"] == 1, "{output}");
    Ok(())
}

async fn the_bytes_of_a_running_pull_are_shown(world: &World) -> Result<()> {
    const LAYERS: [usize; 2] = [16_000_000, 8_000_000];
    let namespace = world.namespace("bytes").await?;
    let image = world.registries.push_layers(&LAYERS, "cri-bytes", "v1").await?;
    // Another image of the repository is there, and no byte of it counts.
    let other = world.registries.push("cri-bytes", "v0").await?;
    let proxied = world.registries.behind_proxy("bytes", "cri-bytes");
    let node = world.nodes.join_with_containerd("bytes").await?;
    namespace.create_image_warm("other", &proxied.image("v0"), &node, &[]).await?;
    namespace.reaches("other", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &proxied.image("v0")).await? == Some(other.digest));

    proxied.spoil(Fault::HoldAt(25));
    namespace.create_image_warm("app", &proxied.image("v1"), &node, &[]).await?;
    let first = shown(&namespace, |bytes| bytes.downloaded_bytes > 0).await?;
    let quarter = first.total_bytes / 4;
    proxied.spoil(Fault::HoldAt(75));
    let next = shown(&namespace, |bytes| bytes.downloaded_bytes > quarter).await?;
    // A layer is an archive, with a few headers around the content.
    let content = i64::try_from(LAYERS.iter().sum::<usize>())?;
    ensure!((content..content + 40_000).contains(&first.total_bytes), "{first:?}");
    ensure!(first.downloaded_bytes <= quarter, "more than was sent: {first:?}");
    ensure!(next.total_bytes == first.total_bytes, "{first:?}, then {next:?}");
    ensure!(next.downloaded_bytes <= 3 * quarter + 3, "more than was sent: {next:?}");
    proxied.heal();
    let warm = namespace.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &proxied.image("v1")).await? == Some(image.digest));
    ensure!(warm.status.is_some_and(|status| status.progress.is_none()), "progress of no pull");
    Ok(())
}

/// The bytes that the status of `app` shows, once they are as wanted.
async fn shown(namespace: &Namespace, wanted: impl Fn(&Progress) -> bool) -> Result<Progress> {
    let bytes = |warm: &ImageWarm| warm.status.as_ref().and_then(|status| status.progress);
    let is_shown = |warm: &ImageWarm| bytes(warm).is_some_and(|bytes| wanted(&bytes));
    let warm = namespace.until("app", "its bytes are shown", is_shown).await?;
    bytes(&warm).context("no progress")
}
