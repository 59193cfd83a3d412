//! From a Revision to the last of its ImageWarms, beside a plain loop of POSTs under the same
//! account.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{Stage, seconds};

/// Rows: seconds for 1,000 nodes, and for 5,000; refusals by API priority and fairness.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(0).await?;
    let mut there = 0;
    for (nodes, rounds) in scale.pick(vec![(1_000, 5)], vec![(1_000, 9), (5_000, 3)]) {
        let names: Vec<String> = (there..nodes).map(|at| format!("plain-{at:05}")).collect();
        stage.plain_nodes(names).await?;
        there = nodes;
        let series = rounds_of(&stage, nodes, rounds).await?;
        let name = format!("fan-out of an image to {nodes} nodes");
        report.add(name, "s", series, Limit::Ratio(1.15));
    }
    let throttled = Series::one(stage.throttled()? as f64);
    report.add("answers 429 to the controller meanwhile", "answers", throttled, Limit::Most(0.0));
    Ok(())
}

async fn rounds_of(stage: &Stage, nodes: usize, rounds: usize) -> Result<Series> {
    let client = stage.as_controller().await?;
    let names: Vec<String> = (0..nodes).map(|at| format!("plain-{at:05}")).collect();
    let mut series = Series::default();
    // The first round opens connections and does not count.
    for round in 0..=rounds {
        let image = format!("registry.example.com/team/app:v{round}");
        let revisions = stage.namespace(&format!("ours-{nodes}-{round}")).await?;
        let mut appearing = stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        revisions.create("app-00001", &[&image]).await?;
        let ours = seconds(began, appearing.count(nodes).await?);

        let revisions = stage.namespace(&format!("raw-{nodes}-{round}")).await?;
        let mut appearing = stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        let raw = async { revisions.raw_creates(&client, &image, &names).await };
        let (made, last) = tokio::join!(raw, appearing.count(nodes));
        made?;
        let raw = seconds(began, last?);
        ensure!(ours > 0.0 && raw > 0.0, "no time passed");
        if round > 0 {
            series.round(ours, raw);
        }
    }
    Ok(series)
}
