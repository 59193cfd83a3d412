//! A program that tests stop, freeze and start again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::process::{Process, Program, Signal};

/// A program with its process, while it runs.
pub(crate) struct Restartable {
    name: &'static str,
    program: Program,
    sandbox: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Restartable {
    /// It does not run yet. `sandbox` is the cluster's folder.
    pub(crate) fn new(name: &'static str, program: Program, sandbox: &Path) -> Self {
        Self { name, program, sandbox: sandbox.to_owned(), process: Mutex::default() }
    }

    /// Starts it and waits until it works.
    pub(crate) async fn start<T, Fut>(
        &self,
        deadline: Duration,
        works: impl FnMut() -> Fut,
    ) -> Result<()>
    where
        Fut: Future<Output = Option<T>>,
    {
        let process = Process::start(self.name, self.program.clone(), &self.sandbox)?;
        process.wait_until(deadline, works).await?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Ends it in good order.
    pub(crate) async fn terminate(&self, deadline: Duration) -> Result<()> {
        match self.take() {
            Some(process) => process.terminate(deadline).await.map(drop),
            None => Ok(()),
        }
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        self.take();
    }

    /// Freezes it: it does nothing any more, and connections are taken and never answered.
    pub(crate) fn freeze(&self) {
        self.with_process(|process| process.signal(Signal::Stop));
    }

    /// Ends a [`Restartable::freeze`].
    pub(crate) fn thaw(&self) {
        self.with_process(|process| process.signal(Signal::Continue));
    }

    /// Its output, of all its runs.
    pub(crate) fn log(&self) -> String {
        self.with_process(Process::log).unwrap_or_default()
    }

    fn take(&self) -> Option<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn with_process<T>(&self, ask: impl FnOnce(&Process) -> T) -> Option<T> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
    }
}
