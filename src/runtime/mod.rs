//! The node's container runtime behind one trait: is an image there, and pull it. Knows nothing
//! of Kubernetes objects, orders or retries; those belong to `warmer/`.

pub mod classify;
pub mod cri;
pub mod disk;
pub mod docker;
mod endpoint;
#[cfg(test)]
pub(crate) mod fake;
mod undecided;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use crate::api::Reason;
use crate::image::{Credential, Reference};

pub use self::endpoint::{Choice, EndpointError, choose, connect};
pub use self::undecided::Undecided;

/// Of a runtime's own words, in bytes; the rest of a status' message may follow them.
const LONGEST_MESSAGE: usize = 1_000;

/// A future of a [`Runtime`] method.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One container runtime, reached over its socket.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Asks the runtime who it is; fails with [`Reason::RuntimeUnavailable`] when it is down.
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>>;

    /// Whether `pull` calls its `progress` while it moves. Where it does not, nobody can tell a
    /// slow pull from a stuck one.
    fn tells_progress(&self) -> bool {
        true
    }

    /// Whether `watch_removals` tells of anything.
    fn tells_removals(&self) -> bool {
        false
    }

    /// Calls `told` whenever the runtime removes an image or a name of one; ends when it cannot be
    /// heard any more.
    fn watch_removals<'a>(
        &'a self,
        _told: &'a (dyn Fn() + Send + Sync),
    ) -> RuntimeFuture<'a, RuntimeError> {
        Box::pin(std::future::pending())
    }

    /// A folder of the file system where the runtime keeps its images, as the runtime itself sees it.
    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>>;

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

    /// Asks the registry whether this credential opens `image`, which the runtime holds. Downloads
    /// no layers.
    fn verify<'a>(
        &'a self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        // A pull of what is there ends with the manifest.
        Box::pin(async move { self.pull(image, credential, &|_| {}).await.map(drop) })
    }
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
    /// Size on the node, as the runtime counts it, in bytes: unpacked or (containerd) packed.
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

/// The digest of `image` in what the runtime tells of it: the one of the same repository.
fn digest_of(image: &Reference, repo_digests: &[String]) -> Option<String> {
    if let Some(digest) = image.digest() {
        return Some(digest.to_owned());
    }
    repo_digests.iter().find_map(|name| {
        let found = Reference::parse(name).ok()?;
        (found.repository() == image.repository()).then(|| found.digest().map(Into::into))?
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_same_repository() {
        let digest = format!("sha256:{}", "b".repeat(64));
        let image = Reference::parse("busybox:1").unwrap();
        let digests = vec![
            format!("r.test/mirror/busybox@sha256:{}", "a".repeat(64)),
            format!("busybox@{digest}"),
        ];
        assert_eq!(digest_of(&image, &digests), Some(digest));
        assert_eq!(digest_of(&image, &[]), None);
    }
}
