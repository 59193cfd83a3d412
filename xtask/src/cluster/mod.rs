//! The development cluster: a real control plane, real registries, real runtimes.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use xtask::cluster::{Cluster, Options};
//! use xtask::images::TestImage;
//!
//! let cluster = Cluster::start(Options { nodes: 3, ..Options::default() }).await?;
//! cluster.registry_plain.push(&TestImage::new(&[5 << 20]), "team/app", "v1").await?;
//! cluster.start_controller("target/debug/imagewarm".as_ref(), "controller-1", &[]).await?;
//! # Ok(()) }
//! ```
//!
//! Dropping the [`Cluster`] ends every process and removes every file; if this program dies without
//! a drop, the [`Sandbox`]'s janitor does the same.

pub mod api_proxy;
mod background;
mod certificates;
mod clock;
mod containerd;
mod control_plane;
mod cri_images;
mod crio;
mod flow;
mod imagewarm;
mod knative;
mod kubelet;
pub mod manifests;
mod name_server;
mod network;
mod node;
mod registry;
mod registry_proxy;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::{Value, json};

use self::background::Background;
use self::control_plane::{CONTROLLERS, ControlPlane};
use self::name_server::NameServer;
use self::network::Segment;
use crate::prerequisites::{self, Prerequisite, Programs};
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::workspace;

pub use self::api_proxy::ApiProxy;
pub use self::background::Forwarder;
pub use self::containerd::ContainerdVersion;
pub use self::control_plane::{ApiServer, SCHEDULER};
pub use self::imagewarm::{AUDIENCE, CONTROLLER_ACCOUNT, Imagewarm, WARMER_ACCOUNT};
pub use self::knative::{Knative, NAMESPACE as KNATIVE_NAMESPACE, Part, Serving};
pub use self::kubelet::KubeletNode;
pub use self::network::Link;
pub use self::node::Node;
pub use self::registry::{Registry, USER};
pub use self::registry_proxy::{Fault, RegistryProxy};
pub use self::tokens::TokenFor;

/// The namespace of the shipped manifests.
pub const NAMESPACE: &str = "imagewarm-system";

/// Where the controllers publish the dispatch server's CA: namespace, ConfigMap, key.
const DISPATCH_CA: (&str, &str, &str) = (NAMESPACE, "imagewarm-dispatch-ca", "ca.crt");

/// After so many seconds without a byte a runtime gives a pull up, where it has such a setting.
const PULL_IDLE_SECONDS: u32 = 8;

/// What a cluster shall have.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes, called `node-1` and so on.
    pub nodes: usize,
    /// Whether there is a registry with TLS and password.
    pub tls_registry: bool,
    /// How much of Knative there is from the start.
    pub knative: Knative,
    /// Whether the shipped manifests (`deploy/`) are applied from the start.
    pub deploy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 1, tls_registry: false, knative: Knative::StandIn, deploy: true }
    }
}

/// A running cluster.
pub struct Cluster {
    // Ended in the order of `Drop`, not of declaration.
    imagewarm: Mutex<Vec<Arc<Imagewarm>>>,
    background: Option<Background>,
    nodes: Mutex<Vec<Arc<Node>>>,
    serving: Option<Serving>,
    /// Joins the networks of Knative's programs and of nodes whose Pods they reach.
    segment: Option<Segment>,
    control_plane: ControlPlane,
    /// The registry on loopback, plain HTTP and open to all.
    pub registry_plain: Registry,
    /// The registry with TLS and password, if the options ask for one.
    pub registry_tls: Option<Registry>,
    /// In front of the open registry; spoils answers on demand.
    pub registry_proxy: RegistryProxy,
    /// Stands for the Service of the webhooks.
    pub webhook: Forwarder,
    /// Stands for the Service of the dispatch server.
    pub dispatch: Forwarder,
    client: kube::Client,
    name_settings: PathBuf,
    programs: Programs,
    sandbox: Sandbox,
}

impl Cluster {
    /// Prepares the programs if need be, starts everything and waits until it works.
    pub async fn start(options: Options) -> Result<Self> {
        Self::start_with(options, &[]).await
    }

    /// The same with further flags for the API server.
    pub async fn start_with(options: Options, api_server: &[&str]) -> Result<Self> {
        require_root()?;
        let programs = prerequisites::ensure(Prerequisite::all()).await?;
        Self::start_from(programs, options, api_server).await
    }

