//! Metrics of the warmer.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use imagewarm_core::api::Reason;

use crate::runtime::credential_provider::CredentialProviderMetrics;
use crate::telemetry::metrics::LabelValue;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    reason: LabelValue<Reason>,
}

/// The warmer's metrics. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct WarmerMetrics {
    /// 1 while the stream to the controller is open.
    pub connected: Gauge,
    /// Streams that could not be opened or were closed.
    pub stream_failures: Counter,
    /// Assignments of this node.
    pub assignments: Gauge,
    /// Pulls that run or wait for their permit.
    pub pulls_running: Gauge,
    outcomes: Family<PullLabels, Counter>,
    /// Calls of credential providers.
    pub credential_providers: CredentialProviderMetrics,
}

impl WarmerMetrics {
    /// Metrics registered with `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = WarmerMetrics {
            credential_providers: CredentialProviderMetrics::register(registry),
            ..WarmerMetrics::default()
        };
        let all = &metrics;
        registry.register(
            "warmer_connected",
            "1 while the stream to the controller is open",
            all.connected.clone(),
        );
        registry.register(
            "warmer_stream_failures",
            "Streams to the controller that could not be opened or were closed",
            all.stream_failures.clone(),
        );
        registry.register(
            "warmer_assignments",
            "Assignments of this node: images that it is to hold",
            all.assignments.clone(),
        );
        registry.register(
            "warmer_pulls_running",
            "Pulls that run or wait for their permit",
            all.pulls_running.clone(),
        );
        registry.register(
            "warmer_outcomes",
            "Presence checks and pulls whose outcome was reported, by reason",
            all.outcomes.clone(),
        );
        metrics
    }

    pub(super) fn outcome(&self, reason: &str) {
        if let Some(reason) = Reason::from_name(reason) {
            self.outcomes.get_or_create(&PullLabels { reason: LabelValue(reason) }).inc();
        }
    }
}
