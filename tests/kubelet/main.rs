//! What warming is for, seen by a real kubelet: a Pod whose image was warmed starts with the image
//! already there; one whose image was not warmed waits for its pull. Both times are printed, and
//! nothing is asserted of them. In [`cold_start`]: a request to a Service at zero; in [`verification`]:
//! who may use what was warmed; in [`release`]: the image of a release; in [`disk`]: images that do not fit; in [`pins`]: what garbage collections leave; in
//! [`node_gate`]: nodes that are held until they are warm.

mod cold_start;
mod disk;
mod node_gate;
mod pins;
#[path = "../release/program.rs"]
mod program;
mod release;
mod verification;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason, Revision};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Mutex;
use xtask::cluster::{Cluster, Imagewarm, Knative, KubeletNode, Options};
use xtask::http_get::http_get;
use xtask::images::TestImage;
use xtask::wait::wait_for;

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");
const DEADLINE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "pods";
const SIZE: usize = 80 << 20;

/// Each test has a cluster of its own, and takes the whole machine.
static TURNS: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_warmed_image_is_already_there_for_the_kubelet() -> Result<()> {
    let _alone = TURNS.lock().await;
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: true };
    let cluster = Cluster::start(options).await?;
    let folder = cluster.folder().to_owned();
    let node = cluster.add_kubelet_node("kubelet-1").await?;
    let tested = compare(&cluster, &node).await;
    let tested = tested.with_context(|| format!("log of the kubelet:\n{}", node.log_tail()));
    let stopped = node.stop().await;
    drop(cluster);
    let containers = tested?;
    stopped?;
    nothing_is_left(&folder, &containers)
}

/// Returns the ids of the containers that still run.
async fn compare(cluster: &Cluster, node: &KubeletNode) -> Result<Vec<String>> {
    let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &[]).await?;
    let warmer = cluster.start_warmer(BINARY.as_ref(), node, &[]).await?;
    for process in [&controller, &warmer] {
        let health = process.health().context("no health port")?;
        process.wait_ready(health, "/readyz", DEADLINE).await?;
    }
    let client = cluster.client();
    create_namespace(&client, NAMESPACE).await?;
    let first = push(cluster, "first", 1_000).await?;
    let (warmed, cold) = (push(cluster, "warmed", SIZE).await?, push(cluster, "cold", SIZE).await?);
    let pods = Pods { client: client.clone(), node: &node.name };
    // The very first Pod also fetches the sandbox's image and makes the network.
    pods.start("first", &first).await?;

    create_revision(&client, "hello", &warmed).await?;
    let warms: Api<ImageWarm> = Api::namespaced(client, NAMESPACE);
    wait_for(DEADLINE, "the image to be warm", async || {
        let list = warms.list(&ListParams::default()).await.ok()?;
        list.items.into_iter().find(|warm| {
            warm.spec.node_name == node.name
                && warm.spec.image == warmed
                && warm.reason() == Some(Reason::Pulled)
        })
    })
    .await?;
    ensure!(node.holds(&warmed).await, "containerd does not hold {warmed}");
    ensure!(!node.holds(&cold).await, "containerd holds {cold}, which nobody warmed");

    let cold_took = pods.start("cold", &cold).await?;
    let warmed_took = pods.start("warmed", &warmed).await?;
    println!(
        "from Pod creation to Running, image of {} MiB: {:.2} s not warmed, {:.2} s warmed",
        SIZE >> 20,
        cold_took.as_secs_f32(),
        warmed_took.as_secs_f32(),
    );
    let present = format!("Container image \"{warmed}\" already present on machine");
    let said = pods.events("warmed").await?;
    ensure!(said.iter().any(|(_, message)| message.starts_with(&present)), "warmed: {said:?}");
    ensure!(said.iter().all(|(reason, _)| reason != "Pulling"), "pulled though warmed: {said:?}");
    let pulling = ("Pulling".to_owned(), format!("Pulling image \"{cold}\""));
    let said = pods.events("cold").await?;
    ensure!(said.contains(&pulling), "not warmed: {said:?}");
    pods.remove("cold").await?;
    // An ImageWarm that comes too late: nobody pulls for it.
    warmer.kill();
    let late = push(cluster, "late", 1_000_000).await?;
    let body = serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": "late"}, "spec": {"image": late, "nodeName": node.name},
    }))?;
    warms.create(&PostParams::default(), &body).await?;
    let late_took = pods.start("late", &late).await?;
    let counted = starts_were_counted(&controller, warmed_took + late_took).await?;
    the_report_agrees(cluster, counted).await?;
    // What follows counts too.
    let _warmer = cluster.start_warmer(BINARY.as_ref(), node, &[]).await?;
    release::runs(cluster, node).await?;
    // The others still run when everything ends.
    let containers = node.containers()?;
    ensure!(
        container_groups()?.iter().any(|group| containers.iter().any(|c| group.ends_with(c))),
        "no control group is called like one of {containers:?}"
    );
    Ok(containers)
}

