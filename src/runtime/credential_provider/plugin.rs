//! One call of a plugin: a process that reads a request and writes an answer. Its output reaches
//! nothing but the parser, and its standard error nothing at all: both may hold secrets.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use imagewarm_core::image::Reference;
use imagewarm_core::image::credential_provider::{
    CredentialProvider, LONGEST_RESPONSE, ProviderFailure, Response, parse_response,
};

/// A provider's program.
pub(super) struct Plugin {
    pub(super) program: PathBuf,
    pub(super) timeout: Duration,
    pub(super) config: CredentialProvider,
}

impl Plugin {
    /// Asks for the credentials of an image. Dropping the future kills the plugin.
    pub(super) async fn call(&self, image: &Reference) -> Result<Response, ProviderFailure> {
        let mut child = self.start()?;
        let _group = ProcessGroup::of(&child);
        let request = self.config.api_version.request(image);
        let answer = tokio::time::timeout(self.timeout, answer(&mut child, &request)).await;
        let answer = answer.map_err(|_| ProviderFailure::TimedOut(self.timeout.as_secs()))??;
        parse_response(&answer, self.config.api_version)
    }

    /// With the environment of this process, and the provider's beside it, as the kubelet does it.
    fn start(&self) -> Result<Child, ProviderFailure> {
        let variables = self.config.env.iter().map(|it| (&it.name, &it.value));
        let child = Command::new(&self.program)
            .args(&self.config.args)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        child.map_err(|error| match error.kind() {
            // The error is the same for a program whose interpreter or loader is not there.
            ErrorKind::NotFound if self.program.exists() => ProviderFailure::NoInterpreter,
            ErrorKind::NotFound => ProviderFailure::Missing,
            kind => ProviderFailure::NotStarted(kind.to_string()),
        })
    }
}

/// What a plugin writes until it ends well.
async fn answer(child: &mut Child, request: &str) -> Result<Vec<u8>, ProviderFailure> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A plugin that knows its answer may end without reading.
            let _ = stdin.write_all(request.as_bytes()).await;
        }
    };
    let read = async {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            // What cannot be read is no answer.
            let _ = stdout.take(LONGEST_RESPONSE as u64 + 1).read_to_end(&mut answer).await;
        }
        answer
    };
    let ((), answer) = tokio::join!(write, read);
    if answer.len() > LONGEST_RESPONSE {
        return Err(ProviderFailure::TooLong);
    }
    let status = child
        .wait()
        .await
        .map_err(|error| ProviderFailure::NotStarted(error.kind().to_string()))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(answer),
        (Some(code), _) => Err(ProviderFailure::Exited(code)),
        (None, signal) => Err(ProviderFailure::Signalled(signal.unwrap_or(0))),
    }
}

/// Kills a plugin, and what it has started, when dropped.
struct ProcessGroup(Option<libc::pid_t>);

impl ProcessGroup {
    /// The group that the child leads.
    fn of(child: &Child) -> Self {
        ProcessGroup(child.id().and_then(|id| libc::pid_t::try_from(id).ok()))
    }
}

impl Drop for ProcessGroup {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // SAFETY: killpg has no memory effects. A group that no longer exists is an error that does
            // not matter.
            unsafe { libc::killpg(group, libc::SIGKILL) };
        }
    }
}
