//! imagewarm warms container images on every node the moment a Knative Revision is created.
//!
//! What is decided, and the data that it is decided from, is the crate [`imagewarm_core`]: no I/O,
//! no clock, no environment. This crate observes, asks the core, and carries out what it answers.
//!
//! ```text
//! kube-apiserver ── AdmissionReview ─▶ admission ─▶ fan_out ── POST ImageWarms ─▶ kube-apiserver
//!                                                                                     │
//!                         ┌────────────────────── watches ◀───────────────────────────┘
//!                         ▼
//!                  kubernetes::caches
//!                         │
//!            ┌────────────┴──────────────┐
//!            ▼                           ▼          one gRPC stream for each node
//!   leader: repairs,               sessions ═══════════════════════════════▶ warmer ─▶ runtime
//!   garbage collection,                  ◀──── progress, outcomes ──────────────
//!   Image statuses, Events               │
//!            │                           └─▶ kubernetes::writes (ImageWarm status)
//!            └─▶ kubernetes::writes
//! ```
//!
//! The rooms, in the order in which a Revision passes them:
//!
//! - [`admission`]: TLS, AdmissionReviews and verdicts. Hands admitted Revisions on.
//! - [`fan_out`]: makes the ImageWarms of an admitted Revision, as its Configuration has it.
//! - [`leader`]: election, and what only the leader does: repairs, garbage collection, statuses of
//!   Knative's Images, Events.
//! - [`sessions`]: the warmers' streams: authentication, limits, driving the assignments of
//!   [`imagewarm_core::assignment`], writing the statuses of ImageWarms.
//! - [`warmer`]: the node side of a stream: jobs, presence checks, disk.
//! - [`runtime`]: the node's container runtime behind one trait: Docker, CRI; the node's credential
//!   providers.
//! - [`kubernetes`]: everything that is asked of the API server.
//! - `listener`: listening sockets, and TLS connections accepted within limits.
//! - [`telemetry`]: logs, metrics, health.
//! - `clock`: the monotonic and the wall clock. `backoff`: delays between attempts.
//! - [`commands`]: one file for each command that people call.
//! - [`programs`]: the two long-running programs, as lists of their parts.
//!
//! A room uses those below it only: `tests/architecture.rs` has the order.
//! `docs/architecture.md` follows one Revision and one assignment through the files.
// A dependency that nothing here names does not belong in Cargo.toml; what no other crate can use is not
// public, so that the compiler finds what nothing uses.
#![cfg_attr(
    not(test),
    warn(unused_crate_dependencies, unreachable_pub, clippy::disallowed_methods)
)]

pub mod admission;
mod backoff;
pub mod cli;
mod clock;
pub mod commands;
mod exit;
pub mod fan_out;
pub(crate) mod kubernetes;
pub mod leader;
mod listener;
pub mod programs;
pub mod protocol;
pub mod runtime;
pub mod sessions;
pub mod telemetry;
pub mod warmer;
