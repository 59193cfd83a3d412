//! Metrics of the warmers' streams and of the leader's assignments.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use imagewarm_core::assignment::StreamEnd;
use imagewarm_core::labels;

use crate::telemetry::metrics::LabelValue;

labels! {
    /// Results of a status write.
    pub enum WriteResult {
        /// The API server stored it.
        Written,
        /// The stored status was the same already.
        Unchanged,
        /// Another client wrote in between; read and tried again.
        Conflict,
        /// The API server did not answer; tried again.
        Retried,
        /// Progress that is not written, since the API server did not answer.
        Dropped,
        /// The object no longer exists, or the API server rejected the write.
        Refused,
    }

    /// Why a connection was closed before it carried a stream.
    pub enum ConnectionRefusal {
        /// Newer connections took its place before it was authenticated.
        Displaced,
        /// The TLS handshake failed.
        Handshake,
        /// The TLS handshake timed out.
        HandshakeTimeout,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    reason: LabelValue<StreamEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    reason: LabelValue<ConnectionRefusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    result: LabelValue<WriteResult>,
}

/// Metrics of the dispatch server. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct DispatchMetrics {
    /// Nodes with an open stream.
    pub nodes_connected: Gauge,
    /// Warmers that wait until a leader is known.
    pub waiting_for_leader: Gauge,
    /// ImageWarms in the index.
    pub assignments: Gauge,
    /// Pulls that hold a permit.
    pub pulls_in_flight: Gauge,
    /// Pulls that wait for their registry's budget.
    pub pulls_waiting: Gauge,
    /// Reports on assignments that are not, or no longer, the node's.
    pub reports_ignored: Counter,
    /// Back-offs of all nodes from a registry that answered 429.
    pub registry_backoffs: Counter,
    /// Pulls that were refused because the canary had failed.
    pub canary_refusals: Counter,
    /// Failed pulls that were tried again since their registry may answer again.
    pub pull_retries: Counter,
    /// Pods whose kubelet pulls an image that is being warmed.
    pub pods_waiting: Gauge,
    /// Images that Pods wait for that fit no node.
    pub images_pending: Gauge,
    /// Running pulls that were suspended for such a Pod.
    pub pulls_suspended: Counter,
    /// Reads of pull secrets that failed.
    pub credentials_refused: Counter,
    credentials_granted: Family<NodeLabels, Counter>,
    stream_ends: Family<StreamLabels, Counter>,
    connections_refused: Family<ConnectionLabels, Counter>,
    status_writes: Family<WriteLabels, Counter>,
    /// Age in seconds of the oldest final state that is not written yet; 0 without one.
    pub(super) oldest_unwritten_status: Gauge<f64, AtomicU64>,
}

impl DispatchMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = DispatchMetrics::default();
        metrics.register_pulls(registry);
        metrics.register_preemption(registry);
        metrics.register_streams(registry);
        metrics
    }

    fn register_pulls(&self, registry: &mut Registry) {
        let all = self;
        registry.register(
            "dispatch_nodes_connected",
            "Nodes whose warmer has an open stream",
            all.nodes_connected.clone(),
        );
        registry.register(
            "dispatch_nodes_waiting_for_leader",
            "Warmers whose stream waits on this replica until a leader is known",
            all.waiting_for_leader.clone(),
        );
        registry.register(
            "dispatch_assignments",
            "ImageWarms in the leader's index",
            all.assignments.clone(),
        );
        registry.register(
            "dispatch_pulls_in_flight",
            "Pulls that hold a permit",
            all.pulls_in_flight.clone(),
        );
        registry.register(
            "dispatch_pulls_waiting",
            "Pulls that wait for their registry's budget",
            all.pulls_waiting.clone(),
        );
        registry.register(
            "dispatch_reports_ignored",
            "Reports on assignments that are not, or no longer, the node's",
            all.reports_ignored.clone(),
        );
        registry.register(
            "dispatch_registry_backoffs",
            "Back-offs of all nodes from a registry that answered 429",
            all.registry_backoffs.clone(),
        );
        registry.register(
            "dispatch_canary_refusals",
            "Pulls that were refused because the canary's pull had just failed",
            all.canary_refusals.clone(),
        );
        registry.register(
            "dispatch_pull_retries",
            "Failed pulls that were tried again since their registry answers again, or to find out",
            all.pull_retries.clone(),
        );
        registry.register(
            "dispatch_credentials_granted",
            "Pulls for which a connected node was sent credentials, by node",
            all.credentials_granted.clone(),
        );
        registry.register(
            "dispatch_credentials_refused",
            "Reads of pull secrets that failed",
            all.credentials_refused.clone(),
        );
    }

    fn register_preemption(&self, registry: &mut Registry) {
        registry.register(
            "dispatch_pods_waiting",
            "Pods whose kubelet pulls an image that is being warmed, and for which pulls may be suspended",
            self.pods_waiting.clone(),
        );
        registry.register(
            "dispatch_images_pending",
            "Images of Pods that fit no node, by the scheduler's Events; nodes pull them first",
            self.images_pending.clone(),
        );
        registry.register(
            "dispatch_pulls_suspended",
            "Running pulls that were suspended since a Pod on another node waits for the same registry",
            self.pulls_suspended.clone(),
        );
    }

    fn register_streams(&self, registry: &mut Registry) {
        let all = self;
        registry.register(
            "dispatch_streams_ended",
            "Streams that were rejected or terminated, by reason",
            all.stream_ends.clone(),
        );
        registry.register(
            "dispatch_connections_refused",
            "Connections closed before they carried a stream, by reason",
            all.connections_refused.clone(),
        );
        registry.register(
            "dispatch_oldest_unwritten_status_seconds",
            "Age of the oldest final state that the API server has not taken yet; 0 without one",
            all.oldest_unwritten_status.clone(),
        );
        registry.register(
            "dispatch_status_writes",
            "Writes of ImageWarm status, by result",
            all.status_writes.clone(),
        );
    }

    pub(super) fn write(&self, result: WriteResult) {
        self.status_writes.get_or_create(&WriteLabels { result: LabelValue(result) }).inc();
    }

    pub(super) fn credentials_granted(&self, node: &str) {
        self.credentials_granted.get_or_create(&NodeLabels { node: node.to_owned() }).inc();
    }

    /// Drops the series of a node: nodes come and go.
    pub(super) fn forget_node(&self, node: &str) {
        self.credentials_granted.remove(&NodeLabels { node: node.to_owned() });
    }

    #[cfg(test)]
    pub(super) fn streams_ended(&self, reason: StreamEnd) -> u64 {
        self.stream_ends.get_or_create(&StreamLabels { reason: LabelValue(reason) }).get()
    }

    pub(super) fn stream_end(&self, reason: StreamEnd) {
        self.stream_ends.get_or_create(&StreamLabels { reason: LabelValue(reason) }).inc();
    }

    pub(super) fn connection_refused(&self, reason: ConnectionRefusal) {
        self.refused_connections(reason).inc();
    }

    pub(super) fn refused_connections(&self, reason: ConnectionRefusal) -> Counter {
        let labels = ConnectionLabels { reason: LabelValue(reason) };
        self.connections_refused.get_or_create(&labels).clone()
    }
}
