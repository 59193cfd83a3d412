//! The messages of the dispatch protocol, generated from `proto/dispatch/v1/dispatch.proto`: what
//! the leader and a warmer send to each other.
#![allow(missing_docs, clippy::all, clippy::unwrap_used)] // generated

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/imagewarm.dispatch.v1.rs"));

/// The version that this program speaks, and the oldest that it understands.
pub const PROTOCOL_VERSION: u32 = 1;

/// gRPC metadata key by which a replica that does not lead names the one that does.
pub const LEADER_METADATA: &str = "imagewarm-leader";

/// Passwords stay out of every log, so this prints none.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}
