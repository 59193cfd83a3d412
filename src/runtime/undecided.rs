//! The placeholder until one of several runtimes is selected.

use std::path::PathBuf;

use super::{Runtime, RuntimeFuture};
use imagewarm_core::api::Reason;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion,
};

/// A runtime of which every call fails.
#[derive(Debug)]
pub struct Undecided;

fn not_yet<'a, T: 'a>() -> RuntimeFuture<'a, Result<T, RuntimeError>> {
    Box::pin(async {
        Err(RuntimeError {
            reason: Reason::RuntimeUnavailable,
            message:
                "several runtimes were found; waiting for the controller to report the kubelet's"
                    .into(),
        })
    })
}

impl Runtime for Undecided {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        not_yet()
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        not_yet()
    }

    fn present<'a>(
        &'a self,
        _image: &'a Reference,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        not_yet()
    }

    fn pull<'a>(
        &'a self,
        _image: &'a Reference,
        _credential: Option<&'a Credential>,
        _progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        not_yet()
    }
}
