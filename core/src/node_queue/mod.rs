//! The node's work queue: schedules presence checks, pulls and retries for its assignments, and
//! turns results into reports. Pure: `now` reads both clocks, `jitter` is a random number from 0 to 1.
//! Due times are monotonic, in milliseconds; the wall clock is only for the times in reports.

mod entry;
mod registry;
mod removal;
pub mod space;
mod wanted;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::api::Reason;
use crate::api::names::Uid;
use crate::clock::Now;
use crate::image::Reference;
use crate::protocol::{Assign, Outcome};
use crate::runtime::{PresentImage, PulledImage, RuntimeError, Sandboxes};
use crate::throttle::registry::namespace_share;
pub(crate) use entry::retry_delay;
use entry::{Entry, State, absent, backoff_text, resolved, unchecked};
use registry::{Account, Registries};
use removal::Removals;

/// How long a pull that a Pod waits for keeps others of its namespace waiting, so that it has the node's link for
/// itself. One that is stuck must not keep them for longer.
const ALONE_MS: i64 = 120_000;
/// Presence checks that may run in parallel, beside the pulls.
const PRESENCE_CHECKS: usize = 4;

/// Limits on the node's work.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Concurrent pulls.
    pub parallel_pulls: usize,
    /// Concurrent pulls from one registry.
    pub pulls_per_registry: usize,
    /// Interval between two presence checks of an image, in milliseconds.
    pub presence_interval_ms: i64,
    /// Disk space assumed for the pull of an image of unknown size, in bytes.
    pub assumed_bytes: u64,
}

/// A step of work for an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Check whether the runtime holds the image.
    CheckPresence,
    /// Pull the image.
    Pull,
    /// The image is present for another namespace: verify with the registry that this namespace's
    /// credentials authorize it.
    Verify,
}

impl Step {
    /// Whether the step sends requests to the registry, and so counts as a pull.
    fn uses_registry(self) -> bool {
        matches!(self, Step::Pull | Step::Verify)
    }
}

/// A step to be started now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Uid of the assignment.
    pub uid: Uid,
    /// The step.
    pub step: Step,
    /// The image: for a pull by digest, where that is known.
    pub image: Reference,
    /// For a presence check of a tag: the image by digest, which counts where it is on the node.
    pub resolved: Option<Reference>,
    /// The Pods that the image is for.
    pub sandboxes: Sandboxes,
    /// Number of the attempt, from 1; 0 for a presence check.
    pub attempt: u32,
    /// `Assign.check_for` at the start.
    pub check_for: String,
    /// Disk space that this pull and the running ones may need together, in bytes.
    pub room_bytes: u64,
}

/// How a [`Job`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A presence check.
    PresenceChecked(Result<Option<PresentImage>, RuntimeError>),
    /// A pull that began at this time, in milliseconds since 1970.
    Pulled(i64, Result<PulledImage, RuntimeError>),
    /// A pull that began at this time and failed, while the node holds an image of the same tag.
    Unchecked(i64, PresentImage, RuntimeError),
    /// A verification of access with the registry.
    Verified(Result<(), RuntimeError>),
    /// The controller refused the pull.
    Refused(Reason, String),
    /// The disk has too little free space to start it.
    NoRoom(String),
    /// The disk ran low while it ran, so it was stopped.
    OutOfRoom(String),
}

#[derive(Debug)]
struct Running {
    image: Reference,
    namespace: String,
    account: u64,
    step: Step,
    room_bytes: u64,
}

/// The running pulls, counted.
struct RunningPulls<'a> {
    pulls: Vec<&'a Running>,
    all: usize,
}

impl<'a> RunningPulls<'a> {
    fn new(running: impl Iterator<Item = &'a Running>) -> Self {
        let pulls: Vec<_> = running.filter(|job| job.step.uses_registry()).collect();
        RunningPulls { all: pulls.len(), pulls }
    }

    fn of_namespace(&self, namespace: &str) -> usize {
        self.pulls.iter().filter(|pull| pull.namespace == namespace).count()
    }

