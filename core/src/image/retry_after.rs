//! Reads the `Retry-After` of a rate limit from the text of the registry's answer: runtimes do not
//! report the header.

use super::Reference;
use crate::runtime::without_names;

/// The requested delay in the text of a refusal of `image`, in milliseconds. The image's names in it
/// have no influence.
pub fn retry_after_ms(text: &str, image: &Reference) -> Option<f64> {
    let text = without_names(text, image);
    let keys = ["retry-after", "retry after", "retry in", "try again in", "try again after"];
    keys.iter().find_map(|key| {
        let (_, after) = text.split_once(key)?;
        let after = after.trim_start_matches([':', '=', '"', '\'', ' ']);
        let digits = after.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(after.len());
        let (number, unit) = after.split_at(digits);
        let unit = unit.trim_start();
        let unit = unit.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
        let factor = match unit {
            "ns" | "us" | "µs" | "μs" => 0.001,
            "ms" | "milliseconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60_000.0,
            "h" | "hour" | "hours" => 3_600_000.0,
            _ => 1_000.0,
        };
        Some(number.parse::<f64>().ok()? * factor)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_retry_after_is_read() {
        let image = Reference::parse("ghcr.io/team/app:v1").unwrap();
        let table = [
            ("toomanyrequests: retry-after: 217.283µs, allowed: 44000/minute", Some(0.217283)),
            ("toomanyrequests: retry after 30 seconds", Some(30_000.0)),
            ("429 Too Many Requests (Retry-After: 120)", Some(120_000.0)),
            ("rate limit exceeded, try again in 5m", Some(300_000.0)),
            ("Please retry in 1.5 hours.", Some(5_400_000.0)),
            ("\"retry-after\": \"7\"", Some(7_000.0)),
            ("toomanyrequests: You have reached your pull rate limit.", None),
            ("retry after a while", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(retry_after_ms(text, &image), expected, "{text}");
        }
    }
}