/// Seconds that the Pods did not wait, and those that they waited.
struct Counted {
    saved: f64,
    waited: f64,
}

/// Of the four Pods two had an image with an ImageWarm: one found it, one waited.
async fn starts_were_counted(controller: &Imagewarm, both_took: Duration) -> Result<Counted> {
    let health = controller.health().context("no health port")?;
    let metric = async |name: &str| -> Option<f64> {
        let (_, text) = http_get(health, "/metrics").await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    };
    wait_for(DEADLINE, "one warm and one cold start to be counted", async || {
        let warm = metric("imagewarm_image_starts_total{result=\"Warm\"}").await?;
        let cold = metric("imagewarm_image_starts_total{result=\"Cold\"}").await?;
        (warm == 1.0 && cold == 1.0).then_some(())
    })
    .await?;
    let value = async |name: &str| metric(name).await.with_context(|| format!("no {name}"));
    let lead = value("imagewarm_image_start_lead_seconds_sum").await?;
    let saved = value("imagewarm_image_start_saved_seconds_total").await?;
    let waited = value("imagewarm_image_start_waited_seconds_total").await?;
    println!("lead {lead:.2} s, saved {saved:.2} s, waited {waited:.2} s");
    ensure!(lead > 0.0 && saved > 0.0, "lead {lead} s, saved {saved} s");
    ensure!(waited > 0.0 && waited < both_took.as_secs_f64(), "{waited} s of {both_took:?}");
    Ok(Counted { saved, waited })
}

/// `imagewarm report` reads from the Events what the leader has counted.
async fn the_report_agrees(cluster: &Cluster, counted: Counted) -> Result<()> {
    let report = async |arguments: &[&str]| -> Result<String> {
        let command = tokio::process::Command::new(BINARY)
            .args(["report", "-n", NAMESPACE])
            .args(arguments)
            .env("KUBECONFIG", cluster.kubeconfig_path())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, command).await.context("no report")??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    println!("{}", report(&[]).await?);
    let text = report(&["-o", "json"]).await?;
    let summary = &serde_json::from_str::<serde_json::Value>(&text)?["summary"];
    ensure!(summary["warmStarts"] == 1 && summary["coldStarts"] == 1, "{text}");
    for (key, expected) in [("savedSeconds", counted.saved), ("waitedSeconds", counted.waited)] {
        let reported = summary[key].as_f64().with_context(|| format!("no {key}: {text}"))?;
        ensure!((reported - expected).abs() < 0.01, "{key} {reported}, counted {expected}");
    }
    Ok(())
}

async fn push(cluster: &Cluster, repository: &str, size: usize) -> Result<String> {
    let image = cluster.running_image(TestImage::new(&[size]))?;
    cluster.registry_plain.push(&image, repository, "v1").await?;
    Ok(cluster.registry_plain.image(repository, "v1"))
}

/// Pods that are bound to the node, so that no scheduler is needed.
struct Pods<'a> {
    client: Client,
    node: &'a str,
}

