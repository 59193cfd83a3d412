//! The leader's side of the warmers' streams: one task owns the index
//! ([`imagewarm_core::assignment`]), applies watch events and warmer messages to it, and performs
//! its effects. [`server`] accepts the streams, [`credentials`] and [`status_writer`] call the API
//! server. What should exist is decided elsewhere.

mod accept;
pub(crate) mod credentials;
pub(crate) mod dispatcher;
pub mod metrics;
mod pull_contexts;
pub(crate) mod server;
pub(crate) mod status_writer;
mod stream;

use std::net::SocketAddr;

use imagewarm_core::throttle::limits::PerRegistry;

pub use dispatcher::Dispatcher;
pub use metrics::DispatchMetrics;
pub use server::{DispatchServer, ServeError};
pub(crate) use stream::PodImages;

/// Settings of the dispatch server.
#[derive(clap::Args, Clone, Debug)]
pub struct DispatchArgs {
    /// Address that serves warmers (gRPC over TLS)
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_LISTEN",
        default_value = "[::]:8444",
        value_name = "ADDR:PORT"
    )]
    pub dispatch_listen: SocketAddr,

    /// Maximum number of concurrent pulls from one registry, on all nodes together; 0 for no limit
    /// and no back-off. After a 429 response no pull begins for a while, and then fewer run. Registries may
    /// have limits of their own: `500,docker.io=2,*.example.com=50`
    #[arg(
        long,
        env = "IMAGEWARM_REGISTRY_PULLS",
        default_value = "500",
        value_name = "COUNT[,REGISTRY=COUNT…]"
    )]
    pub registry_pulls: PerRegistry,

    /// Maximum number of pulls from one registry that begin within a second, on all nodes
    /// together; 0 for no limit. Written as --registry-pulls
    #[arg(
        long,
        env = "IMAGEWARM_REGISTRY_PULLS_PER_SECOND",
        default_value = "100",
        value_name = "COUNT[,REGISTRY=COUNT…]"
    )]
    pub registry_pulls_per_second: PerRegistry,

    /// Minimum number of nodes assigned an image for which one node pulls it ahead of the others:
    /// if the image does not exist or the credentials are refused, the others do not contact the
    /// registry; 0 for never
    #[arg(long, env = "IMAGEWARM_CANARY_NODES", default_value_t = 10, value_name = "COUNT")]
    pub canary_nodes: usize,

    /// How long the other nodes wait for the first one at most
    #[arg(
        long,
        env = "IMAGEWARM_CANARY_TIMEOUT",
        default_value = "1s",
        value_name = "DURATION",
        value_parser = imagewarm_core::settings::duration
    )]
    pub canary_timeout: std::time::Duration,

    /// Maximum number of connections of authenticated warmers: one for each node, and some more while
    /// they reconnect
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "COUNT",
        value_parser = imagewarm_core::settings::at_least_one
    )]
    pub dispatch_connections: usize,

    /// How long a node may have no stream before its ImageWarms that are not yet Ready show
    /// WaitingForWarmer; after a change of the leader four times as long
    #[arg(
        long,
        env = "IMAGEWARM_WAITING_AFTER",
        default_value = "8s",
        value_name = "DURATION",
        value_parser = imagewarm_core::settings::duration
    )]
    pub waiting_after: std::time::Duration,
}