    /// The same from programs that are prepared already. What is not among them cannot be started
    /// later; without kube-controller-manager there is none.
    pub async fn start_from(
        programs: Programs,
        options: Options,
        api_server: &[&str],
    ) -> Result<Self> {
        require_root()?;
        let sandbox = Sandbox::create()?;
        let folder = sandbox.path().to_owned();
        let registries = async {
            let plain = Registry::plain(&programs, &folder).await?;
            let tls = match options.tls_registry {
                true => Some(Registry::with_tls(&programs, &folder, "registry-tls").await?),
                false => None,
            };
            anyhow::Ok((plain, tls))
        };
        let (control_plane, (registry_plain, registry_tls)) =
            tokio::try_join!(ControlPlane::start(&programs, &folder, api_server), registries)?;
        let (webhook, dispatch) = (Forwarder::new()?, Forwarder::new()?);
        let background = Background::start(&[webhook.clone(), dispatch.clone()])?;
        let registry_proxy = RegistryProxy::new(&registry_plain.address)?;
        background.serve_proxy(&registry_proxy)?;
        let names = NameServer::new(&folder)?;
        let name_settings = names.settings().to_owned();
        background.serve_names(names);
        let client = control_plane::client_from(&control_plane.kubeconfig).await?;
        let mut cluster = Self {
            imagewarm: Mutex::default(),
            background: Some(background),
            nodes: Mutex::default(),
            serving: None,
            segment: None,
            control_plane,
            registry_plain,
            registry_tls,
            registry_proxy,
            name_settings,
            webhook,
            dispatch,
            client,
            programs,
            sandbox,
        };
        cluster.populate(&options).await?;
        Ok(cluster)
    }

    async fn populate(&mut self, options: &Options) -> Result<()> {
        match options.knative {
            Knative::None => {}
            Knative::StandIn => self.install_knative().await?,
            Knative::Real => self.install_serving().await?,
        }
        if options.deploy {
            if options.knative != Knative::Real {
                self.create_knative_namespace().await?;
            }
            self.apply_deploy().await?;
        }
        let (programs, folder) = (self.programs.clone(), self.folder().to_owned());
        if programs.contains(Prerequisite::KubeControllerManager) {
            let controllers = match options.knative {
                Knative::Real => format!("{CONTROLLERS},{}", knative::CONTROLLERS),
                Knative::None | Knative::StandIn => CONTROLLERS.to_owned(),
            };
            self.control_plane.start_controller_manager(&programs, &folder, &controllers)?;
        }
        let ca_file = self.dispatch_ca_file();
        if let Some(parent) = ca_file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if let Some(background) = &self.background {
            background.mirror(self.kubeconfig_path().to_owned(), DISPATCH_CA, ca_file);
        }
        let names: Vec<String> = (1..=options.nodes).map(|n| format!("node-{n}")).collect();
        try_join_all(names.iter().map(|name| self.add_node(name, &[]))).await?;
        if options.knative == Knative::Real {
            let folder = self.folder().join("segment");
            std::fs::create_dir_all(&folder)?;
            self.segment = Some(Segment::create(&self.programs, &folder, self.folder()).await?);
            self.serving = Some(self.start_serving().await?);
        }
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Knative's programs, where the options ask for [`Knative::Real`].
    pub fn serving(&self) -> Result<&Serving> {
        self.serving.as_ref().context("the cluster runs without Knative Serving")
    }

    /// Starts the scheduler, which a cluster does without otherwise. It binds only Pods whose
    /// `schedulerName` is [`SCHEDULER`].
    pub fn start_scheduler(&mut self) -> Result<()> {
        let (programs, folder) = (self.programs.clone(), self.folder().to_owned());
        self.control_plane.start_scheduler(&programs, &folder)
    }

    /// Starts the controller of ResourceQuotas, which a cluster does without otherwise. It runs until
    /// the process is dropped.
    pub fn start_quota_controller(&self) -> Result<Process> {
        self.control_plane.start_quota_controller(&self.programs, self.folder())
    }

    /// Starts another API server, on the same etcd, with these further flags. It runs until it is
    /// dropped.
    pub async fn start_another_api_server(&self, flags: &[&str]) -> Result<ApiServer> {
        self.control_plane.start_another_api_server(&self.programs, self.folder(), flags).await
    }

    /// Removes old revisions from etcd, as API servers do every five minutes.
    pub async fn compact_etcd(&self) -> Result<()> {
        self.control_plane.compact_etcd().await
    }

    /// Writes objects of a custom resource straight to etcd, each with its key
    /// (`GROUP/RESOURCE/NAMESPACE/NAME`): for more of them than could be created in a test.
    pub async fn store(&self, objects: impl Iterator<Item = (String, Value)>) -> Result<()> {
        self.control_plane.store(objects).await
    }

    /// A program that runs `binary` with a wall clock that is off by so many seconds. Monotonic
    /// clocks are as they are.
    pub fn with_wall_clock(&self, binary: &Path, seconds: i64) -> Result<PathBuf> {
        clock::program(binary, seconds, self.folder())
    }

    /// A client with every right.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The kubeconfig of that client, for kubectl.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.control_plane.kubeconfig
    }

