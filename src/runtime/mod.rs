//! The node's container runtime behind one trait: is an image there, and pull it. Knows nothing
//! of Kubernetes objects, orders or retries; those belong to `warmer/`.

pub mod classify;
pub mod docker;
#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::future::Future;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::api::Reason;
use crate::image::{Credential, Reference};

/// A future of a [`Runtime`] method.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One container runtime, reached over its socket.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Asks the runtime who it is; fails with [`Reason::RuntimeUnavailable`] when it is down.
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>>;

    /// Looks whether the runtime holds `image`, without asking any registry.
    fn present<'a>(
        &'a self,
        image: &'a Reference,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>>;

    /// Pulls `image`, always asking the registry; returns once the runtime itself holds it.
    /// `progress` is called for every step that the runtime tells of. Dropping the future cancels.
    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>>;
}

/// Who the runtime is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `docker`, `containerd` or `cri-o`.
    pub name: String,
    /// The runtime's own version.
    pub version: String,
    /// Operating system of its images, as in OCI platforms: `linux`.
    pub os: String,
    /// Architecture of its images, as in OCI platforms: `amd64`.
    pub architecture: String,
}

/// An image that the runtime holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentImage {
    /// Digest under which the registry serves it, where the runtime remembers one.
    pub digest: Option<String>,
    /// Size on the node, unpacked, in bytes.
    pub size_bytes: u64,
}

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// What the runtime now holds.
    pub image: PresentImage,
    /// False when the registry said that the runtime held this very image already.
    pub downloaded: bool,
}

/// How far a pull is; both are sums over all layers known so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes downloaded.
    pub downloaded_bytes: u64,
    /// Bytes to download; 0 when not known.
    pub total_bytes: u64,
}

/// Why the runtime could not do it: a typed reason, and the runtime's own words (trimmed).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// The typed reason.
    pub reason: Reason,
    /// The runtime's own words, without any credential.
    pub message: String,
}

/// Why a `--runtime-endpoint` cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Only local sockets are supported.
    #[error("`{0}` is no runtime endpoint: it must look like unix:///var/run/docker.sock")]
    Scheme(String),
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
    /// The client cannot be made.
    #[error("the runtime's client cannot be made: {0}")]
    Client(String),
}

/// The runtime behind `endpoint`, such as `unix:///var/run/docker.sock`. Its socket must exist; it
/// need not answer yet.
pub fn connect(endpoint: &str) -> Result<Arc<dyn Runtime>, EndpointError> {
    let path = endpoint
        .strip_prefix("unix://")
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .ok_or_else(|| EndpointError::Scheme(endpoint.to_owned()))?;
    let metadata = std::fs::metadata(&path)
        .map_err(|source| EndpointError::Absent { path: path.clone(), source })?;
    if !metadata.file_type().is_socket() {
        return Err(EndpointError::NotASocket(path));
    }
    Ok(Arc::new(docker::Docker::connect(&path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_endpoint_is_one_clear_error() {
        let table = [
            ("tcp://127.0.0.1:2375", "must look like unix://"),
            ("/var/run/docker.sock", "must look like unix://"),
            ("unix://relative.sock", "must look like unix://"),
            ("unix:///nonexistent/docker.sock", "no runtime socket at /nonexistent/docker.sock"),
            ("unix:///dev/null", "is not a socket"),
        ];
        for (endpoint, words) in table {
            let error = connect(endpoint).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{endpoint}: {error}");
        }
    }
}
