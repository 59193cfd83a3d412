//! How what imagewarm takes grows with nodes and with images: time, CPU, memory, bytes in etcd. The
//! law is fitted, printed and drawn: linear is the aim. Time is the API server's more than ours, so
//! that of as many raw creates stands beside it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::cluster::Imagewarm;

use crate::Scale;
use crate::fit::{Curve, chart};
use crate::process::{anonymous_bytes, cpu_nanoseconds};
use crate::report::{Limit, Report, Series, median};
use crate::stage::{DEADLINE, Stage, seconds};

/// Images grow on so many nodes.
const NODES_FOR_IMAGES: usize = 100;

/// No more images of one Revision are warmed, by default.
const MOST_OF_A_REVISION: usize = 50;

/// Above which growth is more than linear.
const MOST: f64 = 1.05;

/// Rows: exponent and R² of each curve.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let images = scale.pick(vec![1, 5, 20, 50], vec![1, 5, 20, 50, 100, 200]);
    let nodes = scale.pick(vec![100, 250, 600, 1_500], vec![100, 300, 1_000, 2_500, 5_000]);
    let rounds =
        Rounds { most: scale.pick(5, 9), least: scale.pick(1, 3), warms: scale.pick(1_500, 6_000) };

    let mut by_images = Growth::new(false);
    let (stage, controller) = Stage::new(0).await?;
    add_nodes(&stage, NODES_FOR_IMAGES).await?;
    warm_up(&stage, NODES_FOR_IMAGES).await?;
    for count in images {
        by_images.step(&stage, &controller, (count, NODES_FOR_IMAGES), &rounds).await?;
    }
    drop(stage);

    // Were the nodes to grow in one cluster, they would be given the images of before as well, and all
    // that in the time of the next.
    let mut by_nodes = Growth::new(true);
    for count in nodes {
        let (stage, controller) = Stage::new(0).await?;
        add_nodes(&stage, count).await?;
        warm_up(&stage, count).await?;
        by_nodes.begin_anew();
        by_nodes.step(&stage, &controller, (1, count), &rounds).await?;
    }
    let curves: Vec<Curve> =
        [by_images, by_nodes].into_iter().flat_map(Growth::into_curves).collect();
    for curve in &curves {
        let mut exponent = Series::one(curve.exponent());
        if let Some(raw) = &curve.baseline {
            exponent.baseline.push(raw.exponent());
        }
        report.add(format!("{}: exponent", curve.name), "(exponent)", exponent, Limit::Most(MOST));
        let straight = Series::one(curve.straightness());
        report.add(format!("{}: R²", curve.name), "(R²)", straight, Limit::None);
        eprintln!("    {:?}; {:.6} for each", curve.points, curve.slope());
    }
    let folder = xtask::workspace().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join("growth.svg"), chart(&curves))?)
}

/// The fewer ImageWarms there are in a round, the more chance has a part in its time, and the more
/// rounds there are.
struct Rounds {
    most: usize,
    least: usize,
    /// In all rounds of a step together, about.
    warms: usize,
}

impl Rounds {
    /// An odd number of rounds with so many ImageWarms in each: one of them is the median.
    fn of(&self, warms: usize) -> usize {
        (self.warms / warms).clamp(self.least, self.most) | 1
    }
}

async fn add_nodes(stage: &Stage, count: usize) -> Result<()> {
    stage.plain_nodes((0..count).map(|at| format!("plain-{at:05}")).collect()).await
}

/// Opens connections.
async fn warm_up(stage: &Stage, nodes: usize) -> Result<()> {
    let revisions = stage.namespace("first").await?;
    let mut appearing = stage.watch(&revisions.namespace).await?;
    revisions.create("app-00001", &["registry.example.com/first:v1"]).await?;
    appearing.count(nodes).await?;
    Ok(())
}

/// The curves of one number that grows.
struct Growth {
    over_nodes: bool,
    time: Curve,
    raw: Curve,
    cpu: Curve,
    memory: Curve,
    stored: Curve,
    /// ImageWarms in this cluster so far, and the memory and bytes that they took.
    warms: usize,
    taken: (f64, f64),
    steps: usize,
}

