//! The taint that holds new nodes until they are warm, as a setting.

use std::str::FromStr;

use super::labels::is_label_key;
use crate::image::quoted::quoted;

/// The key that the documentation and the overlay use.
pub const GATE_TAINT: &str = "caching.knative.dev/warming";

/// Key of the taint; `None`, written as nothing, for no gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateTaint(pub Option<String>);

/// Why a text is no key of a taint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no key of a taint: use one such as {GATE_TAINT}, without value and effect")]
pub struct GateTaintError(String);

impl FromStr for GateTaint {
    type Err = GateTaintError;

    fn from_str(text: &str) -> Result<Self, GateTaintError> {
        match text.trim() {
            "" => Ok(GateTaint(None)),
            key if is_label_key(key) => Ok(GateTaint(Some(key.to_owned()))),
            other => Err(GateTaintError(quoted(other).to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_alone_or_nothing() {
        for key in [GATE_TAINT, "warming", "startup-taint.cluster-autoscaler.kubernetes.io/warming"]
        {
            assert_eq!(key.parse(), Ok(GateTaint(Some(key.into()))));
        }
        assert_eq!(" ".parse(), Ok(GateTaint(None)));
        for wrong in ["a/b:NoSchedule", "a/b=true", "a/b/c", "/b", "a/", "a*"] {
            assert!(wrong.parse::<GateTaint>().is_err(), "{wrong}");
        }
    }
}
