//! `imagewarm controller`: one replica of the imagecontroller.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Parts, certificates};
use crate::admission::bounds::AdmissionBounds;
use crate::admission::router::{self, BodyLimits};
use crate::admission::server::{self, Limits};
use crate::admission::{Reviewer, WebhookArgs, WebhookMetrics};
use crate::exit::Exit;
use crate::fan_out::{self, FanOutArgs, FanOutMetrics, FanOutWorker};
use crate::kubernetes::caches;
use crate::kubernetes::client::{self, ClientArgs};
use crate::kubernetes::token_review::{ApiServerReviewer, TokenReviewArgs};
use crate::leader::{Controller, ControllerArgs, ControllerMetrics, Elector, LeaseArgs};
use crate::sessions::metrics::DispatchMetrics;
use crate::sessions::{DispatchArgs, DispatchServer, Dispatcher};
use crate::telemetry::health::{self, HealthArgs, Readiness};
use crate::telemetry::listen::listen;
use crate::telemetry::logs::LogArgs;
use crate::telemetry::metrics;
use imagewarm_core::settings::host_and_port;

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
    namespace: String,

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

/// Runs one replica until a signal, or until a part of it fails.
pub async fn controller(command: ControllerCommand) -> anyhow::Result<Exit> {
    command.lease.check()?;
    command.certificates.policy()?;
    let client = command.client.connect().await?;
    let version = client::check_server_version(&client).await?;
    let identity = command.identity.clone().unwrap_or_else(default_identity);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), kubernetes = version, identity, "starting");

    // Ports first: a port that is taken is a clear error at the start, not a half program.
    let webhook_listener = listen(command.webhook.webhook_listen).await?;
    let dispatch_listener = listen(command.dispatch.dispatch_listen).await?;
    let health_listener = listen(command.health.health_listen).await?;

    let mut registry = metrics::registry();
    let webhook_metrics = WebhookMetrics::register(&mut registry);
    let fan_out_metrics = FanOutMetrics::register(&mut registry);
    let controller_metrics = ControllerMetrics::register(&mut registry);
    let dispatch_metrics = DispatchMetrics::register(&mut registry);
    let certificate_metrics = certificates::CertificateMetrics::register(&mut registry);
    let registry = Arc::new(registry);

    let mut parts = Parts::new();
    let stop = parts.stop.clone();
    let policy = Arc::new(command.controller.policy());

    let (stores, mut watches) = caches::watch(client.clone(), stop.clone()).await;
    parts.add("watches", async move {
        while let Some(ended) = watches.join_next().await {
            ended?;
        }
        Ok(())
    });

    let (elector, leadership) = Elector::new(
        client.clone(),
        command.lease.clone(),
        &command.namespace,
        &identity,
        &command.dispatch_advertise,
    );
    let election_stop = stop.clone();
    parts.add("leader election", async move {
        elector.run(election_stop).await;
        Ok(())
    });

    let trusted = watch::Sender::new(None);
    let keeper = certificates::Source::new(
        &client,
        &command.namespace,
        &command.certificates,
        &certificate_metrics,
        trusted.subscribe(),
    )?;
    let (resolver, served) = (keeper.resolver(), keeper.subscribe());
    let keeper_stop = stop.clone();
    parts.add("certificates", async move {
        tokio::select! {
            () = keeper.run() => Ok(()),
            () = keeper_stop.cancelled() => Ok(()),
        }
    });
    let published = watch::Sender::new(None);
    let bundles = published.subscribe();
    let publisher = certificates::Publisher {
        client: client.clone(),
        namespace: command.namespace.clone(),
        served: served.clone(),
        leadership: leadership.clone(),
        published,
        trusted,
        sets_ca_bundle: command.certificates.publish_ca_bundle,
        metrics: certificate_metrics,
    };
    let publisher_stop = stop.clone();
    parts.add("CA publication", async move {
        publisher.run(publisher_stop).await;
        Ok(())
    });

    let dispatcher = Dispatcher::new(
        client.clone(),
        stores.clone(),
        (*policy).clone(),
        leadership.clone(),
        command.dispatch.clone(),
        dispatch_metrics.clone(),
    );
    let connected: watch::Receiver<Arc<BTreeSet<String>>> = dispatcher.connected();
    let reviewer = Arc::new(ApiServerReviewer::new(client.clone(), &command.token_review));
    let dispatch_server = DispatchServer {
        inputs: dispatcher.inputs(),
        leader: leadership.clone(),
        reviewer,
        certificates: resolver.clone(),
        args: command.dispatch.clone(),
        metrics: dispatch_metrics,
    };
    let dispatch_stop = stop.clone();
    parts.add("dispatch server", async move {
        Ok(dispatch_server.serve(dispatch_listener, dispatch_stop).await?)
    });
    let dispatcher_stop = stop.clone();
    parts.add("dispatcher", async move {
        dispatcher.run(dispatcher_stop).await;
        Ok(())
    });

    let (fan_out_queue, queue) = fan_out::queue(&command.fan_out, &fan_out_metrics);
    let worker = FanOutWorker {
        client: client.clone(),
        stores: stores.clone(),
        policy: policy.clone(),
        metrics: fan_out_metrics,
    };
    let caches = stores.clone();
    let node_exists = move |name: &str| {
        let own = caches.synced.borrow().own;
        own.then(|| caches.nodes.get("", name).is_some())
    };
    // Connections live on the threads that open them: admission has its own of both.
    let asking = command.client.connect().await?;
    let reviewer = Reviewer::new(
        Arc::new(move |admitted| fan_out_queue.offer(admitted)),
        Arc::new(asking),
        Arc::new(node_exists),
        &command.webhook,
        webhook_metrics.clone(),
    )
    .within(AdmissionBounds::watching(policy.clone(), stores.clone()));
    let admission_stop = stop.clone();
    let (fan_out_args, worker_stop) = (command.fan_out.clone(), stop.clone());
    parts.add("fan-out", async move {
        worker.run(fan_out_args, queue, worker_stop).await;
        Ok(())
    });
    let tls = imagewarm_webhook_certs::server_config(resolver, server::ALPN)?;
    let router = router::router(reviewer, BodyLimits::from(&command.webhook));
    let limits = Limits::from(&command.webhook);
    let webhook_listener = webhook_listener.into_std()?;
    parts.add_on_own_threads("webhook server", async move {
        let listener = TcpListener::from_std(webhook_listener)?;
        server::serve(listener, tls, router, limits, webhook_metrics, admission_stop).await;
        Ok(())
    })?;

    let controller = Controller {
        client,
        stores: stores.clone(),
        args: command.controller.clone(),
        leadership,
        connected,
        instance: identity,
        metrics: controller_metrics,
    };
    let controller_stop = stop.clone();
    parts.add("controller", async move {
        controller.run(controller_stop).await;
        Ok(())
    });

    let stopping = stop.clone();
    let synced = stores.synced.clone();
    let readiness = Readiness::default()
        .with("running", move || {
            if stopping.is_cancelled() { Err("the process is stopping".into()) } else { Ok(()) }
        })
        .with("certificate", move || {
            let loaded = served.borrow().is_some();
            if loaded { Ok(()) } else { Err("no serving certificate yet".into()) }
        })
        .with("caBundle", move || match *bundles.borrow() {
            Some(found) => found.check(),
            None => Err("the webhook configurations were not looked at yet".into()),
        })
        .with("caches", move || {
            if synced.borrow().ready() { Ok(()) } else { Err("lists are not complete yet".into()) }
        });
    let health_stop = stop.clone();
    parts.add("health server", async move {
        let router = health::router(readiness, registry);
        Ok(health::serve(health_listener, router, health_stop).await?)
    });
    parts.run().await
}

fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