    /// Pulls from the registry: all, and those of the namespace.
    fn of_registry(&self, registry: &str, namespace: &str) -> (usize, usize) {
        let pulls = self.pulls.iter().filter(|pull| pull.image.domain() == registry);
        pulls.fold((0, 0), |(all, own), pull| {
            (all + 1, own + usize::from(pull.namespace == namespace))
        })
    }

    fn of_account(&self, account: Account<'_>) -> usize {
        self.pulls.iter().filter(|pull| (pull.image.domain(), pull.account) == account).count()
    }
}

/// The node's assignments and their state.
#[derive(Debug)]
pub struct Queue {
    entries: HashMap<Uid, Entry>,
    running: HashMap<Uid, Running>,
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

    /// Number of assignments.
    pub fn assignments(&self) -> usize {
        self.entries.len()
    }

    /// Whether the assignment exists.
    pub fn knows(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// The last report of an assignment, if it said that the node does not hold the image.
    pub fn last_absent(&self, uid: &str) -> Option<&Outcome> {
        self.entries.get(uid)?.last.as_ref().filter(|last| !last.present)
    }

    /// A new stream begins: assignments that it does not repeat will be withdrawn.
    pub fn welcome(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.confirmed = false);
    }

    /// Adds or updates an assignment. Returns the report that is due at once.
    pub fn assign(&mut self, assign: Assign, now: Now) -> Option<Outcome> {
        let image = match Reference::parse(&assign.image) {
            Ok(image) => image,
            Err(error) => {
                let message = error.to_string();
                return Some(absent(&assign.uid, Reason::InvalidImage, message, now));
            }
        };
        let Some(entry) = self.entries.get_mut(assign.uid.as_str()) else {
            self.arrivals += 1;
            let mut entry = Entry {
                state: State::Running,
                resolved: resolved(&assign, &image),
                retried_for: None,
                image,
                arrived: self.arrivals,
                attempts: 0,
                last: None,
                confirmed: true,
                rerun: false,
                removals: Removals::default(),
                underestimates: 0,
                pull_not_before: 0,
                recheck: false,
                unproven: None,
                first_since: assign.pod_waits.then_some(now.monotonic_ms),
                assign,
            };
            entry.state = State::Due(entry.first_step(), now.monotonic_ms);
            self.entries.insert(entry.assign.uid.as_str().into(), entry);
            return None;
        };
        entry.confirmed = true;
        let old = std::mem::replace(&mut entry.assign, assign);
        entry.resolved = resolved(&entry.assign, &image);
        // Once for each digest, however often Revisions come and go.
        let is_resolved = entry.resolved.is_some() && entry.resolved != entry.retried_for;
        if is_resolved {
            entry.retried_for.clone_from(&entry.resolved);
        }
        let new = &entry.assign;
        let checked = entry.last.as_ref().map_or("", |last| last.checked_for.as_str());
        let to_check =
            !new.check_for.is_empty() && new.check_for != old.check_for && new.check_for != checked;
        // What is there for the handlers before may not be there for these.
        let is_for_others = !sandboxes(new).are_covered_by(&sandboxes(&old));
        if is_for_others {
            entry.assign.believed_present = false;
            entry.last = None;
        }
        let new = &entry.assign;
        let failed = entry.last.as_ref().is_some_and(|last| !last.present);
        // A newer Revision does not cause a present image to be pulled, but a failed one to be
        // retried. A digest may be on the node, and may be had where its tag may not.
        let to_retry = failed
            && (new.identity_mark != old.identity_mark
                || new.priority > old.priority
                || is_resolved);
        let begins_to_wait = entry.assign.pod_waits && !old.pod_waits;
        let report = match entry.state {
            State::Running => {
                entry.rerun |= to_check || to_retry || is_for_others;
                // A presence check without a change reports nothing, and the controller may not
                // have the last report.
                let running = self.running.get(entry.assign.uid.as_str());
                let checks_presence =
                    running.is_some_and(|running| running.step == Step::CheckPresence);
                entry.last.clone().filter(|_| checks_presence)
            }
            State::Due(..) if to_check || to_retry || is_for_others || entry.image != image => {
                entry.image = image;
                entry.state = State::Due(entry.first_step(), now.monotonic_ms);
                entry.attempts = 0;
                entry.pull_not_before = now.monotonic_ms;
                None
            }
            State::Due(..) => entry.last.clone(),
        };
        // One that waits for its next attempt is waited for by no other.
        if begins_to_wait && !matches!(entry.state, State::Due(_, at) if at > now.monotonic_ms) {
            entry.first_since = Some(now.monotonic_ms);
        }
        report
    }

