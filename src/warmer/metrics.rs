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
    pub(super) pins: PinMetrics,
}

/// Images that are kept from the kubelet's garbage collection.
#[derive(Clone, Debug, Default)]
pub(super) struct PinMetrics {
    images: Gauge,
    bytes: Gauge,
    without_room: Gauge,
}

impl PinMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "warmer_pinned_images",
            "Images that the warmer has pinned, so that the kubelet does not remove them",
            self.images.clone(),
        );
        registry.register(
            "warmer_pinned_bytes",
            "Sizes of the images that the warmer has pinned, as the runtime counts them",
            self.bytes.clone(),
        );
        registry.register(
            "warmer_unpinned_for_room",
            "Warm images that are not pinned for want of room: the share is used up, or the disk too full",
            self.without_room.clone(),
        );
    }

    pub(super) fn show(&self, images: usize, bytes: u64, without_room: usize) {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.images.set(count(images));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.without_room.set(count(without_room));
    }
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
        all.pins.register(registry);
        metrics
    }

    pub(super) fn outcome(&self, reason: &str) {
        if let Some(reason) = Reason::from_name(reason) {
            self.outcomes.get_or_create(&PullLabels { reason: LabelValue(reason) }).inc();
        }
    }
}
