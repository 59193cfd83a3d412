//! Cost of many ImageWarms for a controller: memory, and time to start.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::ListParams;

use crate::Scale;
use crate::fake_warmers::FakeWarmers;
use crate::process::peak_bytes;
use crate::report::{Limit, Report, Series, median};
use crate::stage::{DEADLINE, Stage, resident_bytes, seconds};

/// The page size of the controller's lists.
const PAGE: u32 = 500;

/// Rows: megabytes of the leader with many ImageWarms and streams, and of a replica that starts
/// then; bytes for each ImageWarm; seconds from a start to readiness beside listing them all once.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, leader) = Stage::new(0).await?;
    let (images, nodes, streams) = scale.pick((10, 1_000, 200), (20, 5_000, 1_000));
    let warmers = FakeWarmers::connect(&stage, streams).await?;
    let plain: Vec<String> = (streams..nodes).map(|at| format!("fake-{at:05}")).collect();
    stage.plain_nodes(plain).await?;
    let names: Vec<String> = (0..nodes).map(|at| format!("fake-{at:05}")).collect();
    let (leader_before, fresh_before) =
        (resident_bytes(leader.pid())?, fresh(&stage, "early").await?.0);

    let client = stage.as_controller().await?;
    let revisions = stage.namespace("many").await?;
    for image in 0..images {
        let image = format!("registry.example.com/team/app-{image}:v1");
        revisions.raw_creates(&client, &image, &names).await?;
    }
    // Those of the nodes with a warmer get a status; so the leader has worked with all of them.
    stage.all_ready(&revisions.namespace, images * streams).await?;
    let count = images * nodes;
    let what = format!("{count} ImageWarms, {nodes} nodes, {streams} streams");
    let loaded = resident_bytes(leader.pid())?;
    let row = Series::one(loaded / 1e6);
    report.add(format!("memory of the leader: {what}"), "MB", row, Limit::Most(200.0));
    let each = Series::one((loaded - leader_before) / count as f64);
    report.add("of it for each ImageWarm, on the leader", "B", each, Limit::None);

    let (mut memory, mut most) = (Series::default(), Series::default());
    let (mut start, mut pages) = (Series::default(), Series::default());
    for round in 0..scale.pick(2, 5) {
        let began = Instant::now();
        let (resident, peak, ready) = fresh(&stage, &format!("late-{round}")).await?;
        let ours = seconds(began, ready);
        memory.ours.push(resident / 1e6);
        most.ours.push(peak / 1e6);
        start.round(ours, list(&client, None, count).await?);
        pages.round(ours, list(&client, Some(PAGE), count).await?);
    }
    let each = (median(&memory.ours).context("no round")? * 1e6 - fresh_before) / count as f64;
    let name = format!("memory of a replica that has started: {count} ImageWarms, {nodes} nodes");
    report.add(name, "MB", memory, Limit::Most(200.0));
    report.add("of it for each ImageWarm", "B", Series::one(each), Limit::None);
    report.add("most memory of that replica until it was ready", "MB", most, Limit::None);
    let name = format!("start to ready with {count} ImageWarms, against one list of them");
    report.add(name, "s", start, Limit::Ratio(2.0));
    let name = format!("the same, against a list in pages of {PAGE}");
    report.add(name, "s", pages, Limit::None);
    drop(warmers);
    Ok(())
}

/// Starts and terminates a replica: memory once it is ready, the most until then, and when it was.
async fn fresh(stage: &Stage, name: &str) -> Result<(f64, f64, Instant)> {
    let started = stage.controller(name).await?;
    let ready = Instant::now();
    let found = (resident_bytes(started.pid())?, peak_bytes(started.pid())?, ready);
    started.terminate(DEADLINE).await?;
    Ok(found)
}

/// Lists all ImageWarms undecoded, as curl would, at once or in pages; returns seconds.
async fn list(client: &Client, page: Option<u32>, count: usize) -> Result<f64> {
    let began = Instant::now();
    let mut parameters = ListParams { limit: page, ..ListParams::default() };
    let mut bytes = 0;
    loop {
        let request = kube::core::Request::new("/apis/caching.knative.dev/v1alpha1/imagewarms")
            .list(&parameters)?;
        let text = client.request_text(request).await?;
        bytes += text.len();
        // The list's own metadata come last, and are short.
        let end = text.len().checked_sub(2_000).and_then(|at| text.get(at..)).unwrap_or(&text);
        let token = end.split_once(r#""continue":""#).and_then(|(_, rest)| rest.split_once('"'));
        match token {
            Some((token, _)) if !token.is_empty() => {
                parameters.continue_token = Some(token.to_owned());
            }
            _ => break,
        }
    }
    ensure!(bytes > count * 200, "the list is short: {bytes} bytes");
    Ok(seconds(began, Instant::now()))
}
