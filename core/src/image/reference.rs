//! Image references, by the grammar of `github.com/distribution/reference` (v0.6.0), which is that
//! of kubelet, Docker and containerd. [`Named`] is a name as written, [`Reference`] the one
//! canonical spelling that everything else compares and stores.
//!
//! Own code: what this accepts, and how it completes short names, must be what kubelet and the
//! runtimes do, byte for byte; it is compared with their library in `tests/`. Errors say what to
//! correct.

mod error;
mod grammar;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use super::Digest;

pub use error::ReferenceError;
pub(super) use grammar::check_digest;

/// The tag of a name that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// A parsed and normalised image name, exactly as written otherwise: may carry tag and digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Named {
    /// `ParseNormalizedNamed` of distribution/reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let parts = grammar::parse(text)?;
        Ok(Self {
            domain: parts.domain.to_owned(),
            path: parts.path.into_owned(),
            tag: parts.tag.map(str::to_owned),
            digest: parts.digest.map(str::to_owned),
        })
    }

    /// `docker.io`, `registry.example.com:5000`. Empty for the few names whose first part looks
    /// like a host but cannot be one (`my_host.example/app`): the grammar reads all as path.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `library/app`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as written, such as `sha256:…`.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `ParseDockerRef` of distribution/reference.
    pub fn canonical(&self) -> Reference {
        let suffix = match (&self.digest, &self.tag) {
            (Some(digest), _) => Suffix::Digest(digest),
            (None, Some(tag)) => Suffix::Tag(tag),
            (None, None) => Suffix::Tag(DEFAULT_TAG),
        };
        let repository = match self.domain.as_str() {
            "" => self.path.clone(),
            domain => format!("{domain}/{}", self.path),
        };
        let path_at = repository.len() - self.path.len();
        Reference::assemble(&repository, path_at, suffix)
    }
}

enum Suffix<'a> {
    Tag(&'a str),
    Digest(&'a str),
}

/// The canonical name of an image: domain, path, and either a digest or a tag (`latest` where
/// none was written; a tag beside a digest is dropped). Two spellings of one image are equal.
/// Cheap to clone; equality, order and hash are those of the text.
#[derive(Clone)]
pub struct Reference {
    text: Arc<str>,
    /// Where the path begins: 0, or behind the domain's slash.
    path_at: usize,
    /// Where the repository ends: at the `:` of the tag or the `@` of the digest.
    repository_end: usize,
}

impl Reference {
    /// Parses any spelling.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Ok(Named::parse(text)?.canonical())
    }

    /// Whether [`Reference::parse`] accepts the text; copies nothing of it.
    pub fn check(text: &str) -> Result<(), ReferenceError> {
        grammar::parse(text).map(drop)
    }

    /// The canonical text, `docker.io/library/app:latest`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `docker.io`. Empty in the case that [`Named::domain`] describes.
    pub fn domain(&self) -> &str {
        self.text[..self.path_at].trim_end_matches('/')
    }

    /// `library/app`.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..self.repository_end]
    }

    /// `docker.io/library/app`.
    pub fn repository(&self) -> &str {
        &self.text[..self.repository_end]
    }

    /// The tag, when there is no digest.
    pub fn tag(&self) -> Option<&str> {
        self.text[self.repository_end..].strip_prefix(':')
    }

    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        self.text[self.repository_end..].strip_prefix('@')
    }

    /// The same repository, by this digest (`sha256:…`).
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self::assemble(self.repository(), self.path_at, Suffix::Digest(digest))
    }

    fn assemble(repository: &str, path_at: usize, suffix: Suffix<'_>) -> Self {
        let (separator, suffix) = match suffix {
            Suffix::Tag(tag) => (":", tag),
            Suffix::Digest(digest) => ("@", digest),
        };
        let text = [repository, separator, suffix].concat().into();
        Self { text, path_at, repository_end: repository.len() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({})", self.as_str())
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Reference {}

impl PartialOrd for Reference {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Reference {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Reference {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// So that a map by `Reference` can be asked with a canonical text.
impl Borrow<str> for Reference {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
