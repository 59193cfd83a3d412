//! The node's container runtime behind one trait: presence checks and pulls; and the credentials that
//! the node itself has. Assignments and retries are in `warmer/`.

pub mod credential_provider;
pub mod cri;
pub(crate) mod disk;
pub(crate) mod docker;
mod endpoint;
mod endpoint_error;
#[cfg(test)]
pub(crate) mod fake;
mod selection;
mod withheld;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use imagewarm_core::runtime::pins::HeldImage;
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion, Sandboxes,
};

use imagewarm_core::image::{Credential, Reference};

pub use endpoint::sockets;
pub use endpoint_error::EndpointError;
pub use selection::{Again, Selection, select};
pub use withheld::Withheld;

/// A future of a [`Runtime`] method.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The label that kubelets give to sandboxes and containers of a Pod.
const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";

/// One container runtime, reached over its socket.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// The runtime's name and version; fails with `RuntimeUnavailable` if the runtime is down.
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>>;

    /// Whether the runtime runs the Pod with this uid.
    fn runs_pod<'a>(&'a self, _uid: &'a str) -> RuntimeFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Fails while nothing may be pulled, whatever the registry says: before a permit is asked for.
    fn usable(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Whether `pull` calls its `progress` as long as a pull moves. Without it, a slow pull cannot be
    /// distinguished from a stuck one, even if some of its bytes are reported.
    fn reports_progress(&self) -> bool {
        true
    }

    /// Whether `watch_removals` reports removals.
    fn reports_removals(&self) -> bool {
        false
    }

    /// Calls `removed` whenever the runtime removes an image or a name of one; returns when the
    /// watch fails.
    fn watch_removals<'a>(
        &'a self,
        _removed: &'a (dyn Fn() + Send + Sync),
    ) -> RuntimeFuture<'a, RuntimeError> {
        Box::pin(std::future::pending())
    }

    /// A directory on the file system where the runtime stores images, as a path of the runtime.
    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>>;

    /// Checks whether the runtime holds `image` for these Pods, without contacting a registry.
    fn present<'a>(
        &'a self,
        image: &'a Reference,
        sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>>;

    /// Pulls `image` for these Pods, always contacting the registry; returns once the runtime itself holds it.
    /// Calls `progress` for every step that the runtime shows. Dropping the future cancels.
    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>>;

    /// All images that the runtime holds, and how they are pinned; `None` if it lets nobody pin images.
    fn held_images(&self) -> RuntimeFuture<'_, Result<Option<Vec<HeldImage>>, RuntimeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Pins the image with this ID, so that the kubelet does not remove it, and notes the time in milliseconds
    /// since 1970. `None` unpins it, if it was pinned here. An image that is gone is no error.
    fn set_pin<'a>(
        &'a self,
        _id: &'a str,
        _since_unix_ms: Option<i64>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Verifies with the registry that this credential may pull `image`, which the runtime holds.
    /// Downloads no layers.
    fn verify<'a>(
        &'a self,
        image: &'a Reference,
        sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        // A pull of an image that is present fetches only the manifest.
        Box::pin(async move { self.pull(image, sandboxes, credential, &|_| {}).await.map(drop) })
    }
}
