//! Many nodes and one registry: what it has to bear of all of them together.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::Reason;
use serde_json::json;
use xtask::cluster::Fault;

use crate::world::{World, containers};

crate::tests![one_node_finds_out_for_all, pulls_of_all_nodes_share_one_limit];

async fn one_node_finds_out_for_all(world: &World) -> Result<()> {
    let namespace = world.namespace("herd-canary").await?;
    let app = world.push_private("herd-canary", "v1").await?;
    world.pull_secret(&namespace, "regcred", Some("canary-mistyped")).await?;
    let checked = async {
        // Long enough that nobody loses patience with a slow machine.
        let flags = ["--canary-nodes", "2", "--canary-patience", "1m"];
        world.restart_controllers_with(&flags).await?;
        let connected = async || {
            let nodes = world.metric_sum("imagewarm_dispatch_nodes_connected", "").await?;
            Ok((nodes >= 3.0).then_some(()))
        };
        world.eventually("all warmers are connected", connected).await?;
        let mut spec = containers(&[&app.tag]);
        spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
        world.revision(&namespace, "hello-00001", spec).await?;
        let warms = world.all_failed(&namespace, 3, Reason::Unauthorized).await?;
        let told = |warm: &imagewarm_core::api::ImageWarm| {
            let message = warm.ready().map(|ready| ready.message.clone()).unwrap_or_default();
            message.starts_with("not tried, since node-")
        };
        // On a slow machine one may come so late that it has to find out anew.
        ensure!(warms.iter().any(told), "{warms:?}");
        let saved = world.metric_sum("imagewarm_dispatch_canary_refusals_total", "").await?;
        ensure!(saved >= 1.0, "{saved} pulls were saved");
        // What mends the one mends them all.
        world.mend_pull_secret(&namespace, "regcred").await?;
        world.all_ready(&namespace, 3).await?;
        Ok(())
    }
    .await;
    world.restart_controllers().await?;
    checked
}

async fn pulls_of_all_nodes_share_one_limit(world: &World) -> Result<()> {
    let namespace = world.namespace("herd-limit").await?;
    world.push("herd-limit", "v1").await?;
    let (proxy, repository) = (&world.cluster.registry_proxy, "herd/herd-limit");
    let image = format!("{}/{repository}:v1", proxy.address());
    proxy.set(repository, Some(Fault::Hold));
    let checked = async {
        world.restart_controllers_with(&["--registry-pulls", "1"]).await?;
        world.revision(&namespace, "hello-00001", containers(&[&image])).await?;
        let one = async || {
            let warms = world.warms(&namespace).await?;
            let of = |reason| warms.iter().filter(|warm| warm.reason() == Some(reason)).count();
            let told = of(Reason::Pulling) == 1 && of(Reason::Queued) == 2;
            Ok((told && proxy.holding(repository) > 0).then_some(()))
        };
        world.eventually("one node pulls and two wait", one).await.context("no limit")?;
        proxy.set(repository, None);
        world.all_ready(&namespace, 3).await?;
        Ok(())
    }
    .await;
    proxy.set(repository, None);
    world.restart_controllers().await?;
    checked
}
