//! The leader's work beside dispatch: it repairs what the fan-out missed, follows new nodes,
//! resolves moved tags, deletes orphaned ImageWarms, writes the statuses of Knative Images, and
//! records failures as Events, and publishes the CA.
//!
//! `election` determines the leader. `reconcile` is the loop: observe (the caches), plan (pure, in
//! `imagewarm_core::plan`), apply (through `kubernetes::writes`). `garbage_collection` reads the
//! live objects before it deletes anything. `image_status` writes the Images' statuses, `events`
//! the Events; `node_gate` removes the taint of nodes that are warm; `pod_events` reads the Events about
//! Pods, and `container_starts` counts what they say.
//! `ca_publication` publishes the CA that signs what admission and sessions serve.

pub(crate) mod args;
pub mod ca_publication;
pub(crate) mod container_starts;
pub(crate) mod election;
mod events;
mod garbage_collection;
mod image_status;
pub(crate) mod metrics;
mod node_gate;
mod owners;
pub(crate) mod pod_events;
mod reconcile;
mod refused_namespaces;
mod still_leading;

pub use args::{ControllerArgs, LeaseArgs};
pub use container_starts::StartMetrics;
pub use election::Elector;
pub use metrics::ControllerMetrics;
pub use reconcile::Controller;
