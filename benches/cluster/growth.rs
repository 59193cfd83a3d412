//! Growth of time, CPU, memory and bytes in etcd with nodes and with images. A power law is fitted,
//! printed and drawn; the goal is linear. Most of the time is the API server's, so the baseline is
//! the time of as many raw creates.
//!
//! A few creations after an idle time cost the API server less each than many in a row, and a
//! machine's speed varies. So a smaller size is fanned out several times in a row, until it has made as
//! much as the greatest, and the sizes take turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Client;
use xtask::cluster::Imagewarm;

use crate::Scale;
use crate::api_server::metrics;
use crate::fit::{Curve, chart};
use crate::process::{anonymous_bytes, cpu_nanoseconds};
use crate::report::{Limit, Report, Series};
use crate::stage::{DEADLINE, Stage, seconds};

/// Images grow on so many nodes.
const NODES_FOR_IMAGES: usize = 100;

/// Images on all nodes of a cluster whose resources are measured.
const IMAGES_HELD: usize = 4;

/// No more images of one Revision are warmed, by default.
const MOST_OF_A_REVISION: usize = 50;

/// Above which growth is more than linear.
const MOST: f64 = 1.05;

/// Rows: exponent and R² of each curve.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let mut curves = over_images(scale, report).await?;
    curves.extend(over_nodes(scale, report).await?);
    let folder = xtask::workspace().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join("growth.svg"), chart(&curves))?)
}

/// All numbers of images in one cluster, and a new one for each round: not more than can be held.
async fn over_images(scale: Scale, report: &mut Report) -> Result<Vec<Curve>> {
    let sizes = scale.pick(vec![1, 4, 10, 20], vec![1, 10, 50, 200]);
    let most = sizes.iter().copied().max().context("no size")?;
    let held = held_over_images(&sizes).await?;
    let mut work = Work::default();
    for round in 0..scale.pick(1, 4) {
        let mut place = Place::new().await?;
        place.add_nodes(NODES_FOR_IMAGES).await?;
        place.hold("first", 1).await?;
        work.begin_round();
        for images in in_turn(&sizes, round) {
            let (fan_outs, namespace) = (most.div_ceil(*images), format!("grow-{images}"));
            let turn = Turn { images: *images, fan_outs, namespace };
            work.add(*images, place.take(&turn).await?);
        }
    }
    let what = format!("images, on {NODES_FOR_IMAGES} nodes");
    let mut curves = work.into_rows(&what, report);
    curves.extend(held.into_rows(&what, report));
    Ok(curves)
}

async fn held_over_images(sizes: &[usize]) -> Result<Held> {
    let mut place = Place::new().await?;
    let before = place.holdings().await?;
    place.add_nodes(NODES_FOR_IMAGES).await?;
    let (mut held, mut there) = (Held::default(), 0);
    for images in sizes {
        place.hold(&format!("held-{images}"), images - there).await?;
        there = *images;
        held.add(there, place.holdings().await?, before);
    }
    Ok(held)
}

/// Each number of nodes in a cluster of its own. In a single cluster, new nodes would get the
/// earlier images as well, within the time of the next measurement.
async fn over_nodes(scale: Scale, report: &mut Report) -> Result<Vec<Curve>> {
    let sizes = scale.pick(vec![100, 400, 1_500], vec![100, 300, 1_000, 2_500, 5_000]);
    let most = sizes.iter().copied().max().context("no size")?;
    let (mut places, mut held) = (Vec::new(), Held::default());
    for nodes in sizes {
        let mut place = Place::new().await?;
        let before = place.holdings().await?;
        place.add_nodes(nodes).await?;
        place.hold("first", IMAGES_HELD).await?;
        held.add(nodes, place.holdings().await?, before);
        places.push(place);
    }
    let mut work = Work::default();
    for round in 0..scale.pick(1, 9) {
        work.begin_round();
        for place in in_turn(&places, round) {
            let nodes = place.nodes;
            let (fan_outs, namespace) = (most.div_ceil(nodes), format!("grow-{round}"));
            work.add(nodes, place.take(&Turn { images: 1, fan_outs, namespace }).await?);
        }
    }
    let mut curves = work.into_rows("nodes, one image", report);
    let what = format!("nodes with {IMAGES_HELD} images each");
    curves.extend(held.into_rows(&what, report));
    Ok(curves)
}

