//! The admission webhook: AdmissionReviews in, verdicts out, and every new Revision handed on.
//!
//! `server` accepts TLS connections, `router` reads requests, `review` is their form, `mutate` and
//! `validate` answer them by the pure rules of `check`. No Revision ever waits here: it is offered
//! to [`TakeRevision`] unread, and the answer goes out; reading, planning and writing happen behind that.

pub mod args;
pub mod bounds;
mod denial;
mod header_timeout;
pub mod metrics;
mod mutate;
pub mod review;
pub mod router;
pub mod server;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use imagewarm_core::demand::AdmittedRevision;

use imagewarm_core::validation::image_warm::{ImageRule, image_rule};
use validate::PullSecrets;

pub use args::WebhookArgs;
pub use bounds::AdmissionBounds;
pub use metrics::WebhookMetrics;
pub use server::serve;

/// Takes an admitted Revision without waiting; false when there is no room for it.
pub type TakeRevision = dyn Fn(AdmittedRevision) -> bool + Send + Sync;

/// Whether a Node exists; `None` while that is not known.
pub type NodeExists = dyn Fn(&str) -> Option<bool> + Send + Sync;

/// All that is needed to answer requests.
#[derive(Clone)]
pub struct Reviewer {
    /// Takes the admitted Revisions.
    pub admitted: Arc<TakeRevision>,
    /// Looks at pull secrets.
    pub pull_secrets: Arc<dyn PullSecrets>,
    /// Knows the Nodes.
    pub node_exists: Arc<NodeExists>,
    /// Knows the grammar of image references.
    pub image_rule: Arc<ImageRule>,
    /// The operator's limits; none without.
    pub bounds: Option<AdmissionBounds>,
    /// How long all pull secrets of one object may take together.
    pub secrets_timeout: Duration,
    /// Counts.
    pub metrics: WebhookMetrics,
}

impl Reviewer {
    /// A reviewer with the real grammar.
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
            image_rule: Arc::new(image_rule),
            bounds: None,
            secrets_timeout: args.webhook_secrets_timeout,
            metrics,
        }
    }

    /// The same, within the operator's limits.
    pub fn within(self, bounds: AdmissionBounds) -> Self {
        Reviewer { bounds: Some(bounds), ..self }
    }
}
