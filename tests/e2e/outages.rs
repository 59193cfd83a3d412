//! Parts are taken away: the webhook, the leader, Knative's CRDs. Deploys go on, nothing is
//! deleted by mistake, and everything is warm in the end.

use anyhow::{Result, ensure};

use crate::world::{World, containers};

crate::tests![
    a_deploy_without_any_webhook_is_healed,
    the_next_leader_takes_over,
    knative_may_be_absent_come_and_go,
    a_webhook_configuration_is_repaired,
    an_install_in_any_order_ends_ready,
    spoiled_certificates_are_replaced,
];

async fn a_deploy_without_any_webhook_is_healed(world: &World) -> Result<()> {
    let namespace = world.namespace("down").await?;
    let app = world.push("down", "v1").await?;
    world.stop_controllers().await?;
    // failurePolicy Ignore: the deploy is not blocked.
    let made = world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await;
    let none = world.warms(&namespace).await.map(|warms| warms.is_empty());
    world.start_controllers().await?;
    made?;
    ensure!(none?, "ImageWarms were made while no controller ran");
    world.all_ready(&namespace, 3).await?;
    Ok(())
}

async fn the_next_leader_takes_over(world: &World) -> Result<()> {
    let namespace = world.namespace("leader").await?;
    let first = world.push("leader", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&first.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let killed = world.kill_leader().await?;
    let second = world.push("leader", "v2").await?;
    let made = world.revision(&namespace, "hello-00002", containers(&[&second.tag])).await;
    let warmed = world.all_ready(&namespace, 6).await;
    world.restart_controller(&killed).await?;
    made?;
    warmed?;
    Ok(())
}

async fn knative_may_be_absent_come_and_go(world: &World) -> Result<()> {
    let namespace = world.namespace("crds").await?;
    let (app, by_hand) = (world.push("crds", "v1").await?, world.push("crds", "hand").await?);
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    let node = world.nodes().remove(0);
    world.hand_made(&namespace, "by-hand", &by_hand.tag, &node, &[]).await?;
    let before = world.all_ready(&namespace, 4).await?;
    // With the CRDs go all Revisions and Configurations: but not one ImageWarm on our account.
    world.orphan_image_warms(&namespace).await?;
    world.remove_knative().await?;
    let checked = async {
        world.restart_controllers().await?; // ready without Knative's CRDs
        world.leader_has_caught_up_without_knative().await?;
        let after = world.warms(&namespace).await?;
        ensure!(
            after.len() == before.len(),
            "{} of {} ImageWarms are left",
            after.len(),
            before.len()
        );
        Ok(())
    }
    .await;
    world.install_knative().await?;
    checked?;
    // Found again without a restart: a new Revision's images arrive.
    let next = world.push("crds", "v2").await?;
    world.revision(&namespace, "hello-00002", containers(&[&next.tag])).await?;
    world
        .eventually("the new Revision's images are on every node", async || {
            for node in world.nodes() {
                if world.node_digest(&node, &next.tag).await?.is_none() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
}

async fn a_webhook_configuration_is_repaired(world: &World) -> Result<()> {
    world.break_ca_bundle().await?;
    world
        .eventually("the leader puts the CA back", async || {
            Ok(world.ca_bundle_is_right().await?.then_some(()))
        })
        .await?;
    // Applying the manifests again, as every upgrade does, wipes neither CA nor owner.
    world.apply_manifests().await?;
    ensure!(world.ca_bundle_is_right().await?, "an apply wiped the CA");
    ensure!(world.webhooks_are_owned().await?, "an apply wiped the owner");
    let namespace = world.namespace("repaired").await?;
    let app = world.push("repaired", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    Ok(())
}

async fn an_install_in_any_order_ends_ready(world: &World) -> Result<()> {
    world.stop_controllers().await?;
    world.delete_webhooks_and_certificates().await?;
    // The controllers come before the webhook configurations: alive, and not ready.
    world.start_controllers_unready().await?;
    let told = world
        .eventually("readiness tells what is missing", async || {
            let said = world.readiness().await?;
            Ok(said.iter().all(|text| text.contains("[-] caBundle")).then_some(()))
        })
        .await;
    world.apply_manifests().await?;
    world.controllers_are_ready().await?;
    told?;
    ensure!(world.ca_bundle_is_right().await?, "ready without the right CA");
    ensure!(world.webhooks_are_owned().await?, "an uninstall would leave the webhooks behind");
    let namespace = world.namespace("install").await?;
    let app = world.push("install", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    // The warmers find the new CA by themselves.
    world.all_ready(&namespace, 3).await?;
    Ok(())
}

async fn spoiled_certificates_are_replaced(world: &World) -> Result<()> {
    world.spoil_certificates().await?;
    let restarted = world.restart_controllers().await;
    ensure!(!world.certificates_are_spoiled().await?, "nobody replaced the Secret: {restarted:?}");
    restarted?;
    ensure!(world.ca_bundle_is_right().await?, "ready without the right CA");
    let namespace = world.namespace("spoiled").await?;
    let app = world.push("spoiled", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    Ok(())
}
