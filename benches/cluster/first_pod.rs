//! The first Pod of a deploy, which waits for its image while all other nodes are warmed: Knative Serving,
//! two nodes with kubelet and containerd, others that only pull, and a link from the registry that all
//! share, or one for each.

use std::path::Path;

use anyhow::Result;
use xtask::cluster::Link;
use xtask::cold_start::{ColdStarts, LEFT_OUT, MEGABITS, WARMED, prerequisites};
use xtask::prerequisites;

use crate::Scale;
use crate::byte_nodes::ByteNodes;
use crate::report::{Limit, Report, Series};
use crate::stage::BINARY;

/// Of the links of nodes that only pull, where there are many: this machine carries no more.
const MEGABITS_OF_MANY: u32 = 40;
const KUBELETS: usize = 2;

/// Rows for each kind of link and number of nodes: seconds from the creation of a Service until its first
/// Pod is Ready, with and without imagewarm; and where there are few nodes, from the creation of a second
/// Pod, on the other node, until it is Ready, beside the same with an image that is there already.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    for (kind, nodes) in [("shared", 3), ("shared", 30), ("own", 3), ("own", 30)] {
        measure(scale, report, kind, nodes).await?;
    }
    Ok(())
}

async fn measure(scale: Scale, report: &mut Report, kind: &str, nodes: usize) -> Result<()> {
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let shared = Link::of_megabits(MEGABITS);
    let link = |megabits: u32| match kind {
        "shared" => shared.clone(),
        _ => Link::of_megabits(megabits),
    };
    let binary = Path::new(BINARY);
    let cluster = ColdStarts::start_with_links(programs, binary, || link(MEGABITS)).await?;
    let of_others = if nodes > 10 { MEGABITS_OF_MANY } else { MEGABITS };
    let others = nodes - KUBELETS;
    let byte_nodes = ByteNodes::connect(&cluster.cluster, others, || link(of_others)).await?;
    let bytes = scale.pick(120_000_000, 300_000_000);
    let (mut first, mut second) = (Series::default(), Series::default());
    for round in 0..scale.pick(2, 5) {
        let (cold, warmed) = (format!("cold-{round}"), format!("warmed-{round}"));
        let image = cluster.image(&cold, bytes).await?;
        let without = cluster.first_pod(LEFT_OUT, &cold, &image).await?.as_secs_f64();
        cluster.delete(LEFT_OUT, &cold).await?;
        let image = cluster.image(&warmed, bytes).await?;
        let with = cluster.first_pod(WARMED, &warmed, &image).await?.as_secs_f64();
        eprintln!(
            "  {kind}, {nodes} nodes, round {round}: {with:.2} s with, {without:.2} s without"
        );
        first.round(with, without);
        if nodes < 10 {
            cluster.until_warm(WARMED, &warmed).await?;
            let ours = cluster.scale_out(WARMED, &warmed, &image).await?.as_secs_f64();
            cluster.delete(WARMED, &warmed).await?;
            // The same image once more, which both nodes have now.
            let again = format!("again-{round}");
            cluster.first_pod(LEFT_OUT, &again, &image).await?;
            let present = cluster.scale_out(LEFT_OUT, &again, &image).await?.as_secs_f64();
            cluster.delete(LEFT_OUT, &again).await?;
            second.round(ours, present);
        } else {
            cluster.delete(WARMED, &warmed).await?;
        }
    }
    drop(byte_nodes);
    cluster.stop().await?;
    let link = if kind == "shared" { "one link for all" } else { "a link for each" };
    let name = format!("the first Pod, {nodes} nodes, {link}, beside one without imagewarm");
    report.add(name, "s", first, Limit::Ratio(1.1));
    if nodes < 10 {
        let name = format!("a second Pod, {nodes} nodes, {link}, beside an image that is there");
        report.add(name, "s", second, Limit::Ratio(1.15));
    }
    Ok(())
}
