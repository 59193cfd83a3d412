//! Limits that operators set: obeyed at admission, in the fan-out and in repairs, and told.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::Reason;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::world::{World, containers};

crate::tests![
    namespaces_may_have_to_opt_in,
    limits_of_namespaces_and_revisions_are_kept,
    a_revision_beyond_the_ceiling_of_a_minute_is_repaired,
];

fn by_hand(node: &str) -> Value {
    json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"generateName": "by-hand-"}, "spec": {"image": "app", "nodeName": node},
    })
}

async fn namespaces_may_have_to_opt_in(world: &World) -> Result<()> {
    let (chosen, other) = (world.namespace("opted-in").await?, world.namespace("unasked").await?);
    world.label_namespace(&chosen, "caching.knative.dev/warm", "true").await?;
    // Where the world looks whether admission answers.
    world.label_namespace("default", "caching.knative.dev/warm", "true").await?;
    let app = world.push("opt-in", "v1").await?;
    let checked = async {
        world.restart_controllers_with(&["--namespace-selection", "opt-in"]).await?;
        for namespace in [&other, &chosen] {
            world.revision(namespace, "hello-00001", containers(&[&app.tag])).await?;
        }
        let ready = world.all_ready(&chosen, 3).await?;
        // The leader, too, looks at both, once its own patience with them is over: it is then that
        // it makes again what is missing in the one.
        let taken = ready.first().context("an ImageWarm")?.clone();
        world.delete_image_warm(&taken).await?;
        let again = async || {
            let warms = world.warms(&chosen).await?;
            Ok((warms.len() == 3 && !warms.iter().any(|one| one.uid() == taken.uid()))
                .then_some(()))
        };
        world.eventually("the leader makes an ImageWarm again", again).await?;
        ensure!(world.warms(&other).await?.is_empty(), "a namespace that did not ask is warmed");
        let denied = world.post_raw(&other, &by_hand("node-1")).await?.context("not denied")?;
        ensure!(denied.contains("caching.knative.dev/warm=true"), "{denied}");
        ensure!(world.post_raw(&chosen, &by_hand("node-1")).await?.is_none());
        // It may still ask.
        world.label_namespace(&other, "caching.knative.dev/warm", "true").await?;
        world.all_ready(&other, 3).await?;
        Ok(())
    }
    .await;
    world.restart_controllers().await?;
    checked
}

async fn limits_of_namespaces_and_revisions_are_kept(world: &World) -> Result<()> {
    let namespace = world.namespace("limits").await?;
    let mut images = vec![];
    for name in ["limit-a", "limit-b", "limit-c"] {
        images.push(world.push(name, "v1").await?);
    }
    let all: Vec<&str> = images.iter().map(|image| image.tag.as_str()).collect();
    let flags = ["--max-images-per-revision", "2", "--max-image-warms-per-namespace", "5"];
    let checked = async {
        world.restart_controllers_with(&flags).await?;
        world.revision(&namespace, "hello-00001", containers(&all)).await?;
        // Two images on three nodes are one too many; the third image is not for it at all.
        let warms = world.all_ready(&namespace, 5).await?;
        ensure!(warms.iter().all(|warm| warm.spec.image != all[2]), "{warms:?}");
        // Namespaces of other tests are within it, or not: their part is not known here.
        let told = format!(
            "imagewarm::leader::reconcile: the namespace has as many ImageWarms as it may \
             (--max-image-warms-per-namespace) namespace=\"{namespace}\" missing=1"
        );
        let over = async || {
            let told = ["controller-1", "controller-2"].map(|name| world.logged(name, &told));
            let over = world.metric_sum("imagewarm_image_warms_over_limit", "").await?;
            Ok((over >= 1.0 && told.iter().any(|times| *times > 0)).then_some(()))
        };
        world.eventually("the leader says what is beyond the limit", over).await?;
        ensure!(world.warms(&namespace).await?.len() == 5, "a repair went beyond the limit");
        // However many containers: the deploy passes.
        let many: Vec<String> = (0..5_000).map(|at| format!("r.test/app-{at}:v1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        world.dry_run_revision(&namespace, "huge-00001", containers(&many)).await?;
        ensure!(world.controllers_run(), "a controller ended");
        let denied = world.post_raw(&namespace, &by_hand("node-1")).await?.context("not denied")?;
        ensure!(denied.contains("as many ImageWarms as it may have, 5"), "{denied}");
        Ok(())
    }
    .await;
    world.restart_controllers().await?;
    checked?;
    // Without the limits all is warmed that was left out.
    let warms = world.all_ready(&namespace, 9).await?;
    ensure!(warms.iter().all(|warm| warm.reason() == Some(Reason::Pulled)), "{warms:?}");
    Ok(())
}

async fn a_revision_beyond_the_ceiling_of_a_minute_is_repaired(world: &World) -> Result<()> {
    let namespace = world.namespace("ceiling").await?;
    let mut images = vec![];
    for tag in ["v1", "v2", "v3", "v4"] {
        images.push(world.push("ceiling", tag).await?);
    }
    let checked = async {
        // Each of the two replicas counts for itself.
        world.restart_controllers_with(&["--fan-out-per-minute", "1"]).await?;
        for (at, image) in images.iter().enumerate() {
            let name = format!("hello-0000{at}");
            world.revision(&namespace, &name, containers(&[&image.tag])).await?;
        }
        world.all_ready(&namespace, 12).await?;
        let beyond = world.metric_sum("imagewarm_fan_out_over_ceiling_total", "").await?;
        ensure!(beyond >= 2.0, "only {beyond} Revisions were beyond the ceiling");
        let repaired = world.metric_sum("imagewarm_repairs_total", "Missing").await?;
        ensure!(repaired >= 6.0, "only {repaired} ImageWarms were repairs");
        Ok(())
    }
    .await;
    world.restart_controllers().await?;
    checked
}
