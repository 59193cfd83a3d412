//! One of Knative's programs: started, restarted, frozen, and asked for its log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::NAMESPACE;
use crate::cluster::network::Network;
use crate::process::{Process, Program, Signal};

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(60);

/// A program that runs, or is stopped.
pub struct Part {
    name: &'static str,
    program: Program,
    /// Where it listens once it works.
    address: SocketAddr,
    sandbox: PathBuf,
    process: Mutex<Option<Process>>,
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
        let sandbox = sandbox.to_owned();
        Self { name, program, address, sandbox, process: Mutex::default(), _place: place }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it and waits until it listens.
    pub async fn start(&self) -> Result<()> {
        let process = Process::start(self.name, self.program.clone(), &self.sandbox)?;
        let listens = async || TcpStream::connect(self.address).await.ok().map(drop);
        process.wait_until(START, listens).await?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Ends it as a rollout does, and starts it again.
    pub async fn restart(&self) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            process.terminate(END).await?;
        }
        self.start().await
    }

    /// Kills it.
    pub fn stop(&self) {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Freezes it: it does nothing any more, and connections are taken and never answered.
    pub fn freeze(&self) {
        self.with_process(|process| process.signal(Signal::Stop));
    }

    /// Ends a [`Part::freeze`].
    pub fn thaw(&self) {
        self.with_process(|process| process.signal(Signal::Continue));
    }

    /// Its output, of all its runs.
    pub fn log(&self) -> String {
        self.with_process(Process::log).unwrap_or_default()
    }

    fn with_process<T>(&self, ask: impl FnOnce(&Process) -> T) -> Option<T> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
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
