//! Parts are taken away: the webhook, the leader, Knative's CRDs. Deploys go on, nothing is
//! deleted by mistake, and everything is warm in the end.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use xtask::cluster::Fault;

use crate::world::{World, containers, eventually};

/// Failed pulls that were tried again for their registry's sake.
const RETRIES: &str = "imagewarm_dispatch_pull_retries_total";

crate::tests![
    a_deploy_without_any_webhook_is_healed,
    the_next_leader_takes_over,
    nodes_heal_together_when_a_registry_returns,
    knative_may_be_absent_come_and_go,
    a_webhook_configuration_is_repaired,
    an_install_in_any_order_ends_ready,
    spoiled_certificates_are_replaced,
];

async fn a_deploy_without_any_webhook_is_healed(world: &World) -> Result<()> {
    let namespace = world.namespace("down").await?;
    let app = world.registries.push("down", "v1").await?;
    world.controllers.stop().await?;
    // failurePolicy Ignore: the deploy is not blocked.
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let warms = namespace.image_warms().await?;
    ensure!(warms.is_empty(), "ImageWarms were made while no controller ran: {warms:?}");
    world.controllers.start().await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn the_next_leader_takes_over(world: &World) -> Result<()> {
    let namespace = world.namespace("leader").await?;
    let first = world.registries.push("leader", "v1").await?;
    namespace.revision("hello-00001", containers(&[&first.tag])).await?;
    namespace.all_ready(3).await?;
    world.controllers.kill_leader().await?;
    let second = world.registries.push("leader", "v2").await?;
    namespace.revision("hello-00002", containers(&[&second.tag])).await?;
    namespace.all_ready(6).await?;
    Ok(())
}

/// Whatever the nodes' own back-offs are by then.
async fn nodes_heal_together_when_a_registry_returns(world: &World) -> Result<()> {
    let namespace = world.namespace("registry-down").await?;
    for tag in ["v1", "v2"] {
        world.registries.push("registry-down", tag).await?;
    }
    let proxied = world.registries.behind_proxy("down", "registry-down");
    // The leader knows the registry: it has served something.
    namespace.revision("hello-00001", containers(&[&proxied.image("v1")])).await?;
    namespace.all_ready(3).await?;
    proxied.spoil(Fault::Status(503, ""));
    namespace.revision("hello-00002", containers(&[&proxied.image("v2")])).await?;
    // Five failures in a row: by itself a node would now wait for ten seconds and more.
    eventually("each node has failed again and again", async || {
        let warms = namespace.image_warms().await?;
        let has_failed = |warm: &&ImageWarm| {
            let attempts = warm.status.as_ref().and_then(|status| status.attempts);
            warm.reason() == Some(Reason::RegistryUnreachable) && attempts >= Some(5)
        };
        Ok((warms.iter().filter(has_failed).count() == 3).then_some(()))
    })
    .await?;
    let retried = async || world.controllers.metric_sum(RETRIES, "").await;
    let before = retried().await?;
    ensure!(before >= 1.0, "no node tried for the others: {before}");
    proxied.heal();
    namespace.all_ready(6).await?;
    ensure!(retried().await? > before, "no node was released");
    Ok(())
}

async fn knative_may_be_absent_come_and_go(world: &World) -> Result<()> {
    let namespace = world.namespace("crds").await?;
    let (app, by_hand) =
        (world.registries.push("crds", "v1").await?, world.registries.push("crds", "hand").await?);
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let node = world.nodes.names()[0];
    namespace.create_image_warm("by-hand", &by_hand.tag, node, &[]).await?;
    let before = namespace.all_ready(4).await?;
    // With the CRDs go all Revisions and Configurations: but not one ImageWarm on our account.
    namespace.orphan_image_warms().await?;
    world.installation.remove_knative().await?;
    world.controllers.restart().await?; // ready without Knative's CRDs
    world.leader_has_caught_up_without_knative().await?;
    let after = namespace.image_warms().await?;
    ensure!(after.len() == before.len(), "{} of {} ImageWarms are left", after.len(), before.len());
    world.installation.install_knative().await?;
    // Found again without a restart: a new Revision's images arrive.
    let next = world.registries.push("crds", "v2").await?;
    namespace.revision("hello-00002", containers(&[&next.tag])).await?;
    eventually("the new Revision's images are on every node", async || {
        for node in world.nodes.names() {
            if world.nodes.digest(node, &next.tag).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn a_webhook_configuration_is_repaired(world: &World) -> Result<()> {
    world.installation.break_ca_bundles().await?;
    world.installation.until_ca_bundles_are_right().await?;
    // Applying the manifests again, as every upgrade does, wipes neither CA nor owner.
    world.installation.apply().await?;
    ensure!(world.installation.ca_bundles_are_right().await?, "an apply wiped the CA");
    ensure!(world.installation.webhooks_are_owned().await?, "an apply wiped the owner");
    admission_denies(world).await?;
    let namespace = world.namespace("repaired").await?;
    let app = world.registries.push("repaired", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn an_install_in_any_order_ends_ready(world: &World) -> Result<()> {
    world.controllers.stop().await?;
    world.installation.delete_webhooks_and_certificates().await?;
    // The controllers come before the webhook configurations: alive, and not ready.
    world.controllers.start_unready().await?;
    eventually("readiness shows what is missing", async || {
        let answers = world.controllers.readiness().await?;
        Ok(answers.iter().all(|text| text.contains("[-] caBundle")).then_some(()))
    })
    .await?;
    world.installation.apply().await?;
    world.controllers.until_ready().await?;
    ensure!(world.installation.ca_bundles_are_right().await?, "ready without the right CA");
    ensure!(
        world.installation.webhooks_are_owned().await?,
        "an uninstall would leave the webhooks behind"
    );
    admission_denies(world).await?;
    let namespace = world.namespace("install").await?;
    let app = world.registries.push("install", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    // The warmers find the new CA by themselves.
    namespace.all_ready(3).await?;
    Ok(())
}

async fn spoiled_certificates_are_replaced(world: &World) -> Result<()> {
    world.installation.spoil_certificates().await?;
    let restarted = world.controllers.restart().await;
    let is_spoiled = world.installation.certificates_are_spoiled().await?;
    ensure!(!is_spoiled, "nobody replaced the Secret: {restarted:?}");
    restarted?;
    ensure!(world.installation.ca_bundles_are_right().await?, "ready without the right CA");
    admission_denies(world).await?;
    let namespace = world.namespace("spoiled").await?;
    let app = world.registries.push("spoiled", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

/// The webhook itself answers through the API server: an ImageWarm with a malformed image is denied
/// with its message. That a Revision is warmed would show nothing, since the leader repairs it.
async fn admission_denies(world: &World) -> Result<()> {
    let verdict = world.controllers.probe_admission("App").await?;
    let denial = verdict.denial_by_webhook()?;
    ensure!(denial.contains("spec.image"), "{denial}");
    Ok(())
}
