//! Looks how full the runtime's image file system is, as far as it can be seen from here. Whether
//! that is enough is decided by `queue::space`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use crate::runtime::Runtime;
use crate::runtime::disk::{is_overlay, space_of};
use imagewarm_core::node_queue::space::{low, shortage};
use imagewarm_core::runtime::Space;

/// The root of a warmer's container is a layer of the runtime's own.
const OWN_ROOT: &str = "/";

/// Between two looks while a pull runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

type Measure = dyn Fn(&Path) -> io::Result<Space> + Send + Sync;

/// Keeps pulls from filling the node's disk.
pub struct DiskGuard {
    measure: Box<Measure>,
    /// Percentage that must stay free.
    keep_free: u8,
    /// `--image-folder`.
    named: Option<PathBuf>,
    seen: Mutex<Seen>,
}

/// Where the image file system can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    NotLookedYet,
    At(PathBuf),
    Nowhere,
}

impl DiskGuard {
    /// A guard of the file system of `named` or, without it, of the one that the runtime names.
    pub fn new(keep_free: u8, named: Option<PathBuf>) -> Self {
        Self::with_measure(keep_free, named, Box::new(space_of))
    }

    fn with_measure(keep_free: u8, named: Option<PathBuf>, measure: Box<Measure>) -> Self {
        DiskGuard { measure, keep_free, named, seen: Mutex::new(Seen::NotLookedYet) }
    }

    /// Why there is no room for `wanted_bytes` more; `None` also where nobody can tell.
    pub async fn shortage(&self, runtime: &dyn Runtime, wanted_bytes: u64) -> Option<String> {
        shortage(self.space(runtime).await?, wanted_bytes, self.keep_free)
    }

    /// Returns once there is less room than must be kept free: no size that was taken for granted
    /// helps when an image turns out to be larger.
    pub async fn until_low(&self, runtime: &dyn Runtime) -> String {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let space = self.space(runtime).await;
            if let Some(message) = space.and_then(|space| low(space, self.keep_free)) {
                return message;
            }
        }
    }

    async fn space(&self, runtime: &dyn Runtime) -> Option<Space> {
        let folder = self.folder(runtime).await?;
        let looked = (self.measure)(&folder);
        if let Err(error) = &looked {
            tracing::warn!(folder = %folder.display(), %error, "the disk guard cannot look");
            // It may have moved.
            self.set(Seen::NotLookedYet);
        }
        looked.ok()
    }

    /// A folder of the file system, looked for until there is an answer.
    async fn folder(&self, runtime: &dyn Runtime) -> Option<PathBuf> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen {
            Seen::At(folder) => return Some(folder),
            Seen::Nowhere => return None,
            Seen::NotLookedYet => {}
        }
        let told = match &self.named {
            Some(named) => named.clone(),
            // A runtime that does not answer will say so to the pull itself.
            None => runtime.image_folder().await.ok()?,
        };
        let found = visible(&told, self.named.is_some(), is_overlay(OWN_ROOT.as_ref()));
        match &found {
            Some(at) => {
                tracing::info!(folder = %at.display(), keep_free = self.keep_free, "disk guard");
            }
            None => tracing::warn!(
                folder = %told.display(),
                "no disk guard: the runtime's image file system cannot be seen from here; mount a \
                 folder of it and name that with --image-folder"
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

/// Where the file system of the folder `told` can be looked at: there itself, or at our own root
/// where that is an overlay, which has the room of the file system that it was made on.
fn visible(told: &Path, by_a_person: bool, own_root_is_overlay: bool) -> Option<PathBuf> {
    if by_a_person || told.is_dir() {
        return Some(told.to_owned());
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
        let looks = Mutex::new(0);
        let filling = move |_: &Path| {
            let mut looks = looks.lock().unwrap();
            *looks += 1;
            Ok(Space { free_bytes: 100_000_000 / *looks, capacity_bytes: 200_000_000 })
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
    async fn what_cannot_be_seen_is_not_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::default();
        let named = |path: PathBuf| DiskGuard::new(0, Some(path));
        let guard = named(folder.path().to_owned());
        assert_eq!(guard.shortage(&runtime, 0).await, None);
        assert!(guard.shortage(&runtime, u64::MAX).await.is_some());
        assert_eq!(named(folder.path().join("missing")).shortage(&runtime, u64::MAX).await, None);
    }
}
