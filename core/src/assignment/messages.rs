//! Messages to warmers: assignments and pull grants.

use sha2::{Digest, Sha256};

use super::needs::Need;
use super::{Assignment, Refusal};
use crate::api::{CachedImageWarm, ConditionStatus, Reason};
use crate::demand::pull_context::PullContext;
use crate::image::Credential;
use crate::protocol::{self, Assign, PullGrant};

/// Limit of all credentials of one grant together, in bytes: well below the message size limit.
const CREDENTIALS_MAX: usize = 128 * 1024;

pub(super) fn ready(warm: &CachedImageWarm) -> ConditionStatus {
    warm.ready().map_or(ConditionStatus::Unknown, |ready| ready.status)
}

/// Changes with the pull identities and with the spec's generation. Warmers compare it with that of
/// the leader before, of whatever version: it is part of the SHA-256 of a text that stays the same.
/// Otherwise all failed pulls would be tried at once after an upgrade.
pub(super) fn identity_mark(warm: &CachedImageWarm, pull_context: &PullContext) -> u64 {
    let mut mark = Mark::default();
    mark.add_identities(pull_context);
    mark.add(&warm.generation.unwrap_or_default().to_string());
    mark.finish()
}

/// The same for all pulls of a namespace with the same pull identities, in every version.
pub(super) fn account_mark(warm: &CachedImageWarm, pull_context: &PullContext) -> u64 {
    let mut mark = Mark::default();
    mark.add(&warm.namespace);
    mark.add_identities(pull_context);
    mark.finish()
}

/// A hash of texts that is the same in every version of the program.
#[derive(Default)]
struct Mark(Sha256);

impl Mark {
    fn add(&mut self, part: &str) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn add_identities(&mut self, pull_context: &PullContext) {
        for identity in &pull_context.identities {
            self.add("identity");
            identity.secrets.iter().for_each(|secret| self.add(secret));
            self.add("account");
            identity.service_account.iter().for_each(|account| self.add(account));
        }
    }

    fn finish(self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize()[..8]);
        u64::from_be_bytes(first)
    }
}

impl Assignment {
    pub(super) fn assign(&self, need: Need) -> Assign {
        let Assignment { warm, image, pull_context, .. } = self;
        Assign {
            uid: warm.uid.to_string(),
            namespace: warm.namespace.to_string(),
            name: warm.name.to_string(),
            image: image.as_str().to_owned(),
            check_for: pull_context.check_for.clone().unwrap_or_default(),
            believed_present: self.is_believed_present(),
            priority: pull_context.priority,
            identity_mark: self.identity_mark,
            known_size_bytes: self.known_size_bytes,
            account_mark: self.account_mark,
            resolved_digest: pull_context.resolved.clone().unwrap_or_default(),
            runtime_handlers: pull_context.runtime_handlers.iter().cloned().collect(),
            pod_waits: need.pod_waits,
            recent_starts: need.recent_starts,
        }
    }

    fn is_believed_present(&self) -> bool {
        ready(&self.warm) == ConditionStatus::True
    }
}

/// Whether the change has to be sent to the warmer. A stored report of its own is not sent back.
pub(super) fn needs_resend(old: &Assignment, new: &Assignment) -> bool {
    (new.pull_context.check_for.is_some()
        && new.pull_context.check_for != old.pull_context.check_for)
        || (old.is_believed_present() && !new.is_believed_present())
        || (old.pull_context.resolved != new.pull_context.resolved && !new.is_believed_present())
        || old.pull_context.priority != new.pull_context.priority
        || old.pull_context.runtime_handlers != new.pull_context.runtime_handlers
        || old.identity_mark != new.identity_mark
        || old.account_mark != new.account_mark
        || old.image != new.image
}

/// Refuses credentials over the limit: a message that is too long would break every stream.
fn within_limit(credentials: Vec<Credential>) -> Result<Vec<Credential>, Refusal> {
    let length = |one: &Credential| {
        let parts = [&one.username, &one.password, &one.identity_token, &one.registry_token];
        parts.iter().map(|part| part.len()).sum::<usize>()
    };
    let bytes: usize = credentials.iter().map(length).sum();
    if bytes <= CREDENTIALS_MAX {
        return Ok(credentials);
    }
    Err(Refusal {
        reason: Reason::SecretMissing,
        message: format!(
            "the pull secrets hold {bytes} bytes of credentials for this image: at most \
             {CREDENTIALS_MAX} can be used"
        ),
    })
}

pub(super) fn grant(uid: &str, found: Result<Vec<Credential>, Refusal>) -> PullGrant {
    let mut grant = PullGrant { uid: uid.to_owned(), ..PullGrant::default() };
    match found.and_then(within_limit) {
        Ok(credentials) => {
            grant.credentials = credentials
                .into_iter()
                .map(|credential| protocol::Credential {
                    username: credential.username,
                    password: credential.password,
                    identity_token: credential.identity_token,
                    registry_token: credential.registry_token,
                })
                .collect();
        }
        Err(refusal) => {
            grant.refused_reason = refusal.reason.as_str().to_owned();
            grant.refused_message = refusal.message;
        }
    }
    grant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::PullIdentity;

    /// Warmers of the version before compare it: another value would start all failed pulls.
    #[test]
    fn the_identity_mark_is_the_same_in_every_version() {
        let mark = |secrets: &[&str], account: Option<&str>, generation| {
            let secrets = secrets.iter().map(|&secret| secret.to_owned()).collect();
            let identity = PullIdentity { secrets, service_account: account.map(str::to_owned) };
            let warm = CachedImageWarm { generation, ..CachedImageWarm::default() };
            let context = PullContext { identities: vec![identity], ..PullContext::default() };
            identity_mark(&warm, &context)
        };
        let first = mark(&["a", "b"], Some("default"), Default::default());
        assert_eq!(first, 3978312830219723194);
        let others = [
            mark(&["ab"], Some("default"), Default::default()),
            mark(&["a", "b"], None, Default::default()),
            mark(&["a", "b", "account", "default"], None, Default::default()),
            mark(&["b", "a"], Some("default"), Default::default()),
        ];
        assert!(others.iter().all(|other| *other != first), "{others:?}");
    }
}
