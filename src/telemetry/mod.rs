//! Logs, metrics and health endpoints of a running program.

pub mod certificates;
pub mod health;
pub mod logs;
pub mod metrics;
