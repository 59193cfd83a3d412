//! What the cluster's settings make of Revisions: image volumes, Knative's `config-deployment`, node selectors of
//! namespaces.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use imagewarm_core::api::ImageWarm;
use serde_json::json;

use crate::world::{World, containers, eventually};

crate::tests![
    images_of_volumes_are_warmed,
    the_queue_proxy_of_config_deployment_is_followed_to_every_node,
    knative_chooses_the_runtime_class_by_label,
    the_node_selector_of_a_namespace_counts,
];

/// The nodes that have an ImageWarm for this image.
fn nodes_of<'a>(warms: &'a [ImageWarm], image: &str) -> BTreeSet<&'a str> {
    let of_image = warms.iter().filter(|warm| warm.spec.image == image);
    of_image.map(|warm| warm.spec.node_name.as_str()).collect()
}

async fn images_of_volumes_are_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("volumes").await?;
    let (app, model, baked) = (
        world.registries.push("volumes-app", "v1").await?,
        world.registries.push("volumes-model", "v1").await?,
        world.registries.push("volumes-baked", "v1").await?,
    );
    let mut spec = containers(&[&app.tag]);
    spec["volumes"] = json!([
        {"name": "model", "image": {"reference": model.tag, "pullPolicy": "IfNotPresent"}},
        {"name": "baked", "image": {"reference": baked.tag, "pullPolicy": "Never"}},
        {"name": "scratch", "emptyDir": {}},
    ]);
    namespace.revision("scorer-00001", spec).await?;
    let warms = namespace.all_ready(6).await?;
    ensure!(nodes_of(&warms, &model.tag).len() == 3, "{warms:?}");
    for node in world.nodes.names() {
        let held = world.nodes.digest(node, &model.tag).await?;
        ensure!(held == Some(model.digest.clone()), "{node} holds {held:?}");
    }
    ensure!(world.nodes.digest(world.nodes.names()[0], &baked.tag).await?.is_none(), "pulled");
    Ok(())
}

async fn the_queue_proxy_of_config_deployment_is_followed_to_every_node(
    world: &World,
) -> Result<()> {
    let (first, second) = (
        world.registries.push("queue-proxy", "v1").await?,
        world.registries.push("queue-proxy", "v2").await?,
    );
    let knative = world.knative_namespace();
    let pool = world.nodes.names()[1];
    world.nodes.taint(pool, "gpu", "NoSchedule").await?;
    world.installation.set_deployment_config(json!({"queue-sidecar-image": first.tag})).await?;
    let plain = BTreeSet::from([world.nodes.names()[0], world.nodes.names()[2]]);
    let everywhere: BTreeSet<&str> = world.nodes.names().into();
    let reach = async |what: &str, image: &str, nodes: &BTreeSet<&str>| {
        eventually(what, async || {
            let warms = knative.image_warms().await?;
            Ok((nodes_of(&warms, image) == *nodes).then_some(()))
        })
        .await
    };
    reach("where Pods without constraints may run", &first.tag, &plain).await?;
    let namespace = world.namespace("trains").await?;
    let app = world.registries.push("trains", "v1").await?;
    let mut spec = containers(&[&app.tag]);
    spec["tolerations"] = json!([{"key": "gpu", "operator": "Exists"}]);
    namespace.revision("train-00001", spec).await?;
    reach("where the Revision may run too", &first.tag, &everywhere).await?;
    world.installation.set_deployment_config(json!({"queue-sidecar-image": second.tag})).await?;
    reach("the new image follows", &second.tag, &everywhere).await?;
    reach("and the old one goes", &first.tag, &BTreeSet::new()).await?;
    eventually("the tainted node holds it", async || {
        let held = world.nodes.digest(pool, &second.tag).await?;
        Ok((held == Some(second.digest.clone())).then_some(()))
    })
    .await
}

async fn knative_chooses_the_runtime_class_by_label(world: &World) -> Result<()> {
    let namespace = world.namespace("chosen").await?;
    let (guest, own) = (
        world.registries.push("chosen", "guest").await?,
        world.registries.push("chosen", "own").await?,
    );
    let node = world.nodes.names()[2];
    world.installation.create_runtime_class("sandboxed", node).await?;
    let classes = "sandboxed: {selector: {serving.knative.dev/configuration: guest}}";
    world.installation.set_deployment_config(json!({"runtime-class-name": classes})).await?;
    // What is planned without it would stay: a node that is eligible no longer keeps its ImageWarms.
    world.leader_has_caught_up().await?;
    namespace.revision("guest-00001", containers(&[&guest.tag])).await?;
    namespace.revision("own-00001", containers(&[&own.tag])).await?;
    let warms = namespace.all_ready(4).await?;
    ensure!(nodes_of(&warms, &guest.tag) == BTreeSet::from([node]), "{warms:?}");
    ensure!(nodes_of(&warms, &own.tag).len() == 3, "{warms:?}");
    Ok(())
}

async fn the_node_selector_of_a_namespace_counts(world: &World) -> Result<()> {
    let namespace = world.namespace("selected").await?;
    let [a, b, _] = world.nodes.names();
    world.nodes.label(a, "pool", "a").await?;
    world.nodes.label(b, "pool", "b").await?;
    let (app, next) = (
        world.registries.push("selected", "v1").await?,
        world.registries.push("selected", "v2").await?,
    );
    namespace.annotate("openshift.io/node-selector", "pool=a").await?;
    namespace.revision("app-00001", containers(&[&app.tag])).await?;
    let warms = namespace.all_ready(1).await?;
    ensure!(nodes_of(&warms, &app.tag) == BTreeSet::from([a]), "{warms:?}");
    // The leader follows a change; what is there stays.
    namespace.annotate("openshift.io/node-selector", "pool=b").await?;
    let warms = namespace.all_ready(2).await?;
    ensure!(nodes_of(&warms, &app.tag) == BTreeSet::from([a, b]), "{warms:?}");
    // Pods of a Revision that contradicts it are rejected: nothing is warmed for it.
    let mut contradicts = containers(&[&next.tag]);
    contradicts["nodeSelector"] = json!({"pool": "a"});
    namespace.revision("next-00001", contradicts).await?;
    world.leader_has_caught_up().await?;
    let warms = namespace.all_ready(2).await?;
    ensure!(nodes_of(&warms, &next.tag).is_empty(), "{warms:?}");
    Ok(())
}
