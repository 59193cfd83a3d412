//! The running system that the tests look at: the development cluster, two controllers, and a
//! warmer for each node.

mod attack;
mod commands;
mod controllers;
mod faults;
mod findings;
mod objects;
mod rights;
mod streams;
mod verbose;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::HeaderValue;
use imagewarm::protocol::dispatch_client::DispatchClient;
use imagewarm_core::api::ImageWarm;
use imagewarm_core::protocol::{FromController, FromWarmer};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use xtask::cluster::{
    Cluster, ContainerdVersion, Imagewarm, NAMESPACE, Options, TokenFor, WARMER_ACCOUNT,
};
use xtask::http_get::http_get;
use xtask::images::TestImage;

use crate::conformance::Conformance;
pub use crate::rights::Request as Audited;

pub use attack::RawStream;
pub use findings::Findings;
pub use objects::{Pushed, containers};

/// How long anything may take on a slow machine before it counts as never.
const DEADLINE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");

/// Small waits, so that the tests need not wait for a day's defaults.
const CONTROLLER_FLAGS: [&str; 8] = [
    "--collect-grace",
    "3s",
    "--waiting-after",
    "3s",
    "--reserve-delay",
    "3s",
    "--log-level",
    EVERYTHING,
];
const WARMER_FLAGS: [&str; 2] = ["--log-level", EVERYTHING];
/// All that we log ourselves, for the test that looks for credentials in it.
const EVERYTHING: &str = "info,imagewarm=trace,imagewarm_webhook_certs=trace,kube_client=off";

pub struct World {
    pub cluster: Cluster,
    /// What the conformance suite shares.
    pub conformance: Conformance,
    controllers: Mutex<BTreeMap<String, Arc<Imagewarm>>>,
    warmers: Mutex<BTreeMap<String, Arc<Imagewarm>>>,
}

impl World {
    pub async fn start() -> Result<World> {
        let options = Options { nodes: 3, tls_registry: true, knative: true, deploy: true };
        let cluster = Cluster::start(options).await?;
        let world = World {
            cluster,
            conformance: Conformance::default(),
            controllers: Mutex::default(),
            warmers: Mutex::default(),
        };
        for name in ["controller-1", "controller-2"] {
            world.start_controller(name).await?;
        }
        world.controllers_are_ready().await?;
        for node in world.nodes() {
            world.start_warmer(&node).await?;
        }
        Ok(world)
    }

