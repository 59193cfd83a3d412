//! The pull context of one ImageWarm, from the Revisions and Images of its namespace: whose
//! credentials apply, the priority, and whether the tag has to be checked again.

use super::PullIdentity;
use super::consumers::{Consumer, ConsumerDemand};
use crate::api::{
    CREATED_FOR_ANNOTATION, CachedImageWarm, SERVICE_ACCOUNT_ANNOTATION, revision_token,
};
use crate::image::Reference;
use crate::policy::Policy;

/// What the Revisions and Images of a namespace currently require for one of its ImageWarms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PullContext {
    /// All identities whose credentials apply, newest Revision first, then Images, without repeats.
    pub identities: Vec<PullIdentity>,
    /// `revision_token` of the newest Revision for which the tag still has to be checked with the
    /// registry; `None` when no check is needed.
    pub check_for: Option<String>,
    /// Creation time of the newest consumer of the image, seconds since 1970; 0 without one.
    pub priority: i64,
    /// The digest to which Knative has resolved the tag for the newest Revision: its Pods use that, and the
    /// registry has it.
    pub resolved: Option<String>,
}

/// The pull context of `warm`, from all demands of its namespace.
pub fn pull_context(
    warm: &CachedImageWarm,
    demands: &[ConsumerDemand],
    policy: &Policy,
) -> PullContext {
    let image = Reference::parse(&warm.image).ok();
    let wanting: Vec<&ConsumerDemand> = match &image {
        Some(image) => demands
            .iter()
            .filter(|one| one.demand.images.iter().any(|wanted| wanted.is(image)))
            .collect(),
        None => Vec::new(),
    };
    let mut identities: Vec<PullIdentity> = Vec::new();
    for identity in wanting.iter().map(|one| &one.demand.identity).chain([&own_identity(warm)]) {
        if !identities.contains(identity) {
            identities.push(identity.clone());
        }
    }
    let tag = image.filter(|image| image.tag().is_some() && !policy.paused);
    PullContext {
        identities,
        resolved: tag.as_ref().and_then(|tag| resolved(tag, &wanting)),
        check_for: tag.and_then(|tag| check_for(warm, &tag, &wanting)),
        priority: wanting.iter().map(|one| one.by.created()).max().unwrap_or_default(),
    }
}

/// The pull identity from the object itself.
fn own_identity(warm: &CachedImageWarm) -> PullIdentity {
    let account = warm.annotation(SERVICE_ACCOUNT_ANNOTATION);
    PullIdentity {
        secrets: warm.common.secrets.iter().map(|secret| secret.name.clone()).collect(),
        service_account: account.filter(|_| warm.is_managed()).map(str::to_owned),
    }
}

/// The digest of the newest that is routable: that of an older one may be outdated.
fn resolved(tag: &Reference, wanting: &[&ConsumerDemand]) -> Option<String> {
    let newest = wanting.iter().find(|one| one.is_routable())?;
    let wanted = newest.demand.images.iter().find(|wanted| wanted.reference == *tag)?;
    Some(wanted.resolved.as_ref()?.digest()?.to_owned())
}

fn check_for(
    warm: &CachedImageWarm,
    tag: &Reference,
    wanting: &[&ConsumerDemand],
) -> Option<String> {
    let unresolved = |one: &ConsumerDemand| {
        let mut images = one.demand.images.iter();
        one.is_routable()
            && images.any(|wanted| wanted.reference == *tag && wanted.resolved.is_none())
    };
    let newest = wanting.iter().find_map(|one| match &one.by {
        Consumer::Revision(revision) if unresolved(one) => Some(revision),
        _ => None,
    })?;
    let token = revision_token(newest)?;

    if warm.annotation(CREATED_FOR_ANNOTATION) == Some(&token) {
        return None; // the first pull is that check
    }
    // Without `finishedAt` the first pull waits or runs: its outcome leads here again.
    let status = warm.status.as_ref().filter(|status| status.finished_at.is_some())?;
    // When the pull began says nothing: the node's clock and that of the API server may differ.
    (status.checked_for.as_deref() != Some(&token)).then_some(token)
}

#[cfg(test)]
mod tests;
