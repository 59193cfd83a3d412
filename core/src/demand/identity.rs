//! Whose pull secrets apply to a pull.

/// A source of credentials for a pull: the pull secrets of one Revision or Image (or of a hand-made
/// ImageWarm), in order; those of the ServiceAccount apply only when `secrets` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PullIdentity {
    /// Names of Secrets in the namespace.
    pub secrets: Vec<String>,
    /// ServiceAccount whose `imagePullSecrets` apply when `secrets` is empty. `None` for
    /// hand-made ImageWarms: those use their own spec only.
    pub service_account: Option<String>,
}
