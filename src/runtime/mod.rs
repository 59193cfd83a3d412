//! The node's container runtime behind one trait: is an image there, and pull it. Knows nothing
//! of Kubernetes objects, orders or retries; those belong to `warmer/`.

pub mod cri;
pub mod disk;
pub mod docker;
mod endpoint;
mod endpoint_error;
#[cfg(test)]
pub(crate) mod fake;
mod undecided;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion,
};

use imagewarm_core::image::{Credential, Reference};

pub use endpoint::{Choice, choose, connect};
pub use endpoint_error::EndpointError;
pub use undecided::Undecided;

/// A future of a [`Runtime`] method.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One container runtime, reached over its socket.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Asks the runtime who it is; fails with `RuntimeUnavailable` when it is down.
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>>;

    /// Whether `pull` calls its `progress` while it moves. Where it does not, nobody can tell a
    /// slow pull from a stuck one.
    fn reports_progress(&self) -> bool {
        true
    }

    /// Whether `watch_removals` tells of anything.
    fn reports_removals(&self) -> bool {
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
