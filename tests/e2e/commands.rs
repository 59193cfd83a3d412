//! The commands that people call, against the running system.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};
use imagewarm_core::api::Reason;
use serde_json::Value;
use xtask::cluster::Fault;

use crate::world::{World, containers, eventually};

crate::tests![
    status_shows_nodes_images_and_reasons,
    watching_ends_by_itself,
    a_service_is_waited_for_and_explained,
    waiting_ends_in_time,
    warming_by_hand_ends_with_its_time,
    a_report_has_what_kubelets_said,
    kubectl_shows_and_explains_image_warms,
    field_selectors_find_a_nodes_image_warms,
];

async fn status_shows_nodes_images_and_reasons(world: &World) -> Result<()> {
    let namespace = world.namespace("status").await?;
    let (code, output) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 0 && !output.is_empty(), "nothing to show is no failure: {code}\n{output}");
    let app = world.registries.push("status", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let (code, output) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 0, "{code}\n{output}");
    for part in [&app.tag, "node-1", "node-2", "node-3", "Pulled", "3 of 3 ready"] {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    let missing = app.tag.replace(":v1", ":v9");
    namespace.create_image_warm("bad", &missing, "node-1", &[]).await?;
    eventually("the ImageWarm failed", async || {
        let warms = namespace.image_warms().await?;
        Ok(warms.iter().any(|warm| warm.reason() == Some(Reason::NotFound)).then_some(()))
    })
    .await?;
    let (code, output) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 1, "an image that is missing is a failure: {code}\n{output}");
    for part in ["NotFound", "3 of 4 ready", &missing] {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    Ok(())
}

