//! Cost of a warmer for its node while it is idle, and while it pulls: with each runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::cluster::{Imagewarm, Node};
use xtask::images::TestImage;

use crate::Scale;
use crate::process::{anonymous_bytes, cpu_nanoseconds, forget_peak, peak_bytes};
use crate::pull::{nodes, order};
use crate::report::{Limit, Report, Series};
use crate::stage::{BINARY, DEADLINE, Stage, resident_bytes};

/// Over which the CPU of an idle warmer is counted.
const IDLE: Duration = Duration::from_secs(60);

/// Rows: resident memory idle and while pulling, and the share of a core that idling takes.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(1).await?;
    let nodes = nodes(&stage).await?;
    let mut warmers = Vec::new();
    for node in &nodes {
        let warmer = stage.cluster.start_warmer(BINARY.as_ref(), node, &[]).await?;
        warmer.wait_ready(warmer.health().context("no health port")?, "/readyz", DEADLINE).await?;
        warmers.push(warmer);
    }
    idle(&nodes, &warmers, report).await?;

    let megabytes = scale.pick(100, 500);
    let registry = &stage.cluster.registry_plain;
    for number in 0..3 {
        let image = TestImage::new(&[megabytes * 1_000_000]);
        registry.push(&image, "large", &format!("v{number}")).await?;
    }
    for (node, warmer) in nodes.iter().zip(&warmers) {
        let namespace = stage.namespace(&format!("pulls-{}", node.name)).await?.namespace;
        forget_peak(warmer.pid())?;
        for tag in ["v0", "v1", "v2"] {
            order(&stage, &namespace, tag, &registry.image("large", tag), &node.name).await?;
        }
        stage.all_ready(&namespace, 3).await?;
        let most = Series::one(peak_bytes(warmer.pid())? / 1e6);
        let runtime = node.runtime_name();
        let name = format!("warmer of {runtime}, most memory while it pulls 3 × {megabytes} MB");
        report.add(name, "MB", most, Limit::Most(20.0));
    }
    Ok(())
}

/// All of them over the same minute.
async fn idle(nodes: &[Arc<Node>], warmers: &[Arc<Imagewarm>], report: &mut Report) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = || -> Result<Vec<f64>> {
        warmers.iter().map(|warmer| cpu_nanoseconds(warmer.pid())).collect()
    };
    let before = used()?;
    let began = Instant::now();
    tokio::time::sleep(IDLE).await;
    let nanoseconds = began.elapsed().as_secs_f64() * 1e9;
    let after = used()?;
    for ((node, warmer), (before, after)) in nodes.iter().zip(warmers).zip(before.iter().zip(after))
    {
        let runtime = node.runtime_name();
        let memory = Series::one(resident_bytes(warmer.pid())? / 1e6);
        let name = format!("warmer of {runtime}, memory idle");
        report.add(name, "MB", memory, Limit::Most(12.0));
        let own = Series::one(anonymous_bytes(warmer.pid())? / 1e6);
        let name = format!("of it no page of the program's file, {runtime}");
        report.add(name, "MB", own, Limit::None);
        let share = Series::one(100.0 * (after - before) / nanoseconds);
        let name = format!("warmer of {runtime}, idle CPU over a minute");
        report.add(name, "% of a core", share, Limit::Most(0.1));
    }
    Ok(())
}
