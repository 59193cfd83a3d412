//! One of Knative's programs: started, restarted, frozen, and asked for its log.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::NAMESPACE;
use crate::cluster::network::Network;
use crate::process::Program;
use crate::restartable::Restartable;

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(60);

/// A program that runs, or is stopped.
pub struct Part {
    program: Restartable,
    /// Where it listens once it works.
    address: SocketAddr,
    // Dropped after the process.
    _place: Option<Place>,
}

/// A network of its own, and what is reached from there.
pub(super) struct Place {
    pub(super) network: Network,
    /// Aborted together with the program.
    pub(super) forwards: JoinSet<()>,
}

impl Part {
    pub(super) fn new(
        name: &'static str,
        program: Program,
        address: SocketAddr,
        sandbox: &Path,
        place: Option<Place>,
    ) -> Self {
        let program = match &place {
            Some(place) => place.network.program(program),
            None => program,
        };
        Self { program: Restartable::new(name, program, sandbox), address, _place: place }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it and waits until it listens.
    pub async fn start(&self) -> Result<()> {
        let listens = async || TcpStream::connect(self.address).await.ok();
        self.program.start(START, listens).await
    }

    /// Ends it as a rollout does, and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.program.terminate(END).await?;
        self.start().await
    }

    /// Kills it.
    pub fn stop(&self) {
        self.program.kill();
    }

    /// Freezes it: it does nothing any more, and connections are taken and never answered.
    pub fn freeze(&self) {
        self.program.freeze();
    }

    /// Ends a [`Part::freeze`].
    pub fn thaw(&self) {
        self.program.thaw();
    }

    /// Its output, of all its runs.
    pub fn log(&self) -> String {
        self.program.log()
    }
}

/// What each of the programs finds in its environment, in the cluster as here.
pub(super) fn program(path: &Path, name: &str, kubeconfig: &Path) -> Program {
    Program::new(path)
        .env("KUBECONFIG", kubeconfig)
        .env("SYSTEM_NAMESPACE", NAMESPACE)
        .env("POD_NAME", name)
        .env("METRICS_DOMAIN", "knative.dev/internal/serving")
        .env("METRICS_PROMETHEUS_HOST", "127.0.0.1")
        .env("CONFIG_LOGGING_NAME", "config-logging")
        .env("CONFIG_OBSERVABILITY_NAME", "config-observability")
}
