//! The first Pod of a deploy, which waits for its image while all other nodes are warmed: Knative Serving,
//! two nodes with kubelet and containerd, others that only pull, and a link from the registry that all
//! share, or one for each.

use std::path::Path;
use std::time::Instant;

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
/// With more nodes nobody waits until all are warm.
const FEW: usize = 10;

#[derive(Clone, Copy, PartialEq)]
enum Links {
    /// One for all nodes.
    Shared,
    /// One for each node.
    Own,
}

#[derive(Clone, Copy)]
struct Setting {
    links: Links,
    nodes: usize,
    preemption: bool,
}

/// Rows for each kind of link and number of nodes: seconds from the creation of a Service until its first
/// Pod is Ready, with and without imagewarm. With few nodes also until the image is on all of them, beside
/// the first Pod without imagewarm; and from the creation of a second Pod, on the other node, until it is
/// Ready, beside the same with an image that is there already. With three nodes the first two also with
/// `--preemption=false`.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    for links in [Links::Shared, Links::Own] {
        for nodes in [3, 30] {
            measure(scale, report, Setting { links, nodes, preemption: true }).await?;
        }
    }
    // What it would be if pulls were never suspended. With 30 nodes nobody waits for the end of it.
    for links in [Links::Shared, Links::Own] {
        measure(scale, report, Setting { links, nodes: 3, preemption: false }).await?;
    }
    Ok(())
}

#[derive(Default)]
struct Rows {
    first: Series,
    all: Series,
    second: Series,
}

async fn measure(scale: Scale, report: &mut Report, setting: Setting) -> Result<()> {
    let (cluster, byte_nodes) = start(setting).await?;
    let mut rows = Rows::default();
    for round in 0..scale.pick(2, 3) {
        let bytes = scale.pick(120_000_000, 200_000_000);
        rows.round(&cluster, setting, round, bytes).await?;
    }
    drop(byte_nodes);
    cluster.stop().await?;
    rows.report(setting, report);
    Ok(())
}

async fn start(setting: Setting) -> Result<(ColdStarts, ByteNodes)> {
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let shared = Link::of_megabits(MEGABITS);
    let link = |megabits: u32| match setting.links {
        Links::Shared => shared.clone(),
        Links::Own => Link::of_megabits(megabits),
    };
    let flag = format!("--preemption={}", setting.preemption);
    let (binary, flags) = (Path::new(BINARY), [flag.as_str()]);
    let cluster = ColdStarts::start_with(programs, binary, || link(MEGABITS), &flags).await?;
    let of_others = if setting.nodes > FEW { MEGABITS_OF_MANY } else { MEGABITS };
    let others = setting.nodes - KUBELETS;
    let byte_nodes = ByteNodes::connect(&cluster.cluster, others, || link(of_others)).await?;
    cluster.until_queue_proxy_is_warm(setting.nodes).await?;
    Ok((cluster, byte_nodes))
}

impl Rows {
    async fn round(
        &mut self,
        cluster: &ColdStarts,
        setting: Setting,
        round: usize,
        bytes: usize,
    ) -> Result<()> {
        let (cold, warmed) = (format!("cold-{round}"), format!("warmed-{round}"));
        let image = cluster.image(&cold, bytes).await?;
        let without = cluster.first_pod(LEFT_OUT, &cold, &image).await?.as_secs_f64();
        cluster.delete(LEFT_OUT, &cold).await?;
        let image = cluster.image(&warmed, bytes).await?;
        let began = Instant::now();
        let with = cluster.first_pod(WARMED, &warmed, &image).await?.as_secs_f64();
        eprintln!("  round {round}: {with:.2} s with, {without:.2} s without");
        self.first.round(with, without);
        if setting.nodes > FEW {
            return cluster.delete(WARMED, &warmed).await;
        }
        cluster.until_warm_on(setting.nodes, WARMED, &warmed).await?;
        self.all.round(began.elapsed().as_secs_f64(), without);
        if !setting.preemption {
            return cluster.delete(WARMED, &warmed).await;
        }
        let ours = cluster.scale_out(WARMED, &warmed, &image).await?.as_secs_f64();
        cluster.delete(WARMED, &warmed).await?;
        // The same image once more, which both nodes have now.
        let again = format!("again-{round}");
        cluster.first_pod(LEFT_OUT, &again, &image).await?;
        let present = cluster.scale_out(LEFT_OUT, &again, &image).await?.as_secs_f64();
        self.second.round(ours, present);
        cluster.delete(LEFT_OUT, &again).await
    }

    fn report(self, setting: Setting, report: &mut Report) {
        let link = match setting.links {
            Links::Shared => "one link for all",
            Links::Own => "a link for each",
        };
        let where_ = format!("{} nodes, {link}", setting.nodes);
        if !setting.preemption {
            let name = format!("the first Pod, {where_}, no pull suspended");
            report.add(name, "s", self.first, Limit::None);
            let name = format!("until all have the image, {where_}, no pull suspended");
            return report.add(name, "s", self.all, Limit::None);
        }
        let name = format!("the first Pod, {where_}, beside one without imagewarm");
        report.add(name, "s", self.first, Limit::Ratio(1.1));
        if setting.nodes > FEW {
            return;
        }
        let limit = if setting.links == Links::Own { Limit::Ratio(1.5) } else { Limit::None };
        let name = format!("until all have the image, {where_}, beside a Pod without imagewarm");
        report.add(name, "s", self.all, limit);
        let name = format!("a second Pod, {where_}, beside an image that is there");
        report.add(name, "s", self.second, Limit::Ratio(1.15));
    }
}
