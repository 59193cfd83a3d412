//! Many warmers in this process: the real client, each with its own stream and a token of a Pod on
//! its own node, over a runtime that only waits. Measures the time until the last of them has its
//! assignment, and the writes to the API server for each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args as _, FromArgMatches as _};
use futures::{StreamExt as _, TryStreamExt as _};
use imagewarm::runtime::{Runtime, RuntimeFuture};
use imagewarm::warmer::{Warmer, WarmerArgs, WarmerMetrics};
use imagewarm_core::api::Reason;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion, Sandboxes,
};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xtask::cluster::{AUDIENCE, Cluster, NAMESPACE, TokenFor, WARMER_ACCOUNT};
use xtask::wait::wait_for;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{CONCURRENCY, DEADLINE, Stage, seconds};

/// Rows: the last assignment received, against raw creates; writes for each image and node.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(0).await?;
    let (count, rounds) = (scale.pick(300, 1_000), 3);
    let mut warmers = FakeWarmers::connect(&stage, count).await?;
    let client = stage.as_controller().await?;
    // No warmer is assigned these, so that the baseline is creates alone.
    let others: Vec<String> = (0..count).map(|at| format!("no-node-{at:05}")).collect();
    let mut series = Series::default();
    let mut writes = Series::default();
    for round in 0..=rounds {
        // By digest: the warmer checks presence first, before any request to the controller.
        let image = format!("registry.example.com/team/app@sha256:{round:064x}");
        warmers.hold(Held::Pulls);
        let revisions = stage.namespace(&format!("assignments-{round}")).await?;
        let began = Instant::now();
        revisions.create("app-00001", &[&image]).await?;
        let ours = seconds(began, warmers.orders(&image, count).await?);
        warmers.hold(Held::Nothing);
        warmers.pulls(&image, count).await?;
        stage.all_ready(&revisions.namespace, count).await?;

        let raw = stage.namespace(&format!("raw-{round}")).await?;
        let began = Instant::now();
        let image = format!("registry.example.com/team/app:v{round}");
        raw.raw_creates(&client, &image, &others).await?;
        let baseline = seconds(began, Instant::now());
        if round == 0 {
            continue; // It opened the connections.
        }
        series.round(ours, baseline);
        revisions.delete_configuration().await?;
        writes.ours.push(life_writes(&stage, &revisions.namespace, count).await?);
    }
    let name = format!("Revision created, until the last of {count} warmers has its assignment");
    report.add(name, "s", series, Limit::Ratio(1.3));
    report.add("API writes in the life of an ImageWarm", "writes", writes, Limit::Most(3.0));
    Ok(())
}

/// Waits until all ImageWarms of the namespace are deleted, and counts what was written for each.
async fn life_writes(stage: &Stage, namespace: &str, count: usize) -> Result<f64> {
    let writes = async || {
        let events = stage.cluster.audit_events().ok()?;
        let (mut writes, mut deleted) = (0, 0);
        for event in events.iter().filter(|event| is_write(event, namespace)) {
            writes += 1;
            deleted += usize::from(event["verb"] == "delete");
        }
        (deleted >= count).then_some(writes)
    };
    let writes = wait_for(DEADLINE, "the ImageWarms to be deleted", writes).await?;
    Ok(f64::from(writes) / count as f64)
}

/// Whether an audit event is a write of an ImageWarm of the namespace.
pub fn is_write(event: &Value, namespace: &str) -> bool {
    let object = &event["objectRef"];
    let succeeded = event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300);
    let verb = event["verb"].as_str().unwrap_or_default();
    succeeded
        && object["resource"] == "imagewarms"
        && object["namespace"] == namespace
        && matches!(verb, "create" | "update" | "patch" | "delete")
}

/// What the fake runtimes hold back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// The ends of pulls.
    Pulls,
    /// The answer to the presence check: nothing is reported before that, so no status is written.
    /// For less than a minute: the check times out then.
    Looks,
}

/// A request of a warmer to its runtime.
struct Asked {
    image: String,
    at: Instant,
    pulled: bool,
}

/// Of one image, over all warmers.
#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    last_look: Option<Instant>,
    pulls: usize,
}