impl Pods<'_> {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Returns the time from creation until the Pod was seen running.
    async fn start(&self, name: &str, image: &str) -> Result<Duration> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.node,
                // The program heeds no signal.
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": image}],
            },
        }))?;
        let begin = Instant::now();
        self.api().create(&PostParams::default(), &pod).await?;
        let runs = wait_for(DEADLINE, &format!("Pod {name} to run"), async || {
            let phase = self.api().get(name).await.ok()?.status?.phase?;
            (phase == "Running").then(|| begin.elapsed())
        })
        .await;
        match runs {
            Ok(took) => Ok(took),
            Err(error) => Err(error.context(format!("{:?}", self.all_events(name).await?))),
        }
    }

    /// What the kubelet said of the Pod up to the start of its container: reasons and messages.
    async fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        wait_for(DEADLINE, &format!("the Events of Pod {name}"), async || {
            let events = self.all_events(name).await.ok()?;
            events.iter().any(|(reason, _)| reason == "Started").then_some(events)
        })
        .await
    }

    async fn all_events(&self, name: &str) -> Result<Vec<(String, String)>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let of_pod = format!("involvedObject.kind=Pod,involvedObject.name={name}");
        let list = api.list(&ListParams::default().fields(&of_pod)).await?;
        let said =
            |event: Event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
        Ok(list.items.into_iter().map(said).collect())
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.api().delete(name, &DeleteParams::default()).await?;
        wait_for(DEADLINE, &format!("Pod {name} to go"), async || {
            self.api().get_opt(name).await.ok()?.is_none().then_some(())
        })
        .await
    }
}

async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    wait_for(DEADLINE, "the namespace's default ServiceAccount", async || {
        accounts.get_opt("default").await.ok().flatten().map(drop)
    })
    .await
}

/// A Revision of a Configuration, as Knative makes it.
async fn create_revision(client: &Client, name: &str, image: &str) -> Result<()> {
    let mut kind = ApiResource::erase::<Revision>(&());
    let revisions: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &kind);
    (kind.kind, kind.plural) = ("Configuration".into(), "configurations".into());
    let configurations: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &kind);
    let api_version = &kind.api_version;
    let configuration = serde_json::from_value(json!({
        "apiVersion": api_version, "kind": "Configuration",
        "metadata": {"name": name}, "spec": {},
    }))?;
    let made = configurations.create(&PostParams::default(), &configuration).await?;
    let revision = serde_json::from_value(json!({
        "apiVersion": api_version, "kind": "Revision",
        "metadata": {
            "name": format!("{name}-00001"),
            "labels": {
                "serving.knative.dev/configuration": name,
                "serving.knative.dev/configurationUID": made.metadata.uid,
                "serving.knative.dev/routingState": "active",
            },
            "ownerReferences": [{
                "apiVersion": api_version, "kind": "Configuration", "name": name,
                "uid": made.metadata.uid, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"containers": [{"name": "main", "image": image}]},
    }))?;
    revisions.create(&PostParams::default(), &revision).await?;
    Ok(())
}

/// No process, no mount, no file and no control group of the cluster.
fn nothing_is_left(folder: &Path, containers: &[String]) -> Result<()> {
    let name = folder.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&name), "still mounted:\n{mounts}");
    ensure!(!folder.exists(), "{name} is still there");
    let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let left: Vec<PathBuf> = processes
        .filter(|process| {
            let root = std::fs::read_to_string(process.join("mounts")).unwrap_or_default();
            root.contains(&name)
        })
        .collect();
    ensure!(left.is_empty(), "still running: {left:?}");
    for group in container_groups()? {
        let id = group.file_name().unwrap_or_default().to_string_lossy();
        ensure!(!containers.iter().any(|container| *container == id), "{group:?} is left");
    }
    Ok(())
}

/// The control groups of all containers on this machine that some containerd has started for Pods.
fn container_groups() -> Result<Vec<PathBuf>> {
    let top = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(top)?.flatten().map(|entry| entry.path());
    let all = controllers.chain([top.to_owned()]).map(|controller| controller.join("k8s.io"));
    let groups = all.filter_map(|folder| std::fs::read_dir(folder).ok());
    Ok(groups.flatten().flatten().map(|entry| entry.path()).collect())
}
