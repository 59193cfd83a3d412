//! Which versions of Kubernetes are served.

/// The oldest Kubernetes minor version that has all that is used (selectable fields).
pub const OLDEST_MINOR: u32 = 32;

/// Whether an API server of this version is new enough. Some providers write the minor version as `32+`.
/// What cannot be read is given a try.
pub fn is_served(major: &str, minor: &str) -> bool {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u32>().ok()
    };
    match (number(major), number(minor)) {
        (Some(1), Some(minor)) => minor >= OLDEST_MINOR,
        (Some(0), _) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (major, minor, served) in [
            ("1", "31", false),
            ("1", "32", true),
            ("1", "36+", true),
            ("1", "9-gke", false),
            ("2", "0", true),
            ("1", "", true),
        ] {
            assert_eq!(is_served(major, minor), served, "{major}.{minor}");
        }
    }
}
