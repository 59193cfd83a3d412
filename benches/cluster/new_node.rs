//! A node that joins while a Pod waits for it: one kubelet with containerd at a time, each new, behind a link of
//! 240 Mbit/s. Its warmer is a process that starts once the node is Ready, as a DaemonSet's container would.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use imagewarm_core::api::{ImageWarm, Reason, Revision};
use imagewarm_core::placement::GATE_TAINT;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Imagewarm, Knative, Link, Options, SCHEDULER};
use xtask::cold_start::{LEFT_OUT, MEGABITS, WARMED, prerequisites};
use xtask::images::TestImage;
use xtask::prerequisites;
use xtask::wait::wait_for;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::BINARY;

const DEADLINE: Duration = Duration::from_secs(180);
/// What the overlay of the node gate adds.
const GATE: [&str; 2] = ["overlays/node-gate/rights.yaml", "overlays/node-gate/policy.yaml"];

const GATED: &str = "with the node gate";

/// How the node joins.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    /// With the taint of the node gate.
    Gated,
    /// Without.
    Warmed,
    /// In a namespace that is left out.
    Unwarmed,
}

/// Seconds after the registration of the node.
#[derive(Default)]
struct Times {
    /// The process of the warmer is started.
    warmer: f64,
    first_pull: f64,
    all_warm: f64,
    /// The Pod that waited for the node runs.
    waiting_pod: f64,
    /// From the creation of a Pod of another Revision, when that one runs, until it runs.
    next_pod: f64,
}

/// Rows: seconds from the registration of a node until its first pull, until the images of two Revisions are warm,
/// and until the Pod runs that waited for the node; and from the creation of a Pod of the other Revision until that
/// runs. With the node gate, without it, and without imagewarm.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let needed: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&needed).await?;
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: true };
    let mut cluster = Cluster::start_from(programs, options, &[]).await?;
    cluster.start_scheduler()?;
    for manifest in GATE {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest);
        cluster.apply_manifests(&manifest, Some).await?;
    }
    for (name, warm) in [(WARMED, "true"), (LEFT_OUT, "false")] {
        create_namespace(&cluster.client(), name, warm).await?;
    }
    let flags = ["--node-gate-taint", GATE_TAINT];
    let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &flags).await?;
    ready(&controller).await?;

    let bytes = scale.pick(50_000_000, 200_000_000);
    let (mut pulls, mut warms) = (<[Series; 2]>::default(), <[Series; 2]>::default());
    let mut connecting = Series::default();
    let (mut waiting, mut next) = (<[Series; 2]>::default(), <[Series; 2]>::default());
    for round in 0..scale.pick(1, 3) {
        let without = join(&cluster, Join::Unwarmed, round, bytes).await?;
        for (at, how) in [Join::Gated, Join::Warmed].into_iter().enumerate() {
            let with = join(&cluster, how, round, bytes).await?;
            pulls[at].ours.push(with.first_pull);
            connecting.ours.push(with.first_pull - with.warmer);
            warms[at].round(with.all_warm, without.waiting_pod);
            waiting[at].round(with.waiting_pod, without.waiting_pod);
            next[at].round(with.next_pod, without.next_pod);
        }
    }
    report.add("start of the warmer to first pull", "s", connecting, Limit::None);
    let how = [GATED, "without it"];
    let all = how.into_iter().zip(pulls).zip(warms).zip(waiting).zip(next);
    for ((((how, pulls), warms), waiting), next) in all {
        report.add(format!("registration to first pull, {how}"), "s", pulls, Limit::None);
        let name = format!("registration to both images warm, {how}, beside a cold Pod");
        report.add(name, "s", warms, Limit::None);
        let name = format!("registration to the waiting Pod's start, {how}, beside no imagewarm");
        // Behind the gate it waits for both images.
        let limit = if how == GATED { Limit::None } else { Limit::Ratio(1.2) };
        report.add(name, "s", waiting, limit);
        let name = format!("the next Pod's start, {how}, beside no imagewarm");
        report.add(name, "s", next, Limit::None);
    }
    Ok(())
}

