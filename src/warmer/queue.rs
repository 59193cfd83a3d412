//! What the node is to hold and what to do next: looks and pulls, retries, and the report that each
//! result deserves. Pure: `now` is milliseconds since 1970, `jitter` a random number from 0 to 1.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::api::Reason;
use crate::image::Reference;
use crate::protocol::{Assign, Outcome};
use crate::runtime::{PresentImage, PulledImage, RuntimeError};

/// Looks at the runtime that may run beside the pulls.
const LOOKS: usize = 4;
const LONGEST_RETRY_MS: f64 = 300_000.0;

/// What to do for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Ask the runtime whether it holds the image.
    Look,
    /// Pull it.
    Pull,
}

/// Something to be started now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The order.
    pub uid: String,
    /// What to do.
    pub step: Step,
    /// With which image.
    pub image: Reference,
    /// Which try this is, from 1; 0 for a look.
    pub attempt: u32,
    /// `Assign.check_for` at the start.
    pub check_for: String,
}

/// How a [`Job`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A look.
    Looked(Result<Option<PresentImage>, RuntimeError>),
    /// A pull that began at this time.
    Pulled(i64, Result<PulledImage, RuntimeError>),
    /// The controller said no.
    Refused(Reason, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Due(Step, i64),
    Running,
}

#[derive(Debug)]
struct Entry {
    assign: Assign,
    image: Reference,
    state: State,
    arrived: u64,
    attempts: u32,
    last: Option<Outcome>,
    /// Named since the last Welcome.
    confirmed: bool,
    /// Changed while its job ran: do it once more.
    again: bool,
}

/// The node's orders.
#[derive(Debug)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    running: HashMap<String, (Reference, Step)>,
    parallel_pulls: usize,
    look_every_ms: i64,
    arrivals: u64,
}

impl Queue {
    /// At most `parallel_pulls` pulls at a time; what is held is looked at each `look_every_ms`.
    pub fn new(parallel_pulls: usize, look_every_ms: i64) -> Self {
        Queue {
            entries: HashMap::new(),
            running: HashMap::new(),
            parallel_pulls,
            look_every_ms,
            arrivals: 0,
        }
    }

