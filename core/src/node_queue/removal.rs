//! How soon an image that the runtime has lost is pulled again. Who removes images has a reason, most
//! often the kubelet's image garbage collection: to bring them back again and again would fill the
//! disk as fast as it is cleared.

/// Before each pull after a removal, in a row; the last one stays.
const PAUSES_MS: [i64; 5] = [0, 60_000, 300_000, 1_800_000, 7_200_000];
/// An image that stayed so long was not removed in a row with the time before.
const STAYED_MS: i64 = 12 * 3_600_000;

/// The removals of one image.
#[derive(Debug, Default)]
pub struct Removals {
    in_a_row: usize,
    held_since: Option<i64>,
}

impl Removals {
    /// The runtime holds the image.
    pub fn held(&mut self, now: i64) {
        self.held_since.get_or_insert(now);
    }

    /// It does not any more. Returns how long to wait before it is pulled again, and which removal in
    /// a row this was.
    pub fn removed(&mut self, now: i64) -> (i64, usize) {
        let stayed = self.held_since.take().map_or(0, |since| now - since);
        if stayed >= STAYED_MS {
            self.in_a_row = 0;
        }
        let pause = PAUSES_MS[self.in_a_row.min(PAUSES_MS.len() - 1)];
        self.in_a_row += 1;
        (pause, self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_removing_is_not_fought() {
        let mut removals = Removals::default();
        let mut now = 0;
        let mut pauses = vec![];
        for time in 1..=6 {
            removals.held(now);
            removals.held(now + 300_000);
            now += 600_000;
            let (pause, in_a_row) = removals.removed(now);
            assert_eq!(in_a_row, time);
            pauses.push(pause / 1_000);
            now += pause;
        }
        assert_eq!(pauses, [0, 60, 300, 1_800, 7_200, 7_200]);
        removals.held(now);
        assert_eq!(removals.removed(now + STAYED_MS), (0, 1), "it had stayed");
    }

    #[test]
    fn an_image_from_before_our_start_comes_back_at_once() {
        assert_eq!(Removals::default().removed(5), (0, 1));
    }
}
