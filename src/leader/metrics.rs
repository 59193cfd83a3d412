//! The leader's metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use imagewarm_core::api::Reason;
use imagewarm_core::plan::Repair;
use imagewarm_core::plan::diff::Cause;
use imagewarm_core::plan::node_gate::Release;

use crate::telemetry::metrics::{LabelValue, OptionalLabelValue};

/// The leader's metrics. Clones share their values.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    reconcile: Histogram,
    repairs: Family<RepairLabels, Counter>,
    deletes: Family<CauseLabels, Counter>,
    failed_writes: Counter,
    image_writes: Counter,
    waiting: Gauge,
    over_limit: Gauge,
    leading: Gauge,
    deployment_config: Gauge,
    image_warms: Family<StateLabels, Gauge>,
    nodes_held: Gauge,
    nodes_released: Family<ReleaseLabels, Counter>,
    node_hold: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepairLabels {
    kind: LabelValue<Repair>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: LabelValue<Cause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    reason: OptionalLabelValue<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReleaseLabels {
    reason: LabelValue<Release>,
}

impl ControllerMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = ControllerMetrics {
            reconcile: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            repairs: Family::default(),
            deletes: Family::default(),
            failed_writes: Counter::default(),
            image_writes: Counter::default(),
            waiting: Gauge::default(),
            over_limit: Gauge::default(),
            leading: Gauge::default(),
            deployment_config: Gauge::default(),
            image_warms: Family::default(),
            nodes_held: Gauge::default(),
            nodes_released: Family::default(),
            node_hold: Histogram::new([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0]),
        };
        // A series that begins later than at 0 hides the first increase from Prometheus.
        for repair in Repair::ALL {
            drop(metrics.repairs.get_or_create(&RepairLabels { kind: LabelValue(*repair) }));
        }
        for reason in Release::ALL {
            let labels = ReleaseLabels { reason: LabelValue(*reason) };
            drop(metrics.nodes_released.get_or_create(&labels));
        }
        registry.register(
            "reconcile_duration_seconds",
            "Duration of one reconciliation of all Revisions with all ImageWarms, writes included",
            metrics.reconcile.clone(),
        );
        registry.register(
            "repairs",
            "ImageWarms that the leader created, by kind of repair",
            metrics.repairs.clone(),
        );
        registry.register(
            "deletes",
            "ImageWarms that the leader deleted, by cause",
            metrics.deletes.clone(),
        );
        registry.register(
            "failed_writes",
            "Writes by the leader that failed",
            metrics.failed_writes.clone(),
        );
        registry.register(
            "image_status_writes",
            "Statuses of Knative Images that the leader wrote",
            metrics.image_writes.clone(),
        );
        registry.register(
            "reconcile_queue_depth",
            "Missing ImageWarms and outdated Image statuses in the leader's last reconciliation",
            metrics.waiting.clone(),
        );
        registry.register(
            "image_warms_over_limit",
            "ImageWarms that are demanded but exceed their namespace's limit; set by the leader",
            metrics.over_limit.clone(),
        );
        registry.register("leading", "1 while this replica leads", metrics.leading.clone());
        registry.register(
            "knative_config_read",
            "1 if Knative's ConfigMap config-deployment was read; 0 where it is absent, or the right to read \
             it is missing; set by the leader",
            metrics.deployment_config.clone(),
        );
        registry.register(
            "image_warms",
            "ImageWarms by the reason of their Ready condition; set by the leader",
            metrics.image_warms.clone(),
        );
        registry.register(
            "nodes_held",
            "Nodes with the taint of the node gate; set by the leader",
            metrics.nodes_held.clone(),
        );
        registry.register(
            "nodes_released",
            "Nodes from which the leader removed the taint of the node gate, by reason",
            metrics.nodes_released.clone(),
        );
        registry.register(
            "node_hold_seconds",
            "Time from the creation of a Node to its release by the node gate",
            metrics.node_hold.clone(),
        );
        metrics
    }

    pub(super) fn reconciled(&self, took: Duration) {
        self.reconcile.observe(took.as_secs_f64());
    }

    /// Whether Knative's ConfigMap was read.
    pub(super) fn reads_deployment_config(&self, is_read: bool) {
        self.deployment_config.set(i64::from(is_read));
    }

    pub(super) fn repaired(&self, repair: Repair) {
        self.repairs.get_or_create(&RepairLabels { kind: LabelValue(repair) }).inc();
    }

    pub(super) fn deleted(&self, cause: Cause) {
        self.deletes.get_or_create(&CauseLabels { cause: LabelValue(cause) }).inc();
    }

    pub(super) fn write_failed(&self) {
        self.failed_writes.inc();
    }

    pub(super) fn image_written(&self) {
        self.image_writes.inc();
    }

    pub(super) fn waiting(&self, writes: usize) {
        self.waiting.set(i64::try_from(writes).unwrap_or(i64::MAX));
    }

    pub(super) fn over_limit(&self, image_warms: usize) {
        self.over_limit.set(i64::try_from(image_warms).unwrap_or(i64::MAX));
    }

    pub(super) fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
        if !leading {
            self.image_warms.clear();
            self.waiting.set(0);
            self.over_limit.set(0);
            self.nodes_held.set(0);
        }
    }

    pub(super) fn held(&self, nodes: usize) {
        self.nodes_held.set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }

    /// `age` is that of the Node.
    pub(super) fn released(&self, reason: Release, age: Duration) {
        self.nodes_released.get_or_create(&ReleaseLabels { reason: LabelValue(reason) }).inc();
        self.node_hold.observe(age.as_secs_f64());
    }

    /// Counts objects by reason. Every reason gets a value, so one without objects is 0.
    pub(super) fn states(&self, counts: &BTreeMap<Option<Reason>, usize>) {
        let all = Reason::ALL.iter().copied().map(Some).chain([None]);
        for reason in all {
            let labels = StateLabels { reason: OptionalLabelValue(reason) };
            self.image_warms
                .get_or_create(&labels)
                .set(counts.get(&reason).map_or(0, |count| *count as i64));
        }
    }
}
