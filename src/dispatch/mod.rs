//! The leader's side of the streams: one task owns the [`index`], feeds it what the watches and the
//! warmers say, and carries out what it wants. [`server`] accepts the streams, `credentials` and
//! `status_writer` talk to the API server. Decides nothing about what should exist.

mod accept;
pub mod credentials;
pub mod dispatcher;
mod grants;
pub mod index;
pub mod metrics;
pub mod server;
mod standings;
pub mod status;
pub mod status_writer;

use std::net::SocketAddr;

pub use dispatcher::Dispatcher;
pub use metrics::DispatchMetrics;
pub use server::{DispatchServer, ServeError};

/// Settings of the dispatch server.
#[derive(clap::Args, Clone, Debug)]
pub struct DispatchArgs {
    /// Address that warmers connect to (gRPC over TLS).
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_BIND",
        default_value = "0.0.0.0:8444",
        value_name = "IP:PORT"
    )]
    pub dispatch_bind: SocketAddr,

    /// Most pulls that may run at the same time, on all nodes together, against one registry.
    #[arg(
        long,
        env = "IMAGEWARM_REGISTRY_PULLS",
        default_value_t = 500,
        value_name = "COUNT",
        value_parser = at_least_one
    )]
    pub registry_pulls: usize,

    /// Most connections of warmers; one for each node, and some more while they reconnect.
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "COUNT",
        value_parser = at_least_one
    )]
    pub dispatch_connections: usize,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a whole number of at least 1".into()),
        Ok(count) => Ok(count),
    }
}

/// Who leads, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderView {
    /// Whether this replica leads.
    pub leading: bool,
    /// `host:port` of the leader's dispatch server, while one is known.
    pub leader_address: Option<String>,
}
