//! What the node is to hold and what to do next: looks and pulls, retries, and the report that each
//! result deserves. Pure: `now` is milliseconds since 1970, `jitter` a random number from 0 to 1.

mod entry;
mod registry;
mod removal;
pub mod space;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::api::Reason;
use crate::image::Reference;
use crate::protocol::{Assign, Outcome};
use crate::runtime::{PresentImage, PulledImage, RuntimeError};
use entry::{Entry, State, absent, first_step, present, spread, waits};
use registry::Registries;
use removal::Removals;

/// Looks at the runtime that may run beside the pulls.
const PRESENCE_CHECKS: usize = 4;

/// What the node may be made to do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pulls at a time.
    pub parallel_pulls: usize,
    /// Of these, from one registry.
    pub pulls_per_registry: usize,
    /// How often the runtime is asked whether it still holds an image.
    pub presence_interval_ms: i64,
    /// Room that the pull of an image of unknown size is taken to need.
    pub assumed_bytes: u64,
}

/// What to do for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Ask the runtime whether it holds the image.
    CheckPresence,
    /// Pull it.
    Pull,
    /// It is there for another namespace: ask the registry whether this one's credentials open it.
    Verify,
}

impl Step {
    /// Whether it costs the registry something, and so takes a place among the pulls.
    fn asks_registry(self) -> bool {
        matches!(self, Step::Pull | Step::Verify)
    }
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
    /// Room that this pull, and those that run already, may take on the disk.
    pub room_bytes: u64,
}

/// How a [`Job`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A look.
    PresenceChecked(Result<Option<PresentImage>, RuntimeError>),
    /// A pull that began at this time.
    Pulled(i64, Result<PulledImage, RuntimeError>),
    /// A question to the registry about what is there.
    Verified(Result<(), RuntimeError>),
    /// The controller said no.
    Refused(Reason, String),
    /// There is no room for it on the disk.
    NoRoom(String),
    /// There was none any more while it ran, so it was stopped.
    OutOfRoom(String),
}

#[derive(Debug)]
struct Running {
    image: Reference,
    step: Step,
    room_bytes: u64,
}

