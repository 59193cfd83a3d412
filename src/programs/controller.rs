//! `imagewarm controller`: one replica of the imagecontroller.

mod parts;

use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;

use super::{Parts, certificates};
use crate::admission::WebhookArgs;
use crate::exit::Exit;
use crate::fan_out::FanOutArgs;
use crate::kubernetes::client::{self, ClientArgs};
use crate::kubernetes::token_review::TokenReviewArgs;
use crate::leader::{ControllerArgs, LeaseArgs};
use crate::listener::listen;
use crate::sessions::DispatchArgs;
use crate::telemetry::health::HealthArgs;
use crate::telemetry::logs::LogArgs;
use crate::telemetry::metrics;
use imagewarm_core::api::names::Namespace;
use imagewarm_core::settings::host_and_port;
use parts::Replica;

/// Flags of `imagewarm controller`.
#[derive(Args, Debug)]
pub struct ControllerCommand {
    /// Namespace of the controller's own objects: Lease, certificates, CA
    #[arg(
        long,
        env = "IMAGEWARM_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "imagewarm-system"
    )]
    namespace: Namespace,

    /// Name of this replica, unique among the replicas, such as the Pod's name. By default the host
    /// name and process ID
    #[arg(long, env = "IMAGEWARM_IDENTITY", value_name = "NAME")]
    identity: Option<String>,

    /// Address at which warmers reach this replica's dispatch port while it leads
    #[arg(long, env = "IMAGEWARM_DISPATCH_ADVERTISE", value_name = "HOST:PORT",
          value_parser = host_and_port)]
    dispatch_advertise: String,

    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    controller: ControllerArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
    #[command(flatten)]
    fan_out: FanOutArgs,
    #[command(flatten)]
    dispatch: DispatchArgs,
    #[command(flatten)]
    token_review: TokenReviewArgs,
    #[command(flatten)]
    certificates: certificates::CertificateArgs,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Runs one replica until a signal, or until a part of it fails. The parts stand in the order in
/// which they start: each takes what those before it give.
pub async fn controller(command: ControllerCommand) -> anyhow::Result<Exit> {
    command.lease.check()?;
    command.certificates.policy()?;
    let client = command.client.connect().await?;
    let version = client::check_server_version(&client).await?;
    let identity = command.identity.clone().unwrap_or_else(default_identity);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), kubernetes = version, identity, "starting");

    let ports = Ports::open(&command).await?;
    let mut registry = metrics::registry();
    let mut parts = Parts::new();
    let mut replica = Replica {
        policy: Arc::new(command.controller.policy()),
        client,
        identity,
        command,
        registry: &mut registry,
        parts: &mut parts,
    };
    let stores = replica.caches().await;
    let leadership = replica.election();
    let certificates = replica.certificates(&leadership)?;
    let sessions = replica.sessions(ports.dispatch, &stores, &leadership, &certificates);
    let fan_out = replica.fan_out(&stores);
    replica.admission(ports.webhook, &stores, fan_out, &certificates).await?;
    replica.leader(&stores, leadership, sessions);
    parts::health(&mut parts, ports.health, registry, &stores, certificates);
    parts.run().await
}

/// The sockets of a replica. Opened before anything else: a port that is taken is a clear error at
/// the start, not a half program.
struct Ports {
    webhook: TcpListener,
    dispatch: TcpListener,
    health: TcpListener,
}

impl Ports {
    async fn open(command: &ControllerCommand) -> anyhow::Result<Self> {
        Ok(Ports {
            webhook: listen(command.webhook.webhook_listen).await?,
            dispatch: listen(command.dispatch.dispatch_listen).await?,
            health: listen(command.health.health_listen).await?,
        })
    }
}

fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
