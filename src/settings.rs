//! How values of flags are read, the same for all programs.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads `5s`, `1m30s`, `PT5S`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: use a positive one such as 5s or 1m30s");
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_a_positive_value() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        for bad in ["", "5", "-5s", "0s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
