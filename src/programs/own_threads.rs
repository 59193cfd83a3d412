//! Threads that do nothing but one part's work.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinError, JoinHandle};

/// A part that runs on one thread for each core, with timers and sockets of their own. It ends when
/// this is dropped.
pub(super) struct OwnThreads<T> {
    threads: Option<Runtime>,
    part: JoinHandle<T>,
}

impl<T: Send + 'static> OwnThreads<T> {
    /// Starts the threads and on them the part. The operating system shows the first 15 bytes of
    /// their name.
    ///
    /// # Errors
    ///
    /// When the operating system has no more threads or files.
    pub(super) fn start(
        name: &str,
        part: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<Self> {
        let threads = Builder::new_multi_thread().thread_name(name).enable_all().build()?;
        let part = threads.spawn(part);
        Ok(OwnThreads { threads: Some(threads), part })
    }

    /// Waits for the part's end.
    ///
    /// # Errors
    ///
    /// When it panicked.
    pub(super) async fn ended(mut self) -> Result<T, JoinError> {
        (&mut self.part).await
    }
}

impl<T> Drop for OwnThreads<T> {
    fn drop(&mut self) {
        // Waiting for threads is not allowed where tasks run.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}
