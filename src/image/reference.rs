//! STUB, owned by helper 1.

/// A parsed and normalised image name, exactly as written otherwise: may carry tag and digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// The canonical name of an image: domain, path, and either a digest or a tag (`latest` where
/// none was written; a tag beside a digest is dropped). Two spellings of one image are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    text: String,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stub")]
pub struct ReferenceError;

impl Named {
    /// `ParseNormalizedNamed` of distribution/reference.
    pub fn parse(_text: &str) -> Result<Self, ReferenceError> {
        todo!()
    }
    /// `docker.io`, `registry.example.com:5000`.
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
        todo!()
    }
}

impl Reference {
    /// Parses any spelling.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Ok(Named::parse(text)?.canonical())
    }
    /// The canonical text, `docker.io/library/app:latest`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// `docker.io`.
    pub fn domain(&self) -> &str {
        todo!()
    }
    /// `library/app`.
    pub fn path(&self) -> &str {
        todo!()
    }
    /// `docker.io/library/app`.
    pub fn repository(&self) -> &str {
        todo!()
    }
    /// The tag, when there is no digest.
    pub fn tag(&self) -> Option<&str> {
        todo!()
    }
    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        todo!()
    }
    /// The same repository, by this digest (`sha256:…`).
    pub fn with_digest(&self, _digest: &str) -> Result<Self, ReferenceError> {
        todo!()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