async fn watching_ends_by_itself(world: &World) -> Result<()> {
    let namespace = world.namespace("watch").await?;
    world.registries.push("watch", "v1").await?;
    let proxied = world.registries.behind_proxy("watch", "watch");
    proxied.spoil(Fault::Hold);
    namespace.revision("hello-00001", containers(&[&proxied.image("v1")])).await?;
    proxied.until_held().await?;
    let healed = Cell::new(false);
    let arguments = ["status", "-n", &namespace.name, "--watch"];
    let watching = async {
        let (code, output) = world.commands.imagewarm(&arguments).await?;
        ensure!(healed.get(), "the watch did not wait: {code}\n{output}");
        ensure!(code == 0 && output.contains("3 of 3 ready"), "{code}\n{output}");
        Ok(())
    };
    let healing = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        healed.set(true);
        proxied.heal();
        anyhow::Ok(())
    };
    tokio::try_join!(watching, healing)?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn a_service_is_waited_for_and_explained(world: &World) -> Result<()> {
    let namespace = world.namespace("explain").await?;
    let name = namespace.name.as_str();
    let imagewarm = async |arguments: &[&str]| {
        let arguments = [arguments, &["-n", name]].concat();
        world.commands.imagewarm(&arguments).await
    };
    let app = world.registries.push("explain", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.of_service("hello-00001", "hello").await?;
    let (code, output) = imagewarm(&["wait", "hello", "--timeout", "60s"]).await?;
    ensure!(code == 0 && output.contains("3 of 3 ready"), "{code}\n{output}");
    let missing = app.tag.replace(":v1", ":v9");
    namespace.create_image_warm("bad", &missing, "node-1", &[]).await?;
    namespace.reaches("bad", Reason::NotFound).await?;

    let repository = app.tag.trim_end_matches(":v1");
    for (filters, count) in [
        (vec!["--service", "hello"], 3),
        (vec!["--service", "hello", "--node", "node-2"], 1),
        (vec!["--image", repository], 4),
        (vec!["--image", &missing], 1),
        (vec!["--failed"], 1),
        (vec![], 4),
    ] {
        let (_, output) = imagewarm(&[&["status", "-o", "name"], &*filters].concat()).await?;
        let all_named = output.lines().all(|it| it.starts_with("imagewarm.caching.knative.dev/"));
        ensure!(output.lines().count() == count && all_named, "{filters:?}:\n{output}");
    }
    let (_, output) = imagewarm(&["status", "-o", "yaml", "--node", "node-3"]).await?;
    ensure!(output.contains("total: 1") && output.contains("node: node-3"), "{output}");

    let (code, output) = imagewarm(&["why", "hello", "--node", "node-2"]).await?;
    ensure!(code == 0, "{code}\n{output}");
    for part in
        [" on node-2\n", "Pulled for", "Revision hello-00001 of the Service hello", "docker"]
    {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    let (code, output) = imagewarm(&["why", &missing]).await?;
    ensure!(code == 1, "{code}\n{output}");
    for part in
        ["NotFound for", "created it by hand", "it is tried again within", "does the tag exist?"]
    {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    world.nodes.cordon("node-1").await?;
    let side = world.registries.push("explain-side", "v1").await?;
    namespace.revision("side-00001", containers(&[&side.tag])).await?;
    let (code, output) = imagewarm(&["wait", "revision/side-00001", "--timeout", "60s"]).await?;
    ensure!(code == 0 && output.contains("2 of 2 ready"), "{code}\n{output}");
    let (_, output) = imagewarm(&["why", "side-00001"]).await?;
    for part in [" on node-2, node-3\n", " on node-1\n", "cannot start here: node is cordoned"] {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    Ok(())
}

async fn waiting_ends_in_time(world: &World) -> Result<()> {
    let namespace = world.namespace("in-time").await?;
    let name = namespace.name.as_str();
    world.registries.push("in-time", "v1").await?;
    let proxied = world.registries.behind_proxy("in-time", "in-time");
    proxied.spoil(Fault::Hold);
    namespace.revision("hello-00001", containers(&[&proxied.image("v1")])).await?;
    proxied.until_held().await?;
    let wait = ["wait", "hello-00001", "--timeout", "500ms", "-n", name];
    let (code, output) = world.commands.imagewarm(&wait).await?;
    ensure!(code == 4 && output.contains("Not done within"), "{code}\n{output}");
    let unknown = ["wait", "nothing", "-n", name];
    let (code, output) = world.commands.imagewarm(&unknown).await?;
    let told = format!("there is no Service or Revision called \"nothing\" in namespace {name}");
    ensure!(code == 1 && output.contains(&told), "{code}\n{output}");
    proxied.heal();
    namespace.create_image_warm("bad", &proxied.image("v9"), "node-1", &[]).await?;
    let image = format!("image/{}", proxied.image("v9"));
    let (code, output) = world.commands.imagewarm(&["wait", &image, "-n", name]).await?;
    ensure!(code == 1 && output.contains("NotFound"), "time does not heal it: {code}\n{output}");
    Ok(())
}

async fn warming_by_hand_ends_with_its_time(world: &World) -> Result<()> {
    let namespace = world.namespace("by-hand").await?;
    let name = namespace.name.as_str();
    let (brief, stays) =
        (world.registries.push("brief", "v1").await?, world.registries.push("stays", "v1").await?);
    let node = "kubernetes.io/hostname=node-1";
    let warm = ["warm", "-n", name, "--nodes", node, "--wait", "--timeout", "60s"];
    let for_a_time = [&warm[..], &["--ttl", "1s", &brief.tag]].concat();
    let for_good = [&warm[..], &[&*stays.tag]].concat();
    for arguments in [for_good.clone(), for_a_time] {
        let (code, output) = world.commands.imagewarm(&arguments).await?;
        ensure!(
            code == 0 && output.contains("1 ImageWarms created, 0 were there"),
            "{code}\n{output}"
        );
        ensure!(output.contains("1 of 1 ready"), "{output}");
    }
    eventually("what was for a time is deleted", async || {
        let warms = namespace.image_warms().await?;
        let images: Vec<&str> = warms.iter().map(|warm| &*warm.spec.image).collect();
        Ok((images == [&*stays.tag]).then_some(()))
    })
    .await?;
    let (code, output) = world.commands.imagewarm(&for_good).await?;
    ensure!(code == 0 && output.contains("0 ImageWarms created, 1 were there"), "{code}\n{output}");
    let nowhere = ["warm", &brief.tag, "-n", name, "--nodes", "no=where"];
    let (code, output) = world.commands.imagewarm(&nowhere).await?;
    ensure!(code == 1 && output.contains("no node is eligible"), "{code}\n{output}");
    Ok(())
}

/// There is no kubelet: the test creates its Events.
async fn a_report_has_what_kubelets_said(world: &World) -> Result<()> {
    let namespace = world.namespace("report").await?;
    let report = async |output: &str| {
        let arguments = ["report", "-n", &namespace.name, "--since", "10m", "-o", output];
        let (code, text) = world.commands.imagewarm(&arguments).await?;
        ensure!(code == 0, "{code}\n{text}");
        anyhow::Ok(text)
    };
    let nothing = report("table").await?;
    ensure!(nothing.starts_with("Nothing to judge by"), "{nothing}");
    let app = world.registries.push("report", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let image = app.by_digest();
    let present = format!("Container image \"{image}\" already present on machine");
    namespace.kubelet_event("Pulled", "node-1", &present).await?;
    let pulled = format!("Successfully pulled image \"{image}\" in 1.5s (2s including waiting)");
    namespace.kubelet_event("Pulled", "node-2", &pulled).await?;
    let pulling = format!("Pulling image \"{image}\"");
    namespace.kubelet_event("Pulling", "node-3", &pulling).await?;
    let text = report("table").await?;
    for part in ["1 of 2 first containers found the image", "1 waited for the kubelet's pull, 2.0s"]
    {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    let value: Value = serde_json::from_str(&report("json").await?)?;
    let summary = &value["summary"];
    ensure!(summary["warmStarts"] == 1 && summary["coldStarts"] == 1, "{value}");
    ensure!(summary["hitRatio"] == 0.5 && summary["waitedSeconds"] == 2.0, "{value}");
    Ok(())
}

async fn kubectl_shows_and_explains_image_warms(world: &World) -> Result<()> {
    let namespace = world.namespace("kubectl").await?;
    let app = world.registries.push("kubectl", "v1").await?;
    namespace.create_image_warm("mine", &app.tag, "node-1", &[]).await?;
    namespace.all_ready(1).await?;
    let output =
        world.commands.kubectl(&["get", "iw", "-n", &namespace.name, "-o", "wide"]).await?;
    for part in ["NODE", "IMAGE", "READY", "REASON", "DIGEST", "SIZE", "TOOK", "AGE", &app.digest] {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    let output = world.commands.kubectl(&["get", "knative", "-n", &namespace.name]).await?;
    ensure!(output.contains("mine"), "not in the category knative:\n{output}");
    let output = world.commands.kubectl(&["explain", "imagewarm.spec.image"]).await?;
    ensure!(output.contains("by tag or by digest"), "{output}");
    Ok(())
}

async fn field_selectors_find_a_nodes_image_warms(world: &World) -> Result<()> {
    let namespace = world.namespace("select").await?;
    let app = world.registries.push("select", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    for (selector, count) in [
        ("spec.nodeName=node-2".to_owned(), 1),
        (format!("spec.image={}", app.tag), 3),
        ("spec.image=other".to_owned(), 0),
    ] {
        let selector = format!("--field-selector={selector}");
        let output = world
            .commands
            .kubectl(&["get", "iw", "-n", &namespace.name, "-o", "name", &selector])
            .await?;
        ensure!(output.lines().count() == count, "{selector}: {output}");
    }
    Ok(())
}
