//! What `CHANGELOG.md` says of one version. It is written as Keep a Changelog describes.

use anyhow::{Result, bail};

/// The section of a version without its heading. A version that is released has one, with a date.
pub(crate) fn notes(changelog: &str, version: &str) -> Result<String> {
    let heading = format!("## [{version}] - ");
    let mut lines = changelog.lines().skip_while(|line| !line.starts_with(&heading));
    let Some(date) = lines.next().and_then(|line| line.strip_prefix(&heading)) else {
        bail!("CHANGELOG.md has no section \"{heading}YYYY-MM-DD\"");
    };
    if date.parse::<jiff::civil::Date>().is_err() {
        bail!("CHANGELOG.md dates {version} {date:?}: it must be YYYY-MM-DD");
    }
    let is_of_it = |line: &&str| !line.starts_with("## ") && !line.starts_with("[");
    let section: Vec<&str> = lines.take_while(is_of_it).collect();
    let section = section.join("\n").trim().to_owned();
    if section.is_empty() {
        bail!("the section of {version} in CHANGELOG.md is empty");
    }
    Ok(section + "\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "# Changelog\n\n## [Unreleased]\n\n- next\n\n## [0.2.0] - 2026-12-01\n\n\
        ### Added\n\n- one\n\n## [0.1.0] - December\n\n- first\n\n## [0.0.1] - 2026-01-01\n\n[0.2.0]: x\n";

    #[test]
    fn the_section_of_a_version_is_found() {
        assert_eq!(notes(TEXT, "0.2.0").unwrap(), "### Added\n\n- one\n");
        for (version, error) in [
            ("0.3.0", "has no section \"## [0.3.0] - YYYY-MM-DD\""),
            ("0.1.0", "dates 0.1.0 \"December\""),
            ("0.0.1", "the section of 0.0.1 in CHANGELOG.md is empty"),
        ] {
            let message = notes(TEXT, version).unwrap_err().to_string();
            assert!(message.contains(error), "{version}: {message}");
        }
    }

    #[test]
    fn this_version_has_a_section() {
        let text = std::fs::read_to_string(crate::workspace().join("CHANGELOG.md")).unwrap();
        assert!(notes(&text, crate::source::VERSION).is_ok());
    }
}
