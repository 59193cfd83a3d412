//! The two clocks. Timers and deadlines use the monotonic one; the wall clock, which may be set back
//! or forward at any time, gives the times that people read.

/// A reading of both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the program started. Never decreases.
    pub monotonic_ms: i64,
    /// Milliseconds since 1970, by the wall clock.
    pub unix_ms: i64,
}

impl Now {
    /// What the wall clock will show at this monotonic time, unless it is set before that.
    pub fn unix_ms_at(self, monotonic_ms: i64) -> i64 {
        self.unix_ms.saturating_add(monotonic_ms.saturating_sub(self.monotonic_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_moment_is_shown_by_the_wall_clock_as_it_is_now() {
        let now = Now { monotonic_ms: 5_000, unix_ms: 1_700_000_000_000 };
        assert_eq!(now.unix_ms_at(6_500), 1_700_000_001_500);
        assert_eq!(now.unix_ms_at(4_000), 1_699_999_999_000);
        assert_eq!(now.unix_ms_at(i64::MAX), i64::MAX);
    }
}
