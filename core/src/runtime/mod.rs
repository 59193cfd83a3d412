//! What a node's container runtime reports, and the typed reasons of its failures.

pub mod containerd;
pub mod cri_failure;
pub mod failure;
pub mod kubelet;
#[cfg(test)]
mod metamorphic;
mod names;
pub mod pins;
pub mod platform;
mod refused;
mod sandboxes;

pub use names::without_names;
pub use refused::CredentialSources;
pub use sandboxes::Sandboxes;

use crate::api::Reason;
use crate::image::{Digest, Reference};

/// Limit of a runtime's own message, in bytes; the rest of a status' message may follow it.
pub const LONGEST_MESSAGE: usize = 1_000;

/// Name, version and platform of the runtime.
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
    pub digest: Option<Digest>,
    /// Size on the node, as the runtime counts it, in bytes: unpacked or (containerd) packed.
    pub size_bytes: u64,
}

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// What the runtime now holds.
    pub image: PresentImage,
    /// False when the runtime already held this image, by the registry's answer.
    pub downloaded: bool,
}

/// Progress of a pull; both are sums over all layers known so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes downloaded.
    pub downloaded_bytes: u64,
    /// Bytes to download; 0 when not known.
    pub total_bytes: u64,
}

/// A failure of the runtime: a typed reason, and the runtime's own message (trimmed).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// The typed reason.
    pub reason: Reason,
    /// The runtime's own message, without any credential.
    pub message: String,
}

/// Space on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes available to users other than root: the value that the kubelet uses.
    pub free_bytes: u64,
    /// Capacity in bytes.
    pub capacity_bytes: u64,
    /// Inodes available to users other than root.
    pub free_inodes: u64,
    /// All inodes; 0 where the file system makes them as they are needed.
    pub inodes: u64,
}

/// The digest of `image` among those that the runtime reports: the one of the same repository.
pub fn digest_of(image: &Reference, repo_digests: &[String]) -> Option<Digest> {
    if let Some(digest) = image.digest() {
        return digest.parse().ok();
    }
    repo_digests.iter().find_map(|name| {
        let found = Reference::parse(name).ok()?;
        (found.repository() == image.repository()).then(|| found.digest()?.parse().ok())?
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
        assert_eq!(digest_of(&image, &digests), digest.parse().ok());
        assert_eq!(digest_of(&image, &[]), None);
    }
}
