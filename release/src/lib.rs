//! The files of a release, made without Docker and without a base image: `cargo xtask dist`.
//!
//! ```text
//! sources ─▶ program ─────────────┬─▶ image    an OCI layout, and the same as one file
//!        └─▶ dependencies ─┬─▶ notices ─┤
//!                          └─▶ sbom     ├─▶ archive  for each platform
//! command line ─▶ manual ───────────────┘      └─▶ krew, checksums
//! ```
//!
//! Everything is a function of the sources, the compiler and one point in time: two builds make the same
//! bytes. No file has the time, the path or the user of the machine that made it.
#![cfg_attr(not(test), warn(unused_crate_dependencies, unreachable_pub))]

mod archive;
mod changelog;
mod checksums;
pub mod dependencies;
pub mod dist;
mod image;
mod krew;
pub mod manual;
mod notices;
pub mod platform;
pub mod program;
mod sbom;
pub mod source;

use std::path::PathBuf;

/// The root folder of the workspace that this crate was built from.
fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
