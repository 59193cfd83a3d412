//! Reads both clocks. See [`imagewarm_core::clock`] for what each is used for.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use imagewarm_core::clock::Now;

/// The clocks of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    /// Clocks whose monotonic time begins now.
    pub(crate) fn start() -> Self {
        Clock { started: Instant::now() }
    }

    /// Both times.
    pub(crate) fn now(self) -> Now {
        Now { monotonic_ms: self.monotonic_ms(), unix_ms: unix_ms() }
    }

    /// Milliseconds since the start.
    pub(crate) fn monotonic_ms(self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Waits until `monotonic_ms`; forever without one.
    pub(crate) async fn sleep_until(self, monotonic_ms: Option<i64>) {
        let after_start = |ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        sleep_until(monotonic_ms.map(|ms| self.started + after_start(ms))).await;
    }
}

/// Waits until `at`; forever without a moment.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The wall clock: for what people read, and to compare with times of Kubernetes objects.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub(crate) fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// Milliseconds since 1970, by the wall clock.
pub(crate) fn unix_ms() -> i64 {
    wall_clock().as_millisecond()
}
