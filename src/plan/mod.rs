//! Decisions: what Revisions and Images ask for, which nodes may run it, what should exist and what should
//! go. Functions of plain data with `now` as an argument; no I/O and no clock.

pub mod asking;
pub mod bounds;
pub mod demand;
pub mod diff;
pub mod eligible;
pub mod failures;
pub mod fan_out;
pub mod orders;
pub mod policy;
pub mod rollup;
pub mod runtime_class;
#[cfg(test)]
pub(crate) mod sample;
pub mod want;

pub use asking::{Asked, Asking, asked};
pub use bounds::Bounds;
pub use demand::Demand;
pub use diff::{Observed, Plan, diff};
pub use eligible::NodeFacts;
pub use orders::Orders;
pub use policy::Policy;
pub use runtime_class::RuntimeClasses;
