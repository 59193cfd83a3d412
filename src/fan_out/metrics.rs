//! What is measured of the fan-out.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use imagewarm_core::labels;

use crate::telemetry::metrics::LabelValue;

labels! {
    /// Outcomes of an ImageWarm that a fan-out planned.
    pub enum Outcome {
        /// It was created.
        Created,
        /// It existed already.
        Existed,
        /// The API server did not create it.
        Failed,
        /// It exceeds the namespace's limit of ImageWarms.
        OverLimit,
    }
}

labels! {
    /// Why an admitted Revision is not fanned out at once: the leader creates its ImageWarms once it
    /// exists.
    pub enum LeftToLeader {
        /// It cannot be decoded.
        Undecodable,
        /// No Configuration owns it.
        NoOwner,
        /// The Configuration that it names as its owner does not exist.
        OwnerNotFound,
        /// It names an image that its Configuration does not: the review is outdated or forged.
        OtherImages,
        /// The API server did not return the Configuration.
        OwnerUnreadable,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LeftToLeaderLabels {
    pub(super) reason: LabelValue<LeftToLeader>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    outcome: LabelValue<Outcome>,
}

/// Metrics of the fan-out. Clones share their values.
#[derive(Clone, Debug)]
pub struct FanOutMetrics {
    pub(super) queued: Gauge,
    pub(super) rate_limited: Counter,
    pub(super) left_to_leader: Family<LeftToLeaderLabels, Counter>,
    pub(super) image_warms: Family<OutcomeLabels, Counter>,
    pub(super) duration: Histogram,
}

impl FanOutMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = FanOutMetrics {
            queued: Gauge::default(),
            rate_limited: Counter::default(),
            left_to_leader: Family::default(),
            image_warms: Family::default(),
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        registry.register(
            "fan_out_queue_length",
            "Admitted Revisions that wait for their fan-out",
            metrics.queued.clone(),
        );
        registry.register(
            "fan_out_rate_limited",
            "Admitted Revisions not fanned out because of their namespace's rate limit",
            metrics.rate_limited.clone(),
        );
        registry.register(
            "fan_out_left_to_leader",
            "Admitted Revisions that were not fanned out at admission, by reason",
            metrics.left_to_leader.clone(),
        );
        registry.register(
            "fan_out_image_warms",
            "ImageWarms that fan-outs planned, by outcome",
            metrics.image_warms.clone(),
        );
        registry.register(
            "fan_out_duration_seconds",
            "Time from the start of a Revision's fan-out to its last ImageWarm",
            metrics.duration.clone(),
        );
        metrics
    }

    pub(super) fn left_to_leader(&self, reason: LeftToLeader) {
        let labels = LeftToLeaderLabels { reason: LabelValue(reason) };
        self.left_to_leader.get_or_create(&labels).inc();
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.count_many(outcome, 1);
    }

    pub(super) fn count_many(&self, outcome: Outcome, number: usize) {
        let labels = OutcomeLabels { outcome: LabelValue(outcome) };
        self.image_warms.get_or_create(&labels).inc_by(number as u64);
    }
}