impl Growth {
    fn new(over_nodes: bool) -> Growth {
        let what = if over_nodes { "nodes, one image" } else { "images, on 100 nodes" };
        Growth {
            over_nodes,
            time: Curve::new(format!("seconds until the last ImageWarm, over {what}")),
            raw: Curve::new(format!("seconds for as many raw creates, over {what}")),
            cpu: Curve::new(format!("controller's CPU seconds, over {what}")),
            memory: Curve::new(format!("controller's MB, over ImageWarms ({what})")),
            stored: Curve::new(format!("MB in etcd, over ImageWarms ({what})")),
            warms: 0,
            taken: (0.0, 0.0),
            steps: 0,
        }
    }

    fn into_curves(self) -> [Curve; 4] {
        let time = Curve { baseline: Some(Box::new(self.raw)), ..self.time };
        [time, self.cpu, self.memory, self.stored]
    }

    /// The next step is in a cluster of its own.
    fn begin_anew(&mut self) {
        (self.warms, self.taken) = (0, (0.0, 0.0));
    }

    /// Fans so many images out to so many nodes, some times, and adds a point to each curve.
    async fn step(
        &mut self,
        stage: &Stage,
        controller: &Imagewarm,
        (images, nodes): (usize, usize),
        rounds: &Rounds,
    ) -> Result<()> {
        let rounds = rounds.of(images * nodes);
        let number = if self.over_nodes { nodes } else { images };
        let name = format!("before-{}", self.steps);
        let before = (fresh_memory(stage, &name).await?, stored_bytes(stage).await?);
        let client = stage.as_controller().await?;
        let names: Vec<String> = (0..nodes).map(|at| format!("no-node-{at:05}")).collect();
        let (mut times, mut raw, mut cpu) = (Vec::new(), Vec::new(), 0.0);
        for round in 0..rounds {
            let name = format!("grow-{}-{round}", self.steps);
            let image = |at| format!("registry.example.com/{name}/app-{at}:v1");
            let images: Vec<String> = (0..images).map(image).collect();
            let images: Vec<&str> = images.iter().map(String::as_str).collect();
            let revisions = stage.namespace(&name).await?;
            let mut appearing = stage.watch(&revisions.namespace).await?;
            let (used, began) = (cpu_nanoseconds(controller.pid())?, Instant::now());
            for (number, some) in images.chunks(MOST_OF_A_REVISION).enumerate() {
                revisions.create(&format!("app-{number:05}"), some).await?;
            }
            let last = appearing.count(images.len() * nodes).await?;
            times.push(seconds(began, last));
            // The leader still looks at what was made.
            tokio::time::sleep(Duration::from_secs(1)).await;
            cpu += (cpu_nanoseconds(controller.pid())? - used) / 1e9;

            let others = stage.namespace(&format!("raw-{name}")).await?;
            let began = Instant::now();
            for image in &images {
                others.raw_creates(&client, image, &names).await?;
            }
            raw.push(seconds(began, Instant::now()));
            self.warms += 2 * images.len() * nodes;
        }
        self.steps += 1;
        self.time.points.push((number as f64, median(&times).context("no round")?));
        self.raw.points.push((number as f64, median(&raw).context("no round")?));
        self.cpu.points.push((number as f64, cpu / rounds as f64));
        self.taken.0 += fresh_memory(stage, &format!("after-{}", self.steps)).await? - before.0;
        self.taken.1 += stored_bytes(stage).await? - before.1;
        let warms = self.warms as f64;
        self.memory.points.push((warms, self.taken.0 / 1e6));
        self.stored.points.push((warms, self.taken.1 / 1e6));
        Ok(())
    }
}

/// Of a controller that has just started: nothing in it but what it needs.
async fn fresh_memory(stage: &Stage, name: &str) -> Result<f64> {
    let started = stage.controller(name).await?;
    let bytes = anonymous_bytes(started.pid())?;
    started.terminate(DEADLINE).await?;
    Ok(bytes)
}

/// Size of etcd's database as the API server tells it.
async fn stored_bytes(stage: &Stage) -> Result<f64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = stage.cluster.client().request_text(request).await?;
    let line = text.lines().find(|line| line.starts_with("apiserver_storage_size_bytes"));
    let number = line.and_then(|line| line.split_whitespace().last());
    Ok(number.context("the API server does not tell its storage's size")?.parse()?)
}
