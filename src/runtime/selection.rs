//! Finds out which socket is the kubelet's runtime: by name and version, and of several alike by the warmer's own
//! Pod, which the kubelet has started there. An image in another runtime's store serves no Pod: nothing is pulled
//! into it, and nothing in it counts as warm.

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
/// `containerd://2.2.3`; while that is not known, a socket that is the only one is used. `pod_uid` is that of a
/// Pod which the kubelet has started, if one is known.
pub async fn select(
    sockets: &[PathBuf],
    kubelet: &str,
    pod_uid: Option<&str>,
) -> Result<Selection, EndpointError> {
    let Some(reported) = KubeletRuntime::parse(kubelet) else {
        return match sockets {
            [only] => Ok(selected(only, behind(only)?)),
            _ => Err(EndpointError::SeveralFound(sockets.to_vec())),
        };
    };
    let asked = join_all(sockets.iter().map(|socket| ask(socket))).await;
    let answers: Vec<Option<RuntimeVersion>> =
        asked.iter().map(|asked| asked.as_ref().map(|(_, version)| version.clone())).collect();
    let mut found = reported.find(&answers);
    if found == Found::Several
        && let Some(uid) = pod_uid
    {
        let fitting = asked.iter().enumerate().filter_map(|(at, asked)| {
            let (runtime, version) = asked.as_ref()?;
            reported.is(version).then_some(async move { (at, runs(runtime.as_ref(), uid).await) })
        });
        let runs: Vec<(usize, bool)> = join_all(fitting).await;
        if let [at] = *runs.iter().filter(|(_, runs)| *runs).map(|(at, _)| *at).collect::<Vec<_>>()
        {
            found = Found::One(at);
        }
    }
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

async fn runs(runtime: &dyn Runtime, pod_uid: &str) -> bool {
    let answer = tokio::time::timeout(VERSION_TIMEOUT, runtime.runs_pod(pod_uid)).await;
    matches!(answer, Ok(Ok(true)))
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
            let message = format!(
                "more than one socket of {sockets} is {kubelet}, and none runs this Pod: {HOW_TO_SET}"
            );
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

    /// Answers as dockerd of this version answers a request for its version.
    fn dockerd(socket: &Path, version: &str) -> JoinHandle<()> {
        dockerd_with(socket, version, "")
    }

    /// The same with a container of this Pod.
    fn dockerd_with(socket: &Path, version: &str, pod_uid: &str) -> JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let answer = |body: String| {
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let about = answer(format!(
            r#"{{"Version":"{version}","ApiVersion":"1.44","Os":"linux","Arch":"amd64"}}"#
        ));
        let (one, none) = (answer(r#"[{"Id":"c"}]"#.into()), answer("[]".into()));
        let label = format!("io.kubernetes.pod.uid%3D{pod_uid}%22");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (about, one, none) = (about.clone(), one.clone(), none.clone());
                let label = label.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        let request = String::from_utf8_lossy(&buffer[..read]);
                        let answer = match request.contains("/containers/json") {
                            true if request.contains(&label) => &one,
                            true => &none,
                            false => &about,
                        };
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
        let used = select(&alone, "docker://28.2.2", None).await.unwrap();
        assert!(used.again.is_none() && used.runtime.usable().is_ok());
        for kubelet in ["containerd://2.1.4", "docker://27.0.1"] {
            let withheld = select(&alone, kubelet, None).await.unwrap();
            assert_eq!(withheld.again, Some(Again::OtherReport));
            let error = withheld.runtime.usable().unwrap_err();
            assert_eq!(error.reason, Reason::RuntimeMismatch);
            let socket = socket.display().to_string();
            for part in [kubelet, &socket, "docker 28.2.2", "--runtime-endpoint unix:///PATH"] {
                assert!(error.message.contains(part), "no {part} in {error}");
            }
        }
        // A Node that has just registered may not say it yet.
        assert!(select(&alone, "", None).await.unwrap().runtime.usable().is_ok());
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
        let waits = select(&sockets, "docker://29.0.1", None).await.unwrap();
        assert_eq!(waits.again, Some(Again::Responds));
        let error = waits.runtime.usable().unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeUnavailable);
        assert!(error.message.contains("second/docker.sock does not respond"), "{error}");
        let _second = dockerd(&sockets[1], "29.0.1");
        assert!(select(&sockets, "docker://29.0.1", None).await.unwrap().again.is_none());
        let error = select(&sockets, "", None).await.unwrap_err().to_string();
        assert!(error.contains("more than one container runtime"), "{error}");
    }

    #[tokio::test]
    async fn of_two_sockets_of_one_version_the_one_with_our_pod_is_the_kubelets() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = ["a", "b"].map(|name| folder.path().join(format!("{name}.sock")));
        let _both = [("uid-a", &sockets[0]), ("uid-b", &sockets[1])]
            .map(|(uid, socket)| dockerd_with(socket, "29.0.1", uid));
        for (uid, socket) in [("uid-a", &sockets[0]), ("uid-b", &sockets[1])] {
            let selected = select(&sockets, "docker://29.0.1", Some(uid)).await.unwrap();
            assert!(selected.again.is_none(), "{uid}");
            let alone = select(std::slice::from_ref(socket), "docker://29.0.1", None).await;
            assert!(alone.unwrap().runtime.runs_pod(uid).await.unwrap());
            assert!(selected.runtime.runs_pod(uid).await.unwrap(), "{uid}");
        }
        let unknown = select(&sockets, "docker://29.0.1", Some("uid-c")).await.unwrap();
        assert_eq!(unknown.again, Some(Again::OtherReport));
        let withheld = select(&sockets, "docker://29.0.1", None).await.unwrap();
        let error = withheld.runtime.usable().unwrap_err();
        assert_eq!(error.reason, Reason::RuntimeMismatch);
        assert!(error.message.contains("more than one socket of"), "{error}");
    }
}
