//! Decides whether this replica may lead, from the observed Lease and this process's own clock.
//! Clocks of other replicas are never compared.

use std::time::{Duration, Instant};

/// The fields of the Lease that the decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The holder, as `name@host:port`; empty when the Lease was released.
    pub holder: String,
    /// How long the Lease is valid after each renewal.
    pub duration: Duration,
    /// The holder's renewal time; only compared for equality.
    pub renewed: String,
}

/// The newest observed Lease, and when it was first observed.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The Lease.
    pub record: Record,
    /// When this state was first observed.
    pub since: Instant,
}

impl Observation {
    /// Records a read of the Lease; the time restarts only when the Lease changed.
    pub fn update(old: Option<Observation>, record: Record, now: Instant) -> Observation {
        match old {
            Some(old) if old.record == record => old,
            _ => Observation { record, since: now },
        }
    }
}

/// The next action of this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No Lease exists: create it, held by this replica.
    Create,
    /// It is released or expired: acquire it.
    Take,
    /// This replica holds it: renew it.
    Renew,
    /// Another replica leads.
    Follow,
}

/// The next action, from the newest observation.
pub fn decide(seen: Option<&Observation>, identity: &str, now: Instant) -> Action {
    let Some(Observation { record, since }) = seen else { return Action::Create };
    if record.holder == identity {
        Action::Renew
    } else if record.holder.is_empty() || now.duration_since(*since) > record.duration {
        Action::Take
    } else {
        Action::Follow
    }
}

/// The address in an identity of the form `name@host:port`.
pub fn address(holder: &str) -> Option<String> {
    let (_, address) = holder.split_once('@')?;
    (!address.is_empty()).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn record(holder: &str, renewed: &str) -> Record {
        Record { holder: holder.into(), duration: DURATION, renewed: renewed.into() }
    }

    #[test]
    fn decisions() {
        let start = Instant::now();
        let late = start + DURATION + Duration::from_millis(1);
        let cases = [
            ("no lease", None, start, Action::Create),
            ("released", Some(record("", "1")), start, Action::Take),
            ("ours", Some(record("me@h:1", "1")), start, Action::Renew),
            ("ours, late", Some(record("me@h:1", "1")), late, Action::Renew),
            ("another's", Some(record("you@h:2", "1")), start, Action::Follow),
            (
                "another's, at its end",
                Some(record("you@h:2", "1")),
                start + DURATION,
                Action::Follow,
            ),
            ("another's, run out", Some(record("you@h:2", "1")), late, Action::Take),
        ];
        for (name, record, now, action) in cases {
            let seen = record.map(|record| Observation { record, since: start });
            assert_eq!(decide(seen.as_ref(), "me@h:1", now), action, "{name}");
        }
    }

    #[test]
    fn a_renewal_starts_the_clock_anew_and_a_repeat_does_not() {
        let start = Instant::now();
        let seen = Observation::update(None, record("you@h:2", "1"), start);
        let later = start + Duration::from_secs(10);
        let same = Observation::update(Some(seen.clone()), record("you@h:2", "1"), later);
        assert_eq!(same.since, start);
        let renewed = Observation::update(Some(seen), record("you@h:2", "2"), later);
        assert_eq!(renewed.since, later);
        let after = start + Duration::from_secs(20);
        assert_eq!(decide(Some(&same), "me@h:1", after), Action::Take);
        assert_eq!(decide(Some(&renewed), "me@h:1", after), Action::Follow);
    }

    #[test]
    fn addresses() {
        assert_eq!(address("a-1@10.0.0.1:8444").as_deref(), Some("10.0.0.1:8444"));
        assert_eq!(address("a-1@[::1]:8444").as_deref(), Some("[::1]:8444"));
        assert_eq!(address("a-1"), None);
        assert_eq!(address(""), None);
    }
}
