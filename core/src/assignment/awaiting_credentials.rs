//! Pulls that failed for want of a credential: their Secrets cannot be watched, so they are looked
//! at again now and then, and the pull is credential_changes as soon as there is something new to try.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::{Assignment, CredentialRequest, Effect, Index, Refusal};
use crate::api::Reason;
use crate::demand::PullIdentity;
use crate::image::{Credential, Reference};
use crate::protocol::from_controller::Message as ToWarmer;

/// Each assignment is looked at again after this long, and up to half as much more.
const AGAIN_MS: i64 = 15_000;
/// Looks that begin in one tick; the others wait for the next ticks.
const LOOKS: usize = 4;

/// What the last pull could be paid with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CredentialSet {
    #[default]
    Unknown,
    Refused,
    /// A keyed hash, of use in this process only.
    Credentials(u64),
}

/// Orders that wait for a credential, and when their Secrets are to be looked at.
#[derive(Debug, Default)]
pub(super) struct AwaitingCredentials {
    due: HashMap<String, i64>,
    key: RandomState,
}

impl AwaitingCredentials {
    /// Takes the assignment in or out, by what its status says.
    pub(super) fn note(&mut self, uid: &str, reason: Option<Reason>, now: i64) {
        if !matches!(reason, Some(Reason::SecretMissing | Reason::Unauthorized)) {
            self.due.remove(uid);
        } else if !self.due.contains_key(uid) {
            self.put_off(uid, now);
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

    /// Not all at the same moment.
    fn put_off(&mut self, uid: &str, now: i64) {
        let spread = i64::try_from(self.key.hash_one(uid) % 1_000).unwrap_or(0);
        self.due.insert(uid.to_owned(), now + AGAIN_MS + AGAIN_MS * spread / 2_000);
    }
}

impl Index {
    /// Asks for a few of the looks that are due: one for all assignments that would ask for the same.
    pub(super) fn look_again(&mut self, now: i64) {
        let mut due: Vec<(i64, &String)> = self
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
        type Question<'a> = (&'a str, &'a [PullIdentity], &'a Reference);
        fn question(assignment: &Assignment) -> Question<'_> {
            (&assignment.warm.namespace, &assignment.pull_context.identities, &assignment.image)
        }
        let mut looks: HashMap<Question<'_>, (CredentialRequest, Vec<String>)> = HashMap::new();
        for (_, uid) in due {
            let Some(assignment) = self.assignments.get(uid.as_str()) else { continue };
            // Nobody there to pull, or a pull that reads the Secrets itself.
            let session = self.nodes.get(&*assignment.warm.node_name).and_then(|node| node.session);
            let Some((session, _)) = session else { continue };
            if self.budgets.is_in_flight(uid) || self.budgets.is_waiting(uid) {
                continue;
            }
            if looks.len() < LOOKS || looks.contains_key(&question(assignment)) {
                let (_, uids) = looks
                    .entry(question(assignment))
                    .or_insert_with(|| (assignment.credential_request(uid, session), Vec::new()));
                uids.push(uid.clone());
            }
        }
        let looks: Vec<_> = looks.into_values().collect();
        for (job, uids) in looks {
            uids.iter().for_each(|uid| self.awaiting_credentials.put_off(uid, now));
            self.effects.push(Effect::LookAgain(job, uids));
        }
    }

    /// The outcome of [`Effect::LookAgain`]. What still cannot be read is no reason to hurry.
    pub fn looked_again(&mut self, uids: &[String], found: &Result<Vec<Credential>, Refusal>) {
        let credential_set = self.awaiting_credentials.credential_set(found);
        if credential_set == CredentialSet::Refused {
            return;
        }
        for uid in uids {
            let Some(assignment) = self.assignments.get_mut(uid.as_str()) else { continue };
            if !self.awaiting_credentials.due.contains_key(uid) || self.budgets.is_in_flight(uid) {
                continue;
            }
            let is_news = match std::mem::replace(&mut assignment.credential_set, credential_set) {
                // After a change of the leader; there were none when the pull failed.
                CredentialSet::Unknown => assignment.warm.reason() == Some(Reason::SecretMissing),
                before => before != credential_set,
            };
            if !is_news {
                continue;
            }
            assignment.credential_changes += 1;
            assignment.identity_mark = assignment.identity_mark.wrapping_add(1);
            self.canaries.forget(&assignment.key());
            let node = self.nodes.get(&*assignment.warm.node_name);
            if let Some((session, _)) = node.and_then(|node| node.session) {
                let assign = ToWarmer::Assign(assignment.assign());
                self.effects.push(Effect::Send(session, assign));
            }
        }
    }
}
