//! The webhook's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use imagewarm_core::labels;

use crate::telemetry::metrics::LabelValue;

labels! {
    /// Paths that the webhook serves.
    pub enum Path {
        /// `/mutate/…`.
        Mutate,
        /// `/validate/…`.
        Validate,
    }

    /// Answers of the webhook.
    pub enum Verdict {
        /// The object is admitted unchanged.
        Allowed,
        /// The object is admitted with a patch.
        Patched,
        /// The object is denied.
        Denied,
        /// The request is not an AdmissionReview.
        Malformed,
    }

    /// Why a TLS handshake did not succeed.
    pub enum HandshakeFault {
        /// The client closed the connection, or does not speak a supported TLS.
        Failed,
        /// The handshake timed out.
        TimedOut,
    }
}

/// Labels of `webhook_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    path: LabelValue<Path>,
    verdict: LabelValue<Verdict>,
}

/// Labels of `webhook_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PathLabels {
    path: LabelValue<Path>,
}

/// Labels of `webhook_handshake_failures`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandshakeLabels {
    fault: LabelValue<HandshakeFault>,
}

/// The webhook's metrics. Clones share their values.
#[derive(Clone)]
pub struct WebhookMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<PathLabels, Histogram, fn() -> Histogram>,
    handshake_failures: Family<HandshakeLabels, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// Connections that were closed because a request's head timed out.
    pub header_timeouts: Counter,
    /// Connections that were closed because newer ones needed their place.
    pub displaced: Counter,
    /// Requests to paths that are not served.
    pub unknown_paths: Counter,
    /// Revisions that were dropped because the queue was full.
    pub revisions_dropped: Counter,
}

impl WebhookMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = WebhookMetrics {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 14))
            }),
            handshake_failures: Family::default(),
            connections: Gauge::default(),
            header_timeouts: Counter::default(),
            displaced: Counter::default(),
            unknown_paths: Counter::default(),
            revisions_dropped: Counter::default(),
        };
        // A series that begins later than at 0 hides the first increase from Prometheus.
        for (path, verdict) in
            Path::ALL.iter().flat_map(|path| Verdict::ALL.iter().map(move |it| (*path, *it)))
        {
            let labels = RequestLabels { path: LabelValue(path), verdict: LabelValue(verdict) };
            drop(metrics.requests.get_or_create(&labels));
        }
        registry.register(
            "webhook_requests",
            "Admission requests by path and verdict",
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
            "Open connections to the webhook",
            metrics.connections.clone(),
        );
        registry.register(
            "webhook_header_timeouts",
            "Connections closed because a request's head timed out",
            metrics.header_timeouts.clone(),
        );
        registry.register(
            "webhook_connections_displaced",
            "Connections without a request to a published path, closed because newer ones needed \
             their place",
            metrics.displaced.clone(),
        );
        registry.register(
            "webhook_unknown_paths",
            "Requests to paths that are not published in the webhook configurations: of strangers, \
             or of an API server with an outdated configuration",
            metrics.unknown_paths.clone(),
        );
        registry.register(
            "admission_revisions_dropped",
            "Admitted Revisions dropped because the queue was full; the leader repairs them",
            metrics.revisions_dropped.clone(),
        );
        metrics
    }

    /// Counts one answered request.
    pub fn answered(&self, path: Path, verdict: Verdict, seconds: f64) {
        let path = LabelValue(path);
        let verdict = LabelValue(verdict);
        self.requests.get_or_create(&RequestLabels { path, verdict }).inc();
        self.duration.get_or_create(&PathLabels { path }).observe(seconds);
    }

    /// Counts one failed handshake.
    pub fn handshake_failed(&self, fault: HandshakeFault) {
        self.handshake_failures.get_or_create(&HandshakeLabels { fault: LabelValue(fault) }).inc();
    }
}
