//! The registry of metrics and its text form. Each module registers its own metrics once, at
//! start. Label values come from enums only, so the number of series is bounded.

use std::fmt;

use imagewarm_core::label::Label;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A label's value: the name of an enum's variant, so that the number of values is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LabelValue<L>(pub L);

impl<L: Label> EncodeLabelValue for LabelValue<L> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_str().encode(encoder)
    }
}

/// A label's value: the name of an enum's variant, or `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionalLabelValue<L>(pub Option<L>);

impl<L: Label> EncodeLabelValue for OptionalLabelValue<L> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.map_or("None", L::as_str).encode(encoder)
    }
}

/// Counts something in a gauge as long as it lives, however it ends.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An empty registry. It puts `imagewarm_` before every name.
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
    fn names_have_the_prefix() {
        let mut registry = registry();
        let counter = Counter::<u64>::default();
        registry.register("things", "Things seen", counter.clone());
        counter.inc();
        let text = encode(&registry).unwrap();
        assert!(text.contains("\nimagewarm_things_total 1\n") && text.ends_with("# EOF\n"));
    }
}