    /// How many orders there are.
    pub fn orders(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is such an order.
    pub fn knows(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// A new stream begins: orders that it does not name will be withdrawn.
    pub fn welcome(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.confirmed = false);
    }

    /// An order, new or again. Returns what is to be reported at once.
    pub fn assign(&mut self, assign: Assign, now: i64) -> Option<Outcome> {
        let image = match Reference::parse(&assign.image) {
            Ok(image) => image,
            Err(error) => {
                let message = error.to_string();
                return Some(absent(&assign.uid, Reason::InvalidImage, message, now));
            }
        };
        let Some(entry) = self.entries.get_mut(&assign.uid) else {
            self.arrivals += 1;
            let entry = Entry {
                state: State::Due(first_step(&assign, &image), now),
                image,
                arrived: self.arrivals,
                attempts: 0,
                last: None,
                confirmed: true,
                again: false,
                assign,
            };
            self.entries.insert(entry.assign.uid.clone(), entry);
            return None;
        };
        entry.confirmed = true;
        let old = std::mem::replace(&mut entry.assign, assign);
        let new = &entry.assign;
        let checked = entry.last.as_ref().map_or("", |last| last.checked_for.as_str());
        let to_check =
            !new.check_for.is_empty() && new.check_for != old.check_for && new.check_for != checked;
        let failed = entry.last.as_ref().is_some_and(|last| !last.present);
        let payer_changed = failed && new.identity_mark != old.identity_mark;
        match entry.state {
            State::Running => {
                entry.again |= to_check || payer_changed;
                // A look that finds what is known says nothing: the controller may not know it yet.
                let looks =
                    self.running.get(&entry.assign.uid).is_some_and(|(_, s)| *s == Step::Look);
                entry.last.clone().filter(|_| looks)
            }
            State::Due(..) if to_check || payer_changed || entry.image != image => {
                entry.state = State::Due(first_step(new, &image), now);
                entry.image = image;
                entry.attempts = 0;
                None
            }
            State::Due(..) => entry.last.clone(),
        }
    }

    /// The order is gone. True when its job should be stopped: nobody else wants the image.
    pub fn withdraw(&mut self, uid: &str) -> bool {
        let Some(entry) = self.entries.remove(uid) else { return false };
        self.running.contains_key(uid)
            && !self.entries.values().any(|other| other.image == entry.image)
    }

    /// Every order has been named: those that were not are gone. Returns their uids.
    pub fn synced(&self) -> Vec<String> {
        let gone = self.entries.iter().filter(|(_, entry)| !entry.confirmed);
        gone.map(|(uid, _)| uid.clone()).collect()
    }

    /// The next job to start, if there is one and a place for it: orders of the newest Revision
    /// first. No image is ever worked on twice at once.
    pub fn next(&mut self, now: i64) -> Option<Job> {
        let busy: HashSet<&Reference> = self.running.values().map(|(image, _)| image).collect();
        let count = |step| self.running.values().filter(|(_, running)| *running == step).count();
        let free = |step| match step {
            Step::Look => count(Step::Look) < LOOKS,
            Step::Pull => count(Step::Pull) < self.parallel_pulls,
        };
        let (free_look, free_pull) = (free(Step::Look), free(Step::Pull));
        let due = self.entries.iter().filter_map(|(uid, entry)| match entry.state {
            State::Due(step, at) if at <= now => {
                let free = if step == Step::Look { free_look } else { free_pull };
                (free && !busy.contains(&entry.image)).then_some((uid, entry, step))
            }
            _ => None,
        });
        let (uid, _, step) =
            due.min_by_key(|(_, entry, _)| (Reverse(entry.assign.priority), entry.arrived))?;
        let uid = uid.clone();
        let entry = self.entries.get_mut(&uid)?;
        entry.state = State::Running;
        let attempt = if step == Step::Pull { entry.attempts + 1 } else { 0 };
        self.running.insert(uid.clone(), (entry.image.clone(), step));
        let (image, check_for) = (entry.image.clone(), entry.assign.check_for.clone());
        Some(Job { uid, step, image, attempt, check_for })
    }

    /// Pulls that are due but have no place.
    pub fn queued(&self, now: i64) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(move |(uid, entry)| match entry.state {
            State::Due(Step::Pull, at) if at <= now => Some(uid.as_str()),
            _ => None,
        })
    }

    /// When the next job is due, if that is in the future.
    pub fn wake_at(&self, now: i64) -> Option<i64> {
        let due = self.entries.values().filter_map(|entry| match entry.state {
            State::Due(_, at) if at > now => Some(at),
            _ => None,
        });
        due.min()
    }

    /// A job was stopped before its end.
    pub fn stopped(&mut self, uid: &str, now: i64) {
        let Some((_, step)) = self.running.remove(uid) else { return };
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.state = State::Due(step, now);
        }
    }

    /// A job ended. Returns what is to be reported.
    pub fn ended(&mut self, job: &Job, ended: Ended, now: i64, jitter: f64) -> Option<Outcome> {
        self.running.remove(&job.uid);
        let look_every_ms = self.look_every_ms;
        let entry = self.entries.get_mut(&job.uid)?;
        let again = std::mem::take(&mut entry.again);
        let report = match ended {
            Ended::Looked(result) => entry.looked(job, result, look_every_ms, now, jitter),
            Ended::Pulled(started, Ok(pulled)) => {
                entry.attempts = 0;
                entry.state = State::Due(Step::Look, now + spread(look_every_ms, jitter));
                let reason =
                    if pulled.downloaded { Reason::Pulled } else { Reason::AlreadyPresent };
                let outcome = present(job, reason, pulled.image, now);
                Some(Outcome { started_at_unix_ms: started, attempt: job.attempt, ..outcome })
            }
            Ended::Pulled(started, Err(error)) => {
                let outcome = entry.failed(job, error.reason, error.message, now, jitter);
                Some(Outcome { started_at_unix_ms: started, ..outcome })
            }
            Ended::Refused(reason, message) => {
                Some(entry.failed(job, reason, message, now, jitter))
            }
        };
        if again {
            entry.attempts = 0;
            entry.state = State::Due(first_step(&entry.assign, &entry.image), now);
        }
        if report.is_some() {
            entry.last.clone_from(&report);
        }
        report
    }
}

