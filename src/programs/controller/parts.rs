//! The parts of a replica: what each takes, and what it gives to those after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ControllerCommand;
use crate::admission::bounds::AdmissionBounds;
use crate::admission::router::{self, BodyLimits};
use crate::admission::server::{self, Limits};
use crate::admission::{Reviewer, WebhookMetrics};
use crate::clock::Clock;
use crate::fan_out::{self, FanOut, FanOutMetrics, FanOutWorker};
use crate::kubernetes::caches::{self, Stores};
use crate::kubernetes::leadership::Leadership;
use crate::kubernetes::token_review::ApiServerReviewer;
use crate::kubernetes::webhook_configurations::{ConfigurationStates, ReplicaPaths, Role};
use crate::leader::ca_publication::Publisher;
use crate::leader::container_starts::ContainerStarts;
use crate::leader::pod_events::PodEvents;
use crate::leader::{Controller, ControllerMetrics, Elector};
use crate::programs::{Parts, certificates};
use crate::sessions::metrics::DispatchMetrics;
use crate::sessions::server::PROOF;
use crate::sessions::{DispatchServer, Dispatcher, PodImages};
use crate::telemetry::certificates::CertificateMetrics;
use crate::telemetry::health::{self, Readiness};
use imagewarm_core::api::names::NodeName;
use imagewarm_core::policy::Policy;
use imagewarm_core::report::container_start::ContainerStart;
use imagewarm_core::report::image_starts::AllImageStarts;
use imagewarm_core::report::pending_pod::PendingPod;
use imagewarm_core::report::pod_image::PodImage;
use imagewarm_core::webhook_paths::ServedPaths;
use imagewarm_webhook_certs::{Resolver, Served};

/// What the parts of one replica are made of.
pub(super) struct Replica<'a> {
    pub(super) command: ControllerCommand,
    pub(super) client: Client,
    pub(super) identity: String,
    pub(super) policy: Arc<Policy>,
    pub(super) registry: &'a mut Registry,
    pub(super) parts: &'a mut Parts,
}

/// The certificates of a replica, as its other parts see them.
pub(super) struct Certificates {
    resolver: Arc<Resolver>,
    served: watch::Receiver<Option<Served>>,
    webhooks: watch::Receiver<Option<ConfigurationStates>>,
    paths: watch::Receiver<ServedPaths>,
}

/// What the leader's work needs of the warmers' streams.
pub(super) struct Sessions {
    /// Nodes whose warmer has an open stream.
    connected: watch::Receiver<Arc<BTreeSet<NodeName>>>,
    pod_images: PodImages,
}

