//! The admission webhook: AdmissionReviews in, verdicts out, and every new Revision handed on.
//!
//! `server` accepts TLS connections, `router` reads requests, `review` is their form, `mutate` and
//! `validate` answer them by the pure rules of `check`. No Revision ever waits here: it is offered
//! to [`Sightings`] unread, and the answer goes out; reading, planning and writing happen behind that.

pub mod args;
pub mod bounds;
pub mod check;
pub mod fan_out;
pub mod field_error;
pub mod metrics;
mod mutate;
pub mod review;
pub mod router;
pub mod server;
pub mod sighting;
mod slow_head;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use check::ImageRule;
use validate::PullSecrets;

pub use args::WebhookArgs;
pub use bounds::AdmissionBounds;
pub use metrics::WebhookMetrics;
pub use server::serve;
pub use sighting::Sighting;

/// Where Revisions go that were seen at admission.
pub trait Sightings: Send + Sync {
    /// Takes a Revision without waiting; false when there is no room for it.
    fn offer(&self, sighting: Sighting) -> bool;
}

/// Whether a Node exists; `None` while that is not known.
pub type NodeExists = dyn Fn(&str) -> Option<bool> + Send + Sync;

/// All that is needed to answer requests.
#[derive(Clone)]
pub struct Reviewer {
    /// Takes the Revisions.
    pub sightings: Arc<dyn Sightings>,
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
        sightings: Arc<dyn Sightings>,
        pull_secrets: Arc<dyn PullSecrets>,
        node_exists: Arc<NodeExists>,
        args: &WebhookArgs,
        metrics: WebhookMetrics,
    ) -> Self {
        Reviewer {
            sightings,
            pull_secrets,
            node_exists,
            image_rule: Arc::new(check::image_rule),
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
