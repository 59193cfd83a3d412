//! What happens next to an ImageWarm, when, and what a user can do about it.

use jiff::{SignedDuration, Timestamp};

use super::duration;
use crate::api::{ImageWarm, Reason};
use crate::node_queue::retry_delay;
use crate::table::row::Row;

/// What comes next.
pub(super) fn next(warm: &ImageWarm, row: &Row, now: Timestamp) -> String {
    let Some(reason) = warm.reason() else {
        return "a warmer of the node reports soon; if not, `imagewarm check` says what is wrong"
            .into();
    };
    match reason {
        Reason::WaitingForWarmer => {
            "its pull begins once the node's warmer is connected: kubectl -n imagewarm-system get pods -o wide".into()
        }
        Reason::Queued => {
            "its pull begins when a place is free on the node (IMAGEWARM_PARALLEL_PULLS) and in the registry's budget \
             (IMAGEWARM_REGISTRY_PULLS, IMAGEWARM_REGISTRY_PULLS_PER_SECOND)"
                .into()
        }
        Reason::Pulling => match row.progress {
            Some(_) => "the pull ends, or is given up after IMAGEWARM_PULL_DEADLINE".into(),
            None => "the pull ends, or is given up after IMAGEWARM_PULL_DEADLINE; this runtime reports no bytes".into(),
        },
        Reason::Pulled | Reason::AlreadyPresent => {
            "nothing: the runtime is asked each minute whether it still has it, and it is pulled again if not".into()
        }
        Reason::NodeGone => "it is deleted: the node no longer exists".into(),
        reason => format!("{}; {}", again(warm, reason, now), remedy(reason)),
    }
}

/// When it is tried again. The node's delay has a jitter of a quarter, and the registry may have asked for more.
fn again(warm: &ImageWarm, reason: Reason, now: Timestamp) -> String {
    let status = warm.status.as_ref();
    let ended = status.and_then(|status| status.finished_at.as_ref());
    let attempts = status.and_then(|status| status.attempts).unwrap_or(1);
    let latest = ended.and_then(|ended| {
        let delay = retry_delay(u32::try_from(attempts).unwrap_or(1), reason, 1.0);
        ended.0.checked_add(SignedDuration::from_millis(delay)).ok()
    });
    match latest.map(|at| at.duration_since(now)) {
        Some(left) if left > SignedDuration::ZERO => {
            format!("it is tried again within {}", duration(left.as_secs_f64()))
        }
        _ => "it is tried again within minutes".into(),
    }
}

/// What a user can do, and what is tried at once then.
fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::Unauthorized | Reason::NoCredentials | Reason::SecretMissing => {
            "name a pull secret with the right to it in the Revision or its ServiceAccount: a new Revision is tried at once"
        }
        Reason::CredentialProviderFailed => {
            "docs/credentials.md has what the node's credential provider needs"
        }
        Reason::NotFound => "does the tag exist? A new Revision is tried at once",
        Reason::PlatformMismatch => {
            "build the image for the node's architecture, or keep its Pods off the node"
        }
        Reason::InvalidImage => "build the image again: `imagewarm reference` parses its name",
        Reason::SignatureRejected => "sign the image, or change the node's signature policy",
        Reason::RateLimited => {
            "the whole node waits with pulls from that registry; use credentials or a mirror"
        }
        Reason::RegistryUnreachable | Reason::TimedOut => {
            "check DNS, network and TLS of the node's runtime; all nodes try at once when one of them succeeds"
        }
        Reason::DiskPressure => "free space on the node, or lower IMAGEWARM_KEEP_FREE_DISK",
        Reason::RuntimeHandlerUnsupported
        | Reason::RuntimeUnavailable
        | Reason::RuntimeMismatch => "docs/runtimes.md has what the runtime needs",
        Reason::Removed => "docs/nodes.md says how to keep images that were warmed",
        Reason::WaitingForWarmer
        | Reason::Queued
        | Reason::Pulling
        | Reason::Pulled
        | Reason::AlreadyPresent
        | Reason::NodeGone => "wait",
    }
}
