//! The bodies of requests: how large they may be, how much memory all of them take together, and which are
//! reviewed apart. Small ones, as nearly all are, never wait for large ones.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::WebhookArgs;
use super::review::ReviewError;

/// Limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// In bytes.
    pub size: usize,
    /// For the whole body.
    pub time: Duration,
}

impl From<&WebhookArgs> for BodyLimits {
    fn from(args: &WebhookArgs) -> Self {
        BodyLimits { size: args.webhook_max_body, time: args.webhook_body_timeout }
    }
}

/// The largest small body, in bytes. A review of a usual Revision has some 10 kB.
const SMALL: u64 = 256 * 1024;
/// Memory for all small bodies that are being read and reviewed, in units of 1 KiB: 16 MiB.
const SMALL_MEMORY: u32 = 16 * 1024;
/// The same for all others: 48 MiB.
const LARGE_MEMORY: u32 = 48 * 1024;

/// The memory for bodies that are being read and reviewed.
#[derive(Clone)]
pub(super) struct BodyMemory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Large bodies are reviewed one after another: what is parsed of one may take many times its size,
    /// and some tenths of a second.
    turn: Arc<Semaphore>,
}

impl Default for BodyMemory {
    fn default() -> Self {
        let of = |units: u32| Arc::new(Semaphore::new(units as usize));
        BodyMemory { small: of(SMALL_MEMORY), large: of(LARGE_MEMORY), turn: of(1) }
    }
}

impl BodyMemory {
    /// Waits until there is memory for a body of the announced size, as long as a body may take.
    pub(super) async fn reserve(
        &self,
        announced: Option<u64>,
        limits: BodyLimits,
    ) -> Result<OwnedSemaphorePermit, ReviewError> {
        let (memory, units) = match announced {
            Some(size @ ..=SMALL) => (&self.small, kibibytes(size).min(SMALL_MEMORY)),
            _ => {
                let largest = u64::try_from(limits.size).unwrap_or(u64::MAX);
                let size = announced.unwrap_or(largest).min(largest);
                (&self.large, kibibytes(size).min(LARGE_MEMORY))
            }
        };
        let permit = tokio::time::timeout(limits.time, memory.clone().acquire_many_owned(units));
        permit.await.ok().and_then(Result::ok).ok_or(ReviewError::Busy)
    }

    /// The turn of a large body, to be reviewed on a thread for blocking work; `None` for a small one.
    pub(super) async fn turn(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        if u64::try_from(size).is_ok_and(|size| size <= SMALL) {
            return None;
        }
        self.turn.clone().acquire_owned().await.ok()
    }
}

fn kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// The whole body, within its limits.
pub(super) async fn read_body(body: Body, limits: BodyLimits) -> Result<Bytes, ReviewError> {
    let collect = Limited::new(body, limits.size).collect();
    match tokio::time::timeout(limits.time, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ReviewError::TooLong(limits.size)),
        Ok(Err(_)) => Err(ReviewError::BrokenOff),
        Err(_) => Err(ReviewError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const QUICK: BodyLimits = BodyLimits { size: 8 << 20, time: Duration::from_millis(10) };
    const PATIENT: BodyLimits = BodyLimits { time: Duration::from_secs(30), ..QUICK };

    #[tokio::test]
    async fn a_body_waits_for_memory_and_is_refused_without() {
        let memory = BodyMemory::default();
        let largest = Some(8 << 20);
        let all = futures::future::join_all((0..6).map(|_| memory.reserve(largest, QUICK))).await;
        assert!(all.iter().all(Result::is_ok), "six of the largest fit");
        for announced in [largest, None, Some(SMALL + 1), Some(u64::MAX)] {
            let refused = memory.reserve(announced, QUICK).await.unwrap_err();
            assert!(matches!(refused, ReviewError::Busy), "{announced:?}: {refused}");
        }
        let (granted, ()) = tokio::join!(memory.reserve(None, PATIENT), async { drop(all) });
        assert!(granted.is_ok());
    }

    #[tokio::test]
    async fn small_bodies_do_not_wait_for_large_ones() {
        let memory = BodyMemory::default();
        let _large: Vec<_> =
            futures::future::join_all((0..6).map(|_| memory.reserve(None, QUICK))).await;
        let _turn = memory.turn(8 << 20).await.unwrap();
        let mut small = vec![];
        for _ in 0..64 {
            small.push(memory.reserve(Some(SMALL), QUICK).await.unwrap());
        }
        assert!(memory.turn(256 * 1024).await.is_none());
        assert!(memory.reserve(Some(0), QUICK).await.is_ok(), "no body takes no memory");
        assert!(memory.reserve(Some(1), QUICK).await.is_err(), "so many at once is no API server");
    }
}
