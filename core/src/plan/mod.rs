//! Which ImageWarms to create and delete ([`diff`]), the statuses of Knative's Images ([`rollup`]),
//! the failures to report as Events ([`failures`]), and when nodes are released ([`node_gate`]). Each works on
//! one full observation of some namespaces; [`planner`] decides of which.

pub mod by_hand;
pub mod diff;
mod eligible;
mod existing;
pub mod failures;
pub mod fan_out;
pub mod node_gate;
pub mod planner;
mod repair;
pub mod rollup;

pub use diff::{Observed, Plan, diff};
pub use eligible::placements;
pub use existing::ImageWarmIndex;
pub use repair::Repair;
