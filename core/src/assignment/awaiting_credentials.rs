//! Assignments whose pull failed for lack of a credential. Their Secrets are not watched, so they
//! are read again at an interval, and the pull is retried at once when the credential set has
//! changed.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::{Assignment, CredentialRequest, Effect, Index, Refusal};
use crate::api::Reason;
use crate::api::names::Uid;
use crate::demand::PullIdentity;
use crate::image::{Credential, Reference};
use crate::protocol::from_controller::Message as ToWarmer;

/// Interval between two reads for one assignment, longer than a result is cached; up to half as much is added as
/// jitter.
const RECHECK_INTERVAL_MS: i64 = 5_500;
/// Reads that begin in one tick; the others wait for the next ticks.
const READS_PER_TICK: usize = 4;

/// The credentials that applied to the last pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CredentialSet {
    #[default]
    Unknown,
    Refused,
    /// A keyed hash, valid in this process only.
    Credentials(u64),
}

/// Assignments that await credentials, and when their Secrets are to be read again.
#[derive(Debug, Default)]
pub(super) struct AwaitingCredentials {
    due: HashMap<Uid, i64>,
    key: RandomState,
}

impl AwaitingCredentials {
    /// Adds or removes the assignment, by the reason in its status.
    pub(super) fn note(&mut self, uid: &Uid, reason: Option<Reason>, now: i64) {
        let lacks_credentials = |reason: Reason| {
            matches!(reason.widened(), Reason::SecretMissing | Reason::Unauthorized)
        };
        if !reason.is_some_and(lacks_credentials) {
            self.due.remove(uid);
        } else if !self.due.contains_key(uid) {
            self.schedule(uid, now);
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.due.remove(uid);
    }

    pub(super) fn credential_set(&self, found: &Result<Vec<Credential>, Refusal>) -> CredentialSet {
        let Ok(credentials) = found else { return CredentialSet::Refused };
        let mut hash = self.key.build_hasher();
        for one in credentials {
            let parts = [&one.username, &one.password, &one.identity_token, &one.registry_token];
            parts.hash(&mut hash);
        }
        credentials.len().hash(&mut hash);
        CredentialSet::Credentials(hash.finish())
    }

    /// Sets the next read, with jitter so that reads do not coincide.
    fn schedule(&mut self, uid: &Uid, now: i64) {
        let spread = i64::try_from(self.key.hash_one(uid) % 1_000).unwrap_or(0);
        self.due
            .insert(uid.clone(), now + RECHECK_INTERVAL_MS + RECHECK_INTERVAL_MS * spread / 2_000);
    }
}

impl Index {
    /// Starts some of the reads that are due; assignments with the same namespace, identities and
    /// image share one.
    pub(super) fn recheck_credentials(&mut self, now: i64) {
        let mut due: Vec<(i64, &Uid)> = self
            .awaiting_credentials
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(uid, at)| (*at, uid))
            .collect();
        if due.is_empty() {
            return;
        }
        due.sort_unstable();
        type Subject<'a> = (&'a str, &'a [PullIdentity], &'a Reference);
        fn subject(assignment: &Assignment) -> Subject<'_> {
            (&assignment.warm.namespace, &assignment.pull_context.identities, &assignment.image)
        }
        let mut reads: HashMap<Subject<'_>, (CredentialRequest, Vec<Uid>)> = HashMap::new();
        for (_, uid) in due {
            let Some(assignment) = self.assignments.get(uid) else { continue };
            // Skipped: no warmer is connected, or a pull resolves the credentials itself.
            let session = self.nodes.get(&*assignment.warm.node_name).and_then(|node| node.session);
            let Some((session, _)) = session else { continue };
            if self.budgets.is_in_flight(uid) || self.budgets.is_waiting(uid) {
                continue;
            }
            if reads.len() < READS_PER_TICK || reads.contains_key(&subject(assignment)) {
                let (_, uids) = reads
                    .entry(subject(assignment))
                    .or_insert_with(|| (assignment.credential_request(uid, session), Vec::new()));
                uids.push(uid.clone());
            }
        }
        let reads: Vec<_> = reads.into_values().collect();
        for (job, uids) in reads {
            uids.iter().for_each(|uid| self.awaiting_credentials.schedule(uid, now));
            self.effects.push(Effect::RecheckCredentials(job, uids));
        }
    }

    /// Handles the result of [`Effect::RecheckCredentials`]. Secrets that still cannot be read cause no
    /// retry.
    pub fn rechecked(&mut self, uids: &[Uid], found: &Result<Vec<Credential>, Refusal>, now: i64) {
        let credential_set = self.awaiting_credentials.credential_set(found);
        if credential_set == CredentialSet::Refused {
            return;
        }
        for uid in uids {
            let Some(assignment) = self.assignments.get_mut(uid) else { continue };
            if !self.awaiting_credentials.due.contains_key(uid) || self.budgets.is_in_flight(uid) {
                continue;
            }
            let is_changed = match std::mem::replace(&mut assignment.credential_set, credential_set)
            {
                // After a change of the leader: the last one may have seen a change and died before
                // it sent it. One attempt more for each failed pull is what that costs.
                CredentialSet::Unknown => true,
                before => before != credential_set,
            };
            if !is_changed {
                continue;
            }
            assignment.urgent_retries += 1;
            assignment.identity_mark = assignment.identity_mark.wrapping_add(1);
            self.canaries.forget(&assignment.key());
            let node = self.nodes.get(&*assignment.warm.node_name);
            if let Some((session, _)) = node.and_then(|node| node.session) {
                let need = assignment.need(uid, &self.needs, now);
                let assign = ToWarmer::Assign(assignment.assign(need));
                self.effects.push(Effect::Send(session, assign));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_spread_over_half_an_interval() {
        let mut awaiting = AwaitingCredentials::default();
        for at in 0..1_000 {
            awaiting.schedule(&format!("u{at}").into(), 0);
        }
        let due = || awaiting.due.values().copied();
        let latest = RECHECK_INTERVAL_MS + RECHECK_INTERVAL_MS / 2;
        assert!(due().all(|at| (RECHECK_INTERVAL_MS..latest).contains(&at)));
        // Of a thousand that are spread evenly, some are in the first and some in the last tenth.
        let tenth = RECHECK_INTERVAL_MS / 20;
        assert!(due().any(|at| at < RECHECK_INTERVAL_MS + tenth));
        assert!(due().any(|at| at >= latest - tenth));
    }
}
