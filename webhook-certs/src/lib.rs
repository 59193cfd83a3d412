//! TLS certificates for Kubernetes admission webhooks, without cert-manager: a self-signed CA and
//! a serving certificate, stored in a Secret. Any of several replicas creates or renews it; all
//! load it and swap it into the running TLS server without a restart.
//!
//! ```text
//! issue ─▶ Bundle ─▶ secret (POST, or GET the winner's) ─▶ keeper ─▶ serve (rustls resolver)
//!             └ check: its faults                                 └▶ watch: the CA to publish
//!             └ rotate: the next state to store
//! ```
//!
//! `issue` and `check` are pure except for the randomness of keys; `now` is an argument. The caller
//! publishes the CA in webhook configurations.
// A dependency that nothing here names does not belong in Cargo.toml.
#![cfg_attr(not(test), warn(unused_crate_dependencies))]

pub mod check;
pub mod describe;
pub mod issue;
pub mod keeper;
pub mod mounted;
pub mod rotate;
pub mod secret;
pub mod serve;

pub use check::{BundleError, Part, Validity};
pub use describe::Description;
pub use issue::{Bundle, IssueError, Lifetimes};
pub use keeper::{Keeper, Served, Settings};
pub use mounted::{Mounted, MountedError};
pub use rotate::{Policy, PolicyError};
pub use secret::{Publication, SecretStore, StoreError};
pub use serve::{Resolver, server_config};
