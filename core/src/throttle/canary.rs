//! Canary pulls: the first node pulls an image before the others do, so that a missing image or a
//! refused credential costs the registry two requests instead of one for each node. A refusal holds for
//! the others only when a second node had it, too: one node alone may be mistaken, or lie. Pure; `now`
//! is monotonic, in milliseconds.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::api::Reason;
use crate::api::names::{NodeName, Uid};
use crate::image::Reference;

/// How long a confirmed failure refuses the others; then one of them tries again. Shorter than a
/// warmer's first back-off, so that its next attempt is a new canary.
const REFUSED_MS: i64 = 5_000;
/// How long a success releases the others.
const OPEN_MS: i64 = 600_000;
/// The longest wait for a canary whose runtime reports no progress: a registry refuses sooner than
/// this, so a pull that still runs is most probably a download.
const SILENT_MS: i64 = 300;

/// Namespace and image: credentials belong to a namespace.
pub type Key = (String, Reference);

/// When a canary is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The least number of nodes that are to hold the image; 0 disables canaries.
    pub nodes: usize,
    /// The longest time that the others wait for it, in milliseconds.
    pub timeout_ms: i64,
}

/// The node that asks to pull, for its assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Uid of the assignment.
    pub uid: Uid,
    /// The node.
    pub node: NodeName,
    /// Whether its runtime reports the progress of pulls.
    pub reports_progress: bool,
}

/// The failure of one node's pull, as it applies to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The node that was refused.
    pub node: NodeName,
    /// Its assignment.
    pub uid: Uid,
    /// Why it failed: a reason that holds for every node.
    pub reason: Reason,
    /// The runtime's message.
    pub message: String,
}

/// Whether a node may pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may pull.
    Go,
    /// It waits for the canary, and is then released or refused.
    Wait,
    /// The pull would fail.
    Refused(Verdict),
}

/// The pulls that no longer wait for a canary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// They may pull.
    pub go: Vec<Uid>,
    /// Their pulls would fail.
    pub refused: Option<(Vec<Uid>, Verdict)>,
}

impl Released {
    fn go(go: Vec<Uid>) -> Self {
        Released { go, refused: None }
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untried,
    /// A canary pulls. `suspicion`: another node was refused before.
    Trying {
        canary: Candidate,
        until: i64,
        suspicion: Option<Verdict>,
    },
    /// One node was refused; the next one that asks is to confirm it.
    Suspected {
        verdict: Verdict,
        until: i64,
    },
    Open {
        until: i64,
    },
    Refused {
        verdict: Verdict,
        until: i64,
    },
}

#[derive(Debug, Default)]
struct Image {
    assignments: usize,
    state: State,
    waiting: VecDeque<Candidate>,
}

impl Image {
    fn release(&mut self) -> Vec<Uid> {
        self.waiting.drain(..).map(|waiting| waiting.uid).collect()
    }

    fn is_canary(&self, uid: &str) -> bool {
        matches!(&self.state, State::Trying { canary, .. } if canary.uid == *uid)
    }

