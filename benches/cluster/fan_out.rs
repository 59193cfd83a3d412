//! From a Revision to the last of its ImageWarms, beside a plain loop of POSTs under the same
//! account.

use std::time::Instant;

use anyhow::{Result, ensure};
use kube::Client;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{Stage, seconds};

/// Rows: seconds for 1,000 nodes, and for 5,000; what of the plain loop's time is due to a controller
/// that sees its ImageWarms; rejections by API priority and fairness.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let mut throttled = 0;
    for (nodes, rounds) in scale.pick(vec![(1_000, 3)], vec![(1_000, 9), (5_000, 3)]) {
        // A cluster for each: nodes that join later would get the earlier images.
        let (stage, _controller) = Stage::new(0).await?;
        stage.plain_nodes(names(nodes)).await?;
        let series = rounds_of(&stage, nodes, rounds).await?;
        let mut alone = Series { ours: vec![], baseline: series.baseline.clone() };
        let name = format!("fan-out of an image to {nodes} nodes");
        report.add(name, "s", series, Limit::Ratio(1.15));
        throttled += stage.throttled()?;
        if scale.pick(true, false) {
            continue;
        }

        let stage = Stage::empty(0).await?;
        let client = stage.as_controller().await?;
        for round in 0..=rounds {
            // The store then holds as much as it did with the controller.
            plain_loop(&stage, &client, &format!("before-{round}"), &names(nodes)).await?;
            let took =
                plain_loop(&stage, &client, &format!("alone-{round}"), &names(nodes)).await?;
            if round > 0 {
                alone.ours.push(took);
            }
        }
        let name = format!("the plain loop for {nodes} nodes with no controller, beside with one");
        report.add(name, "s", alone, Limit::None);
    }
    let name = "answers 429 to the controller meanwhile";
    report.add(name, "answers", Series::one(throttled as f64), Limit::Most(0.0));
    Ok(())
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("plain-{at:05}")).collect()
}

/// Seconds until a watch has seen the last ImageWarm of a plain loop in a namespace of its own.
async fn plain_loop(
    stage: &Stage,
    client: &Client,
    namespace: &str,
    nodes: &[String],
) -> Result<f64> {
    let revisions = stage.namespace(namespace).await?;
    let mut appearing = stage.watch(&revisions.namespace).await?;
    let began = Instant::now();
    let raw = revisions.raw_creates(client, "registry.example.com/team/app:v1", nodes);
    let (made, last) = tokio::join!(raw, appearing.count(nodes.len()));
    made?;
    Ok(seconds(began, last?))
}

async fn rounds_of(stage: &Stage, nodes: usize, rounds: usize) -> Result<Series> {
    let client = stage.as_controller().await?;
    let names = names(nodes);
    let mut series = Series::default();
    // The first round opens connections and does not count.
    for round in 0..=rounds {
        let image = format!("registry.example.com/team/app:v{round}");
        let revisions = stage.namespace(&format!("ours-{nodes}-{round}")).await?;
        let mut appearing = stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        revisions.create("app-00001", &[&image]).await?;
        let ours = seconds(began, appearing.count(nodes).await?);

        let raw = plain_loop(stage, &client, &format!("raw-{nodes}-{round}"), &names).await?;
        ensure!(ours > 0.0 && raw > 0.0, "no time passed");
        if round > 0 {
            series.round(ours, raw);
        }
    }
    Ok(series)
}