    /// A program that was prepared.
    pub fn program(&self, program: Prerequisite) -> Result<&Path> {
        self.programs.path(program)
    }

    /// kubectl, as found or built.
    pub fn kubectl(&self) -> Result<&Path> {
        self.programs.path(Prerequisite::Kubectl)
    }

    /// `https://127.0.0.1:PORT` of the API server.
    pub fn server_url(&self) -> &str {
        &self.control_plane.server_url
    }

    /// Starts a proxy in front of the API server, whose faults a test sets.
    pub async fn api_proxy(&self) -> Result<ApiProxy> {
        ApiProxy::start(self.server_url(), &self.ca()).await
    }

    /// The authority of the API server's certificate, PEM.
    pub fn ca(&self) -> String {
        self.control_plane.authority.pem()
    }

    /// The cluster's folder, with everybody's data and logs (`log/NAME.log`). Removed at the end.
    pub fn folder(&self) -> &Path {
        self.sandbox.path()
    }

    /// All nodes so far.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same in the order of their names.
    pub fn nodes_by_name(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// The node of that number, counted from 1.
    pub fn node(&self, number: usize) -> Result<Arc<Node>> {
        let name = format!("node-{number}");
        match self.nodes().into_iter().find(|node| node.name == name) {
            Some(node) => Ok(node),
            None => bail!("the cluster has no {name}"),
        }
    }

    /// Starts a dockerd and makes its Node object, Ready and with these labels too.
    pub async fn add_node(&self, name: &str, labels: &[(&str, &str)]) -> Result<Arc<Node>> {
        let registry = self.registry_tls.as_ref();
        let node = Node::with_docker(name, &self.programs, self.folder(), registry)?;
        self.start_node(node, labels).await
    }

    /// The same with a disk of its own of so many MiB for its images.
    pub async fn add_node_with_disk(&self, name: &str, mebibytes: u32) -> Result<Arc<Node>> {
        let registry = self.registry_tls.as_ref();
        let node = Node::with_docker(name, &self.programs, self.folder(), registry)?;
        self.start_node(node.with_disk(mebibytes)?, &[]).await
    }

    /// Starts a containerd that knows both registries, and makes its Node object, Ready.
    pub async fn add_containerd_node(
        &self,
        name: &str,
        version: ContainerdVersion,
    ) -> Result<Arc<Node>> {
        let registries = self.registries();
        let folder = self.folder();
        let node = Node::with_containerd(name, version, &self.programs, folder, &registries, None)?;
        self.start_node(node, &[]).await
    }

    /// The same with further settings, as tables of TOML.
    pub async fn add_containerd_node_with(
        &self,
        name: &str,
        version: ContainerdVersion,
        settings: &str,
    ) -> Result<Arc<Node>> {
        let registries = self.registries();
        let folder = self.folder();
        let node = Node::with_containerd(name, version, &self.programs, folder, &registries, None)?;
        self.start_node(node.with_containerd_settings(settings)?, &[]).await
    }

    /// Starts a CRI-O that knows both registries, and makes its Node object, Ready.
    pub async fn add_crio_node(&self, name: &str) -> Result<Arc<Node>> {
        let registries = self.registries();
        let plain = [self.registry_proxy.address().to_string()];
        let node = Node::with_crio(name, &self.programs, self.folder(), &registries, &plain)?;
        self.start_node(node, &[]).await
    }

    fn registries(&self) -> Vec<&Registry> {
        std::iter::once(&self.registry_plain).chain(&self.registry_tls).collect()
    }

    /// Starts one more registry with TLS, whose authority no node trusts.
    pub async fn start_untrusted_registry(&self) -> Result<Registry> {
        Registry::with_tls(&self.programs, self.folder(), "registry-untrusted").await
    }

    async fn start_node(&self, node: Node, labels: &[(&str, &str)]) -> Result<Arc<Node>> {
        let node = node.asking_names(&self.name_settings);
        node.start_runtime().await?;
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        node.register(self.client(), &labels.collect::<BTreeMap<_, _>>()).await?;
        let node = Arc::new(node);
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node.clone());
        Ok(node)
    }

