//! What the Revisions of a namespace mean for one ImageWarm: who pays for the pull, how urgent it
//! is, and whether its tag has to be looked at again.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Policy;
use super::demand::{Demand, demand, is_routable};
use crate::api::{
    CREATED_FOR_ANNOTATION, ImageWarm, Revision, SERVICE_ACCOUNT_ANNOTATION, revision_token,
};
use crate::image::Reference;

/// In whose name an image may be pulled: the pull secrets of one Revision (or of one hand-made
/// ImageWarm), in order; those of the ServiceAccount apply only when `secrets` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PullIdentity {
    /// Names of Secrets in the namespace.
    pub secrets: Vec<String>,
    /// ServiceAccount whose `imagePullSecrets` apply when `secrets` is empty. `None` for
    /// hand-made ImageWarms: those use their own spec only.
    pub service_account: Option<String>,
}

/// What the Revisions of a namespace mean for one ImageWarm of it, right now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All that may pay for the pull, newest Revision first, without repeats.
    pub identities: Vec<PullIdentity>,
    /// `revision_token` of the newest Revision in whose name the tag has still to be checked with
    /// the registry; `None` when nothing is to be checked.
    pub check_for: Option<String>,
    /// Creation time of the newest Revision that wants the image, seconds since 1970; 0 without.
    pub priority: i64,
}

/// A Revision with what it asks for; made once for many ImageWarms of its namespace.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The Revision.
    pub revision: Arc<Revision>,
    /// What it asks for.
    pub demand: Demand,
}

/// Works `warm`'s standing out from the Revisions of its namespace.
pub fn standing(
    warm: &ImageWarm,
    revisions_of_namespace: &[Arc<Revision>],
    policy: &Policy,
) -> Standing {
    standing_among(warm, &asking(revisions_of_namespace, policy), policy)
}

/// What Revisions ask for, newest first. While paused they still stand for what exists already.
pub fn asking(revisions: &[Arc<Revision>], policy: &Policy) -> Vec<Asking> {
    let running = Policy { paused: false, ..policy.clone() };
    let ask = |revision: &Arc<Revision>| Asking {
        revision: revision.clone(),
        demand: demand(revision, false, &running),
    };
    let mut all: Vec<Asking> = revisions.iter().map(ask).collect();
    all.sort_by(|a, b| newest_first(&a.revision, &b.revision));
    all
}

/// As [`standing`], from the outcome of [`asking`].
pub fn standing_among(warm: &ImageWarm, asking: &[Asking], policy: &Policy) -> Standing {
    let image = Reference::parse(&warm.spec.image).ok();
    let wanting: Vec<&Asking> = match &image {
        Some(image) => asking
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
    Standing {
        identities,
        check_for: tag.and_then(|tag| check_for(warm, &tag, &wanting)),
        priority: wanting.first().map_or(0, |one| created(&one.revision)),
    }
}

/// By creation, then by name, so that every replica finds the same order.
pub(super) fn newest_first(a: &Revision, b: &Revision) -> std::cmp::Ordering {
    let key =
        |one: &Revision| (created(one), one.metadata.name.clone(), one.metadata.namespace.clone());
    key(b).cmp(&key(a))
}

/// Seconds since 1970; 0 for a Revision that is only being admitted.
fn created(revision: &Revision) -> i64 {
    revision.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// In whose name the object itself says that it may be pulled.
fn own_identity(warm: &ImageWarm) -> PullIdentity {
    let annotations = warm.metadata.annotations.as_ref();
    let account = annotations.and_then(|all| all.get(SERVICE_ACCOUNT_ANNOTATION));
    PullIdentity {
        secrets: warm.spec.image_pull_secrets.iter().map(|secret| secret.name.clone()).collect(),
        service_account: account.filter(|_| warm.is_managed()).cloned(),
    }
}

fn check_for(warm: &ImageWarm, tag: &Reference, wanting: &[&Asking]) -> Option<String> {
    let unresolved = |one: &&&Asking| {
        is_routable(&one.revision)
            && one
                .demand
                .images
                .iter()
                .any(|wanted| wanted.reference == *tag && wanted.resolved.is_none())
    };
    let newest = wanting.iter().find(unresolved)?;
    let token = revision_token(&newest.revision)?;

    let annotations = warm.metadata.annotations.as_ref();
    if annotations.and_then(|all| all.get(CREATED_FOR_ANNOTATION)) == Some(&token) {
        return None; // the first pull is that check
    }
    // Without an end the first pull is still to come, or runs: then its end brings us here again.
    let status = warm.status.as_ref().filter(|status| status.finished_at.is_some())?;
    if status.checked_for.as_ref() == Some(&token)
        || started_after(status.started_at.as_ref(), &newest.revision)
    {
        return None;
    }
    Some(token)
}

/// Whether a try certainly began after the Revision was made, whose time is cut to full seconds.
fn started_after(started: Option<&Time>, revision: &Revision) -> bool {
    started.is_some_and(|started| started.0.as_second() > created(revision))
}

#[cfg(test)]
mod tests;
