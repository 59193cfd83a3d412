//! Names that Kubernetes gives and accepts, as types, and the limits of an ImageWarm that two rooms
//! share.

use std::str::FromStr;

use crate::image::quoted::quoted;
use crate::shared_text::{from_any_text, shared_text};

/// Maximum number of pull secrets of one ImageWarm.
pub const MAX_PULL_SECRETS: usize = 16;
/// Maximum length of the names of all pull secrets of one ImageWarm together, in bytes. Without it they
/// could be four times as long as everything else that the leader keeps of it.
pub const MAX_PULL_SECRET_NAMES: usize = 1_024;
/// Maximum length of a DNS-1123 subdomain, in bytes.
pub const MAX_SUBDOMAIN: usize = 253;
/// Maximum length of a DNS-1123 label, in bytes.
pub const MAX_LABEL: usize = 63;

shared_text! {
    /// `metadata.uid` of an object, as the API server gave it. An ImageWarm's uid is also the identity of
    /// its assignment, on the leader and on the node.
    Uid
}
from_any_text!(Uid);

shared_text! {
    /// The name of a Node. That of an ImageWarm's spec is what somebody wrote there.
    NodeName
}
from_any_text!(NodeName);

shared_text! {
    /// The name of a Namespace that came from the network: a DNS-1123 label, so that it can stand in
    /// the path of a request.
    Namespace
}

/// A text that no Namespace can have as its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not the name of a Namespace (a DNS-1123 label: at most 63 of a-z, 0-9 and -)", quoted(.0))]
pub struct NotANamespace(String);

impl FromStr for Namespace {
    type Err = NotANamespace;

    fn from_str(text: &str) -> Result<Self, NotANamespace> {
        match is_dns_label(text) {
            true => Ok(Namespace(text.into())),
            false => Err(NotANamespace(text.to_owned())),
        }
    }
}

/// Whether `text` is a DNS-1123 label, as names of Namespaces are.
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && has_label_characters(text)
}

/// Whether `text` is a DNS-1123 subdomain, as names of most objects are: Nodes, Secrets,
/// ServiceAccounts. Unlike in the DNS itself, its parts may be longer than 63 characters.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(has_label_characters)
}

fn has_label_characters(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_namespace_is_a_dns_label() {
        assert_eq!("team-a".parse::<Namespace>().unwrap(), "team-a");
        let error = "../secrets".parse::<Namespace>().unwrap_err().to_string();
        let expected = "\"../secrets\" is not the name of a Namespace (a DNS-1123 label: at most 63 \
                        of a-z, 0-9 and -)";
        assert_eq!(error, expected);
    }

    #[test]
    fn labels_and_subdomains_follow_dns_1123() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "a-b", "node-1", &longest] {
            assert!(is_dns_label(good) && is_dns_subdomain(good), "{good}");
        }
        for bad in ["", "-", "a-", "-a", "A", "a_b", "a b", "é", "a/b", "a\n", "a%2e", "..", "a..b"]
        {
            assert!(!is_dns_label(bad) && !is_dns_subdomain(bad), "{bad:?}");
        }
        let (long_label, longest) = ("a".repeat(64), "a".repeat(253));
        for subdomain in ["a.b", "ip-10-0-0-1.ec2.internal", &long_label, &longest] {
            assert!(is_dns_subdomain(subdomain) && !is_dns_label(subdomain), "{subdomain}");
        }
        assert!(!is_dns_subdomain(&"a".repeat(254)));
        assert!(!is_dns_subdomain("a.-b") && !is_dns_subdomain("a.") && !is_dns_subdomain(".a"));
    }
}
