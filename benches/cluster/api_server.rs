//! Cost of a fan-out for the API server: with a connected warmer on each node, without any, and in
//! the rejected design, where each node watches its own ImageWarms.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt as _;
use imagewarm_core::api::ImageWarm;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use xtask::cluster::Cluster;
use xtask::wait::wait_for;

use crate::Scale;
use crate::fake_warmers::{FakeWarmers, Held, is_write};
use crate::report::{Limit, Report, Series, median};
use crate::stage::{CONCURRENCY, DEADLINE, Revisions, Stage, cpu_seconds, resident_bytes};

/// Watches that the API server dropped because they were too slow.
const DROPPED: &str = "apiserver_terminated_watchers_total";
/// Time that requests waited in a queue.
const WAITED: &str = "apiserver_flowcontrol_request_wait_duration_seconds_sum";
/// Rejected requests.
const REJECTED: &str = "apiserver_flowcontrol_rejected_requests_total";
/// Events sent to watches.
const DELIVERED: &str = "apiserver_watch_events_total";
/// Time for the last events of a fan-out; the same for everything that is compared.
const SETTLE: Duration = Duration::from_millis(500);
/// Bookmarks are counted among the events: one in a minute for each watch.
const BOOKMARKS: f64 = 0.01;
/// A round with a watch for each of 5,000 nodes takes minutes, and shows the difference at once.
const SELECTOR_ROUNDS: usize = 3;
/// Time after a write until its events are counted.
const QUIET: Duration = Duration::from_millis(300);

/// Rows: CPU of the API server beside that without warmers, and beside that with a watch for each
/// node; watches that it dropped; deliveries of each write; time that our requests had to wait.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    for (count, rounds) in scale.pick(vec![(300, 3)], vec![(1_000, 9), (5_000, 7)]) {
        nodes(count, rounds, report).await?;
    }
    Ok(())
}

async fn nodes(count: usize, rounds: usize, report: &mut Report) -> Result<()> {
    // Two clusters, so that rounds take turns although warmers stay connected.
    let (without, idle) = Stage::new(0).await?;
    let names: Vec<String> = (0..count).map(|at| format!("fake-{at:05}")).collect();
    without.plain_nodes(names.clone()).await?;
    let (with, controller) = Stage::new(0).await?;
    let mut warmers = FakeWarmers::connect(&with, count).await?;
    let name = format!("{count} warmers started at once, until the last is connected");
    report.add(name, "s", Series::one(warmers.connected_after), Limit::None);

    let mut cpu = Series::default();
    let mut deliveries = Series::default();
    let mut dropped = 0.0;
    for round in 0..=rounds {
        warmers.hold(Held::Looks);
        let name = format!("ours-{round}");
        let ours = fan_out(&with, &name, round, count).await?;
        warmers.orders(&image(round), count).await?;
        // Running pulls would write their progress into the next rounds.
        warmers.hold(Held::Nothing);
        with.all_ready(&name, count).await?;
        let baseline = fan_out(&without, &name, round, count).await?;
        dropped += ours.dropped;
        // The first round opens connections and does not count.
        if round > 0 {
            cpu.round(ours.cpu, baseline.cpu);
            deliveries.ours.push(ours.deliveries);
        }
    }
    let ours = cpu.ours.clone();
    let name = format!("API-server CPU of a fan-out with {count} connected warmers, or none");
    report.add(name, "s", cpu, Limit::Ratio(1.2));
    let so_far = metrics(&with.cluster.client()).await?;
    let name = format!("watches that the API server dropped in these fan-outs, {count} warmers");
    report.add(name, "watches", Series::one(dropped), Limit::Most(0.0));
    let otherwise = sum(&so_far, DROPPED, "") - dropped;
    let name =
        format!("the same while {count} warmers connect, or report at once that they are done");
    report.add(name, "watches", Series::one(otherwise), Limit::None);
    let rejected = sum(&so_far, REJECTED, "");
    let name = format!("requests that priority and fairness rejected, {count} warmers");
    report.add(name, "requests", Series::one(rejected), Limit::Most(0.0));
    let memory = Series::one(resident_bytes(controller.pid())? / 1e6);
    report.add(format!("controller memory with {count} streams"), "MB", memory, Limit::None);
    let of_ours = r#"flow_schema="imagewarm""#;
    let waited = sum(&so_far, WAITED, of_ours);
    let name =
        format!("time that the controller's requests waited for their turn, {count} warmers");
    report.add(name, "s", Series::one(waited), Limit::None);
    drop(warmers);
    selector_watches(&without, &names, rounds, ours, report).await?;

    // The same writes with the control plane alone. The difference is imagewarm's.
    idle.terminate(DEADLINE).await?;
    let others = Series { ours: others(&without, &names).await?, baseline: Vec::new() };
    let theirs = median(&others.ours).context("no round without a replica")?;
    deliveries.ours.iter_mut().for_each(|all| *all -= theirs);
    let name = format!("watch deliveries for each write, one replica, {count} nodes");
    report.add(name, "events", deliveries, Limit::Most(1.0 + BOOKMARKS));
    let name = format!("the same with no replica, {count} nodes: to kube-controller-manager");
    report.add(name, "events", others, Limit::None);
    Ok(())
}

