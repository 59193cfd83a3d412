//! What is said to warmers: orders and grants.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::Refusal;
use crate::api::{ConditionStatus, ImageWarm};
use crate::image::{Credential, Reference};
use crate::plan::want::Standing;
use crate::protocol::{self, Assign, PullGrant};

pub(super) fn ready(warm: &ImageWarm) -> ConditionStatus {
    warm.ready().map_or(ConditionStatus::Unknown, |ready| ready.status)
}

pub(super) fn assign(
    uid: &str,
    warm: &ImageWarm,
    image: &Reference,
    standing: &Standing,
) -> Assign {
    // The same in every replica of one version, so that a new leader does not hurry what failed.
    let mut mark = DefaultHasher::new();
    standing.identities.hash(&mut mark);
    warm.metadata.generation.hash(&mut mark);
    Assign {
        uid: uid.to_owned(),
        namespace: warm.metadata.namespace.clone().unwrap_or_default(),
        name: warm.metadata.name.clone().unwrap_or_default(),
        image: image.as_str().to_owned(),
        check_for: standing.check_for.clone().unwrap_or_default(),
        believed_present: ready(warm) == ConditionStatus::True,
        priority: standing.priority,
        identity_mark: mark.finish(),
    }
}

/// Whether the warmer has to know; that its own report was stored, it need not.
pub(super) fn needs_resend(old: &Assign, new: &Assign) -> bool {
    (!new.check_for.is_empty() && new.check_for != old.check_for)
        || (old.believed_present && !new.believed_present)
        || old.priority != new.priority
        || old.identity_mark != new.identity_mark
        || old.image != new.image
}

pub(super) fn grant(uid: &str, found: Result<Vec<Credential>, Refusal>) -> PullGrant {
    let mut grant = PullGrant { uid: uid.to_owned(), ..PullGrant::default() };
    match found {
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
