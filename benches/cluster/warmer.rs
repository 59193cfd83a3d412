//! What a warmer costs its node while nothing happens, and while it pulls.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::images::TestImage;

use crate::Scale;
use crate::pull::order;
use crate::report::{Limit, Report, Series};
use crate::stage::{BINARY, DEADLINE, Stage, cpu_seconds, resident_bytes};

/// Rows: resident memory idle and while pulling, and the share of a core that idling takes.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(1).await?;
    let node = stage.cluster.node(1)?;
    let warmer = stage.cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
    warmer.wait_ready(warmer.health().context("no health port")?, "/readyz", DEADLINE).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = Series::one(resident_bytes(warmer.pid())? / 1e6);
    let (before, began) = (cpu_seconds(warmer.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let used = cpu_seconds(warmer.pid())? - before;
    let share = 100.0 * used / began.elapsed().as_secs_f64();
    report.add("warmer, memory idle", "MB", idle, Limit::Most(12.0));
    report.add(
        "warmer, idle CPU over a minute",
        "% of a core",
        Series::one(share),
        Limit::Most(0.1),
    );

    let megabytes = scale.pick(50, 500);
    let registry = &stage.cluster.registry_plain;
    let revisions = stage.namespace("pulling").await?;
    for number in 0..3 {
        let tag = format!("v{number}");
        registry.push(&TestImage::new(&[megabytes * 1_000_000]), "large", &tag).await?;
        order(&stage, &revisions.namespace, &tag, &registry.image("large", &tag), &node.name)
            .await?;
    }
    let mut most = 0.0_f64;
    let done = stage.all_ready(&revisions.namespace, 3);
    let watch = async {
        loop {
            most = most.max(resident_bytes(warmer.pid()).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        done = done => done?,
        () = watch => {}
    }
    let name = format!("warmer, most memory while it pulls 3 × {megabytes} MB");
    report.add(name, "MB", Series::one(most / 1e6), Limit::Most(20.0));
    Ok(())
}
