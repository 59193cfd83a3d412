//! The grammar itself: splits a text into domain, path, tag and digest, and judges each part.
//! <https://github.com/distribution/reference/blob/v0.6.0/reference.go> has it in full.

use std::borrow::Cow;

use super::error::ReferenceError;
use crate::image::quoted::quoted;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const LOCALHOST: &str = "localhost";
const OFFICIAL_PREFIX: &str = "library/";

const PATH_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// Hexadecimal digits of the algorithms that can be computed; all others are refused.
const ALGORITHMS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub domain: &'a str,
    pub path: Cow<'a, str>,
    pub tag: Option<&'a str>,
    pub digest: Option<&'a str>,
}

pub(super) fn parse(text: &str) -> Result<Parts<'_>, ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if is_identifier(text) {
        return Err(ReferenceError::Identifier { text: quoted(text) });
    }
    split_and_check(text).map_err(|error| more_helpful(text).unwrap_or(error))
}

fn split_and_check(text: &str) -> Result<Parts<'_>, ReferenceError> {
    let (domain, remainder) = split_domain(text);
    // Neither ':' nor '@' is part of a path, and '@' is part of no tag.
    let (name_and_tag, digest) = cut(remainder, '@');
    let (written_path, tag) = cut(name_and_tag, ':');

    let is_official = domain == DEFAULT_DOMAIN && !remainder.contains('/');
    let path = if is_official {
        Cow::Owned(format!("{OFFICIAL_PREFIX}{written_path}"))
    } else {
        Cow::Borrowed(written_path)
    };
    check_path(written_path, text)?;

    // What looks like a host but cannot be one may still be the first part of a path: the
    // grammar's domain is optional, so `my_host.example/app` is a path without a domain.
    let (domain, path) = if is_domain(domain) {
        (domain, path)
    } else if is_component(domain) {
        ("", Cow::Borrowed(&text[..domain.len() + 1 + written_path.len()]))
    } else {
        let (domain, text) = (quoted(domain), quoted(text));
        return Err(ReferenceError::Domain { domain, text });
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(ReferenceError::Tag { tag: quoted(tag), text: quoted(text) });
    }
    if path.len() > PATH_MAX {
        return Err(ReferenceError::TooLong { length: path.len(), text: quoted(text) });
    }
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    Ok(Parts { domain, path, tag, digest })
}

/// Docker's rule for what stands before the first slash: a registry, or part of a Docker Hub name.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == LOCALHOST
                || first.contains(['.', ':'])
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn cut(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn check_path(path: &str, text: &str) -> Result<(), ReferenceError> {
    for component in path.split('/') {
        if is_component(component) {
            continue;
        }
        let text = quoted(text);
        return Err(if path.chars().any(char::is_uppercase) {
            ReferenceError::UpperCase { name: quoted(path), text }
        } else if component.is_empty() {
            ReferenceError::EmptyComponent { text }
        } else {
            ReferenceError::Component { component: quoted(component), text }
        });
    }
    Ok(())
}

/// `[a-f0-9]{64}`
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && is_lower_hex(text)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `host[:port]`
fn is_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            !address.is_empty()
                && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (host, port) = cut(domain, ':');
    host.split('.').all(is_domain_component) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !component.starts_with('-')
        && !component.ends_with('-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let length = rest.iter().take_while(|&&byte| is_alphanumeric(byte)).count();
        if length == 0 {
            return false;
        }
        rest = &rest[length..];
        let length = rest.iter().take_while(|&&byte| !is_alphanumeric(byte)).count();
        let (separator, after) = rest.split_at(length);
        match separator {
            b"" => return true,
            b"." | b"_" | b"__" => {}
            hyphens if hyphens.iter().all(|&byte| byte == b'-') => {}
            _ => return false,
        }
        rest = after;
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

/// A well-formed digest of a supported algorithm, with the right number of digits.
pub(in crate::image) fn check_digest(digest: &str) -> Result<(), ReferenceError> {
    let malformed = || ReferenceError::Digest { digest: quoted(digest) };
    let (algorithm, encoded) = digest.split_once(':').ok_or_else(malformed)?;
    let Some(&(algorithm, right)) = ALGORITHMS.iter().find(|(known, _)| *known == algorithm) else {
        let is_algorithm = algorithm.split(['-', '_', '+', '.']).all(|component| {
            component.starts_with(|c: char| c.is_ascii_alphabetic())
                && component.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        return Err(if is_algorithm {
            ReferenceError::DigestAlgorithm { algorithm: quoted(algorithm) }
        } else {
            malformed()
        });
    };
    if !is_lower_hex(encoded) {
        return Err(malformed());
    }
    if encoded.len() != right {
        let digest = quoted(digest);
        return Err(ReferenceError::DigestLength {
            algorithm,
            length: encoded.len(),
            right,
            digest,
        });
    }
    Ok(())
}

/// For a text that was refused: names the slips that are common and that the part in which the
/// grammar fails would explain badly.
fn more_helpful(text: &str) -> Option<ReferenceError> {
    for scheme in ["https://", "http://", "docker://", "oci://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            let (text, rest) = (quoted(text), quoted(rest));
            return Some(ReferenceError::Scheme { text, rest });
        }
    }
    let (index, character) =
        text.chars().enumerate().find(|(_, c)| c.is_whitespace() || c.is_control())?;
    let text = quoted(text);
    Some(ReferenceError::WhiteSpace { character, position: index + 1, text })
}
