//! Nodes come, go and lose their warmers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use serde_json::json;

use crate::world::{World, containers, eventually};

crate::tests![
    a_new_node_is_warmed,
    node_selectors_and_tolerations_are_honoured,
    runtime_classes_are_honoured,
    a_restarted_warmer_changes_no_ready_and_pulls_nothing_twice,
    a_node_without_a_warmer_is_reported,
    a_deleted_nodes_image_warms_are_deleted,
    nothing_outlives_nodes_that_come_and_go,
    a_runtime_that_is_not_the_kubelets_is_not_used,
];

async fn a_new_node_is_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("joins").await?;
    let app = world.registries.push("joins", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let joined = world.nodes.join("late").await?;
    let warms = namespace.all_ready(4).await?;
    ensure!(warms.iter().any(|warm| warm.spec.node_name == joined), "{warms:?}");
    ensure!(world.nodes.digest(&joined, &app.tag).await? == Some(app.digest.clone()), "{joined}");
    Ok(())
}

async fn node_selectors_and_tolerations_are_honoured(world: &World) -> Result<()> {
    let namespace = world.namespace("where").await?;
    let (plain, tolerant) = (
        world.registries.push("where", "plain").await?,
        world.registries.push("where", "tolerant").await?,
    );
    let nodes = world.nodes.names();
    world.nodes.label(nodes[0], "zone", "a").await?;
    world.nodes.taint(nodes[1], "dedicated", "NoSchedule").await?;
    let mut selected = containers(&[&plain.tag]);
    selected["nodeSelector"] = json!({"zone": "a"});
    namespace.revision("selected-00001", selected).await?;
    let mut tolerating = containers(&[&tolerant.tag]);
    tolerating["tolerations"] = json!([{"key": "dedicated", "operator": "Exists"}]);
    namespace.revision("tolerating-00001", tolerating).await?;
    let warms = namespace.all_ready(4).await?;
    let on = |tag: &str| {
        let mut names: Vec<_> = warms
            .iter()
            .filter(|w| w.spec.image == tag)
            .map(|w| w.spec.node_name.clone())
            .collect();
        names.sort();
        names
    };
    ensure!(on(&plain.tag) == [nodes[0]], "{warms:?}");
    ensure!(on(&tolerant.tag) == nodes, "{warms:?}");
    Ok(())
}

async fn runtime_classes_are_honoured(world: &World) -> Result<()> {
    let namespace = world.namespace("classes").await?;
    let (sandboxed, plain) = (
        world.registries.push("classes", "sandboxed").await?,
        world.registries.push("classes", "plain").await?,
    );
    let nodes = world.nodes.names();
    let mut spec = containers(&[&sandboxed.tag]);
    spec["runtimeClassName"] = json!("sandboxed");
    namespace.revision("sandboxed-00001", spec).await?;
    namespace.revision("plain-00001", containers(&[&plain.tag])).await?;
    // Pods of a RuntimeClass that does not exist are rejected: no node is warmed for them.
    let warms = namespace.all_ready(3).await?;
    ensure!(warms.iter().all(|warm| warm.spec.image == plain.tag), "{warms:?}");

    world.installation.create_runtime_class("sandboxed", nodes[1]).await?;
    let mut warms = namespace.all_ready(4).await?;
    warms.retain(|warm| warm.spec.image == sandboxed.tag);
    ensure!(warms.len() == 1 && warms[0].spec.node_name == nodes[1], "{warms:?}");
    Ok(())
}

