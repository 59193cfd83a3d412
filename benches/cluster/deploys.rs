//! Many Revisions in a few seconds on many nodes with warmers, beside raw creates of as many
//! ImageWarms; the latency of admission meanwhile; and the time to repair dropped Revisions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::cluster::Imagewarm;
use xtask::http_get::http_get;
use xtask::wait::wait_for;

use crate::Scale;
use crate::admission::Baseline;
use crate::fake_warmers::{FakeWarmers, Held};
use crate::load::Target;
use crate::report::{Limit, Report, Series, median, percentile};
use crate::stage::{Appearing, CONCURRENCY, DEADLINE, Revisions, Stage, seconds};
use crate::status_writes::{self, Way};

/// No limits of registries, which another benchmark measures.
const NO_BUDGET: [&str; 3] =
    ["--registry-pulls=0", "--registry-pulls-per-second=0", "--canary-nodes=0"];
/// How imagewarm writes statuses.
const WAY: Way = Way::MergePatch;
/// Interval between Revisions.
const PAUSE: Duration = Duration::from_millis(100);
/// Admission calls in a second beside the deploys: enough for a p99, and no load.
const CALLS: u32 = 25;
/// Revisions of a namespace that the controller of the repairs takes at admission in a minute.
const TAKEN: usize = 5;
/// Revisions of that round; those beyond the limit are dropped.
const OFFERED: usize = 15;
/// Maximum delay of a dropped Revision.
const REPAIRED: f64 = 5.0;

/// Rows: seconds to the last ImageWarm; admission's p99 meanwhile; statuses in a second; what the
/// fan-out dropped, what of it was late, and how long the repair of what is dropped on purpose takes.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let stage = Stage::empty(0).await?;
    let controller = stage.controller_with("controller-1", &NO_BUDGET).await?;
    let (nodes, deploys) = scale.pick((100, 30), (300, 100));
    let warmers = FakeWarmers::connect(&stage, nodes).await?;
    let client = stage.as_controller().await?;
    let others: Vec<String> = (0..nodes).map(|at| format!("no-node-{at:05}")).collect();
    let noop = Baseline::start(&stage).await?;
    let asked = noop.beside(&stage, &controller, true).await?;
    let lasting = PAUSE * deploys as u32;

    let (mut series, mut idle, mut busy) =
        (Series::default(), Series::default(), Series::default());
    let mut statuses = Series::default();
    let (mut dropped, mut late) = (0.0, 0);
    for round in 0..scale.pick(2, 3) {
        p99(&asked, lasting, &mut idle).await?;
        // Another benchmark measures pulls.
        warmers.hold(Held::Pulls);
        let before = drops(&controller).await?;
        let revisions = stage.namespace(&format!("deploys-{round}")).await?;
        let mut appearing = stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        let (made, last, called) = tokio::join!(
            deploy(&revisions, deploys, PAUSE),
            last_of_each(&mut appearing, nodes * deploys),
            p99(&asked, lasting, &mut busy),
        );
        made?;
        called?;
        let last = last?;
        let ours = last.values().map(|last| seconds(began, *last)).fold(0.0, f64::max);
        eprintln!("    round {round}: {ours:.1} s");

        // Their statuses must not be in the baseline's time, nor in that of the next round.
        warmers.hold(Held::Nothing);
        let pace = statuses_written(&controller).await?;
        let raw = stage.namespace(&format!("raw-{round}")).await?;
        let began = Instant::now();
        for number in 0..deploys {
            // Not before the time at which the Revision would exist.
            tokio::time::sleep_until((began + PAUSE * number as u32).into()).await;
            let image = format!("registry.example.com/team/raw-{number}:v1");
            raw.raw_creates(&client, &image, &others).await?;
        }
        let raw = seconds(began, Instant::now());
        series.round(ours, raw);
        let namespace = format!("raw-{round}");
        statuses.round(pace, status_writes::pace(&client, &namespace, WAY, CONCURRENCY, 1).await?);
        let of_round = drops(&controller).await? - before;
        dropped += of_round;
        // Without a drop there was nothing to repair, however long it took.
        late += usize::from(of_round > 0.0 && ours > raw + REPAIRED);
    }
    let seconds = lasting.as_secs_f64();
    let name =
        format!("{deploys} Revisions in {seconds} s on {nodes} nodes, until the last ImageWarm");
    report.add(name, "s", series, Limit::Ratio(1.3));
    let name = format!("admission at {CALLS}/s during these, p99");
    report.add(name, "ms", busy, Limit::RatioOrAdded(1.3, 1.0));
    let name = format!("admission at {CALLS}/s before these, p99");
    report.add(name, "ms", idle, Limit::None);
    let name = "statuses written when the pulls of these end at once, beside raw status writes";
    report.add(name, "writes/s", statuses, Limit::AtLeast(0.9));
    report.add("Revisions left to the leader", "Revisions", Series::one(dropped), Limit::None);
    let name = "rounds with such that were over 5 s later than raw creates";
    report.add(name, "rounds", Series::one(late as f64), Limit::Most(0.0));
    let events = stage.cluster.audit_events()?;
    let failed = events.iter().filter(|event| failed_create(event)).count() as f64;
    report.add("ImageWarm creates that failed", "creates", Series::one(failed), Limit::Most(0.0));

    controller.terminate(DEADLINE).await?;
    drop((noop, warmers, stage));
    repairs(&others, report).await
}

