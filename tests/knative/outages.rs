//! Parts that fail or restart while Services are deployed: nothing that Knative does waits for us,
//! and what was missed is made up for.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::process::Signal;

use crate::stage::{Audited, Kind, Namespace, Stage, containers, eventually};

crate::tests![
    knatives_controller_restarts_over_our_statuses,
    a_stopped_webhook_is_made_up_for,
    a_frozen_webhook_costs_one_timeout,
    what_knative_refuses_after_us_is_collected,
];

/// What a client of Kubernetes logs when it cannot decode what it watches.
const UNDECODABLE: [&str; 5] =
    ["parsing time", "cannot unmarshal", "unable to decode", "Failed to watch", "failed to list"];

async fn knatives_controller_restarts_over_our_statuses(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("restart").await?;
    let app = stage.push("restart", "v1").await?;
    let absent = stage.cluster.registry_plain.image("restart-absent", "v1");
    // Statuses of both kinds are there: what is warm, and what cannot be.
    namespace.service("hello", containers(&[&app.tag])).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await?;
    let image = json!({
        "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "absent"}, "spec": {"image": absent},
    });
    namespace.image(image).await?;
    namespace
        .until((Kind::Image, "absent"), "reported to be missing", |image| {
            crate::stage::condition(image, "Ready")["reason"] == "NotFound"
        })
        .await?;
    let controller = &stage.serving()?.controller;
    let before = controller.log().len();
    controller.restart().await?;
    let next = stage.push("restart", "v2").await?;
    namespace.service("next", containers(&[&next.tag])).await?;
    namespace.is_ahead("next-00001", &[&next.tag]).await?;
    let log = controller.log();
    let said = &log[before..];
    for error in UNDECODABLE {
        let line = said.lines().find(|line| line.contains(error));
        ensure!(line.is_none(), "Knative's controller says: {line:?}");
    }
    Ok(())
}

async fn a_stopped_webhook_is_made_up_for(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("stopped").await?;
    let app = stage.push("stopped", "v1").await?;
    stage.stop_controller().await?;
    let deployed = deploy_without_us(stage, &namespace, &app.tag).await;
    stage.start_controller().await?;
    report("stopped", &deployed?);
    namespace.until_made_up_for(&app).await
}

async fn a_frozen_webhook_costs_one_timeout(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("frozen").await?;
    let app = stage.push("frozen", "v1").await?;
    let controller = stage.controller()?;
    controller.signal(Signal::Stop);
    let deployed = deploy_without_us(stage, &namespace, &app.tag).await;
    controller.signal(Signal::Continue);
    report("frozen", &deployed?);
    namespace.until_made_up_for(&app).await
}

/// Deploys a Service of which our webhook learns nothing; returns the creation of its Revision.
async fn deploy_without_us(
    stage: &Stage,
    namespace: &Namespace<'_>,
    image: &str,
) -> Result<Audited> {
    namespace.release("hello-00001").await?;
    namespace.service("hello", containers(&[image])).await?;
    eventually("the Deployment is there", async || {
        namespace.list(Kind::Deployment).await.ok().filter(|all| !all.is_empty())
    })
    .await?;
    let warms = namespace.image_warms().await?;
    ensure!(warms.is_empty(), "ImageWarms without a controller: {warms:?}");
    let mut audited = stage.audited()?;
    audited.retain(|one| one.created("revisions", &namespace.name));
    let created = audited.pop().context("no Revision was created")?;
    let ours = ["revisions.caching.knative.dev"];
    ensure!(created.failed_open == ours, "failed were {:?}", created.failed_open);
    ensure!(audited.is_empty(), "the Revision was created more than once: {audited:?}");
    Ok(created)
}

fn report(state: &str, created: &Audited) {
    let took = created.answered.as_millisecond() - created.received.as_millisecond();
    println!("a Revision with our webhook {state} took {took} ms to be created");
}

/// Our webhook has fanned out by then; the Revision never is.
async fn what_knative_refuses_after_us_is_collected(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("refused").await?;
    let app = stage.push("refused", "v1").await?;
    let controller = &stage.serving()?.controller;
    // So that the Configuration has no Revision but the refused one.
    controller.freeze();
    let refused = refused_revision(&namespace, &app.tag).await;
    let collected = match refused {
        Ok(()) => namespace.until_empty().await,
        Err(error) => Err(error),
    };
    controller.thaw();
    collected?;
    // Knative goes on and makes the Configuration's own Revision, which is warmed.
    namespace.is_ahead("hello-00001", &[&app.tag]).await
}

async fn refused_revision(namespace: &Namespace<'_>, image: &str) -> Result<()> {
    let template = json!({"template": {"spec": containers(&[image])}});
    let configuration = namespace.make(Kind::Configuration, "hello", template).await?;
    let metadata = json!({
        "name": "hello-refused",
        "labels": {"serving.knative.dev/configuration": "hello"},
        "ownerReferences": [{
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": "hello",
            "uid": configuration["metadata"]["uid"], "controller": true,
            "blockOwnerDeletion": true,
        }],
    });
    let mut spec = containers(&[image]);
    spec["containerConcurrency"] = json!(-1);
    let refused = namespace.make_with(Kind::Revision, metadata, spec).await;
    let refused = refused.map_err(|error| format!("{error:#}")).err();
    let refused = refused.context("Knative has admitted the Revision")?;
    ensure!(refused.contains("validation.webhook.serving.knative.dev"), "{refused}");
    eventually("our webhook has fanned out", async || {
        namespace.image_warms().await.ok().filter(|warms| !warms.is_empty())
    })
    .await
    .map(drop)
}
