//! `imagewarm warmer`: the imagewarmer of one node.

use std::sync::Arc;

use clap::Args;

use super::Parts;
use crate::exit::Exit;
use crate::listener::listen;
use crate::telemetry::health::{self, HealthArgs, Readiness};
use crate::telemetry::logs::LogArgs;
use crate::telemetry::metrics;
use crate::warmer::{Warmer, WarmerArgs, WarmerMetrics};

/// Flags of `imagewarm warmer`.
#[derive(Args, Debug)]
pub struct WarmerCommand {
    #[command(flatten)]
    warmer: WarmerArgs,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Runs the warmer until a signal, or until a part of it fails.
pub async fn warmer(command: WarmerCommand) -> anyhow::Result<Exit> {
    let health_listener = listen(command.health.health_listen).await?;
    let mut registry = metrics::registry();
    let warmer_metrics = WarmerMetrics::register(&mut registry);
    let registry = Arc::new(registry);

    let mut parts = Parts::new();
    let warmer = Warmer::new(&command.warmer, warmer_metrics)?;
    let connected = warmer.connected();
    let stop = parts.stop.clone();
    parts.add("warmer", async move { Ok(warmer.run(stop).await?) });
    let readiness = Readiness::default().with("stream", move || {
        let open = *connected.borrow();
        if open { Ok(()) } else { Err("no stream to the controller".into()) }
    });
    let health_stop = parts.stop.clone();
    parts.add("health server", async move {
        let router = health::router(readiness, registry);
        health::serve(health_listener, router, health_stop).await;
        Ok(())
    });
    parts.run().await
}
