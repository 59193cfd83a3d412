//! Listens for images that the runtime removes, where it tells of them. What is lost of it, the
//! regular look at what the node holds finds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::runtime::Runtime;

/// A garbage collection removes many images, one after another.
const SETTLE: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A runtime that told for so long was well: the next trouble starts from the shortest pause.
const GOOD: Duration = Duration::from_secs(60);

/// Hears of removals for as long as it lives.
pub(super) struct Removals {
    told: Arc<Notify>,
    due: Option<Instant>,
    _listener: JoinSet<()>,
}

impl Removals {
    /// Begins to listen.
    pub(super) fn listen(runtime: Arc<dyn Runtime>) -> Self {
        let told = Arc::new(Notify::new());
        let mut listener = JoinSet::new();
        if runtime.reports_removals() {
            listener.spawn(listen(runtime, told.clone()));
        }
        Removals { told, due: None, _listener: listener }
    }

    /// Returns soon after a removal; of several in a row once. May be dropped and called again
    /// without loss.
    pub(super) async fn seen(&mut self) {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.told.notified().await;
                *self.due.insert(Instant::now() + SETTLE)
            }
        };
        tokio::time::sleep_until(due).await;
        self.due = None;
    }
}

async fn listen(runtime: Arc<dyn Runtime>, told: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let error = runtime.watch_removals(&|| told.notify_one()).await;
        if began.elapsed() >= GOOD {
            pause = FIRST_PAUSE;
        }
        tracing::debug!(%error, "the runtime does not tell of removals; asking again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // Nobody listened meanwhile.
        told.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn removals_are_heard_of_also_after_a_break() {
        let runtime = FakeRuntime::default();
        let mut removals = Removals::listen(Arc::new(runtime.clone()));
        for told in [true, true, false, true] {
            runtime.tell_removal(told);
            // Dropped in the middle, as when something else happens, and taken up again.
            let settling = tokio::time::timeout(SETTLE / 5, removals.seen()).await;
            assert!(settling.is_err(), "several in a row are one");
            let seen = tokio::time::timeout(Duration::from_secs(20), removals.seen()).await;
            assert!(seen.is_ok(), "told: {told}");
        }
    }
}
