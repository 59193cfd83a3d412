//! The `imagewarm` binary as it runs in a cluster: controllers under their shipped ServiceAccount,
//! warmers with a token bound to a Pod of their node.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Api;
use serde_json::{Value, json};

use super::control_plane::write_private;
use super::node::Node;
use super::tokens::TokenFor;
use super::{ApiProxy, ApiServer, Cluster, DISPATCH_CA, NAMESPACE};
use crate::ports::Port;
use crate::process::{Process, Program};

/// ServiceAccount of the controllers, as shipped.
pub const CONTROLLER_ACCOUNT: &str = "imagecontroller";
/// ServiceAccount of the warmers, as shipped.
pub const WARMER_ACCOUNT: &str = "imagewarmer";
/// Audience of the warmers' tokens.
pub const AUDIENCE: &str = "imagewarm";

const DAY: i64 = 24 * 60 * 60;

/// A running `imagewarm controller` or `imagewarm warmer`; it is a [`Process`].
#[derive(Debug)]
pub struct Imagewarm {
    process: Process,
    webhook: Option<SocketAddr>,
    // Kept to the cluster's end, so that no other process ever answers in its place.
    _ports: Vec<Port>,
}

impl Deref for Imagewarm {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Imagewarm {
    /// Where this very replica serves admission requests, for a controller.
    pub fn webhook(&self) -> Option<SocketAddr> {
        self.webhook
    }
}

impl Cluster {
    /// Starts one replica of the controller. It takes admission and dispatch connections as soon
    /// as it is ready, beside the other replicas. Does not wait.
    pub async fn start_controller(
        &self,
        binary: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let kubeconfig = self.kubeconfig_for(NAMESPACE, CONTROLLER_ACCOUNT).await?;
        self.start_controller_with(binary, name, &kubeconfig, arguments)
    }

    /// The same, with the proxy between it and the API server.
    pub async fn start_controller_through(
        &self,
        proxy: &ApiProxy,
        binary: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let kubeconfig = self.kubeconfig_through(proxy, NAMESPACE, CONTROLLER_ACCOUNT).await?;
        self.start_controller_with(binary, name, &kubeconfig, arguments)
    }

