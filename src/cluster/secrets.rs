//! STUB, owned by helper 1.

use kube::Client;

use crate::api::Reason;
use crate::image::{Credential, Reference};
use crate::plan::want::PullIdentity;

/// Why a pull secret cannot be used. `Display` says what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Stub.
    #[error("stub")]
    Stub,
}

impl SecretError {
    /// The typed reason for a status.
    pub fn reason(&self) -> Reason {
        Reason::SecretMissing
    }
    /// Whether the API server could not be asked at all: distinct from "does not exist".
    pub fn is_unreadable(&self) -> bool {
        false
    }
}

/// Checks that the Secret exists in the namespace, has a docker type, and parses.
pub async fn check_pull_secret(
    _client: &Client,
    _namespace: &str,
    _name: &str,
) -> Result<(), SecretError> {
    todo!()
}

/// Credentials for `image`, in the order in which they are to be tried. Missing secrets are
/// skipped while any other gives a credential (as for Pods). An error only when no identity
/// yields anything and a secret that was named could not be used.
pub async fn resolve(
    _client: &Client,
    _namespace: &str,
    _identities: &[PullIdentity],
    _image: &Reference,
) -> Result<Vec<Credential>, SecretError> {
    todo!()
}
