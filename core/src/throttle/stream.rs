//! The rate limit of one stream's messages: far above what an honest warmer sends, and low enough
//! that one node cannot starve the others. Pure.

use std::time::Instant;

/// A reconnect reports every assignment of a node at once; ten thousand are a very full node.
const BURST: f64 = 20_000.0;
/// Progress is throttled to one a second for each of a few pulls.
const PER_SECOND: f64 = 500.0;
/// Reports are short; only the text of a runtime's error has no bound of its own.
const LARGEST_REPORT: usize = 64 * 1024;
/// A long message counts as several.
const BYTES_FOR_ONE: f64 = 1024.0;

/// Why a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// The rate of messages exceeds the limit.
    Flood,
    /// A message exceeds the size limit.
    Size,
}

/// The remaining message budget of one stream.
#[derive(Debug)]
pub struct MessageLimit {
    left: f64,
    at: Instant,
}

impl MessageLimit {
    /// The budget of a new stream.
    pub fn new(now: Instant) -> Self {
        MessageLimit { left: BURST, at: now }
    }

    /// Counts a message of `bytes`.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Result<(), Excess> {
        if bytes > LARGEST_REPORT {
            return Err(Excess::Size);
        }
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.left = (self.left + gained).min(BURST) - 1.0 - bytes as f64 / BYTES_FOR_ONE;
        self.at = now;
        if self.left < 0.0 { Err(Excess::Flood) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_node_that_reconnects_is_heard_and_a_flood_is_not() {
        let start = Instant::now();
        let mut message_limit = MessageLimit::new(start);
        for _ in 0..10_000 {
            message_limit.take(300, start).unwrap();
        }
        let taken = (0..100_000).take_while(|_| message_limit.take(300, start).is_ok()).count();
        assert!(taken < 10_000, "{taken}");
        let later = start + Duration::from_secs(10);
        assert_eq!(message_limit.take(0, later), Ok(()), "time gives back");
        let later = later + Duration::from_secs(24 * 60 * 60);
        assert_eq!(message_limit.take(0, later), Ok(()));
        assert!(message_limit.left <= BURST, "a quiet day saves nothing up");
    }

    #[test]
    fn long_messages_cost_more_and_the_longest_are_refused() {
        let start = Instant::now();
        let mut message_limit = MessageLimit::new(start);
        let taken = (0..).take_while(|_| message_limit.take(LARGEST_REPORT, start).is_ok()).count();
        assert!((250..350).contains(&taken), "{taken}");
        let mut message_limit = MessageLimit::new(start);
        assert_eq!(message_limit.take(LARGEST_REPORT + 1, start), Err(Excess::Size));
    }
}
