//! The running system as one test sees it: fixtures by subject, reached from the test's own
//! [`World`]. What a test changes for others is put back after it.

mod account_rights;
mod admission_port;
mod audit;
mod commands;
mod controllers;
mod credentials;
mod crowd;
mod findings;
mod installation;
mod leader;
mod logs;
mod metrics;
mod namespace;
mod nodes;
mod registries;
mod rights;
mod streams;
mod system;
mod undo;
mod warmers;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::FutureExt;
use kube::Client;
use xtask::cluster::{Cluster, KNATIVE_NAMESPACE};

use namespace::PROBES;
use undo::Undo;

pub use admission_port::{AdmissionPort, VALIDATION, until_closed};
pub use audit::{Audit, Request as AuditedRequest};
pub use commands::Commands;
pub use controllers::{Controllers, REPLICAS};
pub use crowd::half_open;
pub use findings::Findings;
pub use installation::Installation;
pub use logs::Logs;
pub use namespace::{Namespace, containers, image_warm};
pub use nodes::Nodes;
pub use registries::{Proxied, Pushed, Registries};
pub use streams::{RawStream, Streams, reset_calls};
pub use system::System;
pub use warmers::Warmers;
pub use xtask::memory_limit::MemoryLimit;

/// How long anything may take on a slow machine before it counts as never.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");

/// All that we log ourselves, for the search for credentials.
const EVERYTHING: &str = "info,imagewarm=trace,imagewarm_webhook_certs=trace,kube_client=off";

pub struct World {
    pub admission_port: AdmissionPort,
    pub audit: Audit,
    pub commands: Commands,
    pub controllers: Controllers,
    pub installation: Installation,
    pub logs: Logs,
    pub nodes: Nodes,
    pub registries: Registries,
    pub streams: Streams,
    pub warmers: Warmers,
    system: Arc<System>,
    undo: Undo,
}

impl World {
    /// Runs one test in a World of its own, and then puts back what the test has changed: after a
    /// panic too.
    pub async fn run(
        system: &Arc<System>,
        test: impl AsyncFnOnce(&World) -> Result<()>,
    ) -> Result<()> {
        let world = World::new(system);
        let tested = AssertUnwindSafe(test(&world)).catch_unwind().await;
        let tested = tested.unwrap_or_else(|_| Err(anyhow!("the test panicked")));
        match (tested, world.undo.run().await) {
            (Err(failure), Err(undone)) => Err(failure.context(format!("{undone:#}"))),
            (tested, undone) => tested.and(undone),
        }
    }

    /// Starts the system: the cluster, two replicas, and a warmer on each node.
    pub async fn start() -> Result<Arc<System>> {
        let system = System::start().await?;
        // Nothing of this is undone.
        let undo = Undo::default();
        let probes = Namespace::create(&system, &undo, PROBES.to_owned()).await?;
        probes.label("caching.knative.dev/warm", "true").await?;
        Controllers::new(&system, &undo).start().await?;
        for node in nodes::NAMES {
            Warmers::new(&system, &undo).start(node).await?;
        }
        Ok(system)
    }

    fn new(system: &Arc<System>) -> World {
        let undo = Undo::default();
        let controllers = Controllers::new(system, &undo);
        World {
            admission_port: AdmissionPort::new(&controllers),
            audit: Audit::new(system),
            commands: Commands::new(system),
            installation: Installation::new(system, &undo),
            logs: Logs::new(system),
            nodes: Nodes::new(system, &undo),
            registries: Registries::new(system, &undo),
            streams: Streams::new(system, &controllers),
            controllers,
            warmers: Warmers::new(system, &undo),
            system: system.clone(),
            undo,
        }
    }

    pub fn system(&self) -> &Arc<System> {
        &self.system
    }

    pub fn cluster(&self) -> &Cluster {
        &self.system.cluster
    }

    pub fn client(&self) -> Client {
        self.system.client()
    }

    /// A new namespace whose name begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace> {
        Namespace::next(&self.system, &self.undo, prefix).await
    }

    /// Knative's own.
    pub fn knative_namespace(&self) -> Namespace {
        Namespace::existing(&self.system, &self.undo, KNATIVE_NAMESPACE.to_owned())
    }
}

/// Asks until there is an answer, or until the deadline is over.
pub async fn eventually<T>(what: &str, probe: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe().await.with_context(|| what.to_owned())? {
            return Ok(answer);
        }
        if start.elapsed() > DEADLINE {
            bail!("not so within {} s: {what}", DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Flags and their values, of which some have other values or are new.
fn changed<'a>(flags: &[&'a str], changes: &[&'a str]) -> Vec<&'a str> {
    let is_changed = |flag: &&str| changes.chunks(2).any(|change| change.first() == Some(flag));
    let kept = flags.chunks(2).filter(|pair| !pair.first().is_some_and(is_changed));
    kept.flatten().chain(changes).copied().collect()
}
