//! What an operator sees of a running program: logs, metrics and health. It decides nothing.

pub mod health;
pub mod logs;
pub mod metrics;
