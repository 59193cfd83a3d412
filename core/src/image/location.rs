//! Where a credential applies: registry names as URLs, and the matching of host patterns, to the
//! letter of Go's `net/url`, `net.SplitHostPort` and `path/filepath.Match`, which kubelet uses, for pull
//! secrets and for credential providers alike. Works on bytes, since percent-escapes can spell any.

/// Host and path of a registry name or of an image.
#[derive(Clone, Debug)]
pub(super) struct Location {
    host: Vec<u8>,
    path: Vec<u8>,
}

/// The pattern that a registry name of a pull secret stands for: without scheme, without Docker's
/// `/v1/` and `/v2/`. `None` when it is no URL.
pub(super) fn pattern_of(registry: &str) -> Option<Vec<u8>> {
    let rest = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://"));
    let Location { host, path } = Location::parse(rest.unwrap_or(registry).as_bytes())?;
    let path = match path.as_slice() {
        [b'/', b'v', b'1' | b'2', rest @ ..] if rest.starts_with(b"/") => rest,
        path => path,
    };
    let path = if path == b"/" { b"" } else { path };
    Some([&host, path].concat())
}

impl Location {
    /// What Go's `url.Parse` makes of `https://` and this text.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (text, fragment) = cut(text, b'#');
        if text.iter().any(|byte| byte.is_ascii_control()) {
            return None;
        }
        unescape(fragment, Part::Other)?;
        let (text, _query) = cut(text, b'?');
        let (authority, path) = text.split_at(find(text, b'/').unwrap_or(text.len()));
        let host = match authority.iter().rposition(|&byte| byte == b'@') {
            Some(at) if is_userinfo(&authority[..at]) => &authority[at + 1..],
            Some(_) => return None,
            None => authority,
        };
        Some(Self { host: parse_host(host)?, path: unescape(path, Part::Other)? })
    }

    /// kubelet's `URLsMatch`: same port, as many host labels, each label's pattern matches, and
    /// the path is a prefix (by bytes, not by components).
    pub(crate) fn matches(&self, target: &Self) -> bool {
        let (host, port) = split_port(&self.host);
        let (target_host, target_port) = split_port(&target.host);
        let labels = host.split(|&byte| byte == b'.');
        let target_labels = target_host.split(|&byte| byte == b'.');
        port == target_port
            && labels.clone().count() == target_labels.clone().count()
            && target.path.starts_with(&self.path)
            && labels.zip(target_labels).all(|(pattern, label)| glob(pattern, label) == Some(true))
    }
}

fn find(text: &[u8], byte: u8) -> Option<usize> {
    text.iter().position(|&other| other == byte)
}

/// Before and after the first such byte; nothing after when there is none.
fn cut(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    find(text, byte).map_or((text, b""), |at| (&text[..at], &text[at + 1..]))
}

fn is_userinfo(text: &[u8]) -> bool {
    let is_allowed =
        |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    text.iter().all(is_allowed) && unescape(text, Part::Other).is_some()
}

fn parse_host(host: &[u8]) -> Option<Vec<u8>> {
    match host.iter().rposition(|&byte| byte == b'[') {
        Some(0) => parse_ip_literal(host),
        Some(_) => None,
        None => match find(host, b':') {
            Some(colon) if !is_optional_port(&host[colon..]) => None,
            _ => unescape(host, Part::Host),
        },
    }
}

/// `[IPv6 address]` or `[IPv6 address%25zone]`, and a port where there is one.
fn parse_ip_literal(host: &[u8]) -> Option<Vec<u8>> {
    let close = host.iter().rposition(|&byte| byte == b']')?;
    let (inner, port) = (&host[1..close], &host[close + 1..]);
    if !is_optional_port(port) {
        return None;
    }
    let zone = inner.windows(3).position(|window| window == b"%25").unwrap_or(inner.len());
    let mut address = unescape(&inner[..zone], Part::Host)?;
    address.extend(unescape(&inner[zone..], Part::Zone)?);

    let text = std::str::from_utf8(&address).ok();
    let (ip, zone) = match find(&address, b'%') {
        Some(at) => (std::str::from_utf8(&address[..at]).ok()?, Some(&address[at + 1..])),
        None => (text?, None),
    };
    if zone.is_some_and(<[u8]>::is_empty) || ip.parse::<std::net::Ipv6Addr>().is_err() {
        return None;
    }
    Some([b"[", address.as_slice(), b"]", port].concat())
}

/// Nothing, or a colon and any number of digits, even none.
fn is_optional_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Host,
    Zone,
    /// Path, user and fragment: any byte may be escaped, and any may stand unescaped.
    Other,
}

fn unescape(text: &[u8], part: Part) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        if *byte != b'%' {
            if part != Part::Other && byte.is_ascii() && !is_host_byte(*byte) {
                return None;
            }
            plain.push(*byte);
            rest = after;
            continue;
        }
        let [high, low, after @ ..] = after else { return None };
        let value = hex(*high)? << 4 | hex(*low)?;
        let is_allowed = match part {
            _ if value == b'%' => true,
            Part::Host => !value.is_ascii(),
            Part::Zone => value == b' ' || is_host_byte(value),
            Part::Other => true,
        };
        if !is_allowed {
            return None;
        }
        plain.push(value);
        rest = after;
    }
    Some(plain)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$&'()*+,;=:[]<>\"-_.~".contains(&byte)
}