/// Watch deliveries for each write, of raw creates in a cluster where no imagewarm runs any more.
async fn others(stage: &Stage, nodes: &[String]) -> Result<Vec<f64>> {
    let client = stage.cluster.client();
    // Without a server for the webhooks, creates would be rejected.
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    mutating.delete("imagewarm", &Default::default()).await?;
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    validating.delete("imagewarm", &Default::default()).await?;
    // The API server's own watch delivers the change.
    let namespace = stage.namespace("probe").await?;
    let probe = nodes.get(..1).context("no node")?;
    wait_for(DEADLINE, "creates without admission", async || {
        namespace.raw_creates(&client, &image(0), probe).await.ok()
    })
    .await?;
    let mut deliveries = Vec::new();
    for round in 0..3 {
        let (client, image) = (&client, image(round));
        let raw = async |to: &Revisions| to.raw_creates(client, &image, nodes).await;
        let cost = measured(stage, &format!("nobody-{round}"), nodes.len(), raw).await?;
        deliveries.push(cost.deliveries);
    }
    Ok(deliveries)
}

/// The rejected design: the same fan-out while each node watches for itself.
async fn selector_watches(
    stage: &Stage,
    nodes: &[String],
    rounds: usize,
    ours: Vec<f64>,
    report: &mut Report,
) -> Result<()> {
    let client = stage.cluster.client();
    let warms: Api<ImageWarm> = Api::all(client.clone());
    let listed = warms.list_metadata(&Default::default()).await?;
    let since = listed.metadata.resource_version.context("a list without resourceVersion")?;
    let mut watches = JoinSet::new();
    let (places, open) = (Arc::new(Semaphore::new(CONCURRENCY)), Arc::new(AtomicUsize::new(0)));
    for node in nodes {
        let only = WatchParams::default().fields(&format!("spec.nodeName={node}"));
        let (warms, since) = (warms.clone(), since.clone());
        watches.spawn(watch_node(warms, only, since, places.clone(), open.clone()));
    }
    let before = sum(&metrics(&client).await?, DROPPED, "");
    let mut series = Series::default();
    for round in 0..=rounds.min(SELECTOR_ROUNDS) {
        wait_for(DEADLINE, "each node's watch to be open", async || {
            (open.load(Ordering::Relaxed) == nodes.len()).then_some(())
        })
        .await?;
        let cost = fan_out(stage, &format!("watched-{round}"), 1_000 + round, nodes.len()).await?;
        if let Some(ours) = round.checked_sub(1).and_then(|at| ours.get(at)) {
            series.round(cost.cpu, *ours);
        }
    }
    let name = format!("rejected: CPU with {} selector watches, beside ours", nodes.len());
    report.add(name, "s", series, Limit::None);
    let dropped = sum(&metrics(&client).await?, DROPPED, "") - before;
    let name = format!("rejected: watches of {} that the API server dropped", nodes.len());
    report.add(name, "watches", Series::one(dropped), Limit::None);
    watches.shutdown().await;
    Ok(())
}

/// Watches one node's ImageWarms until it is aborted. The API server closes watches at any time;
/// the next one resumes.
async fn watch_node(
    warms: Api<ImageWarm>,
    only: WatchParams,
    mut since: String,
    places: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
) -> Result<()> {
    loop {
        let opening = places.acquire().await?;
        let events = warms.watch(&only, &since).await;
        drop(opening);
        let mut lost = events.is_err();
        if let Ok(events) = events {
            let mut events = Box::pin(events);
            open.fetch_add(1, Ordering::Relaxed);
            while let Ok(Some(event)) = events.try_next().await {
                let seen = match event {
                    WatchEvent::Added(warm)
                    | WatchEvent::Modified(warm)
                    | WatchEvent::Deleted(warm) => warm.metadata.resource_version,
                    WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
                    WatchEvent::Error(_) => {
                        lost = true;
                        break;
                    }
                };
                since = seen.unwrap_or(since);
            }
            open.fetch_sub(1, Ordering::Relaxed);
        }
        if lost {
            let now = warms.list_metadata(&Default::default()).await?.metadata.resource_version;
            since = now.context("a list without resourceVersion")?;
        }
    }
}

