//! Decisions: what a Revision asks for, which nodes may run it, what should exist and what should
//! go. Functions of plain data with `now` as an argument; no I/O and no clock.

pub mod demand;
pub mod policy;
pub mod want;

pub use demand::Demand;
pub use policy::Policy;
