//! A node with containerd beside those with Docker. What each runtime does by itself is the
//! conformance suite's part.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};

use crate::world::{World, containers};

crate::tests![a_containerd_node_is_warmed, of_two_runtimes_the_kubelets_is_taken];

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