async fn a_restarted_warmer_changes_no_ready_and_pulls_nothing_twice(world: &World) -> Result<()> {
    let namespace = world.namespace("restart").await?;
    let app = world.registries.push("restart", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let before = namespace.all_ready(3).await?;
    let node = world.nodes.names()[0];
    world.warmers.restart(node).await?;
    // Another ImageWarm of that node proves that the new stream is at work.
    let next = world.registries.push("restart", "v2").await?;
    namespace.create_image_warm("after", &next.tag, node, &[]).await?;
    let after = namespace.all_ready(4).await?;
    for old in &before {
        let new = after.iter().find(|new| new.metadata.uid == old.metadata.uid);
        ensure!(
            new.map(|new| &new.metadata.resource_version) == Some(&old.metadata.resource_version),
            "the restart wrote to {old:?}: {new:?}"
        );
    }
    Ok(())
}

async fn a_node_without_a_warmer_is_reported(world: &World) -> Result<()> {
    let namespace = world.namespace("silent").await?;
    let ready = world.registries.push("silent", "v1").await?;
    let node = world.nodes.names()[1];
    namespace.create_image_warm("ready-before", &ready.tag, node, &[]).await?;
    namespace.all_ready(1).await?;
    world.warmers.stop(node).await?;
    let late = world.registries.push("silent", "v2").await?;
    namespace.create_image_warm("waits", &late.tag, node, &[]).await?;
    namespace.reaches("waits", Reason::WaitingForWarmer).await?;
    namespace.reaches("ready-before", Reason::Pulled).await?;
    world.warmers.start(node).await?;
    namespace.all_ready(2).await?;
    Ok(())
}

async fn a_deleted_nodes_image_warms_are_deleted(world: &World) -> Result<()> {
    let namespace = world.namespace("leaves").await?;
    let app = world.registries.push("leaves", "v1").await?;
    let joined = world.nodes.join("leaves").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(4).await?;
    world.nodes.remove(&joined).await?;
    eventually("the ImageWarms of the deleted node are deleted, and only those", async || {
        let warms = namespace.image_warms().await?;
        ensure!(warms.len() >= 3, "ImageWarms of living nodes were deleted: {warms:?}");
        Ok((warms.len() == 3).then_some(()))
    })
    .await
}

/// 200 nodes, of which 20 names come back with other nodes.
async fn nothing_outlives_nodes_that_come_and_go(world: &World) -> Result<()> {
    const NODES: usize = 200;
    const BACK: usize = 20;
    let namespace = world.namespace("churn").await?;
    let app = world.registries.push("churn", "v1").await?;
    let nodes = world.nodes.create_fake("churn", NODES).await?;
    let mut spec = containers(&[&app.tag]);
    spec["nodeSelector"] = json!({"pool": "churn"});
    spec["tolerations"] = json!([{"key": "pool", "operator": "Exists"}]);
    namespace.revision("hello-00001", spec).await?;
    let reported = async |count: usize| {
        eventually(&format!("{count} ImageWarms wait for their warmers"), async || {
            let warms = namespace.image_warms().await?;
            let waits = |warm: &ImageWarm| warm.reason() == Some(Reason::WaitingForWarmer);
            Ok((warms.len() == count && warms.iter().all(waits)).then_some(warms))
        })
        .await
    };
    let before = reported(NODES).await?;

    world.nodes.delete_objects(&nodes).await?;
    let came_back = &nodes[..BACK];
    world.nodes.create_again("churn", came_back).await?;
    let after = reported(BACK).await?;
    for warm in &after {
        ensure!(came_back.contains(&warm.spec.node_name), "{warm:?}");
        let same = before.iter().any(|old| old.metadata.uid == warm.metadata.uid);
        ensure!(!same, "what was of the node before is still there: {warm:?}");
    }
    // One status for each ImageWarm, and none for nodes that have left.
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
    for request in world.audit.of_controllers_in(&namespace.name)? {
        if request.resource == "imagewarms/status" && request.status < 300 {
            *writes.entry(request.name).or_default() += 1;
        }
    }
    for warm in &before {
        let is_back = came_back.contains(&warm.spec.node_name);
        let expected = if is_back { 2 } else { 1 };
        let name = warm.metadata.name.as_deref().unwrap_or_default();
        let found = writes.get(name).copied().unwrap_or_default();
        ensure!(found == expected, "{name}: {found} statuses written, not {expected}");
    }
    ensure!(namespace.events(Reason::WaitingForWarmer).await?.is_empty(), "an Event was written");
    Ok(())
}

async fn a_runtime_that_is_not_the_kubelets_is_not_used(world: &World) -> Result<()> {
    let namespace = world.namespace("other-runtime").await?;
    let app = world.registries.push("other-runtime", "v1").await?;
    let node = world.nodes.join("other-runtime").await?;
    // Its Pods run elsewhere: dockerd is the only runtime that the warmer finds.
    let reported = world.nodes.report_runtime(&node, "containerd://2.1.4").await?;
    world.warmers.restart(&node).await?;
    namespace.create_image_warm("app", &app.tag, &node, &[]).await?;
    let refused = namespace.reaches("app", Reason::RuntimeMismatch).await?;
    let message = refused.ready().map(|ready| ready.message.clone()).unwrap_or_default();
    for part in ["containerd://2.1.4", "is docker ", "--runtime-endpoint unix:///PATH"] {
        ensure!(message.contains(part), "no {part:?} in {message:?}");
    }
    ensure!(world.nodes.digest(&node, &app.tag).await?.is_none(), "it was pulled");
    // As after an upgrade of the runtime, which the kubelet reports a moment later.
    world.nodes.report_runtime(&node, &reported).await?;
    namespace.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &app.tag).await? == Some(app.digest.clone()));
    Ok(())
}
