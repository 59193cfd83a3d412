//! Registry credentials of pull secrets, matched to images exactly as kubelet does it
//! (`k8s.io/kubernetes/pkg/credentialprovider`). Those that the node itself has are found by
//! [`credential_provider`](super::credential_provider), with the same matching.
//!
//! Own code: a Pod's own pull must find the same credential. Libraries for docker's configuration
//! match hosts only, or run helpers; this is compared with kubelet's package in `tests/`.

mod docker_config;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::Reference;
use super::location::{self, Location};
pub use docker_config::KeychainError;

/// The key under which Docker Hub's credentials are stored, whatever the image's domain is called.
const DEFAULT_REGISTRY: &[u8] = b"index.docker.io";

/// One registry credential. Its Debug prints no secret.
///
/// Of a pull secret, kubelet reads user name and password only, so the tokens are empty for all
/// that comes from a [`Keychain`].
#[derive(Clone, PartialEq, Eq, Hash)]
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

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// The credentials of several pull secrets, matched to images as kubelet does it.
#[derive(Clone, Default)]
pub struct Keychain {
    /// By the registry's pattern, most specific first: kubelet's order is that of the reversed
    /// bytes. What one pattern has stays in the order in which it was added.
    entries: BTreeMap<Reverse<Vec<u8>>, Vec<Credential>>,
}

/// Registry names can carry a password (`https://user:password@host`), so only the count is shown.
impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keychain").field("registries", &self.entries.len()).finish()
    }
}

impl Keychain {
    /// Adds the content of `.dockerconfigjson`. Adds nothing at all where any part is wrong.
    pub fn add_docker_config_json(&mut self, content: &[u8]) -> Result<(), KeychainError> {
        self.add_entries(docker_config::parse_docker_config_json(content)?);
        Ok(())
    }

    /// Adds the content of `.dockercfg`. Adds nothing at all where any part is wrong.
    pub fn add_dockercfg(&mut self, content: &[u8]) -> Result<(), KeychainError> {
        self.add_entries(docker_config::parse_dockercfg(content)?);
        Ok(())
    }

    /// Adds credentials by the names of their registries.
    pub fn add_entries(&mut self, entries: impl IntoIterator<Item = (String, Credential)>) {
        for (registry, credential) in entries {
            // As kubelet does, passes over what is no URL: other entries are good all the same.
            if let Some(pattern) = location::pattern_of(&registry) {
                self.entries.entry(Reverse(pattern)).or_default().push(credential);
            }
        }
    }

    /// Credentials for the image, in the order in which kubelet tries them, each once.
    pub fn lookup(&self, image: &Reference) -> Vec<Credential> {
        let mut found: Vec<&Credential> = Vec::new();
        if let Some(target) = Location::parse(image.repository().as_bytes()) {
            for (Reverse(pattern), credentials) in &self.entries {
                if Location::parse(pattern).is_some_and(|pattern| pattern.matches(&target)) {
                    found.extend(credentials);
                }
            }
        }
        if found.is_empty()
            && is_default_registry(image.repository())
            && let Some(credentials) = self.entries.get(&Reverse(DEFAULT_REGISTRY.to_vec()))
        {
            found.extend(credentials);
        }
        let mut seen = HashSet::new();
        found.retain(|credential| seen.insert(*credential));
        found.into_iter().cloned().collect()
    }
}

/// Whether Docker Hub's credentials apply when no entry matches. As in kubelet, a host without
/// period and port (`localhost`) counts as Docker Hub here.
fn is_default_registry(repository: &str) -> bool {
    match repository.split_once('/') {
        None => !repository.is_empty(),
        Some(("docker.io" | "index.docker.io", _)) => true,
        Some((first, _)) => !first.is_empty() && !first.contains(['.', ':']),
    }
}
