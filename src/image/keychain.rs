//! STUB, owned by helper 1.

use super::Reference;

/// One registry credential. Its Debug prints no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// User name, may be empty.
    pub username: String,
    /// Password, may be empty.
    pub password: String,
    /// OAuth2 refresh token, may be empty.
    pub identity_token: String,
    /// Bearer token, may be empty.
    pub registry_token: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// The credentials of several pull secrets, matched to images as kubelet does it.
#[derive(Clone, Debug, Default)]
pub struct Keychain {}

/// Why a pull secret's content cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stub")]
pub struct KeychainError;

impl Keychain {
    /// Adds the content of `.dockerconfigjson`.
    pub fn add_docker_config_json(&mut self, _content: &[u8]) -> Result<(), KeychainError> {
        todo!()
    }
    /// Adds the content of `.dockercfg`.
    pub fn add_dockercfg(&mut self, _content: &[u8]) -> Result<(), KeychainError> {
        todo!()
    }
    /// Credentials for the image, in the order in which kubelet tries them.
    pub fn lookup(&self, _image: &Reference) -> Vec<Credential> {
        todo!()
    }
}
