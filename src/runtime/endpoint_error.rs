//! Errors of the selection of the runtime.

use std::path::PathBuf;

use imagewarm_core::image::quoted::Quoted;

/// Why no runtime can be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Only local sockets are supported.
    #[error("{0} is not a runtime endpoint: it must look like unix:///var/run/docker.sock")]
    Scheme(Quoted),
    /// The socket does not exist.
    #[error(
        "there is no runtime socket at {path}: is the runtime running, and its directory mounted?"
    )]
    Absent {
        /// The expected path.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// The path is another kind of file.
    #[error("{0} is not a socket")]
    NotASocket(PathBuf),
    /// The socket's name is not well-known, and its protocol could not be detected.
    #[error("the runtime at {path} does not respond, so its kind cannot be determined")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Why the probe failed.
        #[source]
        source: std::io::Error,
    },
    /// No endpoint is set, and none was found.
    #[error(
        "no container runtime was found at a usual path (such as {0}): set its socket with \
         --runtime-endpoint unix:///PATH"
    )]
    NoneFound(PathBuf),
    /// No endpoint is set, several were found, and the Node does not say which the kubelet uses.
    #[error(
        "there is more than one container runtime ({}): set the kubelet's with \
         --runtime-endpoint unix:///PATH", list(.0)
    )]
    SeveralFound(Vec<PathBuf>),
    /// The client cannot be created.
    #[error("the runtime's client cannot be created: {0}")]
    Client(String),
}

/// The paths, for people.
pub(super) fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}
