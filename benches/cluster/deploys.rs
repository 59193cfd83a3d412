//! A busy hour: many Revisions in a few seconds on many nodes with warmers, beside raw creates of
//! as many ImageWarms; what admission takes meanwhile; and the same while most Revisions are left
//! to the leader.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Client;
use serde_json::Value;
use xtask::cluster::Imagewarm;
use xtask::http_get::http_get;

use crate::Scale;
use crate::admission::{Baseline, dry_run};
use crate::fake_warmers::FakeWarmers;
use crate::report::{Limit, Report, Series, percentile};
use crate::stage::{DEADLINE, Stage, seconds};

/// Between two Revisions.
const PAUSE: Duration = Duration::from_millis(100);
/// Admission calls in a second beside those of the Revisions.
const CALLS: u32 = 50;
/// Of all Revisions of a namespace within a minute, where most are to be left to the leader.
const FEW: &str = "5";

/// Rows: seconds to the last ImageWarm, and p99 of admission meanwhile; what the fan-out left to the
/// leader, and how long that took longer.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, controller) = Stage::new(0).await?;
    let (nodes, deploys) = scale.pick((100, 30), (300, 100));
    let warmers = FakeWarmers::connect(&stage, nodes).await?;
    // Pulls are another benchmark's.
    warmers.hold(true);
    let hour = Hour::new(&stage, nodes, deploys).await?;
    let noop = Baseline::start(&stage).await?;
    let (webhook, baseline) = noop.targets(&stage, &controller, &dry_run()?).await?;
    let (mut series, mut p99) = (Series::default(), Series::default());
    let lasts = PAUSE * deploys as u32;
    for round in 0..scale.pick(2, 3) {
        let namespace = format!("deploys-{round}");
        // Both at once: what else the machine does slows both.
        let (ours, asked, beside) = tokio::join!(
            hour.deploys(&namespace),
            webhook.at_rate(CALLS, lasts),
            baseline.at_rate(CALLS, lasts),
        );
        let of = |times: Vec<f64>| percentile(&times, 0.99).context("no call was made");
        p99.round(of(asked?)?, of(beside?)?);
        series.round(ours?, hour.raw_creates(&format!("raw-{round}")).await?);
    }
    let what = format!("{deploys} Revisions in {} s on {nodes} nodes", lasts.as_secs_f64());
    report.add(format!("{what}, until the last ImageWarm"), "s", series, Limit::Ratio(1.3));
    report.add("admission meanwhile, p99", "ms", p99, Limit::RatioOrAdded(1.3, 1.0));
    let left = left_to_the_leader(&controller).await?;
    report.add("Revisions left to the leader", "Revisions", Series::one(left), Limit::None);

    controller.terminate(DEADLINE).await?;
    let flags = ["--fan-out-per-minute", FEW];
    let controller = stage.controller_with("controller-2", &flags).await?;
    stage.connected(&controller, nodes).await?;
    let ours = hour.deploys("left").await?;
    let left = left_to_the_leader(&controller).await?;
    ensure!(left > 0.0, "nothing was left to the leader");
    let mut series = Series::default();
    series.round(ours, hour.raw_creates("raw-left").await?);
    let name = format!("the same with {left} Revisions left to the leader");
    report.add(name, "s", series, Limit::Added(5.0));
    let events = stage.cluster.audit_events()?;
    let failed = events.iter().filter(|event| failed_create(event)).count() as f64;
    report.add("ImageWarm creates that failed", "creates", Series::one(failed), Limit::Most(0.0));
    Ok(())
}

struct Hour<'a> {
    stage: &'a Stage,
    client: Client,
    nodes: usize,
    deploys: usize,
}

impl<'a> Hour<'a> {
    async fn new(stage: &'a Stage, nodes: usize, deploys: usize) -> Result<Hour<'a>> {
        Ok(Hour { stage, client: stage.as_controller().await?, nodes, deploys })
    }

    /// Seconds from the first Revision to the last ImageWarm.
    async fn deploys(&self, namespace: &str) -> Result<f64> {
        let revisions = self.stage.namespace(namespace).await?;
        let mut appearing = self.stage.watch(namespace).await?;
        let began = Instant::now();
        let create = async {
            let mut due = tokio::time::interval(PAUSE);
            for number in 0..self.deploys {
                due.tick().await;
                let image = format!("registry.example.com/{namespace}/app-{number}:v1");
                revisions.create(&format!("app-{number:05}"), &[&image]).await?;
            }
            anyhow::Ok(())
        };
        let (created, last) = tokio::join!(create, appearing.count(self.nodes * self.deploys));
        created?;
        Ok(seconds(began, last?))
    }

    /// Seconds for as many raw creates.
    async fn raw_creates(&self, namespace: &str) -> Result<f64> {
        let others: Vec<String> = (0..self.nodes).map(|at| format!("no-node-{at:05}")).collect();
        let raw = self.stage.namespace(namespace).await?;
        let began = Instant::now();
        for number in 0..self.deploys {
            // Not before the Revision would have been there.
            tokio::time::sleep_until((began + PAUSE * number as u32).into()).await;
            let image = format!("registry.example.com/team/raw-{number}:v1");
            raw.raw_creates(&self.client, &image, &others).await?;
        }
        Ok(seconds(began, Instant::now()))
    }
}

async fn left_to_the_leader(controller: &Imagewarm) -> Result<f64> {
    let health = controller.health().context("no health port")?;
    let (_, metrics) = http_get(health, "/metrics").await?;
    let dropped = metric(&metrics, "imagewarm_webhook_dropped_sightings_total");
    dropped.context("no metric of what was dropped")
}

fn failed_create(event: &Value) -> bool {
    let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
    event["verb"] == "create"
        && event["objectRef"]["resource"] == "imagewarms"
        && code >= 400
        && code != 409
}

fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}