async fn join(cluster: &Cluster, how: Join, round: usize, bytes: usize) -> Result<Times> {
    let (namespace, kind) = match how {
        Join::Gated => (WARMED, "gated"),
        Join::Warmed => (WARMED, "warmed"),
        Join::Unwarmed => (LEFT_OUT, "cold"),
    };
    let client = cluster.client();
    let node_name = format!("{kind}-{round}");
    let (first, second) = (format!("{node_name}-first"), format!("{node_name}-second"));
    for name in [&second, &first] {
        let image = cluster.running_image(TestImage::new(&[bytes / 4; 4]).seed(seed(name)))?;
        cluster.registry_plain.push(&image, name, "v1").await?;
        let image = format!("{}/{name}:v1", cluster.registry_plain.address);
        create_revision(&client, namespace, name, &image, &node_name).await?;
    }
    let image = |name: &str| format!("{}/{name}:v1", cluster.registry_plain.address);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let waiting = pod(&first, &image(&first), &node_name)?;
    pods.create(&PostParams::default(), &waiting).await?;

    let nodes: Api<Node> = Api::all(client.clone());
    let registered = async {
        wait_for(DEADLINE, "the node to register", async || {
            nodes.get_opt(&node_name).await.ok()?.map(|_| Instant::now())
        })
        .await
    };
    let fields = match how {
        Join::Gated => json!({"registerWithTaints": [{"key": GATE_TAINT, "effect": "NoSchedule"}]}),
        Join::Warmed | Join::Unwarmed => json!({}),
    };
    let link = Link::of_megabits(MEGABITS);
    let joined = cluster.add_kubelet_node_behind(&node_name, &fields, &link);
    let (registered, node) = tokio::join!(registered, joined);
    let (registered, node) = (registered?, node?);
    let started = Instant::now();
    let warmer = cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
    let since = |at: Instant| at.duration_since(registered).as_secs_f64();

    let warms: Api<ImageWarm> = Api::namespaced(client.clone(), namespace);
    let on_node = async || -> Option<Vec<ImageWarm>> {
        let mut all = warms.list(&ListParams::default()).await.ok()?.items;
        all.retain(|warm| warm.spec.node_name == node_name);
        Some(all)
    };
    let is_begun = |warm: &ImageWarm| warm.reason() == Some(Reason::Pulling) || is_ready(warm);
    let any_is_begun = |warms: &[ImageWarm]| warms.iter().any(is_begun);
    let both_are_warm = |warms: &[ImageWarm]| warms.iter().filter(|one| is_ready(one)).count() >= 2;
    let when = async |what: &str, wanted: &dyn Fn(&[ImageWarm]) -> bool| {
        if how == Join::Unwarmed {
            return Ok(registered);
        }
        wait_for(DEADLINE, what, async || wanted(&on_node().await?).then(Instant::now)).await
    };
    let next = async {
        let at = until_running(&pods, &first).await?;
        let began = Instant::now();
        pods.create(&PostParams::default(), &pod(&second, &image(&second), &node_name)?).await?;
        let runs = until_running(&pods, &second).await?;
        anyhow::Ok((at, runs.duration_since(began)))
    };
    let first_pull = when("the first pull", &any_is_begun);
    let all_warm = when("both images", &both_are_warm);
    let (first_pull, all_warm, next) = tokio::join!(first_pull, all_warm, next);
    let (at, next) = next?;
    let times = Times {
        warmer: since(started),
        first_pull: since(first_pull?),
        all_warm: since(all_warm?),
        waiting_pod: since(at),
        next_pod: next.as_secs_f64(),
    };
    let Times { warmer: started, first_pull, all_warm, waiting_pod, next_pod } = &times;
    eprintln!(
        "  {node_name}: warmer {started:.2} s, first pull {first_pull:.2} s, all warm {all_warm:.2} s, the waiting Pod \
         {waiting_pod:.2} s, the next {next_pod:.2} s"
    );
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for name in [&first, &second] {
        delete_configuration(&client, namespace, name).await?;
        pods.delete(&pod_name(name), &now).await?;
    }
    warmer.terminate(DEADLINE).await?;
    node.stop().await?;
    nodes.delete(&node_name, &now).await?;
    Ok(times)
}

fn is_ready(warm: &ImageWarm) -> bool {
    matches!(warm.reason(), Some(Reason::Pulled | Reason::AlreadyPresent))
}

fn seed(name: &str) -> u64 {
    name.bytes().fold(7, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
}

/// As Knative's Deployments call them: the scheduler's Events name the Revision so.
fn pod_name(name: &str) -> String {
    format!("{name}-00001-deployment-5f7d8c9b6-x2x2x")
}

fn pod(name: &str, image: &str, node: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": pod_name(name)},
        "spec": {
            "schedulerName": SCHEDULER,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image}],
        },
    }))?)
}

async fn until_running(pods: &Api<Pod>, name: &str) -> Result<Instant> {
    wait_for(DEADLINE, &format!("Pod {name} to run"), async || {
        let phase = pods.get(&pod_name(name)).await.ok()?.status?.phase?;
        (phase == "Running").then(Instant::now)
    })
    .await
}

async fn ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}

async fn create_namespace(client: &Client, name: &str, warm: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"caching.knative.dev/warm": warm}},
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    wait_for(DEADLINE, "the namespace's default ServiceAccount", async || {
        accounts.get_opt("default").await.ok().flatten().map(drop)
    })
    .await
}

fn configurations(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let mut kind = ApiResource::erase::<Revision>(&());
    (kind.kind, kind.plural) = ("Configuration".into(), "configurations".into());
    Api::namespaced_with(client.clone(), namespace, &kind)
}

/// A Revision whose Pods run on this node, and its Configuration.
async fn create_revision(
    client: &Client,
    namespace: &str,
    name: &str,
    image: &str,
    node: &str,
) -> Result<()> {
    let kind = ApiResource::erase::<Revision>(&());
    let api_version = kind.api_version.clone();
    let spec: Value = json!({
        "containers": [{"name": "main", "image": image}],
        "nodeSelector": {"kubernetes.io/hostname": node},
    });
    let configuration = serde_json::from_value(json!({
        "apiVersion": api_version, "kind": "Configuration",
        "metadata": {"name": name}, "spec": {"template": {"spec": spec}},
    }))?;
    let configurations = configurations(client, namespace);
    let owner = configurations.create(&PostParams::default(), &configuration).await?.metadata.uid;
    let revision = serde_json::from_value(json!({
        "apiVersion": api_version, "kind": "Revision",
        "metadata": {
            "name": format!("{name}-00001"),
            "labels": {
                "serving.knative.dev/configuration": name,
                "serving.knative.dev/configurationUID": owner,
                "serving.knative.dev/routingState": "active",
            },
            "ownerReferences": [{
                "apiVersion": api_version, "kind": "Configuration", "name": name,
                "uid": owner, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec,
    }))?;
    let revisions: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    revisions.create(&PostParams::default(), &revision).await?;
    Ok(())
}

async fn delete_configuration(client: &Client, namespace: &str, name: &str) -> Result<()> {
    configurations(client, namespace).delete(name, &DeleteParams::default()).await?;
    Ok(())
}
