//! One child process: started with a log file, asked whether it lives, ended by its id.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http_get::http_get;
/// Environment variable of every process of a cluster; its value is the cluster's folder.
pub const MARKER: &str = "IMAGEWARM_CLUSTER";
use crate::wait::wait_for;

/// Signals that this crate sends.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// Ends a process without its doing.
    Kill,
    /// Asks a process to end.
    Terminate,
    /// Freezes a process.
    Stop,
    /// Lets a frozen process go on.
    Continue,
    /// Asks a process to read its settings again.
    Hangup,
}

/// Sends `signal` to one process.
pub fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        kill(pid, signal);
    }
}

/// Sends `signal` to a process group that one of our children leads.
pub fn send_group(leader: u32, signal: Signal) {
    if let Ok(leader) = libc::pid_t::try_from(leader) {
        kill(-leader, signal);
    }
}

#[allow(unsafe_code)] // The standard library can only kill; no crate of ours wraps kill(2).
fn kill(target: libc::pid_t, signal: Signal) {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Terminate => libc::SIGTERM,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Hangup => libc::SIGHUP,
    };
    // SAFETY: kill(2) takes two integers and touches no memory.
    unsafe {
        libc::kill(target, number);
    }
}

/// What to start: program, arguments and environment.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
}

impl Program {
    /// A program by path, or by name as found in `PATH`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds another program, with its arguments and environment, as arguments.
    pub fn followed_by(mut self, other: Program) -> Self {
        self.arguments.push(other.path.into());
        self.arguments.extend(other.arguments);
        self.environment.extend(other.environment);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }
}

/// A running child process. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    health: Option<SocketAddr>,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `program`; its output is appended to `FOLDER/log/NAME.log`. `sandbox` is the
    /// cluster's folder.
    pub fn start(name: &str, program: Program, sandbox: &Path) -> Result<Self> {
        let log = sandbox.join("log").join(format!("{name}.log"));
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).envs(program.environment).env(MARKER, sandbox);
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            // Everything is on this machine.
            command.env_remove(proxy).env_remove(proxy.to_lowercase());
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Its own group: Ctrl-C in the terminal must not end the parts in any order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", program.path.display()))?;
        let pid = child.id();
        Ok(Self { name: name.to_owned(), pid, log, health: None, child: Mutex::new(child) })
    }

    pub(crate) fn with_health(mut self, health: SocketAddr) -> Self {
        self.health = Some(health);
        self
    }

    /// The name under which it was started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where `/livez`, `/readyz` and `/metrics` are served, for a process of imagewarm.
    pub fn health(&self) -> Option<SocketAddr> {
        self.health
    }

    /// The file that has its output.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All its output so far.
    pub fn log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The last lines of its output, for a failure message.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How it ended, if it did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Ends it with SIGKILL and waits for the end.
    pub fn kill(&self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            send(self.pid, signal);
        }
    }

    /// Sends SIGTERM and waits for the end; past `deadline` it is killed, and that is an error.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::Terminate);
        self.wait_end(deadline).await
    }

    /// Waits for the end of what was told to end; past `deadline` it is killed, and that is an error.
    pub async fn wait_end(&self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end after SIGTERM", self.name);
        let ended = wait_for(deadline, &what, async || self.exit_status()).await;
        if ended.is_err() {
            self.kill();
        }
        ended
    }

    /// Waits until `probe` answers `Some`; stops early, with the log's end, when the process ends.
    pub async fn wait_until<T, F, Fut>(&self, deadline: Duration, mut probe: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Option<T>>,
    {
        let what = format!("{} to be ready", self.name);
        let found = wait_for(deadline, &what, || {
            let ended = self.exit_status();
            let answer = probe();
            async move {
                match ended {
                    Some(status) => Some(Err(status)),
                    None => answer.await.map(Ok),
                }
            }
        });
        match found.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(status)) => bail!("{} ended ({status}):\n{}", self.name, self.log_tail()),
            Err(error) => Err(error.context(format!("log of {}:\n{}", self.name, self.log_tail()))),
        }
    }

    /// Waits until `http://ADDRESS/PATH` answers 200.
    pub async fn wait_ready(
        &self,
        address: SocketAddr,
        path: &str,
        deadline: Duration,
    ) -> Result<()> {
        self.wait_until(deadline, async || {
            let (status, _) = http_get(address, path).await.ok()?;
            (status == 200).then_some(())
        })
        .await
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
