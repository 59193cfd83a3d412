//! The development cluster, and the commands around it.
//!
//! Everything is real and runs as a child process: etcd, kube-apiserver, kube-controller-manager,
//! two registries, one dockerd for each node, and the `imagewarm` binary itself, started by path.
//! `cargo xtask demo`, `cargo xtask cluster` and the integration tests all use
//! [`cluster::Cluster`].
// A dependency that nothing here names does not belong in Cargo.toml.
#![cfg_attr(not(test), warn(unused_crate_dependencies))]

pub mod bench;
mod cargo;
pub mod cluster;
pub mod cold_start;
pub mod demo;
pub mod dist;
pub mod http_get;
pub mod images;
pub mod memory_limit;
pub mod ports;
pub mod prerequisites;
pub mod process;
pub mod progress;
mod restartable;
pub mod sandbox;
pub mod test;
mod upload;
pub mod wait;

use std::path::PathBuf;

/// The root folder of the workspace that this crate was built from.
pub fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
