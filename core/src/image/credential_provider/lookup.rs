//! The credentials that a node itself has for an image, from all of its providers.

use super::calls::Answer;
use super::failure::ProviderFailure;
use crate::image::{Credential, Keychain, Reference};

/// Credentials that are tried for one image at most. The kubelet has no limit; each is a round trip to the
/// registry, and a plugin that names more for one image is broken.
const MOST_CREDENTIALS: usize = 16;

/// What the providers of a node answered for an image.
#[derive(Clone, Debug, Default)]
pub struct NodeCredentials {
    /// Whether any provider is configured.
    pub is_configured: bool,
    /// Names of the providers that match the image.
    pub matching: Vec<String>,
    /// The credentials, in the order in which they are to be tried.
    pub credentials: Vec<Credential>,
    /// Providers that failed, and why.
    pub failures: Vec<(String, ProviderFailure)>,
}

impl NodeCredentials {
    /// Merges the answers of the matching providers, in the order of the configuration, as the kubelet's keyring
    /// does: by the registries' names, the most specific first, whoever answered.
    pub fn merge(
        image: &Reference,
        answers: Vec<(String, Result<Answer, ProviderFailure>)>,
    ) -> Self {
        let mut merged = NodeCredentials { is_configured: true, ..Self::default() };
        let mut keychain = Keychain::default();
        for (name, answer) in answers {
            merged.matching.push(name.clone());
            match answer {
                Ok(entries) => keychain.add_entries(entries.iter().cloned()),
                Err(failure) => merged.failures.push((name, failure)),
            }
        }
        merged.credentials = keychain.lookup(image);
        merged.credentials.truncate(MOST_CREDENTIALS);
        merged
    }
}