/// Go's `net.SplitHostPort`; where that fails all is host, and there is no port.
fn split_port(host_port: &[u8]) -> (&[u8], &[u8]) {
    let whole = (host_port, b"".as_slice());
    let Some(colon) = host_port.iter().rposition(|&byte| byte == b':') else { return whole };
    let port = &host_port[colon + 1..];
    if host_port.first() == Some(&b'[') {
        return match find(host_port, b']') {
            Some(end)
                if end + 1 == colon
                    && find(&host_port[1..], b'[').is_none()
                    && find(&host_port[end + 1..], b']').is_none() =>
            {
                (&host_port[1..end], port)
            }
            _ => whole,
        };
    }
    let host = &host_port[..colon];
    if host.contains(&b':') || host_port.contains(&b'[') || host_port.contains(&b']') {
        return whole;
    }
    (host, port)
}

/// Go's `filepath.Match` for one host label: `*`, `?`, `[class]` and `\` escapes. `None` for a
/// malformed pattern.
fn glob(mut pattern: &[u8], mut name: &[u8]) -> Option<bool> {
    'pattern: while !pattern.is_empty() {
        let stars = pattern.iter().take_while(|&&byte| byte == b'*').count();
        let (chunk, rest) = pattern[stars..].split_at(chunk_length(&pattern[stars..]));
        pattern = rest;
        if stars > 0 && chunk.is_empty() {
            return Some(!name.contains(&b'/'));
        }
        if let Some(after) = match_chunk(chunk, name)?
            && (after.is_empty() || !pattern.is_empty())
        {
            name = after;
            continue;
        }
        if stars > 0 {
            let mut skipped = 0;
            while skipped < name.len() && name[skipped] != b'/' {
                skipped += 1;
                if let Some(after) = match_chunk(chunk, &name[skipped..])?
                    && (after.is_empty() || !pattern.is_empty())
                {
                    name = after;
                    continue 'pattern;
                }
            }
        }
        return Some(false);
    }
    Some(name.is_empty())
}

/// Up to the next star that is not escaped and not in a class.
fn chunk_length(pattern: &[u8]) -> usize {
    let mut in_class = false;
    let mut at = 0;
    while at < pattern.len() {
        match pattern[at] {
            b'\\' => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => return at,
            _ => {}
        }
        at += 1;
    }
    pattern.len()
}

/// What is left of `name` behind the chunk; `Some(None)` when it does not match, `None` when the
/// chunk is malformed, which is found out even behind a mismatch.
fn match_chunk<'n>(mut chunk: &[u8], name: &'n [u8]) -> Option<Option<&'n [u8]>> {
    let mut rest = Some(name);
    while let [first, after @ ..] = chunk {
        chunk = after;
        let current = rest.filter(|rest| !rest.is_empty());
        rest = match first {
            b'[' => {
                let character = current.map(decode_char);
                let is_member = match_class(&mut chunk, character.map_or('\0', |(c, _)| c))?;
                current.zip(character).filter(|_| is_member).map(|(rest, (_, n))| &rest[n..])
            }
            b'?' => current.filter(|rest| rest[0] != b'/').map(|rest| &rest[decode_char(rest).1..]),
            b'\\' => {
                let (literal, after) = chunk.split_first()?;
                chunk = after;
                current.and_then(|rest| rest.strip_prefix(&[*literal]))
            }
            literal => current.and_then(|rest| rest.strip_prefix(&[*literal])),
        };
    }
    Some(rest)
}

/// Reads a class up to its `]`, and returns whether the character belongs to it.
fn match_class(chunk: &mut &[u8], character: char) -> Option<bool> {
    let is_negated = chunk.first() == Some(&b'^');
    if is_negated {
        *chunk = &chunk[1..];
    }
    let mut is_member = false;
    let mut ranges = 0;
    loop {
        if ranges > 0
            && let [b']', after @ ..] = chunk
        {
            *chunk = after;
            return Some(is_member != is_negated);
        }
        let low = class_char(chunk)?;
        let mut high = low;
        if let [b'-', after @ ..] = chunk {
            *chunk = after;
            high = class_char(chunk)?;
        }
        is_member |= (low..=high).contains(&character);
        ranges += 1;
    }
}

fn class_char(chunk: &mut &[u8]) -> Option<char> {
    if matches!(chunk.first()?, b'-' | b']') {
        return None;
    }
    if let [b'\\', after @ ..] = chunk {
        *chunk = after;
    }
    chunk.first()?;
    let (character, length) = decode_char(chunk);
    let is_invalid = character == char::REPLACEMENT_CHARACTER && length == 1;
    *chunk = &chunk[length..];
    (!is_invalid && !chunk.is_empty()).then_some(character)
}

/// The first character and its length; a byte that is not UTF-8 counts as one.
fn decode_char(text: &[u8]) -> (char, usize) {
    let first = text.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
    first.map_or((char::REPLACEMENT_CHARACTER, 1), |character| (character, character.len_utf8()))
}
