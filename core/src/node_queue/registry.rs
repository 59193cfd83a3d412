//! The back-off of rate-limited registries on this node, for all images of one registry and account:
//! an exhausted account stops nobody else. Runtimes report a `Retry-After` only where the registry
//! repeats it in the text of its answer.

use std::collections::HashMap;

use crate::image::{Reference, retry_after_ms};

const FIRST_MS: f64 = 5_000.0;
const LONGEST_MS: f64 = 300_000.0;
/// The longest `Retry-After` that is honoured.
const LONGEST_RETRY_AFTER_MS: f64 = 3_600_000.0;
/// How long after its end a back-off is forgotten.
const FORGOTTEN_MS: i64 = 3_600_000;

/// A registry, and the mark of the credentials that are used with it (`Assign.account_mark`).
pub type Account<'a> = (&'a str, u64);

#[derive(Debug)]
struct BackingOff {
    times: u32,
    until: i64,
}

/// The registries that are backed off, by registry and account.
#[derive(Debug, Default)]
pub struct Registries {
    backing_off: HashMap<String, HashMap<u64, BackingOff>>,
}

impl Registries {
    /// The image's registry limited its pull with this account, with this message. Returns when the
    /// account's next pull may begin.
    pub fn limited(
        &mut self,
        image: &Reference,
        account: u64,
        message: &str,
        now: i64,
        jitter: f64,
    ) -> i64 {
        let accounts = self.backing_off.entry(image.domain().to_owned()).or_default();
        accounts.retain(|_, backing_off| now - backing_off.until <= FORGOTTEN_MS);
        let backing_off = accounts.entry(account).or_insert(BackingOff { times: 0, until: now });
        // Concurrent pulls are refused together: that is one rate limit, not several.
        if backing_off.until <= now {
            backing_off.times += 1;
        }
        let power = i32::try_from(backing_off.times.saturating_sub(1)).unwrap_or(i32::MAX).min(20);
        let own = (FIRST_MS * 2f64.powi(power)).min(LONGEST_MS) * (0.75 + jitter * 0.5);
        let requested = retry_after_ms(message, image).unwrap_or(0.0).min(LONGEST_RETRY_AFTER_MS);
        // Never sooner than requested, with jitter between nodes.
        let backoff = own.max(requested * (1.0 + jitter * 0.1));
        backing_off.until = backing_off.until.max(now + backoff as i64);
        backing_off.until
    }

    fn of(&self, (registry, account): Account<'_>) -> Option<&BackingOff> {
        self.backing_off.get(registry)?.get(&account)
    }

    /// The registry served a pull with this account.
    pub fn served(&mut self, (registry, account): Account<'_>) {
        if let Some(accounts) = self.backing_off.get_mut(registry) {
            accounts.remove(&account);
            if accounts.is_empty() {
                self.backing_off.remove(registry);
            }
        }
    }

    /// The end of the back-off, while it lasts.
    pub fn waits_until(&self, account: Account<'_>, now: i64) -> Option<i64> {
        self.of(account).map(|backing_off| backing_off.until).filter(|until| *until > now)
    }

    /// How many pulls of the account may run at the same time: one after a rate limit, until it
    /// succeeds.
    pub fn places(&self, account: Account<'_>, usually: usize) -> usize {
        if self.of(account).is_some() { 1 } else { usually }
    }

    /// When the next back-off ends.
    pub fn wake_at(&self, now: i64) -> Option<i64> {
        self.backing_off
            .values()
            .flat_map(HashMap::values)
            .map(|backing_off| backing_off.until)
            .filter(|until| *until > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image() -> Reference {
        Reference::parse("r.test/a:v1").unwrap()
    }

    #[test]
    fn each_refusal_makes_the_pause_longer_until_a_pull_goes_well() {
        let mut registries = Registries::default();
        let mut now = 0;
        let mut pauses = vec![];
        for _ in 0..8 {
            let until = registries.limited(&image(), 1, "", now, 0.5);
            assert_eq!(registries.waits_until(("r.test", 1), now), Some(until));
            assert_eq!(
                registries.limited(&image(), 1, "", now + 1, 0.5),
                until + 1,
                "side by side"
            );
            pauses.push((until - now) / 1_000);
            now = until + 1;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(registries.waits_until(("r.test", 1), now), None);
        assert_eq!(
            (registries.places(("r.test", 1), 3), registries.places(("other", 1), 3)),
            (1, 3)
        );
        registries.served(("r.test", 1));
        assert_eq!(registries.places(("r.test", 1), 3), 3);
        assert_eq!(registries.limited(&image(), 1, "", now, 0.5), now + 5_000);
        let later = now + 2 * FORGOTTEN_MS;
        assert_eq!(registries.limited(&image(), 1, "", later, 0.5), later + 5_000, "forgotten");
    }

    #[test]
    fn another_account_of_the_registry_goes_on() {
        let mut registries = Registries::default();
        registries.limited(&image(), 1, "", 0, 0.5);
        assert_eq!(registries.waits_until(("r.test", 2), 1), None);
        assert_eq!(registries.places(("r.test", 2), 3), 3);
        registries.served(("r.test", 2));
        assert!(registries.waits_until(("r.test", 1), 1).is_some());
        registries.served(("r.test", 1));
        assert!(registries.backing_off.is_empty());
    }

    #[test]
    fn a_retry_after_is_never_cut_short_but_bounded() {
        let until =
            |message: &str, jitter| Registries::default().limited(&image(), 1, message, 0, jitter);
        for jitter in [0.0, 0.5, 1.0] {
            let requested = until("retry after 60", jitter);
            assert!((60_000..=66_000).contains(&requested), "{requested}");
            assert!(until("retry after 1 s", jitter) > 3_000, "our own pause is longer");
            assert!(until("retry after 99 hours", jitter) <= 3_960_000);
        }
    }
}
