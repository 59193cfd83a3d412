//! Messages that wait to be sent to the controller: the newest of each kind for each assignment, so
//! that the queue is bounded on a slow stream, and progress at most once a second or as often as the
//! controller asks. Pure.

use std::collections::{HashMap, VecDeque};

use crate::api::Reason;
use crate::api::names::Uid;
use crate::protocol::from_warmer::Message;
use crate::protocol::{FromWarmer, Outcome, Progress, PullRequest};

const PROGRESS_EVERY_MS: i64 = 1_000;
/// The shortest interval that the controller may ask for.
const SHORTEST_INTERVAL_MS: i64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Request,
    Outcome,
    Progress,
}

/// The progress that was last queued: when, and whether any bytes were downloaded.
#[derive(Clone, Copy, Debug)]
struct Reported {
    at: i64,
    has_bytes: bool,
}

/// Messages in the order in which they were first queued.
#[derive(Debug, Default)]
pub struct Outbox {
    turns: VecDeque<(Kind, Uid)>,
    messages: HashMap<(Kind, Uid), Message>,
    reported: HashMap<Uid, Reported>,
    /// Intervals that the controller asked for.
    intervals: HashMap<Uid, i64>,
}

impl Outbox {
    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Drops all messages: a new stream begins with a full synchronization.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    /// Queues a request to pull this assignment.
    pub fn request(&mut self, uid: &Uid) {
        let message = Message::PullRequest(PullRequest { uid: uid.to_string() });
        self.put((Kind::Request, uid.clone()), message);
    }

    /// Queues the outcome of a presence check or a pull; it replaces queued progress.
    pub fn outcome(&mut self, outcome: Outcome) {
        let outcome = for_any_controller(outcome);
        let uid = Uid::from(outcome.uid.as_str());
        self.take_back(Kind::Progress, &uid);
        self.reported.remove(&uid);
        self.intervals.remove(&uid);
        self.put((Kind::Outcome, uid), Message::Outcome(outcome));
    }

    /// Progress of this assignment is to be sent at this interval, until its next outcome.
    pub fn report_every(&mut self, uid: &Uid, interval_ms: u32) {
        let interval_ms = i64::from(interval_ms).clamp(SHORTEST_INTERVAL_MS, PROGRESS_EVERY_MS);
        self.intervals.insert(uid.clone(), interval_ms);
    }

    /// Queues the progress of a pull, unless the last was queued less than an interval before.
    pub fn progress(&mut self, progress: Progress, now: i64) {
        let uid = progress.uid.as_str();
        let interval_ms = self.intervals.get(uid).copied().unwrap_or(PROGRESS_EVERY_MS);
        let has_bytes = progress.downloaded_bytes > 0;
        let is_due = self.reported.get(uid).is_none_or(|last| {
            // The first bytes show that the registry authorizes the pull: others may wait for that.
            now - last.at >= interval_ms || (has_bytes && !last.has_bytes)
        });
        if is_due {
            let uid = Uid::from(progress.uid.as_str());
            self.reported.insert(uid.clone(), Reported { at: now, has_bytes });
            self.put((Kind::Progress, uid), Message::Progress(progress));
        }
    }

    /// Drops the messages of an assignment that was withdrawn.
    pub fn forget(&mut self, uid: &Uid) {
        self.reported.remove(uid);
        self.intervals.remove(uid);
        for kind in [Kind::Request, Kind::Outcome, Kind::Progress] {
            self.take_back(kind, uid);
        }
    }

    /// The next message to send.
    pub fn pop(&mut self) -> Option<FromWarmer> {
        while let Some(turn) = self.turns.pop_front() {
            if let Some(message) = self.messages.remove(&turn) {
                return Some(FromWarmer { message: Some(message) });
            }
        }
        None
    }

    fn take_back(&mut self, kind: Kind, uid: &Uid) {
        let key = (kind, uid.clone());
        if self.messages.remove(&key).is_some() {
            self.turns.retain(|turn| *turn != key);
        }
    }

    fn put(&mut self, key: (Kind, Uid), message: Message) {
        if self.messages.insert(key.clone(), message).is_none() {
            self.turns.push_back(key);
        }
    }
}

