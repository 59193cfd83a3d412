//! What becomes of ImageWarms while a Service lives: a new Revision takes the traffic, an old one
//! gets it back, all scale to zero and back, and the Service goes.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use xtask::cold_start::first_byte;

use crate::stage::{Kind, Namespace, Stage, containers, eventually};

crate::tests![
    an_update_replaces_the_images_and_a_rollback_brings_them_back,
    nothing_is_left_of_a_deleted_service,
    scaling_to_zero_and_back_leaves_the_images_where_they_are,
];

async fn an_update_replaces_the_images_and_a_rollback_brings_them_back(
    stage: &Stage,
) -> Result<()> {
    let namespace = stage.namespace("update").await?;
    let (first, second) = (stage.push("update", "v1").await?, stage.push("update", "v2").await?);
    namespace.service_at_zero("hello", containers(&[&first.tag])).await?;
    namespace.is_warmed("hello-00001", &[&first.tag]).await?;

    let spec = containers(&[&second.tag]);
    namespace.change_service("hello", json!({"spec": {"template": {"spec": spec}}})).await?;
    namespace.is_ahead("hello-00002", &[&second.tag]).await?;
    namespace.until_routed("hello", ("hello-00002", "hello-00001")).await?;
    // The old Revision is there still, and nobody is sent to it.
    namespace.until_all_ready(&[&second.tag]).await?;

    let traffic = json!([{"revisionName": "hello-00001", "percent": 100}]);
    namespace.change_service("hello", json!({"spec": {"traffic": traffic}})).await?;
    namespace.until_routed("hello", ("hello-00001", "hello-00002")).await?;
    // By digest now, which Knative has resolved meanwhile.
    namespace.until_all_ready(&[&first.digest]).await.map(drop)
}

async fn nothing_is_left_of_a_deleted_service(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("deleted").await?;
    let (app, side) = (stage.push("deleted", "v1").await?, stage.push("deleted-side", "v1").await?);
    namespace.service("hello", containers(&[&app.tag, &side.tag])).await?;
    namespace.is_warmed("hello-00001", &[&app.tag, &side.tag]).await?;
    namespace.delete_service("hello").await?;
    namespace.until_empty().await?;
    let kinds = [Kind::Service, Kind::Configuration, Kind::Revision, Kind::Image, Kind::Deployment];
    for kind in kinds {
        eventually(&format!("no {kind:?} is left"), async || {
            namespace.list(kind).await.ok().filter(Vec::is_empty)
        })
        .await?;
    }
    // What came last did not bring an ImageWarm back.
    namespace.until_empty().await
}

/// No kubelet runs: the test says in its place that the Pod is ready.
async fn scaling_to_zero_and_back_leaves_the_images_where_they_are(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("zero").await?;
    let app = stage.push("zero", "v1").await?;
    let template = json!({
        "metadata": {"annotations": {
            "autoscaling.knative.dev/initial-scale": "0",
            // The shortest that there is.
            "autoscaling.knative.dev/window": "6s",
            // The activator stays in the path: without an ingress nobody could ask whether it is.
            "autoscaling.knative.dev/target-burst-capacity": "-1",
        }},
        "spec": containers(&[&app.tag]),
    });
    namespace.service_of("hello", template).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await?;
    until_scaled(&namespace, 0).await?;
    let before = uids(&namespace).await?;

    let asked = async {
        // It waits for a Pod; the address of the Pod below leads nowhere.
        let _ = first_byte(&stage.cluster, &namespace.name, "hello-00001").await;
        std::future::pending().await
    };
    tokio::select! {
        () = asked => {}
        scaled = scales_up(stage, &namespace, &app.digest) => scaled?,
    }
    // Nobody asks any more.
    until_scaled(&namespace, 0).await?;
    ensure!(uids(&namespace).await? == before, "ImageWarms were made again");
    namespace.until_all_ready(&[&app.tag]).await.map(drop)
}

/// A Pod is made, of an image that every node has, and becomes ready.
async fn scales_up(stage: &Stage, namespace: &Namespace<'_>, digest: &str) -> Result<()> {
    until_scaled(namespace, 1).await?;
    let pods = eventually("the Pod is there", async || {
        namespace.list(Kind::Pod).await.ok().filter(|pods| !pods.is_empty())
    });
    let pods = pods.await?;
    let image = &pods[0]["spec"]["containers"][0]["image"];
    ensure!(*image == digest, "the Pod is to run {image}");
    for node in stage.cluster.nodes() {
        ensure!(node.holds(digest).await, "{} does not hold {digest}", node.name);
    }
    let pod = pods[0]["metadata"]["name"].as_str().context("a nameless Pod")?;
    namespace.pretend_to_run(pod, "node-1").await?;
    let scaler = (Kind::PodAutoscaler, "hello-00001");
    let is_active = |scaler: &Value| crate::stage::condition(scaler, "Active")["status"] == "True";
    namespace.until(scaler, "active", is_active).await.map(drop)
}

/// Waits until Knative's autoscaler has set the Deployment to so many Pods.
async fn until_scaled(namespace: &Namespace<'_>, replicas: u32) -> Result<()> {
    let deployment = (Kind::Deployment, "hello-00001-deployment");
    let is_scaled = |deployment: &Value| deployment["spec"]["replicas"] == replicas;
    namespace.until(deployment, &format!("scaled to {replicas}"), is_scaled).await.map(drop)
}

async fn uids(namespace: &Namespace<'_>) -> Result<Vec<Option<String>>> {
    let mut uids: Vec<_> = namespace.image_warms().await?.iter().map(|warm| warm.uid()).collect();
    uids.sort();
    Ok(uids)
}
