//! Waiting for something to become true, with a deadline and a name for the failure message.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` again and again until it answers `Some`, for at most `deadline`. Each single answer
/// may take as long as what is left of the deadline.
pub async fn wait_for<T, F, Fut>(deadline: Duration, what: &str, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(20);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if let Ok(Some(found)) = tokio::time::timeout(left, probe()).await {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain for {what}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}
