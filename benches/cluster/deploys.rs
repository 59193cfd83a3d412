//! A busy hour: many Revisions in a few seconds on many nodes with warmers, beside raw creates of
//! as many ImageWarms.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::http_get::http_get;

use crate::Scale;
use crate::fake_warmers::FakeWarmers;
use crate::report::{Limit, Report, Series};
use crate::stage::{Stage, seconds};

/// Rows: seconds to the last ImageWarm; what the fan-out queue had no place for.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, controller) = Stage::new(0).await?;
    let (nodes, deploys) = scale.pick((100, 30), (300, 100));
    let warmers = FakeWarmers::connect(&stage, nodes).await?;
    // Pulls are another benchmark's.
    warmers.hold(true);
    let client = stage.as_controller().await?;
    let others: Vec<String> = (0..nodes).map(|at| format!("no-node-{at:05}")).collect();
    let mut series = Series::default();
    let pause = Duration::from_millis(100);
    for round in 0..scale.pick(2, 3) {
        let revisions = stage.namespace(&format!("deploys-{round}")).await?;
        let mut appearing = stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        let create = async {
            let mut due = tokio::time::interval(pause);
            for number in 0..deploys {
                due.tick().await;
                let image = format!("registry.example.com/team/app-{round}-{number}:v1");
                revisions.create(&format!("app-{number:05}"), &[&image]).await?;
            }
            anyhow::Ok(())
        };
        let (created, last) = tokio::join!(create, appearing.count(nodes * deploys));
        created?;
        let ours = seconds(began, last?);

        let raw = stage.namespace(&format!("raw-{round}")).await?;
        let began = Instant::now();
        let create = async {
            for number in 0..deploys {
                // Not before the Revision would have been there.
                tokio::time::sleep_until((began + pause * number as u32).into()).await;
                let image = format!("registry.example.com/team/raw-{number}:v1");
                raw.raw_creates(&client, &image, &others).await?;
            }
            anyhow::Ok(())
        };
        create.await?;
        series.round(ours, seconds(began, Instant::now()));
    }
    let seconds = pause.as_secs_f64() * deploys as f64;
    let name =
        format!("{deploys} Revisions in {seconds} s on {nodes} nodes, until the last ImageWarm");
    report.add(name, "s", series, Limit::Ratio(1.3));
    let health = controller.health().context("no health port")?;
    let (_, metrics) = http_get(health, "/metrics").await?;
    let dropped = metric(&metrics, "imagewarm_webhook_dropped_sightings_total");
    if let Some(dropped) = dropped {
        report.add("Revisions left to the leader", "Revisions", Series::one(dropped), Limit::None);
    }
    let events = stage.cluster.audit_events()?;
    let failed = events.iter().filter(|event| failed_create(event)).count() as f64;
    report.add("ImageWarm creates that failed", "creates", Series::one(failed), Limit::Most(0.0));
    Ok(())
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
