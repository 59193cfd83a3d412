//! Which ImageWarms to create and delete ([`diff`]), the statuses of Knative's Images ([`rollup`]),
//! and the failures to report as Events ([`failures`]). Works on one full observation.

pub mod diff;
mod eligible;
mod existing;
pub mod failures;
pub mod fan_out;
mod repair;
pub mod rollup;

pub use diff::{Observed, Plan, diff};
pub use existing::ImageWarmIndex;
pub use repair::Repair;
