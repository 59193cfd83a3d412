//! Patterns of registries in settings: `docker.io`, `*.dkr.ecr.*.amazonaws.com`, `registry.test:5000`.

use std::fmt;
use std::str::FromStr;

use super::location::Location;
use super::quoted::quoted;

/// Docker Hub's domain in references, and its other names.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_TOO: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// A registry's domain, in which `*` stands for any characters of one label. It matches in any case, with
/// the same number of labels and the same port, as in the kubelet's `matchImages`; every name of Docker Hub
/// matches all of them.
#[derive(Clone, Debug)]
pub struct RegistryPattern {
    domain: String,
    /// Set where it has a `*`.
    pattern: Option<Location>,
}

impl PartialEq for RegistryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.domain == other.domain
    }
}

impl Eq for RegistryPattern {}

/// Why a text is no [`RegistryPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is no registry: use a domain such as docker.io, registry.example:5000 or *.example.com"
)]
pub struct RegistryPatternError(String);

impl FromStr for RegistryPattern {
    type Err = RegistryPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '*' | '[' | ']')
        };
        let domain = canonical(&text.to_ascii_lowercase()).to_owned();
        let is_domain = !text.is_empty() && text.chars().all(is_allowed);
        match Location::parse(domain.as_bytes()).filter(|_| is_domain) {
            Some(location) => {
                let pattern = Some(location).filter(|_| domain.contains('*'));
                Ok(RegistryPattern { domain, pattern })
            }
            None => Err(RegistryPatternError(quoted(text).to_string())),
        }
    }
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.domain)
    }
}

impl RegistryPattern {
    /// Whether images of this domain are meant.
    pub fn matches(&self, domain: &str) -> bool {
        let Some(pattern) = &self.pattern else {
            return self.domain.eq_ignore_ascii_case(canonical(domain));
        };
        let domain = domain.to_ascii_lowercase();
        Location::parse(canonical(&domain).as_bytes())
            .is_some_and(|domain| pattern.matches(&domain))
    }
}

/// With Docker Hub's usual name, whatever it is called.
pub(super) fn canonical(domain: &str) -> &str {
    let is = |name: &&str| name.eq_ignore_ascii_case(domain);
    if DOCKER_HUB_TOO.iter().any(is) { DOCKER_HUB } else { domain }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::image::Reference;

    #[test]
    fn a_pattern_matches_the_registries_that_are_meant() {
        let hub: &[&str] = &[
            "nginx:1",
            "docker.io/library/nginx",
            "index.docker.io/library/nginx",
            "registry-1.docker.io/library/nginx",
        ];
        let ecr = "*.dkr.ecr.*.amazonaws.com";
        let table: [(&str, &[&str], &[&str]); 7] = [
            ("index.docker.io", hub, &["ghcr.io/a"]),
            ("docker.io", hub, &["localhost:5000/a"]),
            ("registry-1.docker.io", hub, &[]),
            (
                ecr,
                &["123456789012.dkr.ecr.eu-west-1.amazonaws.com/a:1"],
                &["dkr.ecr.eu-west-1.amazonaws.com/a:1"],
            ),
            ("GHCR.IO", &["ghcr.io/a/b"], &["ghcr.io.example/a"]),
            ("registry.test:5000", &["registry.test:5000/a"], &["registry.test/a"]),
            ("*.test", &["a.test/b"], &["a.b.test/c", "test.example/a"]),
        ];
        for (pattern, meant, others) in table {
            let pattern: RegistryPattern = pattern.parse().unwrap();
            for (images, expected) in [(meant, true), (others, false)] {
                for image in images {
                    let domain = Reference::parse(image).unwrap().domain().to_owned();
                    assert_eq!(pattern.matches(&domain), expected, "{pattern} {image}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        for text in ["", "registry.test/team", "https://registry.test", "a b", "host:port", "a=b"] {
            let error = text.parse::<RegistryPattern>().unwrap_err().to_string();
            assert!(error.contains("use a domain such as docker.io"), "{text}: {error}");
        }
    }
}
