//! Which images a Revision or an Image demands, whose pull secrets apply to them, and the pull
//! context that follows for the ImageWarm of one of these images.
//!
//! ```text
//! Revision ─▶ revision: demand() ─┐
//!                                 ├─▶ consumers: demands() ─▶ pull_context: pull_context()
//! Image ──────────────────────────┘
//! ```

pub mod admitted;
mod cluster;
pub mod consumers;
mod identity;
pub mod pull_context;
pub mod revision;

pub use admitted::AdmittedRevision;
pub use cluster::Cluster;
pub use identity::PullIdentity;
pub use revision::Demand;
