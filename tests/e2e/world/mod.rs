//! The running system that the tests look at: the development cluster, two controllers, and a
//! warmer for each node.

mod objects;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::HeaderValue;
use imagewarm::api::ImageWarm;
use imagewarm::protocol::dispatch_client::DispatchClient;
use imagewarm::protocol::{FromController, FromWarmer};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use xtask::cluster::{Cluster, Imagewarm, NAMESPACE, Options, TokenFor, WARMER_ACCOUNT};
use xtask::http_get::http_get;
use xtask::images::TestImage;

pub use objects::{Pushed, containers};

/// How long anything may take on a slow machine before it counts as never.
const DEADLINE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");

/// Small waits, so that the tests need not wait for a day's defaults.
const CONTROLLER_FLAGS: [&str; 6] =
    ["--collect-grace", "3s", "--waiting-after", "3s", "--log-level", EVERYTHING];
const WARMER_FLAGS: [&str; 2] = ["--log-level", EVERYTHING];
/// All that we log ourselves, for the test that looks for credentials in it.
const EVERYTHING: &str = "info,imagewarm=trace,imagewarm_webhook_certs=trace,kube_client=off";

/// The first answer, the rest of them, and what keeps the sending side open.
pub type OpenStream = (
    Option<FromController>,
    tonic::Streaming<FromController>,
    tokio::sync::mpsc::Sender<FromWarmer>,
);

pub struct World {
    cluster: Cluster,
    controllers: Mutex<BTreeMap<String, Arc<Imagewarm>>>,
    warmers: Mutex<BTreeMap<String, Arc<Imagewarm>>>,
}