/// The warmers, connected.
pub struct FakeWarmers {
    /// Seconds from the first start to the last Welcome.
    pub connected_after: f64,
    asked: mpsc::UnboundedReceiver<Asked>,
    hold: watch::Sender<Held>,
    seen: BTreeMap<String, Seen>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl FakeWarmers {
    /// Makes the nodes and the tokens, then starts all warmers at once.
    pub async fn connect(stage: &Stage, count: usize) -> Result<FakeWarmers> {
        Self::connect_to(stage, count, None).await
    }

    /// The same, with all pulls from a registry behind this gate.
    pub async fn connect_to(
        stage: &Stage,
        count: usize,
        gate: Option<Arc<Gate>>,
    ) -> Result<FakeWarmers> {
        let names: Vec<String> = (0..count).map(|at| format!("fake-{at:05}")).collect();
        stage.plain_nodes(names.clone()).await?;
        let tokens = tokens(&stage.cluster, &names).await?;
        let (tell, asked) = mpsc::unbounded_channel();
        let hold = watch::Sender::new(Held::Nothing);
        let (stop, mut tasks, mut connected) = (CancellationToken::new(), JoinSet::new(), vec![]);
        let began = Instant::now();
        for token in tokens {
            let (tell, hold) = (tell.clone(), hold.subscribe());
            let runtime = Waiting { tell, hold, gate: gate.clone(), images: Mutex::default() };
            let metrics = WarmerMetrics::register(&mut Default::default());
            let warmer =
                Warmer::with_runtime(Arc::new(runtime), &args(&stage.cluster, token)?, metrics)?;
            connected.push(warmer.connected());
            let run = warmer.run(stop.clone());
            tasks.spawn(async move {
                // A given runtime is always one that can be used.
                let _ = run.await;
            });
        }
        for mut connected in connected {
            tokio::time::timeout(DEADLINE, connected.wait_for(|open| *open)).await??;
        }
        let connected_after = seconds(began, Instant::now());
        let seen = BTreeMap::new();
        Ok(FakeWarmers { connected_after, asked, hold, seen, stop, _tasks: tasks })
    }

    /// What waits from now on, until this is called with [`Held::Nothing`].
    pub fn hold(&self, held: Held) {
        self.hold.send_replace(held);
    }

    /// Waits until so many warmers have begun to work on the image; returns the last one's moment.
    pub async fn orders(&mut self, image: &str, count: usize) -> Result<Instant> {
        self.until(image, count, false).await?;
        self.seen.get(image).and_then(|seen| seen.last_look).context("no warmer made a request")
    }

    /// Waits until so many warmers have pulled the image.
    pub async fn pulls(&mut self, image: &str, count: usize) -> Result<()> {
        self.until(image, count, true).await
    }

    async fn until(&mut self, image: &str, count: usize, pulled: bool) -> Result<()> {
        let enough = |seen: Option<&Seen>| {
            seen.is_some_and(|seen| if pulled { seen.pulls } else { seen.looks } >= count)
        };
        while !enough(self.seen.get(image)) {
            let asked = tokio::time::timeout(DEADLINE, self.asked.recv()).await;
            let asked = asked.with_context(|| format!("{image}: {:?}", self.seen.get(image)))?;
            let asked = asked.context("the warmers have ended")?;
            let entry = self.seen.entry(asked.image).or_default();
            if asked.pulled {
                entry.pulls += 1;
            } else {
                entry.looks += 1;
                entry.last_look = entry.last_look.max(Some(asked.at));
            }
        }
        Ok(())
    }
}

impl Drop for FakeWarmers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A token for the warmer of each of these nodes, in a file.
pub async fn tokens(cluster: &Cluster, nodes: &[String]) -> Result<Vec<PathBuf>> {
    let folder = cluster.folder().join("tokens");
    std::fs::create_dir_all(&folder)?;
    let folder = &folder;
    futures::stream::iter(nodes)
        .map(|node| async move {
            let pod = format!("imagewarmer-{node}");
            let token = TokenFor {
                namespace: NAMESPACE,
                service_account: WARMER_ACCOUNT,
                pod: Some((&pod, node)),
                audience: Some(AUDIENCE),
                seconds: 24 * 60 * 60,
            };
            let file = folder.join(node);
            cluster.write_token(&token, &file).await?;
            anyhow::Ok(file)
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

/// The settings of a warmer that proves itself with this token.
pub fn args(cluster: &Cluster, token: PathBuf) -> Result<WarmerArgs> {
    let command = WarmerArgs::augment_args(clap::Command::new("warmer"));
    let server = format!("--dispatch-server=https://{}", cluster.dispatch.address());
    let name = format!("--dispatch-server-name=imagewarm-dispatch.{NAMESPACE}.svc");
    let ca = format!("--dispatch-ca-file={}", cluster.dispatch_ca_file().display());
    let token = format!("--token-file={}", token.display());
    // Independent of this machine's free space: nothing is stored.
    let room = ["--keep-free-disk=0%", "--assumed-image-size=0"];
    let flags = ["warmer", &server, &name, &ca, &token];
    let matches = command.try_get_matches_from(flags.into_iter().chain(room))?;
    Ok(WarmerArgs::from_arg_matches(&matches)?)
}

/// A registry that serves some pulls at a time, a second each, and answers others with 429.
#[derive(Debug)]
pub struct Gate {
    places: Semaphore,
    refused: AtomicUsize,
}

impl Gate {
    /// So many at a time.
    pub fn of(places: usize) -> Self {
        Gate { places: Semaphore::new(places), refused: AtomicUsize::new(0) }
    }

    /// Counts from nothing.
    pub fn begin(&self) {
        self.refused.store(0, Ordering::Relaxed);
    }

    /// Pulls rejected since.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    async fn serve(&self) -> Result<(), RuntimeError> {
        let Ok(_place) = self.places.try_acquire() else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let message = "toomanyrequests: you have reached your pull rate limit".into();
            return Err(RuntimeError { reason: Reason::RateLimited, message });
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}

/// A runtime that pulls by waiting.
#[derive(Debug)]
struct Waiting {
    tell: mpsc::UnboundedSender<Asked>,
    hold: watch::Receiver<Held>,
    gate: Option<Arc<Gate>>,
    /// The requested images, and whether it holds them.
    images: Mutex<BTreeMap<String, bool>>,
}

impl Waiting {
    /// Signals the first request for an image; returns whether it is held.
    fn received(&self, image: &Reference) -> bool {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let known = images.get(image.as_str()).copied();
        if known.is_none() {
            images.insert(image.to_string(), false);
            self.tell(image, false);
        }
        known == Some(true)
    }

    async fn until(&self, free: impl Fn(Held) -> bool) {
        let mut hold = self.hold.clone();
        let _ = hold.wait_for(|held| free(*held)).await;
    }

    fn tell(&self, image: &Reference, pulled: bool) {
        // The receiver is gone at the end.
        let _ = self.tell.send(Asked { image: image.to_string(), at: Instant::now(), pulled });
    }
}

/// The version that the Nodes of fake warmers report as well.
pub fn docker_version() -> RuntimeVersion {
    RuntimeVersion {
        name: "docker".into(),
        version: "28.0.0".into(),
        os: "linux".into(),
        architecture: xtask::images::architecture().into(),
    }
}

fn held_image() -> PresentImage {
    PresentImage {
        digest: format!("sha256:{}", "d".repeat(64)).parse().ok(),
        size_bytes: 5_000_000,
    }
}

impl Runtime for Waiting {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        Box::pin(async { Ok(docker_version()) })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async move {
            let there = self.received(image);
            if !there {
                self.until(|held| held != Held::Looks).await;
            }
            Ok(there.then(held_image))
        })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async { Ok("/".into()) })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        _credential: Option<&'a Credential>,
        _progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(async move {
            // A tag that is to be checked is pulled without a presence check.
            self.received(image);
            match &self.gate {
                Some(gate) => gate.serve().await?,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            self.until(|held| held == Held::Nothing).await;
            let images = self.images.lock();
            images.unwrap_or_else(PoisonError::into_inner).insert(image.to_string(), true);
            self.tell(image, true);
            Ok(PulledImage { image: held_image(), downloaded: true })
        })
    }
}
