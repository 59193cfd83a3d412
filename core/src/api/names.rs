//! What Kubernetes accepts as names, and the limits of an ImageWarm that two rooms share.

/// Maximum number of pull secrets of one ImageWarm.
pub const MAX_PULL_SECRETS: usize = 16;
/// Maximum length of a DNS-1123 subdomain, in bytes.
pub const MAX_SUBDOMAIN: usize = 253;
/// Maximum length of a DNS-1123 label, in bytes.
pub const MAX_LABEL: usize = 63;

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
    use super::*;

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
