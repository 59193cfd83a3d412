//! Why there is no runtime to work with.

use std::path::PathBuf;

use imagewarm_core::image::quoted::Quoted;

/// Why there is no runtime to work with.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Only local sockets are supported.
    #[error("{0} is no runtime endpoint: it must look like unix:///var/run/docker.sock")]
    Scheme(Quoted),
    /// Nothing is there.
    #[error(
        "there is no runtime socket at {path}: is the runtime running, and its folder mounted?"
    )]
    Absent {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be looked at.
        #[source]
        source: std::io::Error,
    },
    /// Something else is there.
    #[error("{0} is not a socket")]
    NotASocket(PathBuf),
    /// The socket's name does not tell what is behind it, and nobody could be asked.
    #[error("the runtime at {path} does not answer, so it cannot be told which one it is")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Why it could not be asked.
        #[source]
        source: std::io::Error,
    },
    /// No endpoint was named, and none was found.
    #[error(
        "no container runtime was found at its usual place (such as {0}): name its socket with \
         --runtime-endpoint unix:///PATH"
    )]
    NoneFound(PathBuf),
    /// No endpoint was named, and there is a choice.
    #[error(
        "there is more than one container runtime ({}): name the kubelet's with \
         --runtime-endpoint unix:///PATH", list(.0)
    )]
    SeveralFound(Vec<PathBuf>),
    /// No endpoint was named, and what the kubelet uses is none of those found, or not just one.
    #[error(
        "the kubelet of this node uses {kubelet}, which is not one of the runtimes found ({}): name \
         its socket with --runtime-endpoint unix:///PATH", list(.found)
    )]
    NoneOfThese {
        /// `status.nodeInfo.containerRuntimeVersion` of the Node.
        kubelet: Quoted,
        /// The sockets.
        found: Vec<PathBuf>,
    },
    /// The client cannot be made.
    #[error("the runtime's client cannot be made: {0}")]
    Client(String),
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}
