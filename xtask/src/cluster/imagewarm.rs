//! The `imagewarm` binary as it runs in a cluster: controllers under their shipped ServiceAccount,
//! warmers with a token bound to a Pod of their node.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use anyhow::Result;
use serde_json::json;

use super::control_plane::write_private;
use super::node::Node;
use super::tokens::TokenFor;
use super::{Cluster, DISPATCH_CA, NAMESPACE};
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

    /// Starts the warmer of a node. Does not wait.
    pub async fn start_warmer(
        &self,
        binary: &Path,
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
        let token_file = self.folder().join(&node.name).join("token");
        self.write_token(&token, &token_file).await?;
        let port = Port::reserve()?;
        let health = port.address();
        let program = Program::new(binary)
            .args(["warmer", "--dispatch-server"])
            .arg(format!("https://{}", self.dispatch.address()))
            .arg("--dispatch-server-name")
            .arg(format!("imagewarm-dispatch.{NAMESPACE}.svc"))
            .arg("--dispatch-ca-file")
            .arg(self.dispatch_ca_file())
            .arg("--token-file")
            .arg(token_file)
            .arg("--runtime-endpoint")
            .arg(format!("unix://{}", node.socket.display()))
            .args(["--health-listen", &health.to_string()])
            .args(arguments);
        let name = format!("{}-warmer", node.name);
        let process = Process::start(&name, program, self.folder())?.with_health(health);
        Ok(self.keep(Imagewarm { process, webhook: None, _ports: vec![port] }))
    }

    /// The file that holds the dispatch server's CA as soon as a controller has published it.
    pub fn dispatch_ca_file(&self) -> std::path::PathBuf {
        self.folder().join("dispatch-ca").join(DISPATCH_CA.2)
    }

    /// A kubeconfig with a token of the ServiceAccount, and nothing else.
    pub async fn kubeconfig_for(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> Result<std::path::PathBuf> {
        let token =
            TokenFor { namespace, service_account, pod: None, audience: None, seconds: DAY };
        let token = self.token(&token).await?;
        let path = self.folder().join(format!("{namespace}-{service_account}.kubeconfig"));
        let kubeconfig = self.control_plane.kubeconfig_with(json!({"token": token}));
        write_private(&path, &kubeconfig.to_string())?;
        Ok(path)
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
