//! Registries that asked for fewer requests: what to wait before the next pull from one, for all of
//! its images on this node. Runtimes pass the header `Retry-After` on only where the registry has
//! put it in words as well.

use std::collections::HashMap;

use crate::image::retry_after_ms;

const FIRST_MS: f64 = 5_000.0;
const LONGEST_MS: f64 = 300_000.0;
/// What a registry asks for is honoured up to this.
const LONGEST_ASKED_MS: f64 = 3_600_000.0;
/// So long after its end a limit is forgotten.
const FORGOTTEN_MS: i64 = 3_600_000;

#[derive(Debug)]
struct BackingOff {
    times: u32,
    until: i64,
}

/// The registries that are to be spared.
#[derive(Debug, Default)]
pub struct Registries {
    slowed: HashMap<String, BackingOff>,
}

impl Registries {
    /// The registry refused a pull with these words. Returns when the next may begin.
    pub fn limited(&mut self, registry: &str, words: &str, now: i64, jitter: f64) -> i64 {
        let slowed =
            self.slowed.entry(registry.to_owned()).or_insert(BackingOff { times: 0, until: now });
        if now - slowed.until > FORGOTTEN_MS {
            slowed.times = 0;
        }
        // Pulls that ran side by side are refused side by side: that is one limit, not several.
        if slowed.until <= now {
            slowed.times += 1;
        }
        let power = i32::try_from(slowed.times.saturating_sub(1)).unwrap_or(i32::MAX).min(20);
        let own = (FIRST_MS * 2f64.powi(power)).min(LONGEST_MS) * (0.75 + jitter * 0.5);
        let asked = retry_after_ms(words).unwrap_or(0.0).min(LONGEST_ASKED_MS);
        // Never sooner than asked, and not all nodes at that very moment.
        let pause = own.max(asked * (1.0 + jitter * 0.1));
        slowed.until = slowed.until.max(now + pause as i64);
        slowed.until
    }

    /// The registry served a pull.
    pub fn served(&mut self, registry: &str) {
        self.slowed.remove(registry);
    }

    /// Until when no pull may begin.
    pub fn waits_until(&self, registry: &str, now: i64) -> Option<i64> {
        self.slowed.get(registry).map(|slowed| slowed.until).filter(|until| *until > now)
    }

    /// How many pulls may run at once: after a limit one, until it has gone well.
    pub fn places(&self, registry: &str, usually: usize) -> usize {
        if self.slowed.contains_key(registry) { 1 } else { usually }
    }

    /// When the next registry need not be waited for any more.
    pub fn wake_at(&self, now: i64) -> Option<i64> {
        self.slowed.values().map(|slowed| slowed.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_refusal_makes_the_pause_longer_until_a_pull_goes_well() {
        let mut registries = Registries::default();
        let mut now = 0;
        let mut pauses = vec![];
        for _ in 0..8 {
            let until = registries.limited("r.test", "", now, 0.5);
            assert_eq!(registries.waits_until("r.test", now), Some(until));
            assert_eq!(registries.limited("r.test", "", now + 1, 0.5), until + 1, "side by side");
            pauses.push((until - now) / 1_000);
            now = until + 1;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(registries.waits_until("r.test", now), None);
        assert_eq!((registries.places("r.test", 3), registries.places("other", 3)), (1, 3));
        registries.served("r.test");
        assert_eq!(registries.places("r.test", 3), 3);
        assert_eq!(registries.limited("r.test", "", now, 0.5), now + 5_000);
        let later = now + 2 * FORGOTTEN_MS;
        assert_eq!(registries.limited("r.test", "", later, 0.5), later + 5_000, "forgotten");
    }

    #[test]
    fn what_a_registry_asks_for_is_never_cut_short_but_bounded() {
        let until = |words: &str, jitter| Registries::default().limited("r", words, 0, jitter);
        for jitter in [0.0, 0.5, 1.0] {
            let asked = until("retry after 60", jitter);
            assert!((60_000..=66_000).contains(&asked), "{asked}");
            assert!(until("retry after 1 s", jitter) > 3_000, "our own pause is longer");
            assert!(until("retry after 99 hours", jitter) <= 3_960_000);
        }
    }
}
