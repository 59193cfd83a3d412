//! Messages to warmers: assignments and pull grants.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

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

/// Changes with the pull identities and with the spec's generation. Equal in every replica of one
/// version, so that a new leader does not cause failed pulls to be retried at once.
pub(super) fn identity_mark(warm: &CachedImageWarm, pull_context: &PullContext) -> u64 {
    let mut mark = DefaultHasher::new();
    pull_context.identities.hash(&mut mark);
    warm.generation.hash(&mut mark);
    mark.finish()
}

impl Assignment {
    pub(super) fn assign(&self) -> Assign {
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
        || old.pull_context.priority != new.pull_context.priority
        || old.identity_mark != new.identity_mark
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
