//! A node with containerd beside those with Docker. What each runtime does by itself is the
//! conformance suite's part.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};

use crate::world::{World, containers};

crate::tests![a_containerd_node_is_warmed, of_two_runtimes_the_kubelets_is_taken];

/// Runs `test` with a containerd node that goes afterwards.
async fn with_node(
    world: &World,
    name: &str,
    test: impl AsyncFnOnce(String) -> Result<()>,
) -> Result<()> {
    let node = world.join_containerd_node(name).await?;
    let tested = test(node.clone()).await;
    world.remove_node(&node).await?;
    tested
}

async fn a_containerd_node_is_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("containerd").await?;
    let (tag, digest) = (world.push("cri-tag", "v1").await?, world.push("cri-digest", "v1").await?);
    let private = world.push_private("cri-private", "v1").await?;
    world.pull_secret(&namespace, "regcred", None).await?;
    with_node(world, "containerd", async |node| {
        // Beside the Docker nodes, by a Revision; and what only a person asks for.
        world.revision(&namespace, "hello-00001", containers(&[&tag.tag])).await?;
        world.all_ready(&namespace, 4).await?;
        world.hand_made(&namespace, "digest", &digest.by_digest(), &node, &[]).await?;
        world.hand_made(&namespace, "private", &private.tag, &node, &["regcred"]).await?;
        let warms = world.all_ready(&namespace, 6).await?;
        for (name, pushed) in
            [(&tag.tag, &tag), (&digest.by_digest(), &digest), (&private.tag, &private)]
        {
            ensure!(
                world.node_digest(&node, name).await?.as_ref() == Some(&pushed.digest),
                "{node} does not hold {name}"
            );
            let warm = warms.iter().find(|w| w.spec.node_name == node && w.spec.image == *name);
            let status = warm.and_then(|warm| warm.status.as_ref()).context("no status")?;
            ensure!(status.digest.as_ref() == Some(&pushed.digest), "{name}: {status:?}");
            ensure!(warm.and_then(ImageWarm::reason) == Some(Reason::Pulled), "{name}: {warm:?}");
        }
        Ok(())
    })
    .await
}

async fn of_two_runtimes_the_kubelets_is_taken(world: &World) -> Result<()> {
    let namespace = world.namespace("two-runtimes").await?;
    let app = world.push("two-runtimes", "v1").await?;
    let docker = world.nodes().remove(0);
    let node = world.join_node_between("two-runtimes", &docker).await?;
    let checked = async {
        world.hand_made(&namespace, "app", &app.tag, &node, &[]).await?;
        reaches(world, &namespace, "app", Reason::Pulled).await?;
        ensure!(world.node_digest(&node, &app.tag).await? == Some(app.digest.clone()));
        ensure!(world.node_digest(&docker, &app.tag).await?.is_none(), "the other one has it");
        let (_, said) = world.imagewarm(&["status", "-n", &namespace, "--nodes"]).await?;
        ensure!(said.contains(&node) && said.contains("containerd 1."), "{said}");
        let (_, said) =
            world.imagewarm(&["status", "-n", &namespace, "--nodes", "-o", "json"]).await?;
        let value: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(value["nodes"][0]["images"]["ready"] == 1, "{said}");
        Ok(())
    }
    .await;
    world.remove_node(&node).await?;
    checked
}

/// Waits until the order has this reason.
async fn reaches(world: &World, namespace: &str, name: &str, reason: Reason) -> Result<ImageWarm> {
    let found = world
        .eventually("the order has its reason", async || {
            let warms = world.warms(namespace).await?;
            let warm = warms.into_iter().find(|w| w.metadata.name.as_deref() == Some(name));
            Ok(warm.filter(|warm| warm.reason() == Some(reason)))
        })
        .await;
    match found {
        Ok(warm) => Ok(warm),
        Err(error) => Err(error.context(format!("{:?}", world.warms(namespace).await?))),
    }
}
