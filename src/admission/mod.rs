//! The admission webhook: answers AdmissionReviews, and forwards every new Revision to the fan-out.
//!
//! `server` accepts TLS connections, `router` finds the paths of requests, `bodies` reads them within
//! limits, `review` holds their types, `mutate` and `validate` answer them by the pure rules of
//! `imagewarm_core::validation`. A Revision never waits here: it is passed undecoded to [`TakeRevision`] and admitted; decoding, planning and
//! writing follow in the fan-out.

pub(crate) mod args;
mod bodies;
pub(crate) mod bounds;
mod denial;
mod header_timeout;
pub(crate) mod metrics;
mod mutate;
pub mod review;
pub mod router;
pub(crate) mod server;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use imagewarm_core::demand::AdmittedRevision;

use validate::PullSecrets;

pub use args::WebhookArgs;
pub use bounds::AdmissionBounds;
pub use metrics::WebhookMetrics;
pub use server::serve;

/// Takes an admitted Revision without waiting. Returns false if it is dropped.
pub type TakeRevision = dyn Fn(AdmittedRevision) -> bool + Send + Sync;

/// Whether a Node exists; `None` while the Nodes are not listed.
pub type NodeExists = dyn Fn(&str) -> Option<bool> + Send + Sync;

/// Everything that answering requests depends on.
#[derive(Clone)]
pub struct Reviewer {
    /// Receives the admitted Revisions.
    pub admitted: Arc<TakeRevision>,
    /// Checks pull secrets.
    pub pull_secrets: Arc<dyn PullSecrets>,
    /// Checks whether a Node exists.
    pub node_exists: Arc<NodeExists>,
    /// The operator's limits; unlimited if `None`.
    pub bounds: Option<AdmissionBounds>,
    /// Timeout for the checks of all pull secrets of one object together.
    pub secrets_timeout: Duration,
    /// The webhook's metrics.
    pub metrics: WebhookMetrics,
}

impl Reviewer {
    /// A reviewer without limits.
    pub fn new(
        admitted: Arc<TakeRevision>,
        pull_secrets: Arc<dyn PullSecrets>,
        node_exists: Arc<NodeExists>,
        args: &WebhookArgs,
        metrics: WebhookMetrics,
    ) -> Self {
        Reviewer {
            admitted,
            pull_secrets,
            node_exists,
            bounds: None,
            secrets_timeout: args.webhook_secrets_timeout,
            metrics,
        }
    }

    /// Adds the operator's limits.
    pub fn within(self, bounds: AdmissionBounds) -> Self {
        Reviewer { bounds: Some(bounds), ..self }
    }
}
