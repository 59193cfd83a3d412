//! Digests of manifests.

use std::str::FromStr;

use super::reference::{ReferenceError, check_digest};
use crate::shared_text::shared_text;

shared_text! {
    /// The digest of an image's manifest or index, such as `sha256:…`: of an algorithm that runtimes
    /// know, with the right number of lower-case digits (OCI image-spec, "Digests").
    Digest
}

impl FromStr for Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        check_digest(text)?;
        Ok(Digest(text.into()))
    }
}
