//! The placeholder while no runtime is selected.

use std::path::PathBuf;

use super::{Runtime, RuntimeFuture};
use imagewarm_core::api::Reason;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion, Sandboxes,
};

/// A runtime of which every call fails, for this reason.
#[derive(Debug)]
pub struct Withheld(pub RuntimeError);

impl Withheld {
    /// Until the controller reports the kubelet's runtime.
    pub fn undecided() -> Self {
        Withheld(RuntimeError {
            reason: Reason::RuntimeUnavailable,
            message: "waiting for the controller to report the kubelet's runtime".into(),
        })
    }

    fn fails<'a, T: Send + 'a>(&self) -> RuntimeFuture<'a, Result<T, RuntimeError>> {
        Box::pin(std::future::ready(Err(self.0.clone())))
    }
}

impl Runtime for Withheld {
    fn usable(&self) -> Result<(), RuntimeError> {
        Err(self.0.clone())
    }

    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        self.fails()
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        self.fails()
    }

    fn present<'a>(
        &'a self,
        _image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        self.fails()
    }

    fn pull<'a>(
        &'a self,
        _image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        _credential: Option<&'a Credential>,
        _progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        self.fails()
    }
}
