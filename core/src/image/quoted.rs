//! Text from outside, as it may stand in a message, a log line or a status: on one line, without
//! characters that a terminal obeys or hides, and bounded. What is counted is what is printed, in
//! bytes and after escaping: an escape of one character has up to ten bytes.

use std::fmt;

/// Longest quoted text as printed, with its quotes. Every name of a Kubernetes object fits.
pub const QUOTED_MAX: usize = 256;
/// Longest message of another program (an API server, a runtime, a parser) within one of ours.
pub const MESSAGE_MAX: usize = 1_024;
/// Stands where text was left out.
const MARK: char = '…';

/// `"text"`, escaped as in Rust source and at most [`QUOTED_MAX`] bytes long.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(String);

/// Quotes a value that somebody wrote: an image reference, a name, a flag's value.
pub fn quoted(text: &str) -> Quoted {
    let mut printed = String::from('"');
    push_bounded(&mut printed, text, QUOTED_MAX - 1, |printed, c| match c {
        '\'' => printed.push(c),
        c => printed.extend(c.escape_debug()),
    });
    printed.push('"');
    Quoted(printed)
}

/// Text that is a message already, without quotes: at most `max` bytes, a space in place of each
/// character that cannot be printed.
pub fn printable(text: &str, max: usize) -> String {
    let mut printed = String::new();
    push_bounded(&mut printed, text.trim(), max, |printed, c| match c {
        '\'' | '"' | '\\' => printed.push(c),
        c if c.escape_debug().len() > 1 => printed.push(' '),
        c => printed.push(c),
    });
    printed.truncate(printed.trim_end().len());
    printed
}

/// Pushes characters while all of `printed` has at most `max` bytes. A character that no longer
/// fits is left out whole, with all that follows it, and the mark stands in its place.
fn push_bounded(printed: &mut String, text: &str, max: usize, push: impl Fn(&mut String, char)) {
    // Up to here there is room for the mark.
    let mut end = printed.len();
    for c in text.chars() {
        push(printed, c);
        if printed.len() > max {
            printed.truncate(end);
            if end + MARK.len_utf8() <= max {
                printed.push(MARK);
            }
            return;
        }
        if printed.len() + MARK.len_utf8() <= max {
            end = printed.len();
        }
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn in_errors_that_are_debugged_it_is_as_printed() {
        let text = super::quoted("a\nb");
        assert_eq!(format!("{text:?}"), text.to_string());
    }

    use proptest::prelude::*;

    use super::*;

    /// What may do something to a terminal, or is not seen in it.
    fn is_odd(c: char) -> bool {
        let is_format = matches!(c,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
        c.is_control() || is_format || (c.is_whitespace() && c != ' ')
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["", "app:v1", "registry.example.com/täam/app", "it's", "日本"] {
            assert_eq!(quoted(text).to_string(), format!("\"{text}\""));
            assert_eq!(printable(text, 40), text);
        }
        assert_eq!(quoted(&"n".repeat(253)).to_string(), format!("\"{}\"", "n".repeat(253)));
    }

    #[test]
    fn odd_characters_are_escaped_or_left_out() {
        let text = "a\n\u{1b}[2J\u{202e}\"\\b";
        assert_eq!(quoted(text).to_string(), r#""a\n\u{1b}[2J\u{202e}\"\\b""#);
        assert_eq!(printable(text, 40), "a  [2J \"\\b");
        assert_eq!(printable(" \r\n a\u{0}", 40), "a");
    }

    #[test]
    fn length_is_that_of_what_is_printed() {
        let longest = [&"n".repeat(QUOTED_MAX - 5), "…"].concat();
        assert_eq!(quoted(&"n".repeat(QUOTED_MAX - 1)).to_string(), format!("\"{longest}\""));
        // 10 bytes each when escaped, 4 when not: no escape is cut in two.
        let printed = quoted(&"\u{e0001}".repeat(QUOTED_MAX)).to_string();
        assert_eq!(printed, format!("\"{}…\"", r"\u{e0001}".repeat(27)));
        assert_eq!(printable("aää", 5), "aää");
        assert_eq!(printable("aääb", 5), "a…");
        assert_eq!(printable("abc", 2), "");
    }

    proptest! {
        #[test]
        fn whatever_the_text_it_is_bounded_and_printable(
            text in "(?s).{0,600}|[\\x00-\\x1f\u{202e}]{0,300}|\\PC{0,600}",
            max in 0..700_usize,
        ) {
            for (printed, max) in
                [(quoted(&text).to_string(), QUOTED_MAX), (printable(&text, max), max)]
            {
                prop_assert!(printed.len() <= max, "{} bytes: {printed}", printed.len());
                prop_assert!(!printed.contains(is_odd), "{printed:?}");
            }
            let printed = quoted(&text).to_string();
            prop_assert!(printed.len() >= 2 && printed.starts_with('"') && printed.ends_with('"'));
        }
    }
}