/// The node's orders.
#[derive(Debug)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    running: HashMap<String, Running>,
    registries: Registries,
    limits: Limits,
    arrivals: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Queue {
            entries: HashMap::new(),
            running: HashMap::new(),
            registries: Registries::default(),
            limits,
            arrivals: 0,
        }
    }

    /// How many orders there are.
    pub fn assignments(&self) -> usize {
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
                removals: Removals::default(),
                outgrown: 0,
                pull_not_before: 0,
                unsure: false,
                unproven: None,
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
        // A newer Revision is no reason to pull what is there, but one to try again what is not.
        let credentials_changed =
            failed && (new.identity_mark != old.identity_mark || new.priority > old.priority);
        match entry.state {
            State::Running => {
                entry.again |= to_check || credentials_changed;
                // A look that finds what is known says nothing: the controller may not know it yet.
                let running = self.running.get(&entry.assign.uid);
                let looks = running.is_some_and(|running| running.step == Step::CheckPresence);
                entry.last.clone().filter(|_| looks)
            }
            State::Due(..) if to_check || credentials_changed || entry.image != image => {
                entry.state = State::Due(first_step(new, &image), now);
                entry.image = image;
                entry.attempts = 0;
                entry.pull_not_before = now;
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
        let busy: HashSet<&Reference> = self.running.values().map(|job| &job.image).collect();
        let mut pulls: HashMap<&str, usize> = HashMap::new();
        for job in self.running.values().filter(|job| job.step.asks_registry()) {
            *pulls.entry(job.image.domain()).or_default() += 1;
        }
        let pulls_in_all: usize = pulls.values().sum();
        let free_check = self.running.len() - pulls_in_all < PRESENCE_CHECKS;
        let free_pull = |image: &Reference| {
            let registry = image.domain();
            let places = self.registries.places(registry, self.limits.pulls_per_registry);
            pulls_in_all < self.limits.parallel_pulls
                && pulls.get(registry).copied().unwrap_or(0) < places
                && self.registries.waits_until(registry, now).is_none()
        };
        let due = self.entries.iter().filter_map(|(uid, entry)| match entry.state {
            State::Due(step, at) if at <= now && !busy.contains(&entry.image) => {
                let free =
                    if step == Step::CheckPresence { free_check } else { free_pull(&entry.image) };
                free.then_some((uid, entry, step))
            }
            _ => None,
        });
        let (uid, _, step) =
            due.min_by_key(|(_, entry, _)| (Reverse(entry.assign.priority), entry.arrived))?;
        let uid = uid.clone();
        let others: u64 =
            self.running.values().map(|job| job.room_bytes).fold(0, u64::saturating_add);
        let entry = self.entries.get_mut(&uid)?;
        entry.state = State::Running;
        let image = entry.image.clone();
        let (attempt, room_bytes) = match step {
            Step::CheckPresence => (0, 0),
            Step::Verify => (entry.attempts + 1, 0),
            Step::Pull => (entry.attempts + 1, entry.room_bytes(self.limits.assumed_bytes)),
        };
        self.running.insert(uid.clone(), Running { image: image.clone(), step, room_bytes });
        let check_for = entry.assign.check_for.clone();
        let room_bytes = room_bytes.saturating_add(others);
        Some(Job { uid, step, image, attempt, check_for, room_bytes })
    }

    /// Whether the image of an order that is not yet told to be there was brought to the node for
    /// other namespaces only: that it is there gives this one no right to it.
    fn is_foreign(&self, uid: &str) -> bool {
        let Some(entry) = self.entries.get(uid).filter(|entry| !entry.is_believed()) else {
            return false;
        };
        let namespace = &entry.assign.namespace;
        let mut holders = self.entries.iter().filter(|(other, holder)| {
            *other != uid && holder.is_believed() && holder.holds_content_of(&entry.image)
        });
        // Once it was unverified, it is not proven by those who brought it going away.
        let first = holders.next();
        (first.is_some() || entry.unproven.is_some())
            && first.into_iter().chain(holders).all(|(_, held)| held.assign.namespace != *namespace)
    }

    /// The runtime told that an image was removed: looks at all that it should hold.
    pub fn removal_seen(&mut self, now: i64) {
        for entry in self.entries.values_mut() {
            match entry.state {
                State::Due(Step::CheckPresence, at) if at > now && entry.is_believed() => {
                    entry.state = State::Due(Step::CheckPresence, now);
                }
                State::Running => entry.unsure = true,
                State::Due(..) => {}
            }
        }
    }

    /// What is to be reported of pulls that only wait for their registry, once for each.
    pub fn held_up(&mut self, now: i64) -> Vec<Outcome> {
        let mut reports = Vec::new();
        for (uid, entry) in &mut self.entries {
            let due = matches!(entry.state, State::Due(Step::Pull, at) if at <= now);
            let registry = entry.image.domain();
            let Some(until) = self.registries.waits_until(registry, now).filter(|_| due) else {
                continue;
            };
            let told = entry.last_reason() == Some(Reason::RateLimited.as_str());
            if told || entry.is_believed() {
                continue;
            }
            let message = format!("{registry} asked for fewer requests; {}", waits(now, until));
            let outcome = absent(uid, Reason::RateLimited, message, now);
            let outcome = Outcome { retry_at_unix_ms: until, ..outcome };
            entry.last = Some(outcome.clone());
            reports.push(outcome);
        }
        reports
    }

    /// Pulls that are due but have no place.
    pub fn queued(&self, now: i64) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(move |(uid, entry)| match entry.state {
            State::Due(Step::Pull, at) if at <= now => {
                let waits = self.registries.waits_until(entry.image.domain(), now).is_some();
                (!waits).then_some(uid.as_str())
            }
            _ => None,
        })
    }

    /// When the next job is due, if that is in the future.
    pub fn wake_at(&self, now: i64) -> Option<i64> {
        let due = self.entries.values().filter_map(|entry| match entry.state {
            State::Due(_, at) if at > now => Some(at),
            _ => None,
        });
        due.chain(self.registries.wake_at(now)).min()
    }

    /// A job was stopped before its end.
    pub fn stopped(&mut self, uid: &str, now: i64) {
        let Some(job) = self.running.remove(uid) else { return };
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.state = State::Due(job.step, now);
        }
    }

    /// A job ended. Returns what is to be reported.
    pub fn ended(&mut self, job: &Job, ended: Ended, now: i64, jitter: f64) -> Option<Outcome> {
        self.running.remove(&job.uid);
        let presence_interval_ms = self.limits.presence_interval_ms;
        let foreign =
            matches!(&ended, Ended::PresenceChecked(Ok(Some(_)))) && self.is_foreign(&job.uid);
        let entry = self.entries.get_mut(&job.uid)?;
        let again = std::mem::take(&mut entry.again);
        let report = match ended {
            Ended::PresenceChecked(Ok(Some(held))) if foreign => {
                entry.unverified(held, now);
                None
            }
            Ended::PresenceChecked(result) => {
                entry.presence_checked(job, result, presence_interval_ms, now, jitter)
            }
            Ended::Pulled(started, Ok(pulled)) => {
                self.registries.served(job.image.domain());
                (entry.attempts, entry.outgrown, entry.unproven) = (0, 0, None);
                entry.removals.held(now);
                entry.state =
                    State::Due(Step::CheckPresence, now + spread(presence_interval_ms, jitter));
                let reason =
                    if pulled.downloaded { Reason::Pulled } else { Reason::AlreadyPresent };
                let outcome = present(job, reason, pulled.image, now);
                Some(Outcome { started_at_unix_ms: started, attempt: job.attempt, ..outcome })
            }
            Ended::Pulled(started, Err(mut error)) => {
                let mut not_before = now;
                if error.reason == Reason::RateLimited {
                    let registry = job.image.domain();
                    not_before = self.registries.limited(registry, &error.message, now, jitter);
                    error.message.push_str(&format!("; {}", waits(now, not_before)));
                }
                let RuntimeError { reason, message } = error;
                let outcome = entry.failed(job, reason, message, now, not_before, jitter);
                Some(Outcome { started_at_unix_ms: started, ..outcome })
            }
            Ended::Verified(result) => {
                entry.verified(job, result, presence_interval_ms, now, jitter)
            }
            Ended::Refused(reason, message) if job.step == Step::Verify => {
                let refused = Err(RuntimeError { reason, message });
                entry.verified(job, refused, presence_interval_ms, now, jitter)
            }
            Ended::Refused(reason, message) => {
                Some(entry.failed(job, reason, message, now, now, jitter))
            }
            Ended::NoRoom(message) => {
                // Told once: it is looked at often, and the numbers change each time.
                let told = entry.last_reason() == Some(Reason::DiskPressure.as_str());
                Some(entry.no_room(job, message, now, jitter)).filter(|_| !told)
            }
            Ended::OutOfRoom(message) => {
                // Always told: it ends the grant.
                entry.outgrown += 1;
                Some(entry.no_room(job, message, now, jitter))
            }
        };
        if again {
            entry.attempts = 0;
            entry.state = State::Due(first_step(&entry.assign, &entry.image), now);
        }
        if std::mem::take(&mut entry.unsure)
            && let State::Due(Step::CheckPresence, _) = entry.state
            && entry.is_believed_after(&report)
        {
            entry.state = State::Due(Step::CheckPresence, now);
        }
        if report.is_some() {
            entry.last.clone_from(&report);
        }
        report
    }
}

#[cfg(test)]
mod tests;
