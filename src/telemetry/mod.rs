//! Logs, metrics and health endpoints of a running program.

pub mod health;
pub mod logs;
pub mod metrics;
