//! The data and decisions of imagewarm, as plain types and pure functions.
//!
//! Nothing here does I/O, reads a clock or the environment, or spawns a task: `now` is an argument,
//! and effects are returned as data. The crate's dependencies keep it so.
// A dependency that nothing here names does not belong in Cargo.toml.
#![cfg_attr(not(test), warn(unused_crate_dependencies))]

pub mod api;
pub mod assignment;
pub mod check;
pub mod clock;
pub mod demand;
pub mod election;
pub mod error_chain;
pub mod image;
pub mod label;
pub mod node_queue;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod protocol;
pub mod report;
pub mod runtime;
#[cfg(any(test, feature = "samples"))]
pub mod sample;
pub mod settings;
mod shared_text;
pub mod table;
pub mod throttle;
pub mod validation;
pub mod webhook_paths;
pub mod why;
