//! The leader's work beside dispatch: put right what the fan-out missed, follow new nodes, resolve
//! moved tags, collect what nobody wants, keep the statuses of Knative's Images, and tell of failures.
//!
//! `lease` finds the leader. `reconcile` is the loop: observe (from the stores), plan (pure, in
//! `plan/`), apply (in `cluster/`). `collect` looks at the live cluster before it deletes anything;
//! `images` writes the Images' statuses.

pub mod args;
pub mod election;
mod events;
mod garbage_collection;
mod image_status;
pub mod metrics;
mod owners;
mod reconcile;
mod refused_namespaces;
mod still_leading;

pub use args::{ControllerArgs, LeaseArgs};
pub use election::Elector;
pub use metrics::ControllerMetrics;
pub use reconcile::Controller;
