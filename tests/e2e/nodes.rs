//! Nodes come, go and lose their warmers.

use anyhow::{Result, ensure};
use imagewarm_core::api::Reason;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use serde_json::json;

use crate::world::{World, containers};

crate::tests![
    a_new_node_is_warmed,
    node_selectors_and_tolerations_are_honoured,
    runtime_classes_are_honoured,
    a_restarted_warmer_changes_no_ready_and_pulls_nothing_twice,
    a_node_without_a_warmer_is_told,
    a_deleted_nodes_orders_go,
];

async fn a_new_node_is_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("joins").await?;
    let app = world.push("joins", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let joined = world.join_node("late").await?;
    let checked = async {
        let warms = world.all_ready(&namespace, 4).await?;
        ensure!(warms.iter().any(|warm| warm.spec.node_name == joined), "{warms:?}");
        ensure!(
            world.node_digest(&joined, &app.tag).await? == Some(app.digest.clone()),
            "{joined}"
        );
        Ok(())
    }
    .await;
    world.remove_node(&joined).await?;
    checked
}

async fn node_selectors_and_tolerations_are_honoured(world: &World) -> Result<()> {
    let namespace = world.namespace("where").await?;
    let (plain, tolerant) =
        (world.push("where", "plain").await?, world.push("where", "tolerant").await?);
    let nodes = world.nodes();
    world.label_node(&nodes[0], "zone", Some("a")).await?;
    world.taint_node(&nodes[1], Some(("dedicated", "NoSchedule"))).await?;
    let checked = async {
        let mut selected = containers(&[&plain.tag]);
        selected["nodeSelector"] = json!({"zone": "a"});
        world.revision(&namespace, "selected-00001", selected).await?;
        let mut tolerating = containers(&[&tolerant.tag]);
        tolerating["tolerations"] = json!([{"key": "dedicated", "operator": "Exists"}]);
        world.revision(&namespace, "tolerating-00001", tolerating).await?;
        let warms = world.all_ready(&namespace, 4).await?;
        let on = |tag: &str| {
            let mut names: Vec<_> = warms
                .iter()
                .filter(|w| w.spec.image == tag)
                .map(|w| w.spec.node_name.clone())
                .collect();
            names.sort();
            names
        };
        ensure!(on(&plain.tag) == [nodes[0].clone()], "{warms:?}");
        ensure!(on(&tolerant.tag) == nodes, "{warms:?}");
        Ok(())
    }
    .await;
    world.label_node(&nodes[0], "zone", None).await?;
    world.taint_node(&nodes[1], None).await?;
    checked
}

async fn runtime_classes_are_honoured(world: &World) -> Result<()> {
    let namespace = world.namespace("classes").await?;
    let (sandboxed, plain) =
        (world.push("classes", "sandboxed").await?, world.push("classes", "plain").await?);
    let nodes = world.nodes();
    let mut spec = containers(&[&sandboxed.tag]);
    spec["runtimeClassName"] = json!("sandboxed");
    world.revision(&namespace, "sandboxed-00001", spec).await?;
    world.revision(&namespace, "plain-00001", containers(&[&plain.tag])).await?;
    // Pods of a RuntimeClass that does not exist are rejected: no node is warmed for them.
    let warms = world.all_ready(&namespace, 3).await?;
    ensure!(warms.iter().all(|warm| warm.spec.image == plain.tag), "{warms:?}");

    let classes: Api<RuntimeClass> = Api::all(world.client());
    let class = serde_json::from_value(json!({
        "metadata": {"name": "sandboxed"}, "handler": "sandbox",
        "scheduling": {"nodeSelector": {"kubernetes.io/hostname": nodes[1]}},
    }))?;
    classes.create(&Default::default(), &class).await?;
    let checked = async {
        let mut warms = world.all_ready(&namespace, 4).await?;
        warms.retain(|warm| warm.spec.image == sandboxed.tag);
        ensure!(warms.len() == 1 && warms[0].spec.node_name == nodes[1], "{warms:?}");
        Ok(())
    }
    .await;
    classes.delete("sandboxed", &Default::default()).await?;
    checked
}

async fn a_restarted_warmer_changes_no_ready_and_pulls_nothing_twice(world: &World) -> Result<()> {
    let namespace = world.namespace("restart").await?;
    let app = world.push("restart", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    let before = world.all_ready(&namespace, 3).await?;
    let node = world.nodes().remove(0);
    world.restart_warmer(&node).await?;
    // Another order of that node proves that the new stream is at work.
    let next = world.push("restart", "v2").await?;
    world.hand_made(&namespace, "after", &next.tag, &node, &[]).await?;
    let after = world.all_ready(&namespace, 4).await?;
    for old in &before {
        let new = after.iter().find(|new| new.metadata.uid == old.metadata.uid);
        ensure!(
            new.map(|new| &new.metadata.resource_version) == Some(&old.metadata.resource_version),
            "the restart wrote to {old:?}: {new:?}"
        );
    }
    Ok(())
}

async fn a_node_without_a_warmer_is_told(world: &World) -> Result<()> {
    let namespace = world.namespace("silent").await?;
    let ready = world.push("silent", "v1").await?;
    let node = world.nodes().remove(1);
    world.hand_made(&namespace, "ready-before", &ready.tag, &node, &[]).await?;
    world.all_ready(&namespace, 1).await?;
    world.stop_warmer(&node).await?;
    let checked = async {
        let late = world.push("silent", "v2").await?;
        world.hand_made(&namespace, "waits", &late.tag, &node, &[]).await?;
        world
            .eventually("the order without a warmer says so", async || {
                let warms = world.warms(&namespace).await?;
                let waits = warms.iter().find(|w| w.metadata.name.as_deref() == Some("waits"));
                Ok((waits.and_then(|w| w.reason()) == Some(Reason::WaitingForWarmer)).then_some(()))
            })
            .await?;
        let warms = world.warms(&namespace).await?;
        let before = warms.iter().find(|w| w.metadata.name.as_deref() == Some("ready-before"));
        ensure!(before.and_then(|w| w.reason()) == Some(Reason::Pulled), "{before:?}");
        Ok(())
    }
    .await;
    world.start_warmer(&node).await?;
    checked?;
    world.all_ready(&namespace, 2).await?;
    Ok(())
}

async fn a_deleted_nodes_orders_go(world: &World) -> Result<()> {
    let namespace = world.namespace("leaves").await?;
    let app = world.push("leaves", "v1").await?;
    let joined = world.join_node("leaves").await?;
    let revision = world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await;
    let warmed = world.all_ready(&namespace, 4).await;
    world.remove_node(&joined).await?;
    revision?;
    warmed?;
    world
        .eventually("the gone node's orders are deleted, and only those", async || {
            let warms = world.warms(&namespace).await?;
            ensure!(warms.len() >= 3, "orders of living nodes were deleted: {warms:?}");
            Ok((warms.len() == 3).then_some(()))
        })
        .await
}