    /// The registry may answer again: a failed pull is due at once, unless the registry asked for fewer
    /// requests.
    pub fn retry(&mut self, uid: &str, now: Now) {
        if let Some(entry) = self.entries.get_mut(uid)
            && entry.last.as_ref().is_some_and(is_to_be_retried)
            && let State::Due(_, at) = &mut entry.state
        {
            // After a removal the back-off holds.
            *at = now.monotonic_ms.max(entry.pull_not_before).min(*at);
        }
    }

    /// The runtime is another one: nothing that was found holds any longer, and what failed may succeed.
    pub fn runtime_changed(&mut self, now: Now) {
        for entry in self.entries.values_mut() {
            if let State::Due(..) = entry.state {
                entry.state = State::Due(Step::CheckPresence, now.monotonic_ms);
            }
        }
    }

    /// Removes an assignment. True when its job should be stopped: no other needs the image.
    pub fn withdraw(&mut self, uid: &str) -> bool {
        let Some(entry) = self.entries.remove(uid) else { return false };
        self.running.contains_key(uid)
            && !self.entries.values().any(|other| other.image == entry.image)
    }

    /// All assignments have been sent. Returns the uids of those that are withdrawn.
    pub fn synced(&self) -> Vec<Uid> {
        let gone = self.entries.iter().filter(|(_, entry)| !entry.confirmed);
        gone.map(|(uid, _)| uid.clone()).collect()
    }

    /// The next job to start, within the limits: for a Pod that waits, then of the namespace that has the fewest
    /// pulls; of these the image of which most containers started recently, then the newest Revision's. At most
    /// one job runs for each image.
    pub fn next(&mut self, now: Now) -> Option<Job> {
        let busy: HashSet<&Reference> = self.running.values().map(|job| &job.image).collect();
        let pulls = RunningPulls::new(self.running.values());
        let first: HashSet<&str> = self
            .entries
            .values()
            .filter(|entry| entry.is_first(now))
            .map(|entry| entry.assign.namespace.as_str())
            .collect();
        let free_check = self.running.len() - pulls.all < PRESENCE_CHECKS;
        let due = self.entries.iter().filter_map(|(uid, entry)| match entry.state {
            State::Due(step, at) if at <= now.monotonic_ms && !busy.contains(entry.of(step)) => {
                let (free, of_namespace) = match step {
                    Step::CheckPresence => (free_check, 0),
                    Step::Pull | Step::Verify => (
                        (entry.assign.pod_waits || !first.contains(&*entry.assign.namespace))
                            && self.may_pull(entry, &pulls, now),
                        pulls.of_namespace(&entry.assign.namespace),
                    ),
                };
                free.then_some((uid, entry, step, of_namespace))
            }
            _ => None,
        });
        let (uid, _, step, _) = due.min_by_key(|(_, entry, _, of_namespace)| {
            let Assign { pod_waits, recent_starts, priority, .. } = &entry.assign;
            let need = (Reverse(*recent_starts), Reverse(*priority));
            (Reverse(*pod_waits), *of_namespace, need, entry.arrived)
        })?;
        let uid = uid.clone();
        let others: u64 =
            self.running.values().map(|job| job.room_bytes).fold(0, u64::saturating_add);
        let entry = self.entries.get_mut(&uid)?;
        entry.state = State::Running;
        if step == Step::Pull && entry.assign.pod_waits {
            entry.first_since.get_or_insert(now.monotonic_ms);
        }
        let image = entry.of(step).clone();
        let resolved = entry.resolved.clone().filter(|_| step == Step::CheckPresence);
        let (attempt, room_bytes) = match step {
            Step::CheckPresence => (0, 0),
            Step::Verify => (entry.attempts + 1, 0),
            Step::Pull => (entry.attempts + 1, entry.room_bytes(self.limits.assumed_bytes)),
        };
        let running = Running {
            image: image.clone(),
            namespace: entry.assign.namespace.clone(),
            account: entry.assign.account_mark,
            step,
            room_bytes,
        };
        self.running.insert(uid.clone(), running);
        let check_for = entry.assign.check_for.clone();
        let sandboxes = sandboxes(&entry.assign);
        let room_bytes = room_bytes.saturating_add(others);
        Some(Job { uid, step, image, resolved, sandboxes, attempt, check_for, room_bytes })
    }

