//! Measures the free space of the runtime's image file system, if it is visible in the warmer's
//! container. `node_queue::space` decides whether that suffices.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use crate::runtime::Runtime;
use crate::runtime::disk::{is_overlay, space_of};
use imagewarm_core::node_queue::space::{low, measure_again_in, shortage};
use imagewarm_core::runtime::Space;

/// The root of the warmer's container, which is on the runtime's own file system.
const OWN_ROOT: &str = "/";

/// Until the next attempt when the space cannot be measured.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

type Measure = dyn Fn(&Path) -> io::Result<Space> + Send + Sync;

/// Prevents pulls from filling the node's disk.
pub(super) struct DiskGuard {
    measure: Box<Measure>,
    /// Percentage that must stay free.
    keep_free: u8,
    /// `--image-folder`.
    named: Option<PathBuf>,
    seen: Mutex<Seen>,
}

/// Where the image file system is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Unknown,
    At(PathBuf),
    Nowhere,
}

impl DiskGuard {
    /// A guard of the file system of `named` or, without it, of the one that the runtime reports.
    pub(super) fn new(keep_free: u8, named: Option<PathBuf>) -> Self {
        Self::with_measure(keep_free, named, Box::new(space_of))
    }

    /// The same with another measurement.
    pub(super) fn with_measure(
        keep_free: u8,
        named: Option<PathBuf>,
        measure: Box<Measure>,
    ) -> Self {
        DiskGuard { measure, keep_free, named, seen: Mutex::new(Seen::Unknown) }
    }

    /// Why `wanted_bytes` more do not fit; `None` also if the free space is unknown.
    pub(super) async fn shortage(
        &self,
        runtime: &dyn Runtime,
        wanted_bytes: u64,
    ) -> Option<String> {
        shortage(self.space(runtime).await?, wanted_bytes, self.keep_free)
    }

    /// Returns once less space is free than required: an image may be larger than its assumed
    /// size.
    pub(super) async fn until_low(&self, runtime: &dyn Runtime) -> String {
        loop {
            let measured = self.space(runtime).await;
            if let Some(message) = measured.and_then(|space| low(space, self.keep_free)) {
                return message;
            }
            let again = measured.map(|space| measure_again_in(space, self.keep_free));
            tokio::time::sleep(again.unwrap_or(RETRY_INTERVAL)).await;
        }
    }

    /// The space of the image file system, if that is visible.
    pub(super) async fn space(&self, runtime: &dyn Runtime) -> Option<Space> {
        let folder = self.folder(runtime).await?;
        let measured = (self.measure)(&folder);
        if let Err(error) = &measured {
            tracing::warn!(folder = %folder.display(), %error, "disk guard cannot measure free space");
            // The directory may have moved.
            self.set(Seen::Unknown);
        }
        measured.ok()
    }

    /// A directory on the file system; requested from the runtime until it responds.
    async fn folder(&self, runtime: &dyn Runtime) -> Option<PathBuf> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen {
            Seen::At(folder) => return Some(folder),
            Seen::Nowhere => return None,
            Seen::Unknown => {}
        }
        let reported = match &self.named {
            Some(named) => named.clone(),
            // The pull itself reports a runtime that does not respond.
            None => runtime.image_folder().await.ok()?,
        };
        let found = visible(&reported, self.named.is_some(), is_overlay(OWN_ROOT.as_ref()));
        match &found {
            Some(at) => {
                tracing::info!(folder = %at.display(), keep_free = self.keep_free, "disk guard is active");
            }
            None => tracing::warn!(
                folder = %reported.display(),
                "no disk guard: the runtime's image file system is not visible; mount a directory \
                 of it and set --image-folder to that"
            ),
        }
        self.set(found.clone().map_or(Seen::Nowhere, Seen::At));
        found
    }

    fn set(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl fmt::Debug for DiskGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskGuard").field("keep_free", &self.keep_free).finish_non_exhaustive()
    }
}

/// Where the file system of the directory `reported` is visible: at that path, or at the
/// container's own root if that is an overlay, which shares the space of the file system below it.
fn visible(reported: &Path, by_user: bool, own_root_is_overlay: bool) -> Option<PathBuf> {
    if by_user || reported.is_dir() {
        return Some(reported.to_owned());
    }
    own_root_is_overlay.then(|| OWN_ROOT.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn a_pull_that_fills_the_disk_is_noticed() {
        let measurements = Mutex::new(0);
        let filling = move |_: &Path| {
            let mut measurements = measurements.lock().unwrap();
            *measurements += 1;
            let (free_inodes, inodes) = (0, 0);
            let free_bytes = 100_000_000 / *measurements;
            Ok(Space { free_bytes, capacity_bytes: 200_000_000, free_inodes, inodes })
        };
        let guard = DiskGuard::with_measure(30, Some("/".into()), Box::new(filling));
        let runtime = FakeRuntime::default();
        assert_eq!(guard.shortage(&runtime, 0).await, None);
        let message = guard.until_low(&runtime).await;
        assert!(message.contains("50.0 MB of 200 MB"), "{message}");
    }

    #[test]
    fn the_file_system_is_seen_directly_or_through_our_own_root() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let here = Some(folder.path().to_owned());
        assert_eq!(visible(folder.path(), false, true), here);
        assert_eq!(visible(folder.path(), false, false), here);
        assert_eq!(visible(&missing, false, true), Some("/".into()));
        assert_eq!(visible(&missing, false, false), None);
        assert_eq!(visible(&missing, true, true), Some(missing.clone()), "a mistake must show");
    }

    #[tokio::test]
    async fn an_invisible_file_system_is_not_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::default();
        let named = |path: PathBuf| DiskGuard::new(0, Some(path));
        let guard = named(folder.path().to_owned());
        assert_eq!(guard.shortage(&runtime, 0).await, None);
        assert!(guard.shortage(&runtime, u64::MAX).await.is_some());
        assert_eq!(named(folder.path().join("missing")).shortage(&runtime, u64::MAX).await, None);
    }
}
