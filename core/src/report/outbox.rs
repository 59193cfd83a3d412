//! What waits to be said to the controller: the newest message of each kind for each order, so
//! that a slow stream never makes it grow, and progress at most once a second. Pure.

use std::collections::{HashMap, VecDeque};

use crate::protocol::from_warmer::Message;
use crate::protocol::{FromWarmer, Outcome, Progress, PullRequest};

const PROGRESS_EVERY_MS: i64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Request,
    Outcome,
    Progress,
}

/// Messages in the order in which their orders first had something to say.
#[derive(Debug, Default)]
pub struct Outbox {
    turns: VecDeque<(Kind, String)>,
    messages: HashMap<(Kind, String), Message>,
    progress_at: HashMap<String, i64>,
}

impl Outbox {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Forgets everything: a new stream begins, and both sides tell each other what they know.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    /// May this order be pulled?
    pub fn request(&mut self, uid: &str) {
        let message = Message::PullRequest(PullRequest { uid: uid.to_owned() });
        self.put((Kind::Request, uid.to_owned()), message);
    }

    /// How a look or a pull ended. Progress said before is worth nothing any more.
    pub fn outcome(&mut self, outcome: Outcome) {
        self.take_back(Kind::Progress, &outcome.uid);
        self.progress_at.remove(&outcome.uid);
        self.put((Kind::Outcome, outcome.uid.clone()), Message::Outcome(outcome));
    }

    /// How far a pull is; left out when the last was said less than a second before.
    pub fn progress(&mut self, progress: Progress, now: i64) {
        let last = self.progress_at.get(&progress.uid);
        if last.is_none_or(|last| now - last >= PROGRESS_EVERY_MS) {
            self.progress_at.insert(progress.uid.clone(), now);
            self.put((Kind::Progress, progress.uid.clone()), Message::Progress(progress));
        }
    }

    /// The order is gone.
    pub fn forget(&mut self, uid: &str) {
        self.progress_at.remove(uid);
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

    fn take_back(&mut self, kind: Kind, uid: &str) {
        let key = (kind, uid.to_owned());
        if self.messages.remove(&key).is_some() {
            self.turns.retain(|turn| *turn != key);
        }
    }

    fn put(&mut self, key: (Kind, String), message: Message) {
        if self.messages.insert(key.clone(), message).is_none() {
            self.turns.push_back(key);
        }
    }
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
    fn the_newest_of_each_kind_is_said_once() {
        let mut outbox = Outbox::default();
        outbox.request("a");
        outbox.request("a");
        outbox.progress(progress("b", 1), 0);
        for reason in ["NotFound", "Pulled"] {
            let (uid, reason) = ("b".into(), reason.into());
            outbox.outcome(Outcome { uid, reason, ..Outcome::default() });
        }
        let said = all(&mut outbox);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(matches!(&said[1], Message::Outcome(outcome) if outcome.reason == "Pulled"));
        assert!(outbox.is_empty());
    }

    #[test]
    fn progress_is_said_once_a_second() {
        let mut outbox = Outbox::default();
        for now in 0..3 {
            for uid in ["a", "b"] {
                outbox.progress(progress(uid, now as u64), now * 600);
            }
        }
        outbox.forget("b");
        let said = all(&mut outbox);
        assert_eq!(said, [Message::Progress(progress("a", 2))]);
    }
}
