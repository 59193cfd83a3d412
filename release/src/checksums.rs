//! SHA-256 digests, and the file `SHA256SUMS` that `sha256sum --check` reads.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// The digest in hexadecimal digits.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line for each file name.
pub(crate) fn sums(files: &BTreeMap<String, Vec<u8>>) -> String {
    files.iter().map(|(name, content)| format!("{}  {name}\n", sha256(content))).collect()
}