    /// Ends everything; keeps the logs in view when something failed.
    pub async fn stop(self, failed: bool) {
        if failed {
            for process in self.cluster.imagewarm_processes() {
                eprintln!("--- end of the log of {}:\n{}", process.name(), process.log_tail());
            }
        }
    }

    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    /// Asks until there is an answer, or until the deadline is over.
    pub async fn eventually<T>(
        &self,
        what: &str,
        probe: impl AsyncFn() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(answer) = probe().await.with_context(|| what.to_owned())? {
                return Ok(answer);
            }
            if start.elapsed() > DEADLINE {
                bail!("not so within {} s: {what}", DEADLINE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    // ----- images

    pub fn plain_registry(&self) -> String {
        self.cluster.registry_plain.address.clone()
    }

    /// Pushes an image of new random content to the open registry.
    pub async fn push(&self, repository: &str, tag: &str) -> Result<Pushed> {
        let registry = &self.cluster.registry_plain;
        let digest = registry.push(&TestImage::new(&[200_000, 50_000]), repository, tag).await?;
        Ok(Pushed { tag: registry.image(repository, tag), digest })
    }

    /// Pushes an image that takes a moment to pull.
    pub async fn push_large(&self, repository: &str, tag: &str) -> Result<Pushed> {
        let registry = &self.cluster.registry_plain;
        let digest = registry.push(&TestImage::new(&[30_000_000]), repository, tag).await?;
        Ok(Pushed { tag: registry.image(repository, tag), digest })
    }

    /// The same to the registry with TLS and password.
    pub async fn push_private(&self, repository: &str, tag: &str) -> Result<Pushed> {
        let registry = self.cluster.registry_tls.as_ref().context("no private registry")?;
        let digest = registry.push(&TestImage::new(&[200_000]), repository, tag).await?;
        Ok(Pushed { tag: registry.image(repository, tag), digest })
    }

    /// Pushes an image that has no variant for this machine.
    pub async fn push_for_other_platform(&self, repository: &str, tag: &str) -> Result<String> {
        let registry = &self.cluster.registry_plain;
        let image = TestImage::new(&[1_000]).platforms(&[("linux", "s390x")]);
        registry.push(&image, repository, tag).await?;
        Ok(registry.image(repository, tag))
    }

    pub fn docker_config_json(&self, password: Option<&str>) -> String {
        match (&self.cluster.registry_tls, password) {
            (Some(registry), None) => registry.docker_config_json(),
            (Some(registry), Some(password)) => {
                registry.docker_config_json_with(xtask::cluster::USER, password)
            }
            (None, _) => String::new(),
        }
    }

    pub fn unused_port(&self) -> Result<u16> {
        Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
    }

    // ----- nodes

    /// The names of the nodes that were there from the start, in order.
    pub fn nodes(&self) -> Vec<String> {
        (1..=3).map(|number| format!("node-{number}")).collect()
    }

    fn node(&self, name: &str) -> Result<Arc<xtask::cluster::Node>> {
        let found = self.cluster.nodes().into_iter().find(|node| node.name == name);
        found.with_context(|| format!("there is no {name}"))
    }

    /// The digest under which the node's runtime holds the image, asked from the runtime itself.
    pub async fn node_digest(&self, node: &str, image: &str) -> Result<Option<String>> {
        let node_found = self.node(node)?;
        if node_found.has_cri() {
            return node_found.cri_digest(image).await;
        }
        let Some(inspect) = node_found.inspect(image).await else { return Ok(None) };
        let repository = image.split('@').next().unwrap_or(image);
        let repository = match repository.rsplit_once(':') {
            Some((before, tag)) if !tag.contains('/') => before,
            _ => repository,
        };
        let digests = inspect.repo_digests.unwrap_or_default();
        let of_repository = digests.iter().find_map(|digest| {
            let (name, digest) = digest.split_once('@')?;
            (name == repository).then(|| digest.to_owned())
        });
        of_repository.map(Some).with_context(|| format!("{node} holds {image} without a digest"))
    }

    pub async fn stop_runtime(&self, node: &str) -> Result<()> {
        self.node(node)?.stop_runtime().await
    }

    /// Kills it as a crash would.
    pub fn kill_runtime(&self, node: &str) -> Result<()> {
        self.node(node)?.kill();
        Ok(())
    }

    pub async fn start_runtime(&self, node: &str) -> Result<()> {
        self.node(node)?.start_runtime().await
    }

    /// A new node with dockerd and warmer; returns its name.
    pub async fn join_node(&self, name: &str) -> Result<String> {
        let name = format!("joined-{name}");
        self.cluster.add_node(&name, &[]).await?;
        self.start_warmer(&name).await?;
        Ok(name)
    }

    /// A new node with containerd and warmer, which looks every second; returns its name.
    pub async fn join_containerd_node(&self, name: &str) -> Result<String> {
        let name = format!("joined-{name}");
        let node = self.cluster.add_containerd_node(&name, ContainerdVersion::V1_6).await?;
        let flags = ["--presence-interval", "1s"];
        let started = self.cluster.start_warmer(BINARY.as_ref(), &node, &flags).await?;
        wait_ready(&started).await?;
        locked(&self.warmers).insert(name.clone(), started);
        Ok(name)
    }

    /// A new node whose dockerd has a disk of so many MiB, and whose warmer lives on it as in a container,
    /// without seeing the runtime's own folder. Of the disk the warmer keeps 15% free, and
    /// takes each image for one of 20 MiB. It looks each hour only whether they are still there.
    /// Returns its name.
    pub async fn join_node_with_disk(&self, name: &str, mebibytes: u32) -> Result<String> {
        let name = format!("joined-{name}");
        let node = self.cluster.add_node_with_disk(&name, mebibytes).await?;
        let flags = [
            "--keep-free-disk",
            "15%",
            "--assumed-image-size",
            "20Mi",
            "--presence-interval",
            "1h",
        ];
        let started = self.cluster.start_warmer(BINARY.as_ref(), &node, &flags).await?;
        wait_ready(&started).await?;
        locked(&self.warmers).insert(name.clone(), started);
        Ok(name)
    }

    /// That disk.
    pub fn disk(&self, node: &str) -> Result<std::path::PathBuf> {
        self.node(node)?.disk().with_context(|| format!("{node} has no disk of its own"))
    }

    /// A new node with containerd whose warmer finds Docker's socket of another node as well, and is
    /// told of neither; returns its name.
    pub async fn join_node_between(&self, name: &str, other: &str) -> Result<String> {
        let name = format!("joined-{name}");
        let node = self.cluster.add_containerd_node(&name, ContainerdVersion::V1_6).await?;
        let other = self.node(other)?;
        let started = self.cluster.start_warmer_between(BINARY.as_ref(), &node, &other).await?;
        wait_ready(&started).await?;
        locked(&self.warmers).insert(name.clone(), started);
        Ok(name)
    }

    /// Removes an image from a node behind everybody's back.
    pub async fn remove_image(&self, node: &str, image: &str) -> Result<()> {
        self.node(node)?.remove_image(image).await
    }

    /// Takes a joined node away: its object, its warmer and its runtime.
    pub async fn remove_node(&self, name: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        nodes.delete(name, &Default::default()).await?;
        self.stop_warmer(name).await?;
        self.node(name)?.stop_runtime().await
    }

    // ----- warmers

    pub async fn start_warmer(&self, node: &str) -> Result<()> {
        self.start_warmer_with(node, &WARMER_FLAGS).await
    }

    pub async fn start_warmer_with(&self, node: &str, flags: &[&str]) -> Result<()> {
        let node_found = self.node(node)?;
        let started = self.cluster.start_warmer(BINARY.as_ref(), &node_found, flags).await?;
        wait_ready(&started).await?;
        locked(&self.warmers).insert(node.to_owned(), started);
        Ok(())
    }

    pub async fn stop_warmer(&self, node: &str) -> Result<()> {
        let warmer = locked(&self.warmers).remove(node);
        let status = warmer.context("no such warmer")?.terminate(DEADLINE).await?;
        if !status.success() {
            bail!("the warmer of {node} ended with {status}");
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill_warmer(&self, node: &str) -> Result<()> {
        locked(&self.warmers).remove(node).context("no such warmer")?.kill();
        Ok(())
    }

    pub async fn restart_warmer(&self, node: &str) -> Result<()> {
        self.stop_warmer(node).await?;
        self.start_warmer(node).await
    }
}

async fn wait_ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}

fn locked<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
