//! The leader's side of the streams: one task owns the [`index`], feeds it what the watches and the
//! warmers say, and carries out what it wants. [`server`] accepts the streams, `credentials` and
//! `status_writer` talk to the API server. Decides nothing about what should exist.

mod accept;
pub mod credentials;
pub mod dispatcher;
pub mod metrics;
mod pull_contexts;
pub mod server;
pub mod status_writer;
mod stream;

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
        env = "IMAGEWARM_DISPATCH_LISTEN",
        default_value = "[::]:8444",
        value_name = "IP:PORT"
    )]
    pub dispatch_listen: SocketAddr,

    /// Most pulls that may run at the same time, on all nodes together, against one registry.
    /// When it answers 429, none begins for a while, and then fewer run. 0 for neither.
    #[arg(long, env = "IMAGEWARM_REGISTRY_PULLS", default_value_t = 500, value_name = "COUNT")]
    pub registry_pulls: usize,

    /// Most pulls that may begin within a second, on all nodes together, against one registry; 0
    /// for no limit.
    #[arg(
        long,
        env = "IMAGEWARM_REGISTRY_PULLS_PER_SECOND",
        default_value_t = 100,
        value_name = "COUNT"
    )]
    pub registry_pulls_per_second: usize,

    /// Where at least so many nodes are to hold an image, the first one pulls ahead of the others:
    /// when it finds no such image, or its credentials are refused, the others do not ask. 0 for
    /// never.
    #[arg(long, env = "IMAGEWARM_CANARY_NODES", default_value_t = 10, value_name = "COUNT")]
    pub canary_nodes: usize,

    /// How long the other nodes wait for the first one at most.
    #[arg(
        long,
        env = "IMAGEWARM_CANARY_PATIENCE",
        default_value = "1s",
        value_name = "DURATION",
        value_parser = imagewarm_core::settings::duration
    )]
    pub canary_patience: std::time::Duration,

    /// Most connections of warmers; one for each node, and some more while they reconnect.
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "COUNT",
        value_parser = imagewarm_core::settings::at_least_one
    )]
    pub dispatch_connections: usize,

    /// A node without a stream for this long is told to have no warmer: what is not yet Ready
    /// there shows WaitingForWarmer.
    #[arg(
        long,
        env = "IMAGEWARM_WAITING_AFTER",
        default_value = "30s",
        value_name = "DURATION",
        value_parser = imagewarm_core::settings::duration
    )]
    pub waiting_after: std::time::Duration,
}