    fn start_controller_with(
        &self,
        binary: &Path,
        name: &str,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let ports = vec![Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let [webhook, dispatch, health] = [0, 1, 2].map(|index: usize| ports[index].address());
        let program = Program::new(binary)
            .args(["controller", "--kubeconfig"])
            .arg(kubeconfig)
            .args(["--namespace", NAMESPACE, "--identity", name])
            .args(["--webhook-listen", &webhook.to_string()])
            .args(["--dispatch-listen", &dispatch.to_string()])
            .args(["--dispatch-advertise", &dispatch.to_string()])
            .args(["--health-listen", &health.to_string()])
            .args(arguments);
        let process = Process::start(name, program, self.folder())?.with_health(health);
        self.webhook.add(webhook, health);
        self.dispatch.add(dispatch, health);
        Ok(self.keep(Imagewarm { process, webhook: Some(webhook), _ports: ports }))
    }

    /// Starts a controller as its Deployment describes it, on another API server, where its
    /// ServiceAccount is: with the flags and variables that a kubelet would give it. The addresses are
    /// this machine's, and no Service leads to it. Does not wait.
    pub async fn start_controller_of(
        &self,
        deployment: &Value,
        server: &ApiServer,
        binary: &Path,
    ) -> Result<Arc<Imagewarm>> {
        let namespace = deployment["metadata"]["namespace"].as_str().context("no namespace")?;
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let account = pod["serviceAccountName"].as_str().context("no ServiceAccount")?;
        let of_server = TokenFor {
            namespace,
            service_account: account,
            pod: None,
            audience: None,
            seconds: DAY,
        };
        let token = super::tokens::request(&server.client(), &of_server).await?;
        let mut kubeconfig = self.control_plane.kubeconfig_with(json!({"token": token}));
        kubeconfig["clusters"][0]["cluster"]["server"] = json!(server.url());
        let name = format!("controller-of-{namespace}");
        let file = self.folder().join(format!("{name}.kubeconfig"));
        write_private(&file, &kubeconfig.to_string())?;

        let ports = vec![Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let [webhook, dispatch, health] = [0, 1, 2].map(|index: usize| ports[index].address());
        let texts = |value: &Value| -> Vec<String> {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(|one| Some(one.as_str()?.to_owned())).collect()
        };
        let values = [("$(POD_NAMESPACE)", namespace), ("$(POD_NAME)", &name)];
        let is_address = |argument: &String| {
            argument.contains("-listen=") || argument.starts_with("--dispatch-advertise=")
        };
        let mut arguments = texts(&container["args"]);
        arguments.retain(|argument| !is_address(argument));
        for argument in &mut arguments {
            for (variable, value) in values {
                *argument = argument.replace(variable, value);
            }
        }
        let mut program = Program::new(binary)
            .args(arguments)
            .arg("--kubeconfig")
            .arg(file)
            .args(["--webhook-listen", &webhook.to_string()])
            .args(["--dispatch-listen", &dispatch.to_string()])
            .args(["--dispatch-advertise", &dispatch.to_string()])
            .args(["--health-listen", &health.to_string()]);
        for variable in container["env"].as_array().into_iter().flatten() {
            if let (Some(name), Some(value)) =
                (variable["name"].as_str(), variable["value"].as_str())
            {
                program = program.env(name, value);
            }
        }
        let process = Process::start(&name, program, self.folder())?.with_health(health);
        Ok(self.keep(Imagewarm { process, webhook: Some(webhook), _ports: ports }))
    }

    /// Starts the warmer of a node. Does not wait.
    pub async fn start_warmer(
        &self,
        binary: &Path,
        node: &Node,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        self.start_warmer_at(binary, node, &node.socket, arguments).await
    }

    /// The same with another socket that leads to the node's runtime.
    pub async fn start_warmer_at(
        &self,
        binary: &Path,
        node: &Node,
        socket: &Path,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let (token, ca) = (self.token_file(node), self.dispatch_ca_file());
        let ca_folder = ca.parent().unwrap_or(&ca);
        let program = node.warmer_program(binary, &[&token, ca_folder])?;
        let endpoint = format!("unix://{}", socket.display());
        self.run_warmer(program, node, &[&["--runtime-endpoint", &endpoint], arguments].concat())
            .await
    }

    /// The same without telling the warmer where its runtime is: it sees the sockets of its own node
    /// and of another one below `/run`, as on a node with two runtimes.
    pub async fn start_warmer_between(
        &self,
        binary: &Path,
        node: &Node,
        other: &Node,
    ) -> Result<Arc<Imagewarm>> {
        let script = "mount -t tmpfs tmpfs /run && mkdir /run/containerd && \
             for socket in \"$1\" \"$2\"; do case $socket in \
             */containerd.sock) ln -s \"$socket\" /run/containerd/ ;; \
             *) ln -s \"$socket\" /run/ ;; esac; done && shift 2 && exec \"$@\"";
        let program = Program::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(&node.socket)
            .arg(&other.socket)
            .arg(std::path::absolute(binary)?);
        self.run_warmer(program, node, &[]).await
    }

    /// The file from which a node's warmer reads its token.
    pub fn token_file(&self, node: &Node) -> std::path::PathBuf {
        self.folder().join(&node.name).join("token")
    }

    async fn run_warmer(
        &self,
        program: Program,
        node: &Node,
        arguments: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let pod = format!("imagewarmer-{}", node.name);
        let token = TokenFor {
            namespace: NAMESPACE,
            service_account: WARMER_ACCOUNT,
            pod: Some((&pod, &node.name)),
            audience: Some(AUDIENCE),
            seconds: DAY,
        };
        let token_file = self.token_file(node);
        self.write_token(&token, &token_file).await?;
        let port = Port::reserve()?;
        let health = port.address();
        let program = program
            .args(["warmer", "--dispatch-server"])
            .arg(format!("https://{}", self.dispatch.address()))
            .arg("--dispatch-server-name")
            .arg(format!("imagewarm-dispatch.{NAMESPACE}.svc"))
            .arg("--dispatch-ca-file")
            .arg(self.dispatch_ca_file())
            .arg("--token-file")
            .arg(token_file)
            .args(["--health-listen", &health.to_string()])
            // A developer's disk may be fuller than a node's should be. An argument counts for more.
            .env("IMAGEWARM_KEEP_FREE_DISK", "0%")
            .env("IMAGEWARM_ASSUMED_IMAGE_SIZE", "1Mi")
            .args(arguments);
        let name = format!("{}-warmer", node.name);
        let process = Process::start(&name, program, self.folder())?.with_health(health);
        Ok(self.keep(Imagewarm { process, webhook: None, _ports: vec![port] }))
    }

    /// The file that holds the dispatch server's CA as soon as a controller has published it.
    pub fn dispatch_ca_file(&self) -> std::path::PathBuf {
        self.folder().join("dispatch-ca").join(DISPATCH_CA.2)
    }

    /// The path that a controller has published for a webhook, by the webhook's name.
    pub async fn webhook_path(&self, webhook: &str) -> Result<String> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        let mutating = mutating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let validating = validating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let mutating = mutating.into_iter().map(|one| (one.name, one.client_config));
        let validating = validating.into_iter().map(|one| (one.name, one.client_config));
        let mut found = mutating.chain(validating).filter(|(name, _)| name == webhook);
        let path = found.next().and_then(|(_, config)| config.service?.path);
        path.with_context(|| format!("no path of {webhook} is published"))
    }

    /// A kubeconfig with a token of the ServiceAccount, and nothing else.
    pub async fn kubeconfig_for(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> Result<std::path::PathBuf> {
        let kubeconfig = self.kubeconfig_of(namespace, service_account).await?;
        let path = self.folder().join(format!("{namespace}-{service_account}.kubeconfig"));
        write_private(&path, &kubeconfig.to_string())?;
        Ok(path)
    }

    /// The same, for the API server behind the proxy.
    pub async fn kubeconfig_through(
        &self,
        proxy: &ApiProxy,
        namespace: &str,
        service_account: &str,
    ) -> Result<std::path::PathBuf> {
        let mut kubeconfig = self.kubeconfig_of(namespace, service_account).await?;
        let server = proxy.address();
        kubeconfig["clusters"][0]["cluster"] = json!({"server": format!("http://{server}")});
        let file = format!("{namespace}-{service_account}-{}.kubeconfig", server.port());
        let path = self.folder().join(file);
        write_private(&path, &kubeconfig.to_string())?;
        Ok(path)
    }

    async fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> Result<Value> {
        let token =
            TokenFor { namespace, service_account, pod: None, audience: None, seconds: DAY };
        let token = self.token(&token).await?;
        Ok(self.control_plane.kubeconfig_with(json!({"token": token})))
    }

    /// Every controller and warmer that was started, dead ones too.
    pub fn imagewarm_processes(&self) -> Vec<Arc<Imagewarm>> {
        self.imagewarm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, started: Imagewarm) -> Arc<Imagewarm> {
        let started = Arc::new(started);
        let mut all = self.imagewarm.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(started.clone());
        started
    }
}
