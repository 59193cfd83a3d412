//! Logs, metrics and health endpoints of a running program.

pub mod certificates;
pub(crate) mod health;
pub(crate) mod logs;
pub mod metrics;