/// From the least to the greatest, and in the next round back: what changes in the course of a round
/// does not always meet the same end.
fn in_turn<T>(sizes: &[T], round: usize) -> Vec<&T> {
    let mut order: Vec<&T> = sizes.iter().collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// What is done in a row, and measured as one.
struct Turn {
    images: usize,
    fan_outs: usize,
    namespace: String,
}

/// A cluster with plain nodes and one controller.
struct Place {
    stage: Stage,
    controller: Arc<Imagewarm>,
    client: Client,
    nodes: usize,
}

impl Place {
    async fn new() -> Result<Place> {
        let (stage, controller) = Stage::new(0).await?;
        let client = stage.as_controller().await?;
        Ok(Place { stage, controller, client, nodes: 0 })
    }

    async fn add_nodes(&mut self, count: usize) -> Result<()> {
        self.nodes = count;
        self.stage.plain_nodes((0..count).map(|at| format!("plain-{at:05}")).collect()).await
    }

    /// Brings so many images to all nodes, one after another; opens connections by the way.
    async fn hold(&self, namespace: &str, images: usize) -> Result<()> {
        let turn = Turn { images: 1, fan_outs: images, namespace: namespace.to_owned() };
        self.fan_out(&turn).await.map(drop)
    }

    /// The fan-outs of a turn, and as many raw creates.
    async fn take(&self, turn: &Turn) -> Result<Taken> {
        let used = cpu_nanoseconds(self.controller.pid())?;
        let time = self.fan_out(turn).await?;
        // The leader still reconciles the new objects.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cpu = (cpu_nanoseconds(self.controller.pid())? - used) / 1e9;

        let raw = self.stage.namespace(&format!("raw-{}", turn.namespace)).await?;
        let nodes: Vec<String> = (0..self.nodes).map(|at| format!("no-node-{at:05}")).collect();
        let began = Instant::now();
        for number in 0..turn.fan_outs {
            for image in turn.images_of(number) {
                raw.raw_creates(&self.client, &image, &nodes).await?;
            }
        }
        let raw = seconds(began, Instant::now());
        let each = |whole| whole / turn.fan_outs as f64;
        Ok(Taken { time: each(time), cpu: each(cpu), raw: each(raw) })
    }

    /// Seconds until the last ImageWarm; each fan-out begins when the one before has ended.
    async fn fan_out(&self, turn: &Turn) -> Result<f64> {
        let revisions = self.stage.namespace(&turn.namespace).await?;
        let mut appearing = self.stage.watch(&revisions.namespace).await?;
        let began = Instant::now();
        let mut last = began;
        for number in 0..turn.fan_outs {
            let images = turn.images_of(number);
            let images: Vec<&str> = images.iter().map(String::as_str).collect();
            for (part, images) in images.chunks(MOST_OF_A_REVISION).enumerate() {
                revisions.create(&format!("app-{number:05}-{part}"), images).await?;
            }
            last = appearing.count(images.len() * self.nodes).await?;
        }
        Ok(seconds(began, last))
    }

    /// What a controller takes that has just started, with nothing in it but what it needs; and the
    /// size of etcd's database as the API server reports it.
    async fn holdings(&self) -> Result<Holdings> {
        let started = self.stage.controller("fresh").await?;
        let memory = anonymous_bytes(started.pid())?;
        started.terminate(DEADLINE).await?;

        let text = metrics(&self.stage.cluster.client()).await?;
        let line = text.lines().find(|line| line.starts_with("apiserver_storage_size_bytes"));
        let number = line.and_then(|line| line.split_whitespace().last());
        let stored =
            number.context("the API server does not report its storage's size")?.parse()?;
        Ok(Holdings { memory, stored })
    }
}

impl Turn {
    /// No two fan-outs have an image in common.
    fn images_of(&self, fan_out: usize) -> Vec<String> {
        let repository = format!("registry.example.com/{}", self.namespace);
        (0..self.images).map(|at| format!("{repository}/app-{at}:v{fan_out}")).collect()
    }
}

/// Seconds for one fan-out.
struct Taken {
    time: f64,
    cpu: f64,
    raw: f64,
}

/// Bytes.
#[derive(Clone, Copy)]
struct Holdings {
    memory: f64,
    stored: f64,
}

/// A curve for each round.
#[derive(Default)]
struct Work {
    time: Vec<Curve>,
    raw: Vec<Curve>,
    cpu: Vec<Curve>,
}

impl Work {
    fn begin_round(&mut self) {
        for rounds in [&mut self.time, &mut self.raw, &mut self.cpu] {
            rounds.push(Curve::default());
        }
    }

    fn add(&mut self, number: usize, taken: Taken) {
        let parts =
            [(&mut self.time, taken.time), (&mut self.raw, taken.raw), (&mut self.cpu, taken.cpu)];
        for (rounds, value) in parts {
            if let Some(round) = rounds.last_mut() {
                round.add(number, value);
            }
        }
    }

    fn into_rows(self, what: &str, report: &mut Report) -> Vec<Curve> {
        let name = format!("seconds until the last ImageWarm, over {what}");
        let time = rows(name, &self.time, &self.raw, report);
        let cpu = rows(format!("controller's CPU seconds, over {what}"), &self.cpu, &[], report);
        vec![time, cpu]
    }
}

/// What is there and stays, over how much there is.
#[derive(Default)]
struct Held {
    memory: Curve,
    stored: Curve,
}

impl Held {
    fn add(&mut self, number: usize, now: Holdings, before: Holdings) {
        self.memory.add(number, (now.memory - before.memory) / 1e6);
        self.stored.add(number, (now.stored - before.stored) / 1e6);
    }

    fn into_rows(self, what: &str, report: &mut Report) -> Vec<Curve> {
        let memory = format!("controller's MB, over {what}");
        let memory = rows(memory, &[self.memory], &[], report);
        let stored = rows(format!("MB in etcd, over {what}"), &[self.stored], &[], report);
        vec![memory, stored]
    }
}

/// Adds the exponent of each round and the R² of what is typical of all; returns the latter.
fn rows(name: String, rounds: &[Curve], raw: &[Curve], report: &mut Report) -> Curve {
    let exponents = |rounds: &[Curve]| rounds.iter().map(Curve::exponent).collect::<Vec<_>>();
    let exponent = Series { ours: exponents(rounds), baseline: exponents(raw) };
    eprintln!("    {:.3?}, raw creates {:.3?}", exponent.ours, exponent.baseline);
    report.add(format!("{name}: exponent"), "(exponent)", exponent, Limit::Most(MOST));
    let typical = Curve::typical(name, rounds);
    let straight = Series::one(typical.straightness());
    report.add(format!("{}: R²", typical.name), "(R²)", straight, Limit::None);
    eprintln!("    {:?}; {:.6} for each", typical.points, typical.slope());
    if !raw.is_empty() {
        let raw = Curve::typical(String::new(), raw);
        eprintln!("    raw creates: {:?}; {:.6} for each", raw.points, raw.slope());
    }
    typical
}