/// Revisions that the fan-out drops, a few seconds apart, so that none waits for another; in a
/// cluster of their own, without the objects of the others.
async fn repairs(others: &[String], report: &mut Report) -> Result<()> {
    let (stage, controller) = Stage::new(0).await?;
    let warmers = FakeWarmers::connect(&stage, others.len()).await?;
    warmers.hold(Held::Pulls);
    let client = &stage.as_controller().await?;
    controller.terminate(DEADLINE).await?;
    let taken = TAKEN.to_string();
    let flags = ["--fan-out-queue", "1", "--fan-out-per-minute", &taken];
    let controller = stage.controller_with("controller-2", &flags).await?;
    stage.connected(&controller, others.len()).await?;
    wait_for(DEADLINE, "the controller to lead", async || {
        (metric(&controller, "imagewarm_leading").await.ok()? > 0.0).then_some(())
    })
    .await?;

    let raw = stage.namespace("raw-repairs").await?;
    let mut creates = Vec::new();
    for number in 0..3 {
        let image = format!("registry.example.com/team/raw-{number}:v1");
        let began = Instant::now();
        raw.raw_creates(client, &image, others).await?;
        creates.push(seconds(began, Instant::now()));
    }
    let raw = median(&creates).context("no raw creates")?;

    let before = drops(&controller).await?;
    let revisions = stage.namespace("repairs").await?;
    let mut appearing = stage.watch(&revisions.namespace).await?;
    let pause = Duration::from_secs_f64(f64::max(1.0, raw * 2.0));
    let (made, last) = tokio::join!(
        deploy(&revisions, OFFERED, pause),
        last_of_each(&mut appearing, others.len() * OFFERED),
    );
    let (made, last) = (made?, last?);
    let dropped = drops(&controller).await? - before;
    ensure!(dropped > 0.0, "nothing was dropped, so no repair was measured");
    let mut took = Vec::new();
    for (app, made) in &made {
        let last = last.get(app).with_context(|| format!("no ImageWarm of {app}"))?;
        took.push(seconds(*made, *last));
    }
    let late = took.iter().filter(|took| **took > raw + REPAIRED).count() as f64;
    // The first ones of the namespace are within its limit.
    let took = took.split_off(TAKEN);
    let slowest =
        Series { ours: vec![took.iter().copied().fold(0.0, f64::max)], baseline: creates };
    let name = format!("{OFFERED} Revisions, of which the fan-out drops, by force");
    report.add(name, "Revisions", Series::one(dropped), Limit::None);
    let typical = Series { ours: took, baseline: slowest.baseline.clone() };
    let name = "a Revision that was dropped, until its last ImageWarm";
    report.add(name, "s", typical, Limit::None);
    report.add("the slowest of these", "s", slowest, Limit::Added(REPAIRED));
    let name = "of these, dropped and not repaired within 5 s";
    report.add(name, "Revisions", Series::one(late), Limit::Most(0.0));
    Ok(())
}

/// Creates Revisions, each of an image of its own; returns when each was requested.
async fn deploy(
    revisions: &Revisions,
    count: usize,
    pause: Duration,
) -> Result<BTreeMap<String, Instant>> {
    let mut due = tokio::time::interval(pause);
    let mut made = BTreeMap::new();
    for number in 0..count {
        due.tick().await;
        let app = format!("app-{number:05}");
        let image = format!("registry.example.com/team/{app}:v1");
        made.insert(app.clone(), Instant::now());
        revisions.create(&app, &[&image]).await?;
    }
    Ok(made)
}

/// When the last ImageWarm of each image was seen; their names begin with the image's.
async fn last_of_each(
    appearing: &mut Appearing,
    count: usize,
) -> Result<BTreeMap<String, Instant>> {
    let mut last = BTreeMap::new();
    let tell = |name: &str, seen| {
        let app = name.split_once("-v1-").map_or(name, |(app, _)| app);
        last.insert(app.to_owned(), seen);
    };
    appearing.each(count, tell).await?;
    Ok(last)
}

/// Calls the webhook and the baseline's server at the same moments.
async fn p99(
    (ours, theirs): &(Target, Target),
    duration: Duration,
    series: &mut Series,
) -> Result<()> {
    let (ours, theirs) =
        tokio::try_join!(ours.at_rate(CALLS, duration), theirs.at_rate(CALLS, duration))?;
    let p99 = |times: &[f64]| percentile(times, 0.99).context("no call was made");
    series.round(p99(&ours)?, p99(&theirs)?);
    Ok(())
}

/// Waits until no status was written for some seconds; returns how many were in a second until then.
async fn statuses_written(controller: &Imagewarm) -> Result<f64> {
    const QUIET: Duration = Duration::from_secs(5);
    const WRITTEN: &str = "imagewarm_dispatch_status_writes_total{result=\"Written\"}";
    // Not counted before the first.
    let written = async || metric(controller, WRITTEN).await.unwrap_or_default();
    let (before, began) = (written().await, Instant::now());
    let (mut known, mut since) = (before, began);
    while since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let written = written().await;
        if written != known {
            (known, since) = (written, Instant::now());
        }
    }
    ensure!(known > before, "no status was written");
    Ok((known - before) / seconds(began, since))
}

/// Admitted Revisions that were dropped, so far.
async fn drops(controller: &Imagewarm) -> Result<f64> {
    metric(controller, "imagewarm_admission_revisions_dropped_total").await
}

async fn metric(controller: &Imagewarm, name: &str) -> Result<f64> {
    let health = controller.health().context("no health port")?;
    let (_, text) = http_get(health, "/metrics").await?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let value = line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no {name}"));
    Ok(value?.parse()?)
}

fn failed_create(event: &Value) -> bool {
    let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
    event["verb"] == "create"
        && event["objectRef"]["resource"] == "imagewarms"
        && code >= 400
        && code != 409
}
