//! The back-off before a removed image is pulled again. Images are mostly removed by the kubelet's
//! image garbage collection: pulling them again at once would fill the disk as fast as it is
//! cleared.

/// The back-off after each consecutive removal; the last one repeats.
const BACKOFF_MS: [i64; 5] = [0, 60_000, 300_000, 1_800_000, 7_200_000];
/// A removal after this time of presence is not consecutive to the one before.
const RESET_AFTER_MS: i64 = 12 * 3_600_000;

/// The removals of one image.
#[derive(Debug, Default)]
pub struct Removals {
    consecutive: usize,
    held_since: Option<i64>,
}

impl Removals {
    /// The runtime holds the image.
    pub fn held(&mut self, now: i64) {
        self.held_since.get_or_insert(now);
    }

    /// The runtime no longer holds it. Returns the back-off in milliseconds, and the number of
    /// consecutive removals.
    pub fn removed(&mut self, now: i64) -> (i64, usize) {
        let present_ms = self.held_since.take().map_or(0, |since| now - since);
        if present_ms >= RESET_AFTER_MS {
            self.consecutive = 0;
        }
        let backoff_ms = BACKOFF_MS[self.consecutive.min(BACKOFF_MS.len() - 1)];
        self.consecutive += 1;
        (backoff_ms, self.consecutive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_removals_are_backed_off() {
        let mut removals = Removals::default();
        let mut now = 0;
        let mut pauses = vec![];
        for time in 1..=6 {
            removals.held(now);
            removals.held(now + 300_000);
            now += 600_000;
            let (pause, consecutive) = removals.removed(now);
            assert_eq!(consecutive, time);
            pauses.push(pause / 1_000);
            now += pause;
        }
        assert_eq!(pauses, [0, 60, 300, 1_800, 7_200, 7_200]);
        removals.held(now);
        assert_eq!(removals.removed(now + RESET_AFTER_MS), (0, 1), "it had stayed");
    }

    #[test]
    fn an_image_from_before_our_start_comes_back_at_once() {
        assert_eq!(Removals::default().removed(5), (0, 1));
    }
}
