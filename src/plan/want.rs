//! STUB, owned by helper 4.

use super::Policy;
use crate::api::{ImageWarm, Revision};
use std::sync::Arc;

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

/// Works `warm`'s standing out from the Revisions of its namespace.
pub fn standing(
    _warm: &ImageWarm,
    _revisions_of_namespace: &[Arc<Revision>],
    _policy: &Policy,
) -> Standing {
    todo!()
}