    /// Whether the limits let one more pull of this assignment begin.
    fn may_pull(&self, entry: &Entry, pulls: &RunningPulls<'_>, now: Now) -> bool {
        let Limits { parallel_pulls, pulls_per_registry, .. } = self.limits;
        let (namespace, account) = (entry.assign.namespace.as_str(), entry.account());
        let (of_registry, in_registry) = pulls.of_registry(account.0, namespace);
        pulls.all < parallel_pulls
            && pulls.of_namespace(namespace) < namespace_share(parallel_pulls)
            && of_registry < pulls_per_registry
            && in_registry < namespace_share(pulls_per_registry)
            && pulls.of_account(account) < self.registries.places(account, pulls_per_registry)
            && self.registries.waits_until(account, now.monotonic_ms).is_none()
    }

    /// Whether the image of an assignment that is not yet reported present is on the node for other
    /// namespaces only: its presence does not authorize this namespace.
    fn is_foreign(&self, uid: &str) -> bool {
        let Some(entry) = self.entries.get(uid).filter(|entry| !entry.is_believed()) else {
            return false;
        };
        let namespace = &entry.assign.namespace;
        let mut holders = self.entries.iter().filter(|(other, holder)| {
            *other != uid && holder.is_believed() && holder.holds_content_of(entry.target())
        });
        // An unverified image stays so when the assignments that brought it are withdrawn.
        let first = holders.next();
        (first.is_some() || entry.unproven.is_some())
            && first.into_iter().chain(holders).all(|(_, held)| held.assign.namespace != *namespace)
    }

    /// The runtime reported that an image was removed: checks the presence of all images.
    pub fn removal_seen(&mut self, now: Now) {
        for entry in self.entries.values_mut() {
            match entry.state {
                State::Due(Step::CheckPresence, at)
                    if at > now.monotonic_ms && entry.is_believed() =>
                {
                    entry.state = State::Due(Step::CheckPresence, now.monotonic_ms);
                }
                State::Running => entry.recheck = true,
                State::Due(..) => {}
            }
        }
    }

    /// Reports the pulls that wait for a rate-limited registry, once for each.
    pub fn held_up(&mut self, now: Now) -> Vec<Outcome> {
        let mut reports = Vec::new();
        for (uid, entry) in &mut self.entries {
            let due = matches!(entry.state, State::Due(Step::Pull, at) if at <= now.monotonic_ms);
            let registry = entry.image.domain();
            let Some(until) =
                self.registries.waits_until(entry.account(), now.monotonic_ms).filter(|_| due)
            else {
                continue;
            };
            let already_reported = entry.last_reason() == Some(Reason::RateLimited.as_str());
            if already_reported || entry.is_believed() {
                continue;
            }
            let message =
                format!("{registry} asked for fewer requests; {}", backoff_text(now, until));
            let outcome = absent(uid, Reason::RateLimited, message, now);
            let outcome = Outcome { retry_at_unix_ms: now.unix_ms_at(until), ..outcome };
            entry.last = Some(outcome.clone());
            reports.push(outcome);
        }
        reports
    }

    /// Pulls that are due but exceed the limits.
    pub fn queued(&self, now: Now) -> impl Iterator<Item = &Uid> {
        self.entries.iter().filter_map(move |(uid, entry)| match entry.state {
            State::Due(Step::Pull, at) if at <= now.monotonic_ms => {
                let limited =
                    self.registries.waits_until(entry.account(), now.monotonic_ms).is_some();
                (!limited).then_some(uid)
            }
            _ => None,
        })
    }

