//! An error and its causes, on one line.

use std::error::Error;

use crate::image::quoted::{MESSAGE_MAX, printable};

/// The text of `error` and of its sources, without those whose text is in it already: many errors
/// repeat their source, and `client error (Connect)` alone does not say that the connection was
/// refused. At most [`MESSAGE_MAX`] bytes.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    printable(&text, MESSAGE_MAX)
}

/// The text of the last source of `error`: what the libraries in between wrap.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    printable(&cause.to_string(), MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Option<Box<Link>> {
        let (text, rest) = texts.split_first()?;
        Some(Box::new(Link { text, source: chain(rest) }))
    }

    #[test]
    fn causes_follow_once_and_on_one_line() {
        let text = |texts: &[&'static str]| chain(texts).map(|link| error_chain(&*link));
        assert_eq!(text(&["a"]).as_deref(), Some("a"));
        assert_eq!(text(&["a", "b", "c"]).as_deref(), Some("a: b: c"));
        assert_eq!(text(&["a: b", "b", "c\n"]).as_deref(), Some("a: b: c"));
        let root = |texts: &[&'static str]| chain(texts).map(|link| root_cause(&*link));
        assert_eq!(root(&["a"]).as_deref(), Some("a"));
        assert_eq!(root(&["a", "b", "c\n"]).as_deref(), Some("c"));
    }
}
