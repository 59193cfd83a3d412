//! The webhook's metrics.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Path {
    /// `/mutate`.
    Mutate,
    /// `/validate`.
    Validate,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Verdict {
    /// The object passes as it is.
    Allowed,
    /// The object passes with a patch.
    Patched,
    /// The object is refused.
    Denied,
    /// The request was no AdmissionReview.
    Malformed,
}

/// Labels of `webhook_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    path: Path,
    verdict: Verdict,
}

/// Labels of `webhook_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PathLabels {
    path: Path,
}

/// Why a TLS handshake did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum HandshakeFault {
    /// The client broke off, or spoke no TLS that is known here.
    Failed,
    /// The client took too long.
    TimedOut,
}

/// Labels of `webhook_handshake_failures`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    fault: HandshakeFault,
}

/// The webhook's metrics; clones count together.
#[derive(Clone)]
pub struct WebhookMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<PathLabels, Histogram, fn() -> Histogram>,
    handshake_failures: Family<HandshakeLabels, Counter>,
    /// Connections that are open now.
    pub connections: Gauge,
    /// Connections that were cut because their request head came too slowly.
    pub header_timeouts: Counter,
    /// Revisions that the queue had no room for.
    pub revisions_dropped: Counter,
}

impl WebhookMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = WebhookMetrics {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 14))
            }),
            handshake_failures: Family::default(),
            connections: Gauge::default(),
            header_timeouts: Counter::default(),
            revisions_dropped: Counter::default(),
        };
        registry.register(
            "webhook_requests",
            "Admission requests by path and answer",
            metrics.requests.clone(),
        );
        registry.register(
            "webhook_duration_seconds",
            "Time from an admission request's head to its answer",
            metrics.duration.clone(),
        );
        registry.register(
            "webhook_handshake_failures",
            "TLS handshakes that did not succeed",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "webhook_connections",
            "Connections of the webhook that are open now",
            metrics.connections.clone(),
        );
        registry.register(
            "webhook_header_timeouts",
            "Connections cut because a request's head came too slowly",
            metrics.header_timeouts.clone(),
        );
        registry.register(
            "admission_revisions_dropped",
            "Revisions seen at admission that the queue had no room for; repaired later",
            metrics.revisions_dropped.clone(),
        );
        metrics
    }

    /// Counts one answer.
    pub fn answered(&self, path: Path, verdict: Verdict, seconds: f64) {
        self.requests.get_or_create(&RequestLabels { path, verdict }).inc();
        self.duration.get_or_create(&PathLabels { path }).observe(seconds);
    }

    /// Counts one handshake that did not succeed.
    pub fn handshake_failed(&self, fault: HandshakeFault) {
        self.handshake_failures.get_or_create(&HandshakeLabels { fault }).inc();
    }
}
