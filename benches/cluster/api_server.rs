//! What a fan-out costs the API server: with a connected warmer on each node, without any, and in
//! the design that was rejected, where each node watches its own ImageWarms.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt as _;
use imagewarm::api::ImageWarm;
use kube::api::WatchParams;
use kube::{Api, Client};
use tokio::task::JoinSet;
use xtask::cluster::Cluster;

use crate::Scale;
use crate::fake_warmers::{FakeWarmers, is_write};
use crate::report::{Limit, Report, Series};
use crate::stage::{CONCURRENCY, Stage, cpu_seconds};

/// Watchers that the API server gave up because they were too slow.
const DROPPED: &str = "apiserver_terminated_watchers_total";
/// Time that requests waited for their turn.
const WAITED: &str = "apiserver_flowcontrol_request_wait_duration_seconds_sum";
/// Requests that were sent away.
const REJECTED: &str = "apiserver_flowcontrol_rejected_requests_total";
/// Events that watchers were sent.
const DELIVERED: &str = "apiserver_watch_events_total";
/// How long the last events of a fan-out may still be worked on; the same for all that is compared.
/// Statuses are written two seconds after a pull's begin at the earliest: they are no part of this.
const SETTLE: Duration = Duration::from_millis(500);

/// Rows: CPU of the API server beside that without warmers, and beside that with a watch for each
/// node; watches that it dropped; deliveries of each write; time that our requests had to wait.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (count, rounds) = (scale.pick(300, 1_000), scale.pick(3, 9));
    // Two clusters, so that rounds take turns although warmers stay connected.
    let (mut without, _controller) = Stage::new(0).await?;
    let names: Vec<String> = (0..count).map(|at| format!("fake-{at:05}")).collect();
    without.plain_nodes(names.clone()).await?;
    let (mut with, _controller) = Stage::new(0).await?;
    let mut warmers = FakeWarmers::connect(&with, count).await?;
    // Its garbage collector watches everything too: without it, what is delivered is ours.
    with.cluster.stop_controller_manager();
    without.cluster.stop_controller_manager();

    let mut cpu = Series::default();
    let mut deliveries = Series::default();
    for round in 0..=rounds {
        warmers.hold(true);
        let name = format!("ours-{round}");
        let ours = fan_out(&with, &name, round, count).await?;
        warmers.orders(&image(round), count).await?;
        // A pull that went on would write its progress into the next rounds.
        warmers.hold(false);
        with.all_ready(&name, count).await?;
        let baseline = fan_out(&without, &format!("ours-{round}"), round, count).await?;
        // The first round opens connections and does not count.
        if round > 0 {
            cpu.round(ours.cpu, baseline.cpu);
            // One watch is this program's, which waits for the last.
            deliveries.ours.push(ours.deliveries - 1.0);
        }
    }
    let ours = cpu.ours.clone();
    let name = format!("API-server CPU of a fan-out with {count} connected warmers, or none");
    report.add(name, "s", cpu, Limit::Ratio(1.2));
    report.add(
        "watch deliveries for each write, one replica",
        "events",
        deliveries,
        Limit::Most(1.0),
    );
    for (name, unit, metric) in [
        ("watches that the API server dropped", "watches", DROPPED),
        ("requests that priority and fairness rejected", "requests", REJECTED),
    ] {
        let value = sum(&metrics(&with.cluster.client()).await?, metric, "");
        report.add(name, unit, Series::one(value), Limit::Most(0.0));
    }
    let of_ours = r#"flow_schema="imagewarm""#;
    let waited = sum(&metrics(&with.cluster.client()).await?, WAITED, of_ours);
    let name = "time that the controller's requests waited for their turn";
    report.add(name, "s", Series::one(waited), Limit::None);
    drop(warmers);
    selector_watches(&without, &names, rounds, ours, report).await
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
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONCURRENCY));
    for node in nodes {
        let (warms, since, places) = (warms.clone(), since.clone(), places.clone());
        let only = WatchParams::default().fields(&format!("spec.nodeName={node}"));
        watches.spawn(async move {
            let opening = places.acquire_owned().await?;
            let mut events = Box::pin(warms.watch(&only, &since).await?);
            drop(opening);
            while events.try_next().await?.is_some() {}
            anyhow::Ok(())
        });
    }
    let before = sum(&metrics(&client).await?, DROPPED, "");
    let mut series = Series::default();
    for round in 0..=rounds {
        let cost = fan_out(stage, &format!("watched-{round}"), 1_000 + round, nodes.len()).await?;
        if let Some(ours) = round.checked_sub(1).and_then(|at| ours.get(at)) {
            series.round(cost.cpu, *ours);
        }
    }
    let name = format!("rejected: CPU with {} selector watches, beside ours", nodes.len());
    report.add(name, "s", series, Limit::None);
    let dropped = sum(&metrics(&client).await?, DROPPED, "") - before;
    let name = "rejected: watches that the API server dropped";
    report.add(name, "watches", Series::one(dropped), Limit::None);
    watches.shutdown().await;
    Ok(())
}

/// What the API server did for one fan-out.
struct Cost {
    cpu: f64,
    /// Events for each write.
    deliveries: f64,
}

fn image(round: usize) -> String {
    // By digest: the warmer looks first, and nothing is asked of the controller before that.
    format!("registry.example.com/team/app@sha256:{round:064x}")
}

async fn fan_out(stage: &Stage, namespace: &str, round: usize, count: usize) -> Result<Cost> {
    let revisions = stage.namespace(namespace).await?;
    let mut appearing = stage.watch(namespace).await?;
    let client = stage.cluster.client();
    let server = api_server(&stage.cluster)?;
    let delivered = async || anyhow::Ok(sum(&metrics(&client).await?, DELIVERED, "imagewarms"));
    let (events, before) = (delivered().await?, cpu_seconds(server)?);
    revisions.create("app-00001", &[&image(round)]).await?;
    appearing.count(count).await?;
    tokio::time::sleep(SETTLE).await;
    let cpu = cpu_seconds(server)? - before;
    let writes = stage.cluster.audit_events()?;
    let writes = writes.iter().filter(|event| is_write(event, namespace)).count();
    let delivered = delivered().await? - events;
    // This program's own watch is sent each: none at all means that the metric was misread.
    ensure!(delivered > 0.0 && writes > 0, "{delivered} events of {writes} writes");
    Ok(Cost { cpu, deliveries: delivered / writes as f64 })
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

async fn metrics(client: &Client) -> Result<String> {
    Ok(client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?)
}

/// The sum over all lines of a metric that contain the text.
fn sum(metrics: &str, name: &str, containing: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(containing));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    // An empty `sum` of floats is -0.
    values.fold(0.0, |all, value| all + value)
}
