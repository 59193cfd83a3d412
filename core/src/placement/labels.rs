//! Which texts are keys and values of labels.

use crate::api::names::is_dns_subdomain;

/// The longest name in a label's key, and the longest value.
const LABEL_MAX: usize = 63;

/// A qualified name: `name`, or `subdomain/name`.
pub(super) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

pub(super) fn is_label_value(value: &str) -> bool {
    let end = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && end(bytes.first())
        && end(bytes.last())
}
