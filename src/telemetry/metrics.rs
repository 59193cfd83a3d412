//! The registry of metrics and its text form. Each module registers its own metrics once, at
//! start; label values come from enums only.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// Content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An empty registry; every name in it begins with `imagewarm_`.
pub fn registry() -> Registry {
    Registry::with_prefix("imagewarm")
}

/// All metrics in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    text::encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn names_carry_the_prefix() {
        let mut registry = registry();
        let counter = Counter::<u64>::default();
        registry.register("things", "Things seen", counter.clone());
        counter.inc();
        let text = encode(&registry).unwrap();
        assert!(text.contains("\nimagewarm_things_total 1\n") && text.ends_with("# EOF\n"));
    }
}
