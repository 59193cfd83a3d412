//! Errors of image references: each names the fault and the correct form.

use crate::image::quoted::Quoted;

/// Why a text is no image reference. `Display` says what is wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("image reference is empty: write a name such as app:v1 or registry.example.com/app:v1")]
    Empty,
    /// 64 hexadecimal digits, which Docker reads as the ID of a local image.
    #[error("{text} is an image ID (64 hexadecimal digits), not a name: write repository@sha256:…")]
    Identifier {
        /// The whole text.
        text: Quoted,
    },
    /// `https://…`.
    #[error("image reference has no scheme: write {rest} instead of {text}")]
    Scheme {
        /// The whole text.
        text: Quoted,
        /// What is left without the scheme.
        rest: Quoted,
    },
    /// White space or a control character anywhere.
    #[error("invalid character {character:?} at position {position} of {text}: remove it")]
    WhiteSpace {
        /// The character.
        character: char,
        /// Counted in characters, from 1.
        position: usize,
        /// The whole text.
        text: Quoted,
    },
    /// The part before the first slash is taken for a registry, and cannot be one.
    #[error(
        "invalid registry host {domain} in {text}: it is a DNS name, IPv4 address or [IPv6 \
         address], with :port where needed, such as registry.example.com:5000"
    )]
    Domain {
        /// The part before the first slash.
        domain: Quoted,
        /// The whole text.
        text: Quoted,
    },
    /// Upper case in the repository's path.
    #[error("repository name must be lower case: {name} in {text}")]
    UpperCase {
        /// The repository's name, as written.
        name: Quoted,
        /// The whole text.
        text: Quoted,
    },
    /// No repository name at all, or an empty part of one.
    #[error(
        "repository name has an empty part in {text}: write a name before, between and after slashes"
    )]
    EmptyComponent {
        /// The whole text.
        text: Quoted,
    },
    /// A character or separator that does not belong into a repository's path.
    #[error(
        "invalid repository name {component} in {text}: each part is lower case letters and digits, \
         separated by one period, one or two underscores, or hyphens"
    )]
    Component {
        /// The part between two slashes.
        component: Quoted,
        /// The whole text.
        text: Quoted,
    },
    /// The path of the repository is too long.
    #[error("repository name is {length} characters long, at most 255 are allowed: {text}")]
    TooLong {
        /// Length of the path.
        length: usize,
        /// The whole text.
        text: Quoted,
    },
    /// The tag is empty, too long, or has characters that tags cannot have.
    #[error(
        "invalid tag {tag} in {text}: a tag is 1 to 128 letters, digits, underscores, periods and \
         hyphens, and begins with none of the last two"
    )]
    Tag {
        /// What stands behind the colon.
        tag: Quoted,
        /// The whole text.
        text: Quoted,
    },
    /// The digest is not `algorithm:hexadecimal`.
    #[error("invalid digest {digest}: write algorithm:hexadecimal in lower case, such as sha256:…")]
    Digest {
        /// What stands behind the `@`.
        digest: Quoted,
    },
    /// A well-formed digest of an algorithm that no runtime knows.
    #[error("digest algorithm {algorithm} is not supported: use sha256, sha384 or sha512")]
    DigestAlgorithm {
        /// What stands before the digest's colon.
        algorithm: Quoted,
    },
    /// The digest has too few or too many digits.
    #[error("{algorithm} digest has {length} hexadecimal digits, not {right}: {digest}")]
    DigestLength {
        /// What stands before the digest's colon.
        algorithm: &'static str,
        /// Digits written.
        length: usize,
        /// Digits that the algorithm has.
        right: usize,
        /// What stands behind the `@`.
        digest: Quoted,
    },
}
