//! The node gate with a real kubelet, which registers its node with the taint: a Pod waits until its image
//! is there and then starts without a pull; and where the registry is down, until the deadline.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use xtask::cluster::{Cluster, Fault, Knative, KubeletNode, Options, SCHEDULER};
use xtask::images::TestImage;
use xtask::wait::wait_for;

use crate::{
    BINARY, DEADLINE, NAMESPACE, Pods, TURNS, create_namespace, create_revision, nothing_is_left,
};

const TAINT: &str = "caching.knative.dev/warming";
/// What the overlay adds.
const ADDED: [&str; 2] = ["overlays/node-gate/rights.yaml", "overlays/node-gate/policy.yaml"];

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_image_and_no_longer_than_the_deadline() -> Result<()> {
    let _alone = TURNS.lock().await;
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: true };
    let mut cluster = Cluster::start(options).await?;
    cluster.start_scheduler()?;
    let folder = cluster.folder().to_owned();
    for manifest in ADDED {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest);
        cluster.apply_manifests(&manifest, Some).await?;
    }
    create_namespace(&cluster.client(), NAMESPACE).await?;
    let mut containers = until_warm(&cluster).await?;
    containers.extend(until_the_deadline(&cluster).await?);
    drop(cluster);
    nothing_is_left(&folder, &containers)
}

async fn until_warm(cluster: &Cluster) -> Result<Vec<String>> {
    let image = cluster.running_image(TestImage::new(&[1 << 20]))?;
    cluster.registry_plain.push(&image, "gated", "v1").await?;
    let proxy = &cluster.registry_proxy;
    let image = format!("{}/gate/gated:v1", proxy.address());
    // The pull is begun and does not end.
    proxy.set("gate/gated", Some(Fault::Hold));
    with_node(cluster, "gated", &[], &image, async |pods| {
        wait_for(DEADLINE, "the pull to be held", async || {
            (proxy.holding("gate/gated") > 0).then_some(())
        })
        .await?;
        wait_for(DEADLINE, "the scheduler to name the taint", async || {
            let status = pods.api().get("gated").await.ok()?.status?;
            let unscheduled =
                status.conditions?.into_iter().find(|it| it.type_ == "PodScheduled")?;
            unscheduled.message.filter(|message| message.contains("untolerated taint"))
        })
        .await?;
        ensure!(taints(pods, "gated").await? == [TAINT], "the taint is gone already");
        proxy.set("gate/gated", None);
        until_running(pods, "gated").await?;
        ensure!(taints(pods, "gated").await?.is_empty(), "the Pod runs in spite of the taint");
        let said = pods.events("gated").await?;
        let present = format!("Container image \"{image}\" already present on machine");
        ensure!(said.iter().any(|(_, message)| message.starts_with(&present)), "{said:?}");
        ensure!(said.iter().all(|(reason, _)| reason != "Pulling"), "{said:?}");
        until_event(pods, "gated", "Warm").await
    })
    .await
}

async fn until_the_deadline(cluster: &Cluster) -> Result<Vec<String>> {
    // A port that is free: nobody listens there.
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let image = format!("{down}/gone:v1");
    let flags = ["--node-gate-deadline", "20s"];
    with_node(cluster, "late", &flags, &image, async |pods| {
        wait_for(DEADLINE, "the Pod to be scheduled", async || {
            pods.api().get("late").await.ok()?.spec?.node_name
        })
        .await?;
        ensure!(taints(pods, "late").await?.is_empty(), "the Pod was scheduled in spite of it");
        until_event(pods, "late", "DeadlineExceeded").await
    })
    .await
}

/// Creates a Revision and a Pod of the image, and then the node for which they wait, with a kubelet that
/// registers it with the taint. Returns the ids of the containers that still run.
async fn with_node(
    cluster: &Cluster,
    name: &str,
    flags: &[&str],
    image: &str,
    test: impl AsyncFnOnce(&Pods<'_>) -> Result<()>,
) -> Result<Vec<String>> {
    let flags = [&["--node-gate-taint", TAINT], flags].concat();
    let controller = cluster.start_controller(BINARY.as_ref(), name, &flags).await?;
    let health = controller.health().context("no health port")?;
    controller.wait_ready(health, "/readyz", DEADLINE).await?;
    create_revision(&cluster.client(), name, image).await?;
    let pods = Pods { client: cluster.client(), node: name };
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "schedulerName": SCHEDULER,
            "nodeSelector": {"kubernetes.io/hostname": name},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": image}],
        },
    }))?;
    pods.api().create(&PostParams::default(), &pod).await?;
    let taint = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    let node = cluster.add_kubelet_node_with(name, &json!({"registerWithTaints": taint})).await?;
    let tested = async {
        let warmer = cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
        test(&pods).await?;
        warmer.terminate(DEADLINE).await?;
        controller.terminate(DEADLINE).await?;
        node.containers()
    };
    let tested = tested.await;
    stop(node, tested).await
}

async fn stop(node: KubeletNode, tested: Result<Vec<String>>) -> Result<Vec<String>> {
    let tested = tested.with_context(|| format!("log of the kubelet:\n{}", node.log_tail()));
    node.stop().await?;
    tested
}

async fn taints(pods: &Pods<'_>, node: &str) -> Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(pods.client.clone());
    let taints = nodes.get(node).await?.spec.and_then(|spec| spec.taints);
    Ok(taints.unwrap_or_default().into_iter().map(|taint| taint.key).collect())
}

async fn until_running(pods: &Pods<'_>, name: &str) -> Result<()> {
    wait_for(DEADLINE, &format!("Pod {name} to run"), async || {
        let phase = pods.api().get(name).await.ok()?.status?.phase?;
        (phase == "Running").then_some(())
    })
    .await
}

/// Waits for the Event about the node that gives this reason.
async fn until_event(pods: &Pods<'_>, node: &str, reason: &str) -> Result<()> {
    let events: Api<Event> = Api::namespaced(pods.client.clone(), "default");
    let note = wait_for(DEADLINE, &format!("an Event {reason} about {node}"), async || {
        let all = events.list(&ListParams::default()).await.ok()?.items;
        let about = |event: &Event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(node)
        };
        all.into_iter().find(about)?.note
    })
    .await?;
    println!("{node}: {note}");
    Ok(())
}