/// An older controller does not know the newer reasons.
fn for_any_controller(mut outcome: Outcome) -> Outcome {
    if let Some(reason) = Reason::from_name(&outcome.reason)
        && reason.widened() != reason
    {
        outcome.narrower_reason =
            std::mem::replace(&mut outcome.reason, reason.widened().as_str().into());
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(uid: &str, downloaded_bytes: u64) -> Progress {
        Progress { uid: uid.into(), downloaded_bytes, ..Progress::default() }
    }

    fn all(outbox: &mut Outbox) -> Vec<Message> {
        std::iter::from_fn(|| outbox.pop()).filter_map(|message| message.message).collect()
    }

    #[test]
    fn the_newest_of_each_kind_is_sent_once() {
        let mut outbox = Outbox::default();
        outbox.request(&"a".into());
        outbox.request(&"a".into());
        outbox.progress(progress("b", 1), 0);
        for reason in ["NotFound", "Pulled"] {
            let (uid, reason) = ("b".into(), reason.into());
            outbox.outcome(Outcome { uid, reason, ..Outcome::default() });
        }
        let sent = all(&mut outbox);
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert!(matches!(&sent[1], Message::Outcome(outcome) if outcome.reason == "Pulled"));
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_older_controller_gets_a_reason_that_it_knows() {
        for (reason, sent, narrower) in [
            ("NoCredentials", "Unauthorized", "NoCredentials"),
            ("CredentialProviderFailed", "Unauthorized", "CredentialProviderFailed"),
            ("NotFound", "NotFound", ""),
        ] {
            let mut outbox = Outbox::default();
            outbox.outcome(Outcome { reason: reason.into(), ..Outcome::default() });
            let messages = all(&mut outbox);
            let [Message::Outcome(outcome)] = messages.as_slice() else { unreachable!() };
            assert_eq!(
                (outcome.reason.as_str(), outcome.narrower_reason.as_str()),
                (sent, narrower)
            );
            let read = crate::report::status::Outcome::from(outcome).reason;
            assert_eq!(read.as_str(), reason);
        }
    }

    #[test]
    fn progress_is_sent_once_a_second() {
        let mut outbox = Outbox::default();
        for now in 0..3 {
            for uid in ["a", "b"] {
                outbox.progress(progress(uid, now as u64 + 1), now * 600);
            }
        }
        outbox.forget(&"b".into());
        let sent = all(&mut outbox);
        assert_eq!(sent, [Message::Progress(progress("a", 3))]);
    }

    #[test]
    fn the_first_bytes_are_sent_at_once() {
        let mut outbox = Outbox::default();
        let said = |outbox: &mut Outbox, bytes: u64, now: i64| {
            outbox.progress(progress("a", bytes), now);
            all(outbox).len()
        };
        assert_eq!(said(&mut outbox, 0, 0), 1);
        assert_eq!(said(&mut outbox, 0, 10), 0);
        assert_eq!(said(&mut outbox, 1, 20), 1);
        assert_eq!(said(&mut outbox, 2, 30), 0);
    }

    #[test]
    fn progress_is_sent_as_often_as_the_controller_asks_until_the_next_outcome() {
        let mut outbox = Outbox::default();
        let each = |outbox: &mut Outbox, from: i64| -> usize {
            (from..from + 2_000)
                .step_by(50)
                .map(|now| {
                    outbox.progress(progress("a", now as u64 + 1), now);
                    all(outbox).len()
                })
                .sum()
        };
        assert_eq!(each(&mut outbox, 0), 2);
        outbox.report_every(&"a".into(), 250);
        assert_eq!(each(&mut outbox, 10_000), 8);
        outbox.report_every(&"a".into(), 0);
        assert_eq!(each(&mut outbox, 20_000), 20, "not more often than every 100 ms");
        outbox.outcome(Outcome { uid: "a".into(), ..Outcome::default() });
        all(&mut outbox);
        assert_eq!(each(&mut outbox, 30_000), 2);
    }

    #[test]
    fn the_next_progress_is_sent_after_a_second_whatever_the_clock_shows() {
        let begin = 1_000_000;
        let mut outbox = Outbox::default();
        let said = |outbox: &mut Outbox, bytes: u64, now: i64| {
            outbox.progress(progress("a", bytes), now);
            all(outbox).len()
        };
        assert_eq!(said(&mut outbox, 1, begin), 1);
        assert_eq!(said(&mut outbox, 2, begin + PROGRESS_EVERY_MS - 1), 0);
        assert_eq!(said(&mut outbox, 3, begin + PROGRESS_EVERY_MS), 1);
    }
}
