//! Metrics of container starts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::metrics::LabelValue;
use imagewarm_core::report::container_start::{Counted, StartResult};

/// Upper bounds of the lead, in seconds: from the moment before a first Pod to a week. Times are stored in
/// whole seconds.
const LEADS: [f64; 10] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0, 604_800.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartLabels {
    result: LabelValue<StartResult>,
}

/// Metrics of container starts.
#[derive(Clone, Debug)]
pub struct StartMetrics {
    starts: Family<StartLabels, Counter>,
    lead: Histogram,
    saved: Counter<f64, AtomicU64>,
    waited: Counter<f64, AtomicU64>,
}

impl StartMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = StartMetrics {
            starts: Family::default(),
            lead: Histogram::new(LEADS),
            saved: Counter::default(),
            waited: Counter::default(),
        };
        // One without starts is 0.
        for result in StartResult::ALL {
            drop(metrics.starts.get_or_create(&StartLabels { result: LabelValue(*result) }));
        }
        registry.register(
            "image_starts",
            "First containers of ImageWarms' images on their nodes, by whether the image was there; those of images that were there before this replica led are not counted; set by the leader",
            metrics.starts.clone(),
        );
        registry.register(
            "image_start_lead_seconds",
            "How long images had been on the node when the first container found them",
            metrics.lead.clone(),
        );
        registry.register(
            "image_start_saved_seconds",
            "Durations of the pulls of images that the first containers found: the time that these did not wait",
            metrics.saved.clone(),
        );
        registry.register(
            "image_start_waited_seconds",
            "Time that containers waited for kubelets to pull images of ImageWarms",
            metrics.waited.clone(),
        );
        metrics
    }

    pub(super) fn counted(&self, one: &Counted) {
        self.starts.get_or_create(&StartLabels { result: LabelValue(one.result) }).inc();
        if let Some(lead) = one.lead_seconds {
            self.lead.observe(lead);
        }
        self.saved.inc_by(one.saved_seconds);
        self.waited.inc_by(one.waited_seconds);
    }
}