    fn try_with(&mut self, canary: Candidate, suspicion: Option<Verdict>, longest: i64, now: i64) {
        let wait = if canary.reports_progress { longest } else { longest.min(SILENT_MS) };
        self.state = State::Trying { canary, until: now + wait, suspicion };
    }
}

/// The canaries of all assigned images.
#[derive(Debug)]
pub struct Canaries {
    settings: Settings,
    images: HashMap<Key, Image>,
    trying: HashSet<Key>,
    waiting: BTreeSet<Uid>,
}

impl Canaries {
    /// Without any image.
    pub fn new(settings: Settings) -> Self {
        Canaries {
            settings,
            images: HashMap::new(),
            trying: HashSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// One more node is to hold the image.
    pub fn assigned(&mut self, key: Key) {
        self.images.entry(key).or_default().assignments += 1;
    }

    /// One node no longer is to hold the image.
    pub fn withdrawn(&mut self, key: &Key, uid: &str) -> Released {
        let released = self.ended(key, uid);
        if let Some(image) = self.images.get_mut(key) {
            image.assignments = image.assignments.saturating_sub(1);
            if image.assignments == 0 {
                self.images.remove(key);
                self.trying.remove(key);
            }
        }
        released
    }

    /// Whether the candidate may pull now.
    pub fn request(&mut self, key: &Key, candidate: Candidate, now: i64) -> Answer {
        let Some(image) = self.images.get_mut(key) else { return Answer::Go };
        if self.settings.nodes == 0 || image.assignments < self.settings.nodes {
            return Answer::Go;
        }
        let suspicion = match &image.state {
            State::Open { until } if now < *until => return Answer::Go,
            State::Refused { verdict, until } if now < *until => {
                return Answer::Refused(verdict.clone());
            }
            State::Trying { canary, .. } if canary.uid == candidate.uid => return Answer::Go,
            State::Trying { until, .. } if now < *until => {
                if self.waiting.insert(candidate.uid.clone()) {
                    image.waiting.push_back(candidate);
                }
                return Answer::Wait;
            }
            State::Trying { .. } => return Answer::Go,
            // Another node than the last: that one may be mistaken, or lie.
            State::Suspected { verdict, until } if now < *until => {
                if verdict.node == candidate.node {
                    return Answer::Go;
                }
                Some(verdict.clone())
            }
            State::Refused { verdict, .. } if verdict.uid == candidate.uid => {
                return Answer::Refused(verdict.clone());
            }
            State::Untried
            | State::Open { .. }
            | State::Suspected { .. }
            | State::Refused { .. } => None,
        };
        image.try_with(candidate, suspicion, self.settings.timeout_ms, now);
        self.trying.insert(key.clone());
        Answer::Go
    }

    /// The assignment's pull ended without an answer that holds for other nodes, too: it succeeded, was
    /// stopped, or failed in a way that may concern its node alone.
    pub fn ended(&mut self, key: &Key, uid: &str) -> Released {
        self.wait_ended(key, uid);
        let Some(image) = self.images.get_mut(key) else { return Released::default() };
        if !image.is_canary(uid) {
            return Released::default();
        }
        // It proves nothing: the next node that asks becomes the canary.
        image.state = State::Untried;
        let go = image.release();
        self.trying.remove(key);
        self.forget_waiting(&go);
        Released::go(go)
    }

    /// A pull failed for a reason that holds for every node. It counts whether it was the canary or
    /// began before there was one.
    pub fn failed(&mut self, key: &Key, verdict: Verdict, now: i64) -> Released {
        self.wait_ended(key, &verdict.uid);
        let Some(image) = self.images.get_mut(key) else { return Released::default() };
        let is_canary = image.is_canary(&verdict.uid);
        let until = now + REFUSED_MS;
        let suspicion = match &mut image.state {
            // Whoever was served knows better, and a refusal needs no third node.
            State::Open { until } | State::Refused { until, .. } if now < *until => {
                return Released::default();
            }
            State::Trying { suspicion, .. } => suspicion.take(),
            State::Suspected { verdict, until } if now < *until => Some(verdict.clone()),
            State::Untried
            | State::Open { .. }
            | State::Suspected { .. }
            | State::Refused { .. } => None,
        };
        if suspicion.is_some_and(|suspicion| suspicion.node != verdict.node) {
            image.state = State::Refused { verdict: verdict.clone(), until };
            let refused = image.release();
            self.trying.remove(key);
            self.forget_waiting(&refused);
            return Released { go: Vec::new(), refused: Some((refused, verdict)) };
        }
        if let State::Trying { suspicion, .. } = &mut image.state
            && !is_canary
        {
            *suspicion = Some(verdict);
            return Released::default();
        }
        let second = image.waiting.iter().position(|waiting| waiting.node != verdict.node);
        let Some(second) = second.and_then(|at| image.waiting.remove(at)) else {
            image.state = State::Suspected { verdict, until };
            let go = image.release();
            self.trying.remove(key);
            self.forget_waiting(&go);
            return Released::go(go);
        };
        let go = second.uid.clone();
        image.try_with(second, Some(verdict), self.settings.timeout_ms, now);
        self.trying.insert(key.clone());
        self.waiting.remove(&go);
        Released::go(vec![go])
    }

    fn wait_ended(&mut self, key: &Key, uid: &str) {
        if self.waiting.remove(uid)
            && let Some(image) = self.images.get_mut(key)
        {
            image.waiting.retain(|waiting| waiting.uid != *uid);
        }
    }

    /// The image is being downloaded or is on a node: the others need not wait.
    pub fn opened(&mut self, key: &Key, now: i64) -> Vec<Uid> {
        let Some(image) = self.images.get_mut(key) else { return Vec::new() };
        image.state = State::Open { until: now + OPEN_MS };
        let go = image.release();
        self.trying.remove(key);
        self.forget_waiting(&go);
        go
    }

    /// Discards the last result, since credentials may have changed.
    pub fn forget(&mut self, key: &Key) {
        if let Some(image) = self.images.get_mut(key)
            && !matches!(image.state, State::Trying { .. })
        {
            image.state = State::Untried;
        }
    }

    /// Whether the assignment waits for a canary.
    pub fn is_waiting(&self, uid: &str) -> bool {
        self.waiting.contains(uid)
    }

    /// Number of waiting assignments.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the assignments whose wait has timed out.
    pub fn tick(&mut self, now: i64) -> Vec<Uid> {
        let mut go = Vec::new();
        for key in &self.trying {
            if let Some(image) = self.images.get_mut(key)
                && matches!(image.state, State::Trying { until, .. } if until <= now)
            {
                go.extend(image.release());
            }
        }
        self.forget_waiting(&go);
        go
    }

    fn forget_waiting(&mut self, uids: &[Uid]) {
        for uid in uids {
            self.waiting.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key() -> Key {
        ("ns".into(), Reference::parse("r.test/app:v1").unwrap())
    }

    /// Five nodes are to hold the image; a canary goes ahead of three and more.
    fn five() -> Canaries {
        let mut canaries = Canaries::new(Settings { nodes: 3, timeout_ms: 1_000 });
        (0..5).for_each(|_| canaries.assigned(key()));
        canaries
    }

    fn requests(canaries: &mut Canaries, uids: &[&str], now: i64) -> Vec<Answer> {
        uids.iter().map(|uid| canaries.request(&key(), candidate(uid), now)).collect()
    }

    /// The candidate of a node with the same name.
    fn candidate(uid: &str) -> Candidate {
        Candidate { uid: uid.into(), node: uid.into(), reports_progress: true }
    }

    fn verdict(uid: &str, reason: Reason) -> Verdict {
        Verdict { node: uid.into(), uid: uid.into(), reason, message: "no".into() }
    }

    #[test]
    fn what_two_nodes_are_refused_the_others_do_not_request() {
        let mut canaries = five();
        use Answer::{Go, Wait};
        assert_eq!(
            requests(&mut canaries, &["a", "b", "c", "b", "a"], 0),
            [Go, Wait, Wait, Wait, Go]
        );
        let first = canaries.failed(&key(), verdict("a", Reason::Unauthorized), 100);
        assert_eq!(first, Released::go(vec!["b".into()]), "the second witness");
        assert_eq!(requests(&mut canaries, &["b", "d"], 101), [Go, Wait]);
        let refused = canaries.failed(&key(), verdict("b", Reason::Unauthorized), 150);
        let verdict = verdict("b", Reason::Unauthorized);
        assert_eq!(refused.refused, Some((vec!["c".into(), "d".into()], verdict.clone())));
        assert_eq!(requests(&mut canaries, &["d"], 5_149), [Answer::Refused(verdict)]);
        assert!(canaries.waiting.is_empty() && canaries.trying.is_empty());
        // Later another one of them finds out anew.
        assert!(matches!(requests(&mut canaries, &["b"], 5_150)[..], [Answer::Refused(_)]));
        assert_eq!(requests(&mut canaries, &["d", "c"], 5_150), [Go, Wait]);
        assert_eq!(canaries.opened(&key(), 5_200), ["c"]);
        assert_eq!(requests(&mut canaries, &["c"], 5_300), [Go]);
    }

    #[test]
    fn one_node_alone_refuses_nobody_whatever_it_reports() {
        use Answer::{Go, Wait};
        for reason in [Reason::Unauthorized, Reason::NotFound] {
            // The second node is served.
            let mut canaries = five();
            requests(&mut canaries, &["a", "b", "c"], 0);
            assert_eq!(canaries.failed(&key(), verdict("a", reason), 1).go, ["b"]);
            assert_eq!(canaries.opened(&key(), 2), ["c"]);
            // Nobody waits: the next node that asks is the witness, but not the same node.
            let mut canaries = five();
            requests(&mut canaries, &["a"], 0);
            assert_eq!(canaries.failed(&key(), verdict("a", reason), 1), Released::default());
            let again = Candidate { uid: "a2".into(), ..candidate("a") };
            assert_eq!(canaries.request(&key(), again, 2), Go);
            let again = Verdict { uid: "a2".into(), ..verdict("a", reason) };
            assert_eq!(canaries.failed(&key(), again, 3), Released::default());
            assert_eq!(requests(&mut canaries, &["b", "c"], 4), [Go, Wait]);
            let refused = canaries.failed(&key(), verdict("b", reason), 5).refused;
            assert_eq!(refused, Some((vec!["c".into()], verdict("b", reason))));
            // A node that has two assignments of the image does not confirm itself.
            let mut canaries = five();
            requests(&mut canaries, &["a"], 0);
            let twin = Candidate { uid: "a2".into(), ..candidate("a") };
            assert_eq!(canaries.request(&key(), twin, 0), Wait);
            assert_eq!(canaries.failed(&key(), verdict("a", reason), 1).go, ["a2"]);
            assert_eq!(requests(&mut canaries, &["b", "c"], 2), [Go, Wait]);
            // A suspicion does not last.
            let mut canaries = five();
            requests(&mut canaries, &["a"], 0);
            canaries.failed(&key(), verdict("a", reason), 0);
            assert_eq!(requests(&mut canaries, &["b", "c"], REFUSED_MS), [Go, Wait]);
            assert_eq!(canaries.failed(&key(), verdict("b", reason), REFUSED_MS).go, ["c"]);
        }
    }

    #[test]
    fn a_canary_that_shows_no_progress_is_waited_for_only_as_long_as_a_refusal_takes() {
        let mut canaries = five();
        let silent = |uid| Candidate { reports_progress: false, ..candidate(uid) };
        assert_eq!(canaries.request(&key(), silent("a"), 0), Answer::Go);
        assert_eq!(canaries.request(&key(), silent("b"), 0), Answer::Wait);
        assert!(canaries.tick(SILENT_MS - 1).is_empty());
        assert_eq!(canaries.tick(SILENT_MS), ["b"]);
    }

    #[test]
    fn no_node_waits_for_long() {
        let mut canaries = five();
        requests(&mut canaries, &["a", "b", "c"], 0);
        assert!(canaries.tick(999).is_empty());
        assert_eq!(canaries.tick(1_000), ["b", "c"]);
        assert_eq!(requests(&mut canaries, &["d"], 1_001), [Answer::Go]);
        assert!(canaries.tick(2_000).is_empty());
    }

    #[test]
    fn a_canary_that_goes_away_frees_the_others() {
        let mut canaries = five();
        requests(&mut canaries, &["a", "b", "c"], 0);
        canaries.ended(&key(), "c");
        assert!(!canaries.is_waiting("c") && canaries.is_waiting("b"));
        assert_eq!(canaries.ended(&key(), "a").go, ["b"]);
        let mut canaries = five();
        requests(&mut canaries, &["a", "b"], 0);
        assert_eq!(canaries.withdrawn(&key(), "a").go, ["b"]);
    }

    /// The ImageWarms of a Revision come one after the other: the first are there, and refused, before
    /// there are enough of them for a canary.
    #[test]
    fn what_failed_before_there_was_a_canary_counts() {
        use Answer::{Go, Refused, Wait};
        let before = || {
            let mut canaries = Canaries::new(Settings { nodes: 3, timeout_ms: 1_000 });
            (0..2).for_each(|_| canaries.assigned(key()));
            assert_eq!(requests(&mut canaries, &["a", "b"], 0), [Go, Go]);
            canaries
        };
        let verdict = |uid| verdict(uid, Reason::Unauthorized);
        // Both before the third.
        let mut canaries = before();
        assert_eq!(canaries.failed(&key(), verdict("a"), 1), Released::default());
        let refused = canaries.failed(&key(), verdict("b"), 2).refused;
        assert_eq!(refused, Some((vec![], verdict("b"))));
        canaries.assigned(key());
        assert_eq!(requests(&mut canaries, &["c"], 3), [Refused(verdict("b"))]);
        // One before, and one after the third has become the canary.
        let mut canaries = before();
        canaries.failed(&key(), verdict("a"), 1);
        (0..2).for_each(|_| canaries.assigned(key()));
        assert_eq!(requests(&mut canaries, &["c", "d"], 2), [Go, Wait]);
        let refused = canaries.failed(&key(), verdict("b"), 3).refused;
        assert_eq!(refused, Some((vec!["d".into()], verdict("b"))));
        // One after, and then the canary.
        let mut canaries = before();
        (0..2).for_each(|_| canaries.assigned(key()));
        assert_eq!(requests(&mut canaries, &["c", "d"], 1), [Go, Wait]);
        assert_eq!(canaries.failed(&key(), verdict("a"), 2), Released::default());
        assert_eq!(canaries.failed(&key(), verdict("a"), 3), Released::default(), "the same node");
        let refused = canaries.failed(&key(), verdict("c"), 4).refused;
        assert_eq!(refused, Some((vec!["d".into()], verdict("c"))));
        // Who was served knows better.
        let mut canaries = before();
        canaries.opened(&key(), 1);
        for uid in ["a", "b"] {
            assert_eq!(canaries.failed(&key(), verdict(uid), 2), Released::default());
        }
        canaries.assigned(key());
        assert_eq!(requests(&mut canaries, &["c"], 3), [Go]);
    }

    #[test]
    fn few_nodes_need_no_canary_and_new_credentials_a_new_one() {
        let mut canaries = Canaries::new(Settings { nodes: 3, timeout_ms: 1_000 });
        (0..2).for_each(|_| canaries.assigned(key()));
        assert_eq!(requests(&mut canaries, &["a", "b"], 0), [Answer::Go, Answer::Go]);
        let mut canaries = five();
        requests(&mut canaries, &["a"], 0);
        canaries.failed(&key(), verdict("a", Reason::NotFound), 1);
        canaries.forget(&key());
        assert_eq!(requests(&mut canaries, &["b", "c"], 2), [Answer::Go, Answer::Wait]);
        let mut off = Canaries::new(Settings { nodes: 0, timeout_ms: 1_000 });
        (0..5).for_each(|_| off.assigned(key()));
        assert_eq!(requests(&mut off, &["a", "b"], 0), [Answer::Go, Answer::Go]);
    }

    #[test]
    fn an_image_that_was_pulled_needs_no_canary_for_ten_minutes() {
        use Answer::{Go, Wait};
        let mut canaries = five();
        requests(&mut canaries, &["a"], 0);
        assert_eq!(canaries.opened(&key(), 100), Vec::<Uid>::new());
        assert_eq!(requests(&mut canaries, &["b", "c"], 99 + OPEN_MS), [Go, Go]);
        assert_eq!(requests(&mut canaries, &["b", "c"], 100 + OPEN_MS), [Go, Wait]);
    }

    #[test]
    fn nothing_is_kept_of_images_without_assignments() {
        let mut canaries = five();
        requests(&mut canaries, &["a", "b"], 0);
        for uid in ["a", "b", "c", "d", "e"] {
            canaries.withdrawn(&key(), uid);
        }
        assert!(canaries.images.is_empty() && canaries.trying.is_empty());
        assert!(canaries.waiting.is_empty());
    }
}
