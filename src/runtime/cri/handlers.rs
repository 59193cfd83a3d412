//! The runtime handlers for which an image is on the node. containerd may have a snapshotter for each, and
//! unpacks an image for one of them at a time; other runtimes hold an image for all of their handlers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Cri;
use super::api::StatusRequest;
use super::api::runtime_service_client::RuntimeServiceClient;
use super::{failure, in_time};
use imagewarm_core::api::Reason;
use imagewarm_core::runtime::containerd::{Snapshotters, Unpacking};
use imagewarm_core::runtime::{RuntimeError, Sandboxes};

/// How long the configuration is used until it is read again: containerd may have been restarted with
/// another.
const CONFIG_LIFETIME: Duration = Duration::from_secs(60);
/// How long nothing is pulled for a snapshotter after the runtime has not unpacked an image for it.
const UNSUPPORTED_LIFETIME: Duration = Duration::from_secs(600);

/// What is known of the runtime's handlers.
#[derive(Debug, Default)]
pub(super) struct Handlers {
    config: Mutex<Option<(Instant, Option<Arc<Snapshotters>>)>>,
    /// By snapshotter.
    unsupported: Mutex<HashMap<String, Instant>>,
}

impl Handlers {
    fn known(&self) -> Option<Option<Arc<Snapshotters>>> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, known) = config.as_ref()?;
        (read_at.elapsed() < CONFIG_LIFETIME).then(|| known.clone())
    }

    fn is_unsupported(&self, snapshotter: &str) -> bool {
        let unsupported = self.unsupported.lock().unwrap_or_else(PoisonError::into_inner);
        unsupported.get(snapshotter).is_some_and(|at| at.elapsed() < UNSUPPORTED_LIFETIME)
    }

    fn found_unsupported(&self, snapshotter: &str) {
        let mut unsupported = self.unsupported.lock().unwrap_or_else(PoisonError::into_inner);
        unsupported.insert(snapshotter.to_owned(), Instant::now());
    }
}

impl Cri {
    /// The snapshotters of the runtime's handlers; `None` where all use the same.
    pub(super) async fn snapshotters(&self) -> Result<Option<Arc<Snapshotters>>, RuntimeError> {
        if !self.content.is_there() {
            return Ok(None);
        }
        if let Some(known) = self.handlers.known() {
            return Ok(known);
        }
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        let status = in_time(client.status(StatusRequest { verbose: true }), None).await?;
        let folder = self.default_image_folder().await?;
        let config = status.info.get("config").map(String::as_str).unwrap_or_default();
        let found = Snapshotters::parse(config, &folder).filter(Snapshotters::differ).map(Arc::new);
        let mut known = self.handlers.config.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    /// Whether the image with this ID is unpacked for all these Pods.
    pub(super) async fn is_unpacked(
        &self,
        id: &str,
        sandboxes: &Sandboxes,
    ) -> Result<bool, RuntimeError> {
        let Some(snapshotters) = self.snapshotters().await? else { return Ok(true) };
        let Ok(unpackings) = snapshotters.unpackings(&sandboxes.runtime_handlers) else {
            return Ok(false);
        };
        Ok(self.missing(&snapshotters, unpackings, id).await?.is_none())
    }

    /// The first of these for which the image is not unpacked.
    async fn missing<'a>(
        &self,
        snapshotters: &Snapshotters,
        unpackings: Vec<Unpacking<'a>>,
        id: &str,
    ) -> Result<Option<Unpacking<'a>>, RuntimeError> {
        // The ID is the digest of the configuration, which has the labels.
        let labels = self.content.labels(id).await.map_err(|status| failure(&status, None))?;
        let labels = labels.unwrap_or_default();
        let is_missing = |one: &Unpacking<'_>| {
            !snapshotters.is_unpacked(one.snapshotter, labels.iter().map(String::as_str))
        };
        Ok(unpackings.into_iter().find(is_missing))
    }

    /// The handlers for which the image has to be pulled, one pull for each; `None` for the default one.
    ///
    /// # Errors
    /// `RuntimeHandlerUnsupported`: the runtime has none of them, or does not unpack images for one.
    pub(super) async fn handlers_to_pull(
        &self,
        sandboxes: &Sandboxes,
    ) -> Result<Vec<Option<String>>, RuntimeError> {
        let Some(snapshotters) = self.snapshotters().await? else { return Ok(vec![None]) };
        let unpackings = match snapshotters.unpackings(&sandboxes.runtime_handlers) {
            Ok(unpackings) => unpackings,
            Err(unknown) => return Err(unsupported(unknown.to_string())),
        };
        let mut handlers = Vec::new();
        for Unpacking { snapshotter, handler } in unpackings {
            if let Some(name) = snapshotter
                && self.handlers.is_unsupported(name)
            {
                return Err(not_unpacked(handler, name));
            }
            handlers.push(snapshotter.map(|_| handler.to_owned()));
        }
        Ok(handlers)
    }

    /// Fails if the runtime holds the image with this ID after a pull, but not for all these Pods.
    pub(super) async fn unpacked_for_all(
        &self,
        id: &str,
        sandboxes: &Sandboxes,
    ) -> Result<(), RuntimeError> {
        let Some(snapshotters) = self.snapshotters().await? else { return Ok(()) };
        let Ok(unpackings) = snapshotters.unpackings(&sandboxes.runtime_handlers) else {
            return Ok(());
        };
        match self.missing(&snapshotters, unpackings, id).await? {
            Some(Unpacking { snapshotter: Some(name), handler }) => {
                self.handlers.found_unsupported(name);
                Err(not_unpacked(handler, name))
            }
            // The default one has no other name: the image is where a pull puts it.
            Some(Unpacking { snapshotter: None, .. }) | None => Ok(()),
        }
    }
}

fn not_unpacked(handler: &str, snapshotter: &str) -> RuntimeError {
    unsupported(format!(
        "containerd does not unpack images for snapshotter {snapshotter:?} of runtime handler {handler:?} when \
         they are pulled: its settings need runtime_platforms (images) and unpack_config (transfer)"
    ))
}

fn unsupported(message: String) -> RuntimeError {
    RuntimeError { reason: Reason::RuntimeHandlerUnsupported, message }
}
