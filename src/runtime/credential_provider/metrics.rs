//! Metrics of the calls of credential providers.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::metrics::LabelValue;
use imagewarm_core::image::credential_provider::{CallResult, ProviderFailure};

/// Upper bounds in seconds, from a plugin that computes to one that is killed.
const SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    result: LabelValue<CallResult>,
}

/// Metrics of credential providers. Clones share their values.
#[derive(Clone, Debug)]
pub struct CredentialProviderMetrics {
    calls: Family<CallLabels, Counter>,
    seconds: Histogram,
}

impl Default for CredentialProviderMetrics {
    fn default() -> Self {
        CredentialProviderMetrics { calls: Family::default(), seconds: Histogram::new(SECONDS) }
    }
}

impl CredentialProviderMetrics {
    /// Metrics registered with `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = CredentialProviderMetrics::default();
        // One without calls is 0.
        for result in CallResult::ALL {
            drop(metrics.calls.get_or_create(&CallLabels { result: LabelValue(*result) }));
        }
        registry.register(
            "credential_provider_calls",
            "Calls of credential provider plugins, by result; answers from the cache are not counted",
            metrics.calls.clone(),
        );
        registry.register(
            "credential_provider_call_seconds",
            "Duration of the calls of credential provider plugins",
            metrics.seconds.clone(),
        );
        metrics
    }

    pub(super) fn called(&self, failure: Option<&ProviderFailure>, took: Duration) {
        let result = failure.map_or(CallResult::Answered, ProviderFailure::result);
        self.calls.get_or_create(&CallLabels { result: LabelValue(result) }).inc();
        self.seconds.observe(took.as_secs_f64());
    }
}
