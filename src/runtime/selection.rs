//! Finds out which socket is the kubelet's runtime, by name and version. An image in another runtime's store
//! serves no Pod: nothing is pulled into it, and nothing in it counts as warm.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::endpoint::behind;
use super::endpoint_error::{EndpointError, list};
use super::{Runtime, Withheld};
use imagewarm_core::api::Reason;
use imagewarm_core::image::quoted::{printable, quoted};
use imagewarm_core::runtime::kubelet::{Found, KubeletRuntime};
use imagewarm_core::runtime::{LONGEST_MESSAGE, RuntimeError, RuntimeVersion};

const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
const HOW_TO_SET: &str =
    "set the kubelet's socket with --runtime-endpoint unix:///PATH (IMAGEWARM_RUNTIME_ENDPOINT)";

/// What is used from now on.
#[derive(Debug)]
pub struct Selection {
    /// The kubelet's runtime, or a placeholder whose every call says why there is none.
    pub runtime: Arc<dyn Runtime>,
    /// When to select again, if it is the placeholder.
    pub again: Option<Again>,
}

/// What may change the outcome of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// A socket responds.
    Responds,
    /// The kubelet reports another runtime: after an upgrade it takes it a moment.
    OtherReport,
}

/// Selects among the sockets. `kubelet` is the Node's `status.nodeInfo.containerRuntimeVersion`, such as
/// `containerd://2.2.3`; while that is not known, a socket that is the only one is used.
pub async fn select(sockets: &[PathBuf], kubelet: &str) -> Result<Selection, EndpointError> {
    let Some(reported) = KubeletRuntime::parse(kubelet) else {
        return match sockets {
            [only] => Ok(selected(only, behind(only)?)),
            _ => Err(EndpointError::SeveralFound(sockets.to_vec())),
        };
    };
    let asked = join_all(sockets.iter().map(|socket| ask(socket))).await;
    let answers: Vec<Option<RuntimeVersion>> =
        asked.iter().map(|asked| asked.as_ref().map(|(_, version)| version.clone())).collect();
    let found = reported.find(&answers);
    if let Found::One(at) = found
        && let (Some(socket), Some(Some((runtime, _)))) =
            (sockets.get(at), asked.into_iter().nth(at))
    {
        return Ok(selected(socket, runtime));
    }
    let again = match found {
        Found::Silent(_) => Again::Responds,
        _ => Again::OtherReport,
    };
    let error = why_none(found, &quoted(kubelet).to_string(), sockets, &answers);
    match again {
        Again::Responds => tracing::debug!(%error, "no runtime selected"),
        Again::OtherReport => tracing::warn!(%error, "no runtime selected"),
    }
    Ok(Selection { runtime: Arc::new(Withheld(error)), again: Some(again) })
}

fn selected(socket: &Path, runtime: Arc<dyn Runtime>) -> Selection {
    tracing::info!(socket = %socket.display(), ?runtime, "runtime selected");
    Selection { runtime, again: None }
}

async fn ask(socket: &Path) -> Option<(Arc<dyn Runtime>, RuntimeVersion)> {
    let socket = socket.to_owned();
    // A socket of an unknown name is probed with blocking calls.
    let runtime = tokio::task::spawn_blocking(move || behind(&socket)).await.ok()?.ok()?;
    let version = tokio::time::timeout(VERSION_TIMEOUT, runtime.version()).await.ok()?.ok()?;
    Some((runtime, version))
}

fn why_none(
    found: Found,
    kubelet: &str,
    sockets: &[PathBuf],
    answers: &[Option<RuntimeVersion>],
) -> RuntimeError {
    let (reason, message) = match found {
        Found::Silent(at) => {
            let silent = sockets.get(at).map(|socket| socket.display().to_string());
            let silent = silent.unwrap_or_default();
            let message =
                format!("the kubelet of this node uses {kubelet}, and {silent} does not respond");
            (Reason::RuntimeUnavailable, message)
        }
        Found::Several | Found::One(_) => {
            let sockets = list(sockets);
            let message = format!("more than one socket of {sockets} is {kubelet}: {HOW_TO_SET}");
            (Reason::RuntimeMismatch, message)
        }
        Found::None => {
            let answers = sockets.iter().zip(answers).filter_map(|(socket, answer)| {
                let RuntimeVersion { name, version, .. } = answer.as_ref()?;
                Some(format!("{} is {name} {version}", socket.display()))
            });
            let answers = answers.collect::<Vec<_>>().join(", ");
            let message =
                format!("the kubelet of this node uses {kubelet}, but {answers}: {HOW_TO_SET}");
            (Reason::RuntimeMismatch, message)
        }
    };
    RuntimeError { reason, message: printable(&message, LONGEST_MESSAGE) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers every request as dockerd of this version answers the one for its version.
    fn dockerd(socket: &Path, version: &str) -> JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let body =
            format!(r#"{{"Version":"{version}","ApiVersion":"1.44","Os":"linux","Arch":"amd64"}}"#);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        })
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_the_kubelets_is_never_used() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let _dockerd = dockerd(&socket, "28.2.2");
        let alone = [socket.clone()];
        let used = select(&alone, "docker://28.2.2").await.unwrap();
        assert!(used.again.is_none() && used.runtime.usable().is_ok());
        for kubelet in ["containerd://2.1.4", "docker://27.0.1"] {
            let withheld = select(&alone, kubelet).await.unwrap();
            assert_eq!(withheld.again, Some(Again::OtherReport));
            let error = withheld.runtime.usable().unwrap_err();
            assert_eq!(error.reason, Reason::RuntimeMismatch);
            let socket = socket.display().to_string();
            for part in [kubelet, &socket, "docker 28.2.2", "--runtime-endpoint unix:///PATH"] {
                assert!(error.message.contains(part), "no {part} in {error}");
            }
        }
        // A Node that has just registered may not say it yet.
        assert!(select(&alone, "").await.unwrap().runtime.usable().is_ok());
    }

    #[tokio::test]
    async fn of_two_sockets_the_kubelets_is_used_once_it_responds() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        for folder in [&first, &second] {
            std::fs::create_dir(folder).unwrap();
        }
        let sockets = [first.join("docker.sock"), second.join("docker.sock")];
        let _first = dockerd(&sockets[0], "28.2.2");
        let waits = select(&sockets, "docker://29.0.1").await.unwrap();
        assert_eq!(waits.again, Some(Again::Responds));
        let error = waits.runtime.usable().unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeUnavailable);
        assert!(error.message.contains("second/docker.sock does not respond"), "{error}");
        let _second = dockerd(&sockets[1], "29.0.1");
        assert!(select(&sockets, "docker://29.0.1").await.unwrap().again.is_none());
        let error = select(&sockets, "").await.unwrap_err().to_string();
        assert!(error.contains("more than one container runtime"), "{error}");
    }

    #[tokio::test]
    async fn two_sockets_of_one_version_cannot_be_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = ["a", "b"].map(|name| folder.path().join(format!("{name}.sock")));
        let _both = sockets.each_ref().map(|socket| dockerd(socket, "29.0.1"));
        let withheld = select(&sockets, "docker://29.0.1").await.unwrap();
        let error = withheld.runtime.usable().unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeMismatch);
        assert!(error.message.contains("more than one socket of"), "{error}");
    }
}
