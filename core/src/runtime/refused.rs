//! What a registry's refusal means, by the credentials that the pull had: without any, the kubelet may
//! have some that imagewarm has not, and nothing is said of Pods.

use super::RuntimeError;
use crate::api::Reason;
use crate::image::credential_provider::NodeCredentials;

/// Where a pull's credentials came from.
#[derive(Clone, Debug, Default)]
pub struct CredentialSources {
    /// Number of credentials of pull secrets.
    pub of_secrets: usize,
    /// The error of a pull secret that does not exist.
    pub missing_secret: Option<RuntimeError>,
    /// What the node's credential providers answered.
    pub node: NodeCredentials,
}

impl CredentialSources {
    /// The error to report. Missing pull secrets and providers that fail do not prevent a Pod from using a
    /// public image, and so do not prevent a pull. If the registry then refuses the image, the error
    /// names them.
    pub fn explain(&self, error: RuntimeError) -> RuntimeError {
        if !matches!(error.reason, Reason::Unauthorized | Reason::NotFound) {
            return error;
        }
        let missing = self.missing_secret.as_ref();
        let failures = self.node.failures.iter();
        let failed =
            failures.map(|(name, failure)| format!("credential provider {name} failed: {failure}"));
        let causes: Vec<String> =
            failed.chain(missing.map(|missing| missing.message.clone())).collect();
        // A provider's failure comes first: where nodes have providers, a Secret that does not exist is often
        // a left-over.
        let reason = match missing {
            _ if !self.node.failures.is_empty() => Reason::CredentialProviderFailed,
            Some(missing) => missing.reason,
            None => return self.without_credentials(error),
        };
        let message = format!("{}; without it: {}", causes.join("; "), error.message);
        RuntimeError { reason, message }
    }

    fn without_credentials(&self, error: RuntimeError) -> RuntimeError {
        // Whether a repository exists may be a secret, too; but most that are not found do not.
        if error.reason != Reason::Unauthorized
            || self.of_secrets > 0
            || !self.node.credentials.is_empty()
        {
            return error;
        }
        let node = match (self.node.is_configured, self.node.matching.as_slice()) {
            (false, _) => {
                "no credential provider is configured: the kubelet may have credentials that \
                 imagewarm has not. Set --image-credential-provider-config and \
                 --image-credential-provider-bin-dir of the warmer, or name a pull secret"
                    .to_owned()
            }
            (true, []) => "no credential provider of the warmer matches it: the kubelet may have \
                           credentials that imagewarm has not. Compare its matchImages, or name a \
                           pull secret"
                .to_owned(),
            (true, matching) => {
                format!("credential provider {} has none for it", matching.join(", "))
            }
        };
        let message = format!(
            "no pull secret has credentials for it, and {node}. Without: {}",
            error.message
        );
        RuntimeError { reason: Reason::NoCredentials, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::credential_provider::ProviderFailure;

    fn error(reason: Reason) -> RuntimeError {
        RuntimeError { reason, message: "401 Unauthorized".into() }
    }

    fn credential() -> crate::image::Credential {
        crate::image::Credential {
            username: "u".into(),
            password: "p".into(),
            identity_token: String::new(),
            registry_token: String::new(),
        }
    }

    #[test]
    fn a_refusal_is_explained_by_what_the_pull_had() {
        use Reason::*;
        let off = NodeCredentials::default;
        let on = || NodeCredentials { is_configured: true, ..off() };
        let answers = || NodeCredentials { matching: vec!["cloud-a".into()], ..on() };
        let found = || NodeCredentials { credentials: vec![credential()], ..answers() };
        let hangs = || NodeCredentials {
            failures: vec![("cloud-a".into(), ProviderFailure::TimedOut(60))],
            ..answers()
        };
        let missing = || {
            let message = "Secret regcred does not exist".into();
            Some(RuntimeError { reason: SecretMissing, message })
        };
        let sources = |of_secrets, missing_secret, node| CredentialSources {
            of_secrets,
            missing_secret,
            node,
        };
        // Name of the case, what the pull had, the registry's refusal, the reason, a part of the message.
        let cases = [
            (
                "nothing",
                sources(0, None, off()),
                Unauthorized,
                NoCredentials,
                "the kubelet may have credentials that imagewarm has not. Set --image-credential-provider-config",
            ),
            (
                "no match",
                sources(0, None, on()),
                Unauthorized,
                NoCredentials,
                "Compare its matchImages",
            ),
            (
                "an answer without credentials",
                sources(0, None, answers()),
                Unauthorized,
                NoCredentials,
                "credential provider cloud-a has none for it",
            ),
            ("not found without any", sources(0, None, off()), NotFound, NotFound, "401"),
            ("a wrong pull secret", sources(1, None, off()), Unauthorized, Unauthorized, "401"),
            (
                "wrong credentials of the node",
                sources(0, None, found()),
                Unauthorized,
                Unauthorized,
                "401",
            ),
            (
                "a provider that fails",
                sources(0, None, hangs()),
                Unauthorized,
                CredentialProviderFailed,
                "credential provider cloud-a failed: it did not answer within 60 s; without it: 401",
            ),
            (
                "the same behind a pull secret",
                sources(1, None, hangs()),
                NotFound,
                CredentialProviderFailed,
                "cloud-a failed",
            ),
            (
                "a missing secret",
                sources(0, missing(), off()),
                Unauthorized,
                SecretMissing,
                "Secret regcred does not exist; without it: 401",
            ),
            (
                "a missing secret and a failure",
                sources(0, missing(), hangs()),
                Unauthorized,
                CredentialProviderFailed,
                "within 60 s; Secret regcred does not exist; without it: 401",
            ),
            (
                "no refusal",
                sources(0, missing(), hangs()),
                RegistryUnreachable,
                RegistryUnreachable,
                "401",
            ),
        ];
        for (name, sources, refusal, reason, part) in cases {
            let explained = sources.explain(error(refusal));
            assert_eq!(explained.reason, reason, "{name}");
            assert!(explained.message.contains(part), "{name}: {explained}");
            assert!(explained.message.ends_with("401 Unauthorized"), "{name}: {explained}");
            assert!(!explained.message.contains("Pod"), "{name}: {explained}");
        }
    }
}