    /// The monotonic time, in milliseconds, at which the next job is due, if that is in the future.
    pub fn wake_at(&self, now: Now) -> Option<i64> {
        let due = self.entries.values().filter_map(|entry| match entry.state {
            State::Due(_, at) if at > now.monotonic_ms => Some(at),
            _ => None,
        });
        due.chain(self.registries.wake_at(now.monotonic_ms)).min()
    }

    /// A job was stopped before it ended.
    pub fn stopped(&mut self, uid: &str, now: Now) {
        let Some(job) = self.running.remove(uid) else { return };
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.state = State::Due(job.step, now.monotonic_ms);
        }
    }

    /// A job ended. Returns the report, if one is due.
    pub fn ended(&mut self, job: &Job, ended: Ended, now: Now, jitter: f64) -> Option<Outcome> {
        self.running.remove(&job.uid);
        let presence_interval_ms = self.limits.presence_interval_ms;
        let foreign =
            matches!(&ended, Ended::PresenceChecked(Ok(Some(_)))) && self.is_foreign(&job.uid);
        let entry = self.entries.get_mut(&job.uid)?;
        let rerun = std::mem::take(&mut entry.rerun);
        let report = match ended {
            Ended::PresenceChecked(Ok(Some(held))) if foreign => {
                entry.unverified(held, now);
                None
            }
            Ended::PresenceChecked(result) => {
                entry.presence_checked(job, result, presence_interval_ms, now, jitter)
            }
            Ended::Pulled(started, Ok(pulled)) => {
                self.registries.served((job.image.domain(), entry.assign.account_mark));
                Some(entry.pulled(job, pulled, started, presence_interval_ms, now, jitter))
            }
            Ended::Pulled(started, Err(error)) => {
                let registries = &mut self.registries;
                Some(pull_failed(entry, registries, job, (started, error), now, jitter))
            }
            Ended::Unchecked(started, held, error) => {
                let (registries, reason) = (&mut self.registries, error.reason);
                let failure = pull_failed(entry, registries, job, (started, error), now, jitter);
                Some(unchecked(job, held, reason, failure, now))
            }
            Ended::Verified(result) => {
                entry.verified(job, result, presence_interval_ms, now, jitter)
            }
            Ended::Refused(reason, message) if job.step == Step::Verify => {
                let refused = Err(RuntimeError { reason, message });
                entry.verified(job, refused, presence_interval_ms, now, jitter)
            }
            Ended::Refused(reason, message) => {
                Some(entry.failed(job, reason, message, now, now.monotonic_ms, jitter))
            }
            Ended::NoRoom(message) => {
                // Reported once: it is checked often, and the numbers change each time.
                let already_reported = entry.last_reason() == Some(Reason::DiskPressure.as_str());
                Some(entry.no_room(job, message, now, jitter)).filter(|_| !already_reported)
            }
            Ended::OutOfRoom(message) => {
                // Always reported: it releases the permit.
                entry.underestimates += 1;
                Some(entry.no_room(job, message, now, jitter))
            }
        };
        entry.after(&report, rerun, now);
        if !sandboxes(&entry.assign).are_covered_by(&job.sandboxes) {
            entry.last = None;
        }
        report
    }
}

/// Whether the registry has still to be asked.
fn is_to_be_retried(last: &Outcome) -> bool {
    !last.present || !last.unchecked_reason.is_empty()
}

fn sandboxes(assign: &Assign) -> Sandboxes {
    Sandboxes::new(&assign.namespace, &assign.runtime_handlers)
}

fn pull_failed(
    entry: &mut Entry,
    registries: &mut Registries,
    job: &Job,
    (started, mut error): (i64, RuntimeError),
    now: Now,
    jitter: f64,
) -> Outcome {
    let mut not_before = now.monotonic_ms;
    if error.reason == Reason::RateLimited {
        let account = entry.assign.account_mark;
        let (image, message) = (&job.image, &error.message);
        not_before = registries.limited(image, account, message, not_before, jitter);
        error.message.push_str(&format!("; {}", backoff_text(now, not_before)));
    }
    let RuntimeError { reason, message } = error;
    let outcome = entry.failed(job, reason, message, now, not_before, jitter);
    Outcome { started_at_unix_ms: started, ..outcome }
}

#[cfg(test)]
mod tests;
