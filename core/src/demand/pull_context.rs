//! The pull context of one ImageWarm, from the Revisions and Images of its namespace: whose
//! credentials apply, the priority, the runtime handlers, and whether the tag has to be checked again.

use std::collections::BTreeSet;

use super::PullIdentity;
use super::consumers::{Consumer, ConsumerDemand};
use crate::api::{
    CREATED_FOR_ANNOTATION, CachedImageWarm, SERVICE_ACCOUNT_ANNOTATION, revision_token,
};
use crate::image::Reference;
use crate::placement::RuntimeClasses;
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
    /// Handlers of the RuntimeClasses of the Pods that use the image, with the empty name for Pods without one.
    /// Empty where these are all.
    pub runtime_handlers: BTreeSet<String>,
}

/// The runtime handlers of Pods.
#[derive(Clone, Debug, Default)]
pub struct RuntimeHandlers {
    /// By RuntimeClass.
    pub classes: RuntimeClasses,
    /// Those of the Pods of any Revision, for images that each of these needs.
    pub of_every_revision: BTreeSet<String>,
}

impl RuntimeHandlers {
    /// The handler of the Pods of a consumer; `None` where its RuntimeClass does not exist.
    pub fn of(&self, consumer: &ConsumerDemand) -> Option<&str> {
        match &consumer.demand.placement.runtime_class {
            Some(class) => self.classes.handler(class),
            None => Some(""),
        }
    }

    /// Those of the Pods of all these consumers.
    fn of_all(&self, wanting: &[&ConsumerDemand]) -> BTreeSet<String> {
        let mut handlers: BTreeSet<String> =
            wanting.iter().filter_map(|one| self.of(one)).map(str::to_owned).collect();
        if wanting.iter().any(|one| one.demand.by_every_revision) {
            handlers.extend(self.of_every_revision.iter().cloned());
        }
        let only_default = handlers.iter().all(String::is_empty);
        if only_default { BTreeSet::new() } else { handlers }
    }
}

/// The pull context of `warm`, from all demands of its namespace.
pub fn pull_context(
    warm: &CachedImageWarm,
    demands: &[ConsumerDemand],
    handlers: &RuntimeHandlers,
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
        runtime_handlers: handlers.of_all(&wanting),
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
