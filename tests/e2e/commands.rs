//! The commands that people call, against the running system.

use anyhow::{Result, ensure};
use imagewarm::api::Reason;
use serde_json::Value;

use crate::world::{World, containers, eventually};

crate::tests![
    status_shows_nodes_images_and_reasons,
    watching_ends_by_itself,
    kubectl_shows_and_explains_image_warms,
    field_selectors_find_a_nodes_orders,
    kubectl_renders_the_overlays,
];

async fn status_shows_nodes_images_and_reasons(world: &World) -> Result<()> {
    let namespace = world.namespace("status").await?;
    let (code, said) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 0 && !said.is_empty(), "nothing to show is no failure: {code}\n{said}");
    let app = world.registries.push("status", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let (code, said) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 0, "{code}\n{said}");
    for part in [&app.tag, "node-1", "node-2", "node-3", "Pulled", "3 of 3 ready"] {
        ensure!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let missing = app.tag.replace(":v1", ":v9");
    namespace.create_image_warm("bad", &missing, "node-1", &[]).await?;
    eventually("the order failed", async || {
        let warms = namespace.image_warms().await?;
        Ok(warms.iter().any(|warm| warm.reason() == Some(Reason::NotFound)).then_some(()))
    })
    .await?;
    let (code, said) = world.commands.imagewarm(&["status", "-n", &namespace.name]).await?;
    ensure!(code == 1, "an image that is missing is a failure: {code}\n{said}");
    for part in ["NotFound", "3 of 4 ready", &missing] {
        ensure!(said.contains(part), "no {part:?} in:\n{said}");
    }
    Ok(())
}

async fn watching_ends_by_itself(world: &World) -> Result<()> {
    let namespace = world.namespace("watch").await?;
    let app = world.registries.push_large("watch", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    eventually("the orders exist", async || {
        Ok((namespace.image_warms().await?.len() == 3).then_some(()))
    })
    .await?;
    let (code, said) =
        world.commands.imagewarm(&["status", "-n", &namespace.name, "--watch"]).await?;
    ensure!(code == 0 && said.contains("3 of 3 ready"), "{code}\n{said}");
    namespace.all_ready(3).await?;
    Ok(())
}

async fn kubectl_shows_and_explains_image_warms(world: &World) -> Result<()> {
    let namespace = world.namespace("kubectl").await?;
    let app = world.registries.push("kubectl", "v1").await?;
    namespace.create_image_warm("mine", &app.tag, "node-1", &[]).await?;
    namespace.all_ready(1).await?;
    let said = world.commands.kubectl(&["get", "iw", "-n", &namespace.name, "-o", "wide"]).await?;
    for part in ["NODE", "IMAGE", "READY", "REASON", "DIGEST", "SIZE", "TOOK", "AGE", &app.digest] {
        ensure!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let said = world.commands.kubectl(&["get", "knative", "-n", &namespace.name]).await?;
    ensure!(said.contains("mine"), "not in the category knative:\n{said}");
    let said = world.commands.kubectl(&["explain", "imagewarm.spec.image"]).await?;
    ensure!(said.contains("by tag or by digest"), "{said}");
    Ok(())
}

async fn field_selectors_find_a_nodes_orders(world: &World) -> Result<()> {
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
        let said = world
            .commands
            .kubectl(&["get", "iw", "-n", &namespace.name, "-o", "name", &selector])
            .await?;
        ensure!(said.lines().count() == count, "{selector}: {said}");
    }
    Ok(())
}

async fn kubectl_renders_the_overlays(world: &World) -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/overlays");
    let render = async |overlay: &str| -> Result<Vec<Value>> {
        let said = world.commands.kubectl(&["kustomize", &format!("{folder}/{overlay}")]).await?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&said)?;
        for kind in ["CustomResourceDefinition", "DaemonSet", "Deployment", "NetworkPolicy"] {
            ensure!(objects.iter().any(|one| one["kind"] == kind), "{overlay}: no {kind}");
        }
        Ok(objects)
    };
    let objects = render("cert-manager").await?;
    let injected =
        |one: &&Value| one["metadata"]["annotations"]["cert-manager.io/inject-ca-from"].is_string();
    ensure!(objects.iter().filter(injected).count() == 2, "both configurations are injected into");
    let objects = render("namespaced-secrets").await?;
    let role = objects.iter().find(|one| {
        one["kind"] == "ClusterRole" && one["metadata"]["name"] == "imagewarm-controller"
    });
    let rules = role.map_or(String::new(), |role| role["rules"].to_string());
    ensure!(rules.contains("tokenreviews") && !rules.contains("secrets"), "{rules}");
    Ok(())
}
