//! Watches the images that the runtime removes, if the runtime reports removals. The periodic
//! presence check detects removals that the watch misses.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::runtime::Runtime;

/// Delay that merges removals into one event: a garbage collection removes many images in a row.
const SETTLE: Duration = Duration::from_millis(500);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A watch that lasted this long resets the back-off.
const HEALTHY: Duration = Duration::from_secs(60);

/// A watch of removals; dropping it stops the watch.
pub(super) struct Removals {
    removed: Arc<Notify>,
    due: Option<Instant>,
    _listener: JoinSet<()>,
}

impl Removals {
    /// Starts the watch.
    pub(super) fn listen(runtime: Arc<dyn Runtime>) -> Self {
        let removed = Arc::new(Notify::new());
        let mut listener = JoinSet::new();
        if runtime.reports_removals() {
            listener.spawn(listen(runtime, removed.clone()));
        }
        Removals { removed, due: None, _listener: listener }
    }

    /// Returns `SETTLE` after a removal; once for several in a row. Cancel safe.
    pub(super) async fn seen(&mut self) {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.removed.notified().await;
                *self.due.insert(Instant::now() + SETTLE)
            }
        };
        tokio::time::sleep_until(due).await;
        self.due = None;
    }
}

async fn listen(runtime: Arc<dyn Runtime>, removed: Arc<Notify>) {
    let mut backoff = Backoff::new(FIRST_BACKOFF, MAX_BACKOFF);
    loop {
        let began = Instant::now();
        let error = runtime.watch_removals(&|| removed.notify_one()).await;
        if began.elapsed() >= HEALTHY {
            backoff = Backoff::new(FIRST_BACKOFF, MAX_BACKOFF);
        }
        tracing::debug!(%error, "watch of image removals failed, retrying");
        tokio::time::sleep(backoff.next_with_jitter()).await;
        // Removals during the back-off were not observed.
        removed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn removals_are_reported_after_the_watch_restarts() {
        let runtime = FakeRuntime::default();
        let mut removals = Removals::listen(Arc::new(runtime.clone()));
        for removed in [true, true, false, true] {
            runtime.report_removal(removed);
            // Cancelled and called again, as `select!` does.
            let settling = tokio::time::timeout(SETTLE / 5, removals.seen()).await;
            assert!(settling.is_err(), "several in a row are one");
            let seen = tokio::time::timeout(Duration::from_secs(20), removals.seen()).await;
            assert!(seen.is_ok(), "removed: {removed}");
        }
    }
}
