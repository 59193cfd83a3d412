//! What the leader's loop counts.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::api::Reason;
use crate::plan::diff::{CreateKind, DeleteKind, Observed};

/// Metrics of the controller; cheap to clone.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    seconds: Histogram,
    repairs: Family<KindLabels, Counter>,
    deletions: Family<KindLabels, Counter>,
    image_warms: Family<ReasonLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl ControllerMetrics {
    /// Adds the metrics to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = ControllerMetrics {
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            repairs: Family::default(),
            deletions: Family::default(),
            image_warms: Family::default(),
        };
        registry.register(
            "reconcile_seconds",
            "Length of one run of the leader's loop over everything",
            metrics.seconds.clone(),
        );
        registry.register(
            "repairs",
            "ImageWarms that the leader made because admission had not",
            metrics.repairs.clone(),
        );
        registry.register(
            "deletions",
            "ImageWarms that the leader deleted because nothing wants them",
            metrics.deletions.clone(),
        );
        registry.register(
            "image_warms",
            "ImageWarms by the reason of their Ready condition; leader only",
            metrics.image_warms.clone(),
        );
        metrics
    }

    pub(super) fn passed(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn repaired(&self, kind: CreateKind) {
        self.repairs.get_or_create(&KindLabels { kind: kind.as_str() }).inc();
    }

    pub(super) fn deleted(&self, kind: DeleteKind) {
        self.deletions.get_or_create(&KindLabels { kind: kind.as_str() }).inc();
    }

    pub(super) fn observed(&self, observed: &Observed) {
        let mut counts: BTreeMap<&'static str, i64> =
            Reason::ALL.iter().map(|reason| (reason.as_str(), 0)).collect();
        for warm in &observed.image_warms {
            let reason = warm.reason().map_or("New", Reason::as_str);
            *counts.entry(reason).or_default() += 1;
        }
        for (reason, count) in counts {
            self.image_warms.get_or_create(&ReasonLabels { reason }).set(count);
        }
    }
}
