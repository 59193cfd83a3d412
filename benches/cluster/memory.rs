//! What many ImageWarms cost a controller: memory, and time to start.

use std::time::Instant;

use anyhow::{Context, Result};
use kube::api::ListParams;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{DEADLINE, Stage, resident_bytes, seconds};

/// Rows: megabytes with many ImageWarms, bytes for each, and seconds from a start to readiness
/// beside listing them all once.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, first) = Stage::new(0).await?;
    let empty = resident_bytes(first.pid())?;
    let client = stage.as_controller().await?;
    let revisions = stage.namespace("many").await?;
    let (images, nodes) = scale.pick((10, 1_000), (20, 5_000));
    let names: Vec<String> = (0..nodes).map(|at| format!("plain-{at:05}")).collect();
    stage.plain_nodes(names.clone()).await?;
    for image in 0..images {
        let image = format!("registry.example.com/team/app-{image}:v1");
        revisions.raw_creates(&client, &image, &names).await?;
    }
    let count = images * nodes;
    let mut series = Series::default();
    let mut memory = Series::default();
    for round in 0..scale.pick(3, 5) {
        let began = Instant::now();
        let started = stage.controller(&format!("late-{round}")).await?;
        let ours = seconds(began, Instant::now());
        memory.ours.push(resident_bytes(started.pid())?);
        started.terminate(DEADLINE).await?;

        let began = Instant::now();
        // Undecoded, as curl would.
        let request = kube::core::Request::new("/apis/caching.knative.dev/v1alpha1/imagewarms")
            .list(&ListParams::default())?;
        let text = client.request_text(request).await?;
        anyhow::ensure!(text.len() > count * 200, "the list is short: {} bytes", text.len());
        series.round(ours, seconds(began, Instant::now()));
    }
    let loaded = crate::report::median(&memory.ours).context("no round")?;
    memory.ours.iter_mut().for_each(|bytes| *bytes /= 1e6);
    let name = format!("memory of a controller with {count} ImageWarms on {nodes} nodes");
    report.add(name, "MB", memory, Limit::Most(200.0));
    let each = Series::one((loaded - empty) / count as f64);
    report.add("bytes of it for each ImageWarm, nodes included", "B", each, Limit::None);
    let name = format!("start to ready with {count} ImageWarms, against listing them once");
    report.add(name, "s", series, Limit::Ratio(2.0));
    Ok(())
}