impl Replica<'_> {
    /// Watches the API server.
    pub(super) async fn caches(&mut self) -> Stores {
        let (stores, mut watches) = caches::watch(
            self.client.clone(),
            &self.policy.knative_namespace,
            self.parts.stop.clone(),
        )
        .await;
        self.parts.add("watches", async move {
            while let Some(ended) = watches.join_next().await {
                ended?;
            }
            Ok(())
        });
        stores
    }

    /// Takes part in the leader election.
    pub(super) fn election(&mut self) -> watch::Receiver<Leadership> {
        let (elector, leadership) = Elector::new(
            self.client.clone(),
            self.command.lease.clone(),
            &self.command.namespace,
            &self.identity,
            &self.command.dispatch_advertise,
        );
        self.parts.spawn("leader election", |stop| elector.run(stop));
        leadership
    }

    /// Keeps the serving certificate, and publishes its CA while this replica leads.
    pub(super) fn certificates(
        &mut self,
        leadership: &watch::Receiver<Leadership>,
    ) -> anyhow::Result<Certificates> {
        let args = &self.command.certificates;
        let metrics = CertificateMetrics::register(self.registry);
        let trusted = watch::Sender::new(None);
        let keeper = certificates::Source::new(
            &self.client,
            &self.command.namespace,
            args,
            &metrics,
            trusted.subscribe(),
        )?;
        let (resolver, served) = (keeper.resolver(), keeper.subscribe());
        self.parts.spawn("certificates", |stop| async move {
            stop.run_until_cancelled(keeper.run()).await;
        });
        let published = watch::Sender::new(None);
        let webhooks = published.subscribe();
        let paths = ReplicaPaths::default();
        let served_paths = paths.served();
        let publisher = Publisher {
            client: self.client.clone(),
            namespace: self.command.namespace.to_string(),
            served: served.clone(),
            leadership: leadership.clone(),
            published,
            trusted,
            leader_role: match (args.publish_ca_bundle, args.publish_webhook_paths) {
                (false, false) => Role::Reads,
                (ca_bundle, paths) => Role::Publishes { ca_bundle, paths },
            },
            paths,
            clock: Clock::start(),
            metrics,
        };
        self.parts.spawn("CA publication", |stop| publisher.run(stop));
        Ok(Certificates { resolver, served, webhooks, paths: served_paths })
    }

    /// Serves the warmers' streams while this replica leads.
    pub(super) fn sessions(
        &mut self,
        listener: TcpListener,
        stores: &Stores,
        leadership: &watch::Receiver<Leadership>,
        certificates: &Certificates,
    ) -> Sessions {
        let metrics = DispatchMetrics::register(self.registry);
        let dispatcher = Dispatcher::new(
            self.client.clone(),
            stores.clone(),
            (*self.policy).clone(),
            leadership.clone(),
            self.command.dispatch.clone(),
            metrics.clone(),
        );
        let (connected, pod_images) = (dispatcher.connected(), dispatcher.pod_images());
        let server = DispatchServer {
            inputs: dispatcher.inputs(),
            leader: leadership.clone(),
            reviewer: Arc::new(ApiServerReviewer::new(
                self.client.clone(),
                &self.command.token_review,
            )),
            certificates: certificates.resolver.clone(),
            args: self.command.dispatch.clone(),
            metrics,
            proof: PROOF,
        };
        let stop = self.parts.stop.clone();
        self.parts.add("dispatch server", async move { Ok(server.serve(listener, stop).await?) });
        self.parts.spawn("dispatcher", |stop| dispatcher.run(stop));
        Sessions { connected, pod_images }
    }

    /// Makes the ImageWarms of admitted Revisions.
    pub(super) fn fan_out(&mut self, stores: &Stores) -> FanOut {
        let args = self.command.fan_out.clone();
        let metrics = FanOutMetrics::register(self.registry);
        let (fan_out, queue) = fan_out::queue(&args, &metrics);
        let worker = FanOutWorker {
            client: self.client.clone(),
            stores: stores.clone(),
            policy: self.policy.clone(),
            metrics,
        };
        self.parts.spawn("fan-out", |stop| worker.run(args, queue, stop));
        fan_out
    }

    /// Answers AdmissionReviews, on threads and with a client of its own: connections live on the
    /// threads that open them.
    pub(super) async fn admission(
        &mut self,
        listener: TcpListener,
        stores: &Stores,
        fan_out: FanOut,
        certificates: &Certificates,
    ) -> anyhow::Result<()> {
        let args = &self.command.webhook;
        let metrics = WebhookMetrics::register(self.registry);
        let caches = stores.clone();
        let node_exists = move |name: &str| {
            let own = caches.synced.borrow().own;
            own.then(|| caches.nodes.get("", name).is_some())
        };
        let reviewer = Reviewer::new(
            Arc::new(move |admitted| fan_out.offer(admitted)),
            Arc::new(self.command.client.connect().await?),
            Arc::new(node_exists),
            args,
            metrics.clone(),
        )
        .within(AdmissionBounds::watching(self.policy.clone(), stores.clone()));
        let tls =
            imagewarm_webhook_certs::server_config(certificates.resolver.clone(), server::ALPN)?;
        let router = router::router(reviewer, BodyLimits::from(args), certificates.paths.clone());
        let limits = Limits::from(args);
        let listener = listener.into_std()?;
        let stop = self.parts.stop.clone();
        self.parts.add_on_own_threads("webhook server", async move {
            let listener = TcpListener::from_std(listener)?;
            server::serve(listener, tls, router, limits, metrics, stop).await;
            Ok(())
        })?;
        Ok(())
    }

    /// Does the leader's work while this replica leads.
    pub(super) fn leader(
        &mut self,
        stores: &Stores,
        leadership: watch::Receiver<Leadership>,
        Sessions { connected, pod_images }: Sessions,
    ) {
        let starts = self.pod_events(stores, &leadership, pod_images);
        let controller = Controller {
            client: self.client.clone(),
            stores: stores.clone(),
            args: self.command.controller.clone(),
            leadership,
            connected,
            starts,
            instance: self.identity.clone(),
            metrics: ControllerMetrics::register(self.registry),
        };
        self.parts.spawn("controller", |stop| controller.run(stop));
    }

    /// Follows what kubelets and schedulers say of Pods: for metrics and the statuses of Images, for what must not
    /// be slowed down, and for what comes first.
    fn pod_events(
        &mut self,
        stores: &Stores,
        leadership: &watch::Receiver<Leadership>,
        pod_images: PodImages,
    ) -> watch::Receiver<Arc<AllImageStarts>> {
        let args = &self.command.controller;
        let pod_images = args.preemption.then_some(pod_images);
        let mut of_images = watch::Sender::default().subscribe();
        let counted = args.count_container_starts.then(|| {
            let rewrites = args.image_rewrites.clone();
            let (starts, sender) =
                ContainerStarts::new(stores.clone(), leadership.clone(), rewrites, self.registry);
            of_images = starts.of_images();
            self.parts.spawn("container starts", |_| starts.run());
            sender
        });
        if pod_images.is_some() || counted.is_some() {
            let events = PodEvents::new(self.client.clone(), leadership.clone());
            let seen = move |event: &Event| {
                let start = ContainerStart::of(event);
                if let Some(pod_images) = &pod_images {
                    PodImage::pulling(event).into_iter().for_each(|image| pod_images.waits(image));
                    PendingPod::of(event).into_iter().for_each(|pod| pod_images.pending(pod));
                    start.iter().for_each(|start| pod_images.started(start.image.clone()));
                }
                if let (Some(counted), Some(start)) = (&counted, start) {
                    let _ = counted.try_send(start);
                }
            };
            self.parts.spawn("Events about Pods", |stop| events.run(seen, stop));
        }
        of_images
    }
}

/// Serves probes and metrics. Ready is a replica whose certificate the API server trusts and whose
/// caches are filled.
pub(super) fn health(
    parts: &mut Parts,
    listener: TcpListener,
    registry: Registry,
    stores: &Stores,
    certificates: Certificates,
) {
    let stopping = parts.stop.clone();
    let synced = stores.synced.clone();
    let Certificates { served, webhooks, .. } = certificates;
    let readiness = Readiness::default()
        .with("running", move || {
            if stopping.is_cancelled() { Err("the process is stopping".into()) } else { Ok(()) }
        })
        .with("certificate", move || {
            let loaded = served.borrow().is_some();
            if loaded { Ok(()) } else { Err("no serving certificate yet".into()) }
        })
        .with("caBundle", move || match *webhooks.borrow() {
            Some(found) => found.check(),
            None => Err("the webhook configurations were not looked at yet".into()),
        })
        .with("caches", move || {
            if synced.borrow().ready() { Ok(()) } else { Err("lists are not complete yet".into()) }
        });
    let stop = parts.stop.clone();
    parts.add("health server", async move {
        let router = health::router(readiness, Arc::new(registry));
        health::serve(listener, router, stop).await;
        Ok(())
    });
}
