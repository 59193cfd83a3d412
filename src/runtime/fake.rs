//! A runtime for tests, which follows a script for each image and records the calls.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use imagewarm_core::api::Reason;
use imagewarm_core::runtime::pins::Pin;

use super::*;

/// The result of pulling one image; images without a script are pulled at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Succeeds only with a credential of this user.
    Needs(&'static str),
    /// Fails.
    Fails(Reason),
    /// Never completes, without progress.
    Stuck,
    /// Completes after this many steps of 100 ms.
    Slow(u64),
    /// Makes progress this many times, each after 100 ms, and then refuses the credential.
    RefusesSlowly(u64),
}

/// The runtime.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeRuntime {
    scripts: HashMap<String, Script>,
    held: Arc<Mutex<HashMap<String, PresentImage>>>,
    calls: Arc<Mutex<Vec<String>>>,
    silent: bool,
    removals: Arc<(Mutex<VecDeque<bool>>, tokio::sync::Notify)>,
    /// With pins; `None` if it cannot pin images.
    images: Option<Arc<Mutex<Vec<HeldImage>>>>,
}

impl FakeRuntime {
    pub(crate) fn with(mut self, image: &str, script: Script) -> Self {
        self.scripts.insert(image.into(), script);
        self
    }

    /// Reports no progress.
    pub(crate) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The pulls in order: image, and user in brackets.
    pub(crate) fn calls(&self) -> Arc<Mutex<Vec<String>>> {
        self.calls.clone()
    }

    /// Reports a removal, or ends the watch with an error.
    pub(crate) fn report_removal(&self, removed: bool) {
        self.removals.0.lock().unwrap().push_back(removed);
        self.removals.1.notify_one();
    }

    /// Can pin these images.
    pub(crate) fn holding(mut self, images: impl IntoIterator<Item = HeldImage>) -> Self {
        self.images = Some(Arc::new(Mutex::new(images.into_iter().collect())));
        self
    }

    pub(crate) fn is_pinned(&self, id: &str) -> bool {
        let images = self.images.as_ref().unwrap().lock().unwrap();
        images.iter().any(|image| image.id == id && image.pin != Pin::None)
    }

    pub(crate) fn lose(&self, image: &str) {
        self.held.lock().unwrap().remove(image);
    }
}

pub(crate) const DIGEST: &str =
    "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

impl Runtime for FakeRuntime {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        Box::pin(async {
            Ok(RuntimeVersion {
                name: "fake".into(),
                version: "1".into(),
                os: "linux".into(),
                architecture: "amd64".into(),
            })
        })
    }

    fn reports_progress(&self) -> bool {
        !self.silent
    }

    fn reports_removals(&self) -> bool {
        true
    }

    fn watch_removals<'a>(
        &'a self,
        removed: &'a (dyn Fn() + Send + Sync),
    ) -> RuntimeFuture<'a, RuntimeError> {
        Box::pin(async move {
            loop {
                let next = self.removals.0.lock().unwrap().pop_front();
                match next {
                    Some(true) => removed(),
                    Some(false) => {
                        let message = "the watch ended".into();
                        return RuntimeError { reason: Reason::RuntimeUnavailable, message };
                    }
                    None => self.removals.1.notified().await,
                }
            }
        })
    }

    fn held_images(&self) -> RuntimeFuture<'_, Result<Option<Vec<HeldImage>>, RuntimeError>> {
        let held = self.images.as_ref().map(|images| images.lock().unwrap().clone());
        Box::pin(async { Ok(held) })
    }

    fn set_pin<'a>(
        &'a self,
        id: &'a str,
        since_unix_ms: Option<i64>,
    ) -> RuntimeFuture<'a, Result<(), RuntimeError>> {
        let mut images = self.images.as_ref().unwrap().lock().unwrap();
        let own = |since_unix_ms| Pin::Own { since_unix_ms, in_effect: true };
        let pin = since_unix_ms.map_or(Pin::None, own);
        images.iter_mut().filter(|image| image.id == id).for_each(|image| image.pin = pin);
        Box::pin(async { Ok(()) })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async { Ok(PathBuf::from("/nonexistent/images")) })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async { Ok(self.held.lock().unwrap().get(image.as_str()).cloned()) })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(async move {
            let user = credential.map_or("", |credential| credential.username.as_str());
            self.calls.lock().unwrap().push(format!("{image} ({user})"));
            let fail = |reason: Reason| RuntimeError { reason, message: reason.to_string() };
            match self.scripts.get(image.as_str()) {
                None => {}
                Some(Script::Needs(needed)) if user == *needed => {}
                Some(Script::Needs(_)) => return Err(fail(Reason::Unauthorized)),
                Some(Script::Fails(reason)) => return Err(fail(*reason)),
                Some(Script::Stuck) => std::future::pending().await,
                Some(script @ (Script::Slow(steps) | Script::RefusesSlowly(steps))) => {
                    for step in 1..=*steps {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        if self.silent {
                            continue;
                        }
                        progress(PullProgress { downloaded_bytes: step, total_bytes: *steps });
                    }
                    if matches!(script, Script::RefusesSlowly(_)) {
                        return Err(fail(Reason::Unauthorized));
                    }
                }
            }
            let image_held = PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 };
            let mut held = self.held.lock().unwrap();
            let downloaded = held.insert(image.as_str().into(), image_held.clone()).is_none();
            Ok(PulledImage { image: image_held, downloaded })
        })
    }
}
