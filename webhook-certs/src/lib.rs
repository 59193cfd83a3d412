//! TLS certificates for Kubernetes admission webhooks, without cert-manager: a self-signed CA and
//! a serving certificate, kept in a Secret that any of several replicas creates, all load, and
//! whoever comes first renews; swapped into the running TLS server without a restart.
//!
//! ```text
//! issue ─▶ Bundle ─▶ secret (POST, or GET the winner's) ─▶ keeper ─▶ serve (rustls resolver)
//!             └ check: what is wrong with it                      └▶ watch: the CA to publish
//!             └ rotate: what is to be stored next
//! ```
//!
//! `issue` and `check` are pure but for the randomness of keys; `now` is an argument. Putting the
//! CA into webhook configurations is the caller's part.
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