/// Work of the API server for one fan-out.
struct Cost {
    cpu: f64,
    /// Events for each write, without those to this program's own watch, which waits for the last.
    deliveries: f64,
    /// Watches that it dropped.
    dropped: f64,
}

fn image(round: usize) -> String {
    // By digest: the warmer checks presence first, before any request to the controller.
    format!("registry.example.com/team/app@sha256:{round:064x}")
}

async fn fan_out(stage: &Stage, namespace: &str, round: usize, count: usize) -> Result<Cost> {
    let image = image(round);
    let create = async |to: &Revisions| to.create("app-00001", &[&image]).await.map(drop);
    measured(stage, namespace, count, create).await
}

async fn measured(
    stage: &Stage,
    namespace: &str,
    count: usize,
    create: impl AsyncFnOnce(&Revisions) -> Result<()>,
) -> Result<Cost> {
    let revisions = stage.namespace(namespace).await?;
    let mut appearing = stage.watch(namespace).await?;
    let client = stage.cluster.client();
    let server = api_server(&stage.cluster)?;
    let before = Deliveries::settled(stage, &client, namespace).await?;
    let cpu = cpu_seconds(server)?;
    create(&revisions).await?;
    appearing.count(count).await?;
    tokio::time::sleep(SETTLE).await;
    let cpu = cpu_seconds(server)? - cpu;
    let after = Deliveries::settled(stage, &client, namespace).await?;
    let (delivered, own) = (after.delivered - before.delivered, after.own);
    // This program's own watch receives each: none at all means that the metric was misread.
    ensure!(delivered > 0.0 && own > 0.0, "{delivered} events of {own} writes");
    let deliveries = (delivered - own) / (after.all - before.all);
    Ok(Cost { cpu, deliveries, dropped: after.dropped - before.dropped })
}

/// Writes of ImageWarms so far, and their events to watches. Writes in other namespaces are
/// delivered too, but not to this program's own watch.
struct Deliveries {
    delivered: f64,
    all: f64,
    own: f64,
    /// Watches that the API server dropped.
    dropped: f64,
}

impl Deliveries {
    /// Both numbers at the same moment: while nothing is written.
    async fn settled(stage: &Stage, client: &Client, namespace: &str) -> Result<Deliveries> {
        wait_for(DEADLINE, "a moment without writes", async || {
            let (before, _) = writes(&stage.cluster.audit_events().ok()?, namespace);
            tokio::time::sleep(QUIET).await;
            let now = metrics(client).await.ok()?;
            let (delivered, dropped) = (sum(&now, DELIVERED, "imagewarms"), sum(&now, DROPPED, ""));
            let (all, own) = writes(&stage.cluster.audit_events().ok()?, namespace);
            (all == before).then_some(Deliveries { delivered, all, own, dropped })
        })
        .await
    }
}

/// Writes of ImageWarms so far: in all namespaces, and in this one.
fn writes(events: &[Value], namespace: &str) -> (f64, f64) {
    let there = events.iter().filter_map(|event| {
        let there = event["objectRef"]["namespace"].as_str()?;
        is_write(event, there).then_some(there == namespace)
    });
    there.fold((0.0, 0.0), |(all, own), here| (all + 1.0, own + f64::from(u8::from(here))))
}

/// The process that serves the cluster's port.
fn api_server(cluster: &Cluster) -> Result<u32> {
    let (_, port) = cluster.server_url().rsplit_once(':').context("a URL without port")?;
    let flag = format!("--secure-port={port}");
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
        let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
        if line.split(|byte| *byte == 0).any(|word| word == flag.as_bytes()) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process has {flag}")
}

/// The API server's metrics.
pub async fn metrics(client: &Client) -> Result<String> {
    Ok(client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?)
}

/// The sum over all lines of a metric that contain the text.
pub fn sum(metrics: &str, name: &str, containing: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(containing));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    // An empty `sum` of floats is -0.
    values.fold(0.0, |all, value| all + value)
}
