//! The running system: the cluster with Knative Serving, and what of imagewarm runs in it.

mod audit;
mod hold;
mod namespace;
mod objects;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Client;
use serde_json::Value;
use xtask::cluster::{Cluster, Imagewarm, Knative, Options, Registry, Serving};
use xtask::images::TestImage;
use xtask::wait::wait_for;

pub use audit::{Audited, Order};
pub use namespace::{Namespace, condition, containers};
pub use objects::{Kind, try_create, try_merge_status};

/// How long anything may take on a slow machine before it counts as never.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// How many nodes there are.
pub const NODES: usize = 2;

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");

/// Short waits, so that the tests need not wait for a day's defaults.
const FLAGS: [&str; 6] =
    ["--collect-grace", "3s", "--waiting-after", "3s", "--reserve-delay", "3s"];

pub struct Stage {
    pub cluster: Cluster,
    controller: Mutex<Option<Arc<Imagewarm>>>,
    next: AtomicUsize,
    orders: Mutex<Vec<(String, Order)>>,
}

/// A pushed image.
pub struct Pushed {
    /// `host:port/repository:tag`.
    pub tag: String,
    /// `host:port/repository@sha256:…`.
    pub digest: String,
}

impl Stage {
    /// Starts everything.
    pub async fn start() -> Result<Stage> {
        let options =
            Options { nodes: NODES, tls_registry: true, knative: Knative::Real, deploy: true };
        let stage = Stage {
            cluster: Cluster::start(options).await?,
            controller: Mutex::default(),
            next: AtomicUsize::new(1),
            orders: Mutex::default(),
        };
        hold::install(&stage.client()).await?;
        stage.start_controller().await?;
        for node in stage.cluster.nodes() {
            let warmer = stage.cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
            ready(&warmer).await?;
        }
        Ok(stage)
    }

    /// Stops everything; prints by how much ImageWarms were ahead, and the ends of the logs when
    /// something has failed.
    pub fn stop(self, failed: bool) {
        let mut orders = std::mem::take(&mut *locked(&self.orders));
        orders.sort_by(|(a, _), (b, _)| a.cmp(b));
        println!(
            "\nmilliseconds from the last ImageWarm's creation to the first request for the Deployment:"
        );
        for (name, order) in orders {
            println!("{name}: {order}");
        }
        if !failed {
            return;
        }
        for process in self.cluster.imagewarm_processes() {
            eprintln!("--- end of the log of {}:\n{}", process.name(), process.log_tail());
        }
    }

    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    pub fn serving(&self) -> Result<&Serving> {
        self.cluster.serving()
    }

    /// A new namespace whose name begins with `prefix`, in which Knative makes no Deployment before
    /// the test lets it.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Namespace::create(self, format!("{prefix}-{number}")).await
    }

    /// Pushes an image of new random content to the open registry.
    pub async fn push(&self, repository: &str, tag: &str) -> Result<Pushed> {
        push_to(&self.cluster.registry_plain, repository, tag).await
    }

    /// The same to the registry with TLS and password.
    pub async fn push_private(&self, repository: &str, tag: &str) -> Result<Pushed> {
        push_to(self.private()?, repository, tag).await
    }

    /// The registry with TLS and password.
    pub fn private(&self) -> Result<&Registry> {
        self.cluster.registry_tls.as_ref().context("no private registry")
    }

    /// The controller, which runs.
    pub fn controller(&self) -> Result<Arc<Imagewarm>> {
        locked(&self.controller).clone().context("no controller runs")
    }

    pub async fn start_controller(&self) -> Result<()> {
        let binary = BINARY.as_ref();
        let started = self.cluster.start_controller(binary, "controller-1", &FLAGS).await?;
        *locked(&self.controller) = Some(started.clone());
        ready(&started).await
    }

    /// Stops the controller as a rollout does, and checks that it ends well.
    pub async fn stop_controller(&self) -> Result<()> {
        let controller = locked(&self.controller).take().context("no controller runs")?;
        let status = controller.terminate(DEADLINE).await?;
        ensure!(status.success(), "the controller ended with {status}");
        Ok(())
    }

    /// What the API server has been asked for so far.
    pub fn audited(&self) -> Result<Vec<Audited>> {
        Ok(self.cluster.audit_events()?.iter().filter_map(Audited::read).collect())
    }

    /// Remembers an order for the end of the run.
    pub fn remember(&self, name: &str, order: Order) {
        locked(&self.orders).push((name.to_owned(), order));
    }

    /// Waits until the Image that names queue-proxy says that it is warm everywhere: all that came
    /// before the tests is done then.
    pub async fn until_queue_is_warm(&self) -> Result<Value> {
        let system = Namespace::existing(self, "knative-serving".to_owned());
        system.until_ready(Kind::Image, "queue-proxy").await
    }
}

async fn push_to(registry: &Registry, repository: &str, tag: &str) -> Result<Pushed> {
    let digest = registry.push(&TestImage::new(&[200_000]), repository, tag).await?;
    let digest = format!("{}/{repository}@{digest}", registry.address);
    Ok(Pushed { tag: registry.image(repository, tag), digest })
}

async fn ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}

/// Asks until there is an answer, or until the deadline is over.
pub async fn eventually<T>(what: &str, probe: impl AsyncFn() -> Option<T>) -> Result<T> {
    wait_for(DEADLINE, what, async || probe().await).await
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