impl World {
    pub async fn start() -> Result<World> {
        let options = Options { nodes: 3, tls_registry: true, knative: true, deploy: true };
        let cluster = Cluster::start(options).await?;
        let world = World { cluster, controllers: Mutex::default(), warmers: Mutex::default() };
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
        if node_found.has_containerd() {
            return node_found.containerd_digest(image).await;
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
        let node = self.cluster.add_containerd_node(&name).await?;
        let flags = ["--presence-interval", "1s"];
        let started = self.cluster.start_warmer(BINARY.as_ref(), &node, &flags).await?;
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
        let started = self
            .cluster
            .start_warmer(BINARY.as_ref(), self.node(node)?.as_ref(), &WARMER_FLAGS)
            .await?;
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

    pub async fn restart_warmer(&self, node: &str) -> Result<()> {
        self.stop_warmer(node).await?;
        self.start_warmer(node).await
    }

    // ----- controllers

    async fn start_controller(&self, name: &str) -> Result<()> {
        let started =
            self.cluster.start_controller(BINARY.as_ref(), name, &CONTROLLER_FLAGS).await?;
        locked(&self.controllers).insert(name.to_owned(), started);
        Ok(())
    }

    /// Starts both without waiting for them.
    pub async fn start_controllers_unready(&self) -> Result<()> {
        for name in ["controller-1", "controller-2"] {
            self.start_controller(name).await?;
        }
        Ok(())
    }

    /// What both say at /readyz, however ready they are.
    pub async fn readiness(&self) -> Result<Vec<String>> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        let mut said = vec![];
        for controller in controllers {
            let address = controller.health().context("no health port")?;
            // Not there yet says nothing.
            said.push(http_get(address, "/readyz").await.map(|(_, text)| text).unwrap_or_default());
        }
        Ok(said)
    }

    /// A client with the controllers' own account.
    pub async fn controller_client(&self) -> Result<Client> {
        let account = xtask::cluster::CONTROLLER_ACCOUNT;
        let path = self.cluster.kubeconfig_for(NAMESPACE, account).await?;
        let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(Client::try_from(config)?)
    }

    pub async fn controllers_are_ready(&self) -> Result<()> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        for controller in controllers {
            wait_ready(&controller).await?;
        }
        // The API server keeps connections to replicas that are gone; as with a real Service it
        // takes a moment until it finds the new ones.
        let probe = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"generateName": "probe-"},
            "spec": {"image": "app", "nodeName": "probe"},
        });
        self.eventually("admission answers", async || {
            Ok(self.post_raw("default", &probe).await?.is_none().then_some(()))
        })
        .await
    }

    /// Ends both controllers as a rollout would, and checks that they end well.
    pub async fn stop_controllers(&self) -> Result<()> {
        let controllers = std::mem::take(&mut *locked(&self.controllers));
        for (name, controller) in controllers {
            let status = controller.terminate(DEADLINE).await?;
            if !status.success() {
                bail!("{name} ended with {status}");
            }
        }
        Ok(())
    }

    pub async fn start_controllers(&self) -> Result<()> {
        self.start_controllers_unready().await?;
        self.controllers_are_ready().await
    }

    pub async fn restart_controllers(&self) -> Result<()> {
        self.stop_controllers().await?;
        self.start_controllers().await
    }

    /// SIGKILL for the replica that holds the Lease; returns its name.
    pub async fn kill_leader(&self) -> Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client(), NAMESPACE);
        let lease = leases.get("imagewarm-leader").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        // `NAME-RUN@ADDRESS`, with another RUN for each start of the process.
        let name = holder.split('@').next().unwrap_or_default();
        let name = name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned();
        let leader = locked(&self.controllers).remove(&name);
        leader.with_context(|| format!("the leader {holder:?} is none of ours"))?.kill();
        Ok(name)
    }

    pub async fn restart_controller(&self, name: &str) -> Result<()> {
        self.start_controller(name).await?;
        self.controllers_are_ready().await
    }

    /// The sum of a metric over both controllers, of the samples whose labels contain a text.
    pub async fn metric_sum(&self, metric: &str, label: &str) -> Result<f64> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        let mut sum = 0.0;
        for controller in controllers {
            let address = controller.health().context("no health port")?;
            let (_, text) = http_get(address, "/metrics").await?;
            for line in text.lines().filter(|l| l.starts_with(metric) && l.contains(label)) {
                sum += line.rsplit(' ').next().and_then(|v| v.parse().ok()).unwrap_or(0.0);
            }
        }
        Ok(sum)
    }

    // ----- Knative and the webhook configurations

    pub async fn remove_knative(&self) -> Result<()> {
        self.cluster.remove_knative().await
    }

    pub async fn install_knative(&self) -> Result<()> {
        self.cluster.install_knative().await
    }

    /// Returns once the leader has run without Knative: an order made by hand is served, and the
    /// grace period of the collection is over twice.
    pub async fn leader_has_caught_up_without_knative(&self) -> Result<()> {
        let namespace = self.namespace("probe").await?;
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), &namespace);
        for round in 0..2 {
            let app = self.push("probe", &format!("{namespace}-{round}")).await?;
            self.hand_made(&namespace, "probe", &app.tag, &self.nodes()[0], &[]).await?;
            let made = Instant::now();
            self.all_ready(&namespace, 1).await?;
            self.eventually("the grace period is over", async || {
                Ok((made.elapsed() > Duration::from_secs(4)).then_some(()))
            })
            .await?;
            warms.delete("probe", &Default::default()).await?;
        }
        Ok(())
    }

    /// Overwrites the CA in both webhook configurations, as a careless apply would.
    pub async fn break_ca_bundle(&self) -> Result<()> {
        let body = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
        let patch = Patch::<()>::Json(serde_json::from_value(body)?);
        let params = PatchParams::default();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        mutating.patch("imagewarm", &params, &patch).await?;
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        validating.patch("imagewarm", &params, &patch).await?;
        Ok(())
    }

    /// Whether both configurations trust the CA that the warmers trust, in all their webhooks.
    pub async fn ca_bundle_is_right(&self) -> Result<bool> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), NAMESPACE);
        let map = maps.get("imagewarm-dispatch-ca").await?;
        let ca = map.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let mutating = mutating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        let validating = validating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let mutating = mutating.into_iter().map(|webhook| webhook.client_config);
        let validating = validating.into_iter().map(|webhook| webhook.client_config);
        let mut bundles = mutating.chain(validating).map(|client| client.ca_bundle);
        Ok(bundles.all(|bundle| bundle.is_some_and(|bundle| bundle.0 == ca.as_bytes())))
    }

    /// As if nothing but the controllers had been installed yet.
    pub async fn delete_webhooks_and_certificates(&self) -> Result<()> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        mutating.delete("imagewarm", &Default::default()).await?;
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        validating.delete("imagewarm", &Default::default()).await?;
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        secrets.delete("imagewarm-certs", &Default::default()).await?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), NAMESPACE);
        maps.delete("imagewarm-dispatch-ca", &Default::default()).await?;
        Ok(())
    }

    pub async fn apply_manifests(&self) -> Result<()> {
        self.cluster.apply_deploy().await
    }

    /// Whether both configurations go with our Namespace.
    pub async fn webhooks_are_owned(&self) -> Result<bool> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        let owners = [
            mutating.get("imagewarm").await?.metadata.owner_references,
            validating.get("imagewarm").await?.metadata.owner_references,
        ];
        Ok(owners.iter().all(|owners| {
            owners.iter().flatten().any(|o| o.kind == "Namespace" && o.name == NAMESPACE)
        }))
    }

    // ----- tokens and streams

    pub async fn token_for(
        &self,
        namespace: &str,
        account: &str,
        node: &str,
        audience: &str,
    ) -> Result<String> {
        let pod = format!("probe-{node}");
        self.cluster.token_for_pod((namespace, account), (&pod, node), audience, 600).await
    }

    pub async fn warmer_token(&self, node: &str, audience: &str) -> Result<String> {
        self.token_for(NAMESPACE, WARMER_ACCOUNT, node, audience).await
    }

    pub async fn unbound_warmer_token(&self, audience: &str) -> Result<String> {
        self.cluster
            .token(&TokenFor {
                namespace: NAMESPACE,
                service_account: WARMER_ACCOUNT,
                pod: None,
                audience: Some(audience),
                seconds: 600,
            })
            .await
    }

    /// Opens a stream to the leader with this token and says these messages; returns the first
    /// answer, the stream, and what keeps its sending side open.
    pub async fn open_stream(
        &self,
        token: Option<&str>,
        messages: Vec<FromWarmer>,
    ) -> Result<OpenStream, tonic::Status> {
        let internal = |error: &dyn std::fmt::Display| tonic::Status::internal(error.to_string());
        let ca = std::fs::read(self.cluster.dispatch_ca_file()).map_err(|e| internal(&e))?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name(format!("imagewarm-dispatch.{NAMESPACE}.svc"));
        let mut address = self.cluster.dispatch.address().to_string();
        for _ in 0..3 {
            let endpoint = Endpoint::from_shared(format!("https://{address}"))
                .and_then(|endpoint| endpoint.tls_config(tls.clone()))
                .map_err(|e| internal(&e))?;
            let channel = endpoint.connect().await.map_err(|e| internal(&e))?;
            let mut client = DispatchClient::new(channel);
            let (sender, said) = tokio::sync::mpsc::channel(messages.len().max(1));
            for message in messages.clone() {
                let _ = sender.try_send(message);
            }
            let said = tokio_stream::wrappers::ReceiverStream::new(said);
            let mut request = tonic::Request::new(said);
            if let Some(token) = token {
                let value = HeaderValue::from_str(&format!("Bearer {token}"));
                let value = value.ok().and_then(|v| v.to_str().ok()?.parse().ok());
                request
                    .metadata_mut()
                    .insert("authorization", value.ok_or_else(|| internal(&"token"))?);
            }
            let answer = async {
                let mut stream = client.session(request).await?.into_inner();
                // A refusal may come as the call's answer or as the stream's first word.
                match stream.message().await {
                    Ok(first) => Ok((first, stream)),
                    Err(status) => Err(status),
                }
            };
            match answer.await {
                Ok((first, stream)) => return Ok((first, stream, sender)),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    let leader = status.metadata().get(imagewarm::protocol::LEADER_METADATA);
                    match leader.and_then(|leader| leader.to_str().ok()) {
                        Some(leader) => address = leader.to_owned(),
                        None => return Err(status),
                    }
                }
                Err(status) => return Err(status),
            }
        }
        Err(tonic::Status::unavailable("no leader was found"))
    }

    /// The logs of all controllers and warmers, by process.
    pub fn logs(&self) -> Vec<(String, String)> {
        let processes = self.cluster.imagewarm_processes();
        processes.iter().map(|process| (process.name().to_owned(), process.log())).collect()
    }

    /// Every password that the tests use, plain and as it stands in pull secrets.
    pub fn passwords(&self) -> Vec<String> {
        let real = self.cluster.registry_tls.as_ref().and_then(|tls| tls.password.clone());
        let mut words: Vec<String> = real.into_iter().collect();
        words.extend(["canary-not-the-password".into(), "canary-mistyped".into()]);
        let encode = |word: &String| {
            let pair = format!("{}:{word}", xtask::cluster::USER);
            base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair)
        };
        let encoded: Vec<_> = words.iter().map(encode).collect();
        words.into_iter().chain(encoded).filter(|word| !word.is_empty()).collect()
    }

    // ----- commands

    /// Runs `imagewarm` as an operator does; returns its exit code and what it printed.
    pub async fn imagewarm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.command(BINARY.as_ref(), arguments).await
    }

    /// Runs `kubectl`, which must succeed; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let (code, said) = self.command(self.cluster.kubectl(), arguments).await?;
        if code != 0 {
            bail!("kubectl {arguments:?} ended with {code}:\n{said}");
        }
        Ok(said)
    }

    async fn command(&self, program: &Path, arguments: &[&str]) -> Result<(i32, String)> {
        let command = tokio::process::Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig_path())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, command)
            .await
            .with_context(|| format!("{program:?} {arguments:?} did not end"))??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }
}

async fn wait_ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}

fn locked<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
