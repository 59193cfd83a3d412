//! What should exist and what should go ([`diff`]), what that means for Knative's Images ([`rollup`]),
//! and what to report of it ([`failures`]). Works on one moment's full observation.

pub mod diff;
mod existing;
pub mod failures;
pub mod fan_out;
mod repair;
pub mod rollup;

pub use diff::{Observed, Plan, diff};
pub use existing::ImageWarmIndex;
pub use repair::Repair;
