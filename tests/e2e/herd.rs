//! Many nodes and one registry: what it has to bear of all of them together.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::Reason;
use serde_json::json;
use xtask::cluster::Fault;

use crate::world::{World, containers, eventually};

crate::tests![two_nodes_find_out_for_all, pulls_of_all_nodes_share_one_limit];

async fn two_nodes_find_out_for_all(world: &World) -> Result<()> {
    let namespace = world.namespace("herd-canary").await?;
    let app = world.registries.push_private("herd-canary", "v1").await?;
    namespace.pull_secret("regcred", Some("canary-mistyped")).await?;
    let flags = ["--canary-nodes", "2", "--canary-timeout", "1h"];
    world.controllers.restart_with(&flags).await?;
    world.controllers.until_all_connected().await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    let private = world.registries.private()?;
    world.registries.freeze(private);
    namespace.revision("hello-00001", spec).await?;
    // The first node may have asked before there was a second ImageWarm: it pulls beside the canary.
    eventually("all three nodes have asked", async || {
        let running =
            world.controllers.metric_sum("imagewarm_dispatch_pulls_in_flight", "").await?;
        let waiting = world.controllers.metric_sum("imagewarm_dispatch_pulls_waiting", "").await?;
        Ok((waiting >= 1.0 && running + waiting == 3.0).then_some(()))
    })
    .await?;
    private.thaw();
    let warms = namespace.all_failed(3, Reason::Unauthorized).await?;
    let is_untried = |warm: &&imagewarm_core::api::ImageWarm| {
        let message = warm.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        message.starts_with("not tried, since node-")
    };
    ensure!(warms.iter().filter(is_untried).count() == 1, "{warms:?}");
    let saved =
        world.controllers.metric_sum("imagewarm_dispatch_canary_refusals_total", "").await?;
    ensure!(saved >= 1.0, "{saved} pulls were saved");
    // What corrects the one corrects them all.
    namespace.correct_pull_secret("regcred").await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn pulls_of_all_nodes_share_one_limit(world: &World) -> Result<()> {
    let namespace = world.namespace("herd-limit").await?;
    world.registries.push("herd-limit", "v1").await?;
    let proxied = world.registries.behind_proxy("herd", "herd-limit");
    let image = proxied.image("v1");
    proxied.spoil(Fault::Hold);
    world.controllers.restart_with(&["--registry-pulls", "1"]).await?;
    namespace.revision("hello-00001", containers(&[&image])).await?;
    let one = async || {
        let warms = namespace.image_warms().await?;
        let of = |reason| warms.iter().filter(|warm| warm.reason() == Some(reason)).count();
        let is_so = of(Reason::Pulling) == 1 && of(Reason::Queued) == 2;
        Ok((is_so && proxied.held() > 0).then_some(()))
    };
    eventually("one node pulls and two wait", one).await.context("no limit")?;
    proxied.heal();
    namespace.all_ready(3).await?;
    Ok(())
}