impl Entry {
    fn looked(
        &mut self,
        job: &Job,
        result: Result<Option<PresentImage>, RuntimeError>,
        look_every_ms: i64,
        now: i64,
        jitter: f64,
    ) -> Option<Outcome> {
        let held_before = match &self.last {
            Some(last) => last.present,
            None => self.assign.believed_present,
        };
        match result {
            Ok(Some(held)) => {
                self.attempts = 0;
                self.state = State::Due(Step::Look, now + spread(look_every_ms, jitter));
                let known = self.last.as_ref().is_some_and(|last| {
                    last.present
                        && held.digest.as_ref().is_none_or(|digest| *digest == last.digest)
                        && last.checked_for == job.check_for
                });
                (!known).then(|| present(job, Reason::AlreadyPresent, held, now))
            }
            Ok(None) => {
                self.state = State::Due(Step::Pull, now);
                let message = "the runtime no longer holds the image; it is pulled again";
                held_before.then(|| absent(&job.uid, Reason::Removed, message.into(), now))
            }
            // A runtime that does not answer has not lost the image.
            Err(_) if held_before => {
                self.attempts += 1;
                let delay = retry_delay(self.attempts, Reason::RuntimeUnavailable, jitter);
                self.state = State::Due(Step::Look, now + delay);
                None
            }
            Err(error) => Some(self.failed(job, error.reason, error.message, now, jitter)),
        }
    }

    fn failed(
        &mut self,
        job: &Job,
        reason: Reason,
        message: String,
        now: i64,
        jitter: f64,
    ) -> Outcome {
        self.attempts += 1;
        let retry_at = now + retry_delay(self.attempts, reason, jitter);
        // What the node held of the tag before does not count any more: it has to be pulled.
        let step = if self.image.digest().is_some() { Step::Look } else { Step::Pull };
        self.state = State::Due(step, retry_at);
        Outcome {
            attempt: self.attempts,
            retry_at_unix_ms: retry_at,
            ..absent(&job.uid, reason, message, now)
        }
    }
}

/// A digest cannot have moved; a tag may have, unless the controller says that it need not be asked.
fn first_step(assign: &Assign, image: &Reference) -> Step {
    if image.digest().is_some() || (assign.believed_present && assign.check_for.is_empty()) {
        Step::Look
    } else {
        Step::Pull
    }
}

/// What time heals is tried again soon, what a person has to mend slowly; both at most each five
/// minutes or so.
fn retry_delay(attempts: u32, reason: Reason, jitter: f64) -> i64 {
    let (first, factor): (f64, f64) =
        if reason.needs_person() { (10_000.0, 4.0) } else { (1_000.0, 2.0) };
    let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX).min(30);
    let delay = (first * factor.powi(power)).min(LONGEST_RETRY_MS);
    (delay * (0.75 + jitter * 0.5)) as i64
}

/// Not all nodes, and not all images of a node, at the same moment.
fn spread(every_ms: i64, jitter: f64) -> i64 {
    (every_ms as f64 * (0.75 + jitter * 0.5)) as i64
}

fn present(job: &Job, reason: Reason, held: PresentImage, now: i64) -> Outcome {
    Outcome {
        uid: job.uid.clone(),
        present: true,
        reason: reason.as_str().into(),
        digest: held.digest.unwrap_or_default(),
        size_bytes: held.size_bytes,
        finished_at_unix_ms: now,
        checked_for: job.check_for.clone(),
        ..Outcome::default()
    }
}

fn absent(uid: &str, reason: Reason, message: String, now: i64) -> Outcome {
    Outcome {
        uid: uid.to_owned(),
        present: false,
        reason: reason.as_str().into(),
        message,
        finished_at_unix_ms: now,
        ..Outcome::default()
    }
}

#[cfg(test)]
mod tests;
