//! Metrics of the warmer.

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use imagewarm_core::api::Reason;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ReasonLabel(Reason);

impl EncodeLabelValue for ReasonLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.0.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    reason: ReasonLabel,
}

/// Metrics of a warmer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct WarmerMetrics {
    /// 1 while the stream to the controller is open.
    pub connected: Gauge,
    /// Streams that could not be opened, or ended.
    pub stream_failures: Counter,
    /// Assignments of this node.
    pub assignments: Gauge,
    /// Pulls that run, or wait for their grant.
    pub pulls_running: Gauge,
    outcomes: Family<PullLabels, Counter>,
}

impl WarmerMetrics {
    /// Metrics registered with `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = WarmerMetrics::default();
        let all = &metrics;
        registry.register(
            "warmer_connected",
            "1 while the stream to the controller is open",
            all.connected.clone(),
        );
        registry.register(
            "warmer_stream_failures",
            "Streams to the controller that could not be opened, or ended",
            all.stream_failures.clone(),
        );
        registry.register(
            "warmer_assignments",
            "Images that this node is to hold",
            all.assignments.clone(),
        );
        registry.register(
            "warmer_pulls_running",
            "Pulls that run, or wait for their grant",
            all.pulls_running.clone(),
        );
        registry.register(
            "warmer_outcomes",
            "Looks and pulls that ended with news, by reason",
            all.outcomes.clone(),
        );
        metrics
    }

    pub(super) fn outcome(&self, reason: &str) {
        if let Some(reason) = Reason::from_name(reason) {
            self.outcomes.get_or_create(&PullLabels { reason: ReasonLabel(reason) }).inc();
        }
    }
}
