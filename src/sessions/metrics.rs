//! What the dispatch side counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use imagewarm_core::assignment::StreamEnd;

use crate::telemetry::metrics::LabelValue;

/// How a status write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum WriteResult {
    /// Stored.
    Written,
    /// The stored status said it already.
    Unchanged,
    /// Somebody else wrote in between; read and tried again.
    Conflict,
    /// The API server did not answer; tried again.
    Retried,
    /// Progress given up, since the API server did not answer.
    Dropped,
    /// The object is gone, or may not be written.
    Refused,
}

/// Why a connection was closed before it carried a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ConnectionRefusal {
    /// As many connections as allowed are open.
    TooMany,
    /// The TLS handshake failed.
    Handshake,
    /// The TLS handshake took too long.
    HandshakeTimeout,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    reason: LabelValue<StreamEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    reason: ConnectionRefusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    result: WriteResult,
}

/// Metrics of the dispatch server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DispatchMetrics {
    /// Nodes with an open stream.
    pub nodes_connected: Gauge,
    /// ImageWarmIndex known to the index.
    pub assignments: Gauge,
    /// Pulls that were granted and have not ended.
    pub pulls_in_flight: Gauge,
    /// Pulls that wait for their registry's limit.
    pub pulls_waiting: Gauge,
    /// Reports of warmers for orders that are not theirs, or not any more.
    pub reports_ignored: Counter,
    /// Answers of registries that had had enough.
    pub registry_backoffs: Counter,
    /// Pulls that were not tried, since a canary had failed.
    pub canary_refusals: Counter,
    /// Lookups of credentials that failed.
    pub credentials_refused: Counter,
    stream_ends: Family<StreamLabels, Counter>,
    connections_refused: Family<ConnectionLabels, Counter>,
    status_writes: Family<WriteLabels, Counter>,
}

impl DispatchMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = DispatchMetrics::default();
        let all = &metrics;
        registry.register(
            "dispatch_nodes_connected",
            "Nodes whose warmer has an open stream",
            all.nodes_connected.clone(),
        );
        registry.register(
            "dispatch_assignments",
            "ImageWarms known to the leader",
            all.assignments.clone(),
        );
        registry.register(
            "dispatch_pulls_in_flight",
            "Pulls that were granted and have not ended",
            all.pulls_in_flight.clone(),
        );
        registry.register(
            "dispatch_pulls_waiting",
            "Pulls that wait for the limit of their registry",
            all.pulls_waiting.clone(),
        );
        registry.register(
            "dispatch_reports_ignored",
            "Reports for orders that are not, or no more, the node's",
            all.reports_ignored.clone(),
        );
        registry.register(
            "dispatch_registry_slowdowns",
            "Answers of 429 by which all nodes leave a registry alone for a while",
            all.registry_backoffs.clone(),
        );
        registry.register(
            "dispatch_canary_refusals",
            "Pulls that no node tried, since the first node had just been refused",
            all.canary_refusals.clone(),
        );
        registry.register(
            "dispatch_credentials_refused",
            "Lookups of pull secrets that failed",
            all.credentials_refused.clone(),
        );
        registry.register(
            "dispatch_streams_ended",
            "Streams that were not accepted or ended, by reason",
            all.stream_ends.clone(),
        );
        registry.register(
            "dispatch_connections_refused",
            "Connections closed before they carried a stream, by reason",
            all.connections_refused.clone(),
        );
        registry.register(
            "dispatch_status_writes",
            "Writes of ImageWarm status, by result",
            all.status_writes.clone(),
        );
        metrics
    }

    pub(super) fn write(&self, result: WriteResult) {
        self.status_writes.get_or_create(&WriteLabels { result }).inc();
    }

    pub(super) fn stream_end(&self, reason: StreamEnd) {
        self.stream_ends.get_or_create(&StreamLabels { reason: LabelValue(reason) }).inc();
    }

    pub(super) fn connection_refused(&self, reason: ConnectionRefusal) {
        self.connections_refused.get_or_create(&ConnectionLabels { reason }).inc();
    }
}