    /// Applies all objects of a file or folder; `change` may change each, or leave it out.
    pub async fn apply_manifests(
        &self,
        path: &Path,
        change: impl FnMut(Value) -> Option<Value>,
    ) -> Result<()> {
        let objects = manifests::read(path)?.into_iter().filter_map(change).collect();
        manifests::apply(&self.client, objects).await
    }

    /// Applies the shipped manifests, changed only so that Services lead to this machine.
    pub async fn apply_deploy(&self) -> Result<()> {
        let port = self.webhook.address().port();
        let change = |object| Some(manifests::for_development(object, port));
        self.apply_manifests(&workspace().join("deploy"), change).await
    }

    /// The namespace in which the controller reads Knative's settings, without Knative.
    async fn create_knative_namespace(&self) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KNATIVE_NAMESPACE},
        });
        manifests::apply(&self.client, vec![namespace]).await
    }

    /// Installs the stand-ins for Knative's CRDs.
    pub async fn install_knative(&self) -> Result<()> {
        self.apply_manifests(&stand_in_crds(), Some).await
    }

    /// Removes Knative's CRDs, and with them all their objects.
    pub async fn remove_knative(&self) -> Result<()> {
        for crd in manifests::read(&stand_in_crds())? {
            manifests::delete(&self.client, &crd).await?;
        }
        Ok(())
    }

    /// A token by TokenRequest.
    pub async fn token(&self, token: &TokenFor<'_>) -> Result<String> {
        tokens::request(&self.client, token).await
    }

    /// The same token, but ending in so many seconds; or so long ago.
    pub fn retimed_token(&self, token: &str, ends_in: i64) -> Result<String> {
        tokens::retimed(token, &self.control_plane.service_account_key()?, ends_in)
    }

    /// A token, written to a file that only its owner may read.
    pub async fn write_token(&self, token: &TokenFor<'_>, file: &Path) -> Result<()> {
        control_plane::write_private(file, &self.token(token).await?)
    }

    /// A token bound to a Pod on a node, as a warmer's Pod has it.
    pub async fn token_for_pod(
        &self,
        (namespace, service_account): (&str, &str),
        (pod, node): (&str, &str),
        audience: &str,
        seconds: i64,
    ) -> Result<String> {
        let pod = Some((pod, node));
        let audience = Some(audience);
        self.token(&TokenFor { namespace, service_account, pod, audience, seconds }).await
    }

    /// Copies a ConfigMap's key into a file once it is there.
    pub async fn copy_config_map(
        &self,
        source: (&str, &str, &str),
        file: &Path,
        deadline: Duration,
    ) -> Result<PathBuf> {
        tokens::copy_config_map(&self.client, source, file, deadline).await
    }

    /// All requests that the API server has answered so far, as audit events (metadata only).
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let log = std::fs::read_to_string(&self.control_plane.audit_log)?;
        // The last line may be half written.
        Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.imagewarm.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            process.kill();
        }
        self.background = None;
        for node in self.nodes() {
            node.kill();
        }
        if let Some(serving) = &self.serving {
            serving.stop();
        }
        self.control_plane.stop();
        self.registry_plain.stop();
        if let Some(registry) = &self.registry_tls {
            registry.stop();
        }
        // The sandbox, dropped last, ends what is left.
    }
}

/// Fails unless this process runs as root.
pub fn require_root() -> Result<()> {
    match prerequisites::is_root() {
        true => Ok(()),
        false => bail!("the development cluster runs dockerd and must be started as root"),
    }
}

fn stand_in_crds() -> PathBuf {
    workspace().join("tests/knative-crds")
}
