//! A deploy beside what other namespaces hold: its time and the leader's CPU must not grow with them. And what a
//! leader with nothing to do costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::cluster::{CONTROLLER_ACCOUNT, Imagewarm, NAMESPACE};

use crate::Scale;
use crate::process::cpu_nanoseconds;
use crate::report::{Limit, Report, Series};
use crate::stage::{Stage, seconds};

const NODES: usize = 100;
/// Images of a deploy.
const IMAGES: usize = 3;
/// Images of each other namespace.
const IMAGES_ELSEWHERE: usize = 10;
/// Until the leader has seen the last ImageWarm: progress alone delays a run for this long at most.
const SETTLED: Duration = Duration::from_secs(7);

/// Rows: CPU seconds of the leader and seconds until the last ImageWarm for a deploy of 3 images on 100 nodes,
/// beside 10,000 and 100,000 ImageWarms of other namespaces, with the same in an empty cluster as baseline; and of a
/// leader without work, its CPU in percent of a core, and its writes but for the Lease.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let empty = Place::new().await?;
    let full = Place::new().await?;
    let mut there = 0;
    for namespaces in [10, 100] {
        for number in there..namespaces {
            full.deploy(&format!("other-{number}"), IMAGES_ELSEWHERE).await?;
        }
        there = namespaces;
        tokio::time::sleep(SETTLED).await;
        let (mut cpu, mut time) = (Series::default(), Series::default());
        for round in 0..scale.pick(5, 15) {
            let name = format!("deploy-{namespaces}-{round}");
            let (baseline, ours) = (empty.measure(&name).await?, full.measure(&name).await?);
            cpu.round(ours.0, baseline.0);
            time.round(ours.1, baseline.1);
        }
        let beside = namespaces * IMAGES_ELSEWHERE * NODES;
        let of = format!("a deploy beside {beside} ImageWarms of {namespaces} namespaces");
        report.add(format!("leader's CPU, {of}"), "s", cpu, Limit::Ratio(1.2));
        report.add(format!("until the last ImageWarm, {of}"), "s", time, Limit::Ratio(1.2));
    }
    let idle = Duration::from_secs(scale.pick(60, 600));
    let writes = full.writes()?;
    let used = cpu_nanoseconds(full.controller.pid())?;
    tokio::time::sleep(idle).await;
    let used = (cpu_nanoseconds(full.controller.pid())? - used) / 1e9;
    let percent = Series::one(100.0 * used / idle.as_secs_f64());
    let name = format!("leader without work for {} s, CPU", idle.as_secs());
    report.add(name, "% of a core", percent, Limit::Most(1.0));
    let writes = Series::one((full.writes()? - writes) as f64);
    report.add("the same, writes but for the Lease", "(count)", writes, Limit::Most(0.0));
    Ok(())
}

/// A cluster with plain nodes and one controller.
struct Place {
    stage: Stage,
    controller: Arc<Imagewarm>,
}

impl Place {
    async fn new() -> Result<Place> {
        let (stage, controller) = Stage::new(0).await?;
        stage.plain_nodes((0..NODES).map(|at| format!("plain-{at:03}")).collect()).await?;
        let place = Place { stage, controller };
        // Opens connections.
        place.deploy("first", IMAGES).await?;
        Ok(place)
    }

    /// A Revision in a namespace of its own; seconds until its last ImageWarm.
    async fn deploy(&self, namespace: &str, images: usize) -> Result<f64> {
        let revisions = self.stage.namespace(namespace).await?;
        let mut appearing = self.stage.watch(namespace).await?;
        let images: Vec<String> =
            (0..images).map(|at| format!("registry.example.com/{namespace}/app-{at}:v1")).collect();
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        let began = Instant::now();
        revisions.create("app-00001", &images).await?;
        let last = appearing.count(images.len() * NODES).await?;
        Ok(seconds(began, last))
    }

    /// CPU seconds of the leader, and seconds until the last ImageWarm.
    async fn measure(&self, namespace: &str) -> Result<(f64, f64)> {
        let used = cpu_nanoseconds(self.controller.pid())?;
        let time = self.deploy(namespace, IMAGES).await?;
        tokio::time::sleep(SETTLED).await;
        Ok(((cpu_nanoseconds(self.controller.pid())? - used) / 1e9, time))
    }

    /// Writes of the controller so far, but for Leases.
    fn writes(&self) -> Result<usize> {
        let account = format!("system:serviceaccount:{NAMESPACE}:{CONTROLLER_ACCOUNT}");
        let writes = ["create", "update", "patch", "delete"];
        let events = self.stage.cluster.audit_events()?;
        let of_ours = events.iter().filter(|event| {
            event["user"]["username"] == account.as_str()
                && event["verb"].as_str().is_some_and(|verb| writes.contains(&verb))
                && event["objectRef"]["resource"] != "leases"
        });
        Ok(of_ours.count())
    }
}
