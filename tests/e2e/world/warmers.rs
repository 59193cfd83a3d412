//! The warmers: one for each node. After a test each runs as at first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use xtask::cluster::{Imagewarm, NAMESPACE, WARMER_ACCOUNT};

use super::system::{JOINED, System, locked, wait_ready};
use super::undo::Undo;
use super::{BINARY, DEADLINE, EVERYTHING, changed, eventually};

const DAY: i64 = 24 * 60 * 60;
const FLAGS: [&str; 2] = ["--log-level", EVERYTHING];

/// The warmers of all nodes.
#[derive(Default)]
struct All(Mutex<BTreeMap<String, Warmer>>);

/// The warmer of a node, whether it runs or not.
struct Warmer {
    /// With which it was started first.
    flags: Vec<String>,
    process: Option<Arc<Imagewarm>>,
    as_at_first: bool,
}

#[derive(Clone)]
pub struct Warmers {
    system: Arc<System>,
    undo: Undo,
    warmers: Arc<All>,
}

impl Warmers {
    pub fn new(system: &Arc<System>, undo: &Undo) -> Warmers {
        Warmers { system: system.clone(), undo: undo.clone(), warmers: system.shared() }
    }

    /// Starts the warmer of a node, with the flags of its first start.
    pub async fn start(&self, node: &str) -> Result<()> {
        let flags = locked(&self.warmers.0).get(node).map(|warmer| warmer.flags.clone());
        match flags {
            Some(flags) => {
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                self.run(node, &flags, true).await
            }
            None => self.start_first(node, &FLAGS).await,
        }
    }

    /// Starts the warmer of a new node; these are its flags from now on.
    pub async fn start_first(&self, node: &str, flags: &[&str]) -> Result<()> {
        self.known(node, flags, None);
        self.run(node, flags, true).await
    }

    /// Keeps in mind a warmer that was started elsewhere.
    pub fn known(&self, node: &str, flags: &[&str], process: Option<Arc<Imagewarm>>) {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let warmer = Warmer { flags, process, as_at_first: true };
        locked(&self.warmers.0).insert(node.to_owned(), warmer);
    }

    /// Starts the warmer of a node with further flags for this test, or other values of its own.
    pub async fn start_with(&self, node: &str, flags: &[&str]) -> Result<()> {
        self.restore_after_test(node);
        let own = locked(&self.warmers.0).get(node).map(|warmer| warmer.flags.clone());
        let own = own.unwrap_or_default();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        self.run(node, &changed(&own, flags), false).await
    }

    async fn run(&self, node: &str, flags: &[&str], as_at_first: bool) -> Result<()> {
        let cluster = &self.system.cluster;
        let found = self.system.node(node)?;
        let started = cluster.start_warmer(BINARY.as_ref(), &found, flags).await?;
        if let Some(warmer) = locked(&self.warmers.0).get_mut(node) {
            (warmer.process, warmer.as_at_first) = (Some(started.clone()), as_at_first);
        }
        wait_ready(&started).await
    }

    fn take(&self, node: &str) -> Result<Arc<Imagewarm>> {
        let process = locked(&self.warmers.0).get_mut(node).and_then(|it| it.process.take());
        process.with_context(|| format!("no warmer runs on {node}"))
    }

    /// Stops it, and checks that it ends well.
    pub async fn stop(&self, node: &str) -> Result<()> {
        self.restore_after_test(node);
        terminate(node, &*self.take(node)?).await
    }

    /// SIGKILL.
    pub fn kill(&self, node: &str) -> Result<()> {
        self.restore_after_test(node);
        self.take(node)?.kill();
        Ok(())
    }

    pub async fn restart(&self, node: &str) -> Result<()> {
        self.stop(node).await?;
        self.start(node).await
    }

    pub async fn restart_with(&self, node: &str, flags: &[&str]) -> Result<()> {
        self.stop(node).await?;
        self.start_with(node, flags).await
    }

    /// Binds the DaemonSet's Pods to their nodes as the scheduler does, and reports them ready as
    /// kubelets do.
    pub async fn run_pods(&self, nodes: &[&str]) -> Result<()> {
        for node in nodes {
            let warmers = self.clone();
            let pod = eventually("the DaemonSet has a Pod for each node", async || {
                let of_warmers = ListParams::default().labels("app.kubernetes.io/name=imagewarmer");
                let pods = warmers.pods().list(&of_warmers).await?.items;
                Ok(pods.into_iter().find(|pod| node_of(pod) == Some(node)))
            })
            .await?;
            let name = pod.name_any();
            // The DaemonSet makes another one.
            let (pods, bound) = (self.pods(), name.clone());
            self.undo.register(&format!("Pod of {node}"), async move || {
                pods.delete(&bound, &DeleteParams::default().grace_period(0)).await?;
                Ok(())
            });
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let params = PostParams::default();
            let _: Value =
                self.pods().create_subresource("binding", &name, &params, &binding).await?;
            self.report_pod(node, "True").await?;
        }
        Ok(())
    }

    /// What the kubelet says of the Pod of a node: whether it is ready.
    pub async fn report_pod(&self, node: &str, ready: &str) -> Result<()> {
        let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let of_node = of_node.labels("app.kubernetes.io/name=imagewarmer");
        let pods = self.pods().list(&of_node).await?.items;
        let name = pods.first().with_context(|| format!("no Pod on {node}"))?.name_any();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        self.pods().patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.system.client(), NAMESPACE)
    }

    /// How many were started and not stopped.
    pub fn count(&self) -> usize {
        locked(&self.warmers.0).values().filter(|warmer| warmer.process.is_some()).count()
    }

    pub fn runs(&self, node: &str) -> bool {
        let warmers = locked(&self.warmers.0);
        let process = warmers.get(node).and_then(|warmer| warmer.process.as_ref());
        process.is_some_and(|process| process.is_running())
    }

    /// Gives a node's warmer this token, as its kubelet would; read when it opens a stream.
    pub fn give_token(&self, node: &str, token: &str) -> Result<()> {
        let (system, of) = (self.system.clone(), node.to_owned());
        self.undo.register(&format!("token of {node}"), async move || {
            let pod = format!("imagewarmer-{of}");
            let (account, bound) = ((NAMESPACE, WARMER_ACCOUNT), (&*pod, &*of));
            let token = system.cluster.token_for_pod(account, bound, "imagewarm", DAY).await?;
            write_token(&system, &of, &token)
        });
        write_token(&self.system, node, token)
    }

    /// Stops a warmer whose node goes, where it runs, and forgets it.
    pub async fn forget(&self, node: &str) -> Result<()> {
        let warmer = locked(&self.warmers.0).remove(node);
        match warmer.and_then(|warmer| warmer.process) {
            Some(process) => terminate(node, &process).await,
            None => Ok(()),
        }
    }

    fn restore_after_test(&self, node: &str) {
        if node.starts_with(JOINED) {
            // It goes with its node.
            return;
        }
        let (warmers, of) = (self.clone(), node.to_owned());
        self.undo.register(&format!("warmer of {node}"), async move || warmers.restore(&of).await);
    }

    async fn restore(&self, node: &str) -> Result<()> {
        let running = {
            let warmers = locked(&self.warmers.0);
            let Some(warmer) = warmers.get(node) else { return Ok(()) };
            let process = warmer.process.as_ref().filter(|process| process.is_running());
            if process.is_some() && warmer.as_at_first {
                return Ok(());
            }
            process.is_some()
        };
        if running {
            self.stop(node).await?;
        }
        self.start(node).await
    }
}

/// Terminates a warmer that is to exit with 0.
async fn terminate(node: &str, warmer: &Imagewarm) -> Result<()> {
    let status = warmer.terminate(DEADLINE).await?;
    if !status.success() {
        bail!("the warmer of {node} ended with {status}");
    }
    Ok(())
}

fn write_token(system: &System, node: &str, token: &str) -> Result<()> {
    let file = system.cluster.token_file(system.node(node)?.as_ref());
    let next = file.with_extension("next");
    std::fs::write(&next, token)?;
    Ok(std::fs::rename(next, file)?)
}

/// The node for which the DaemonSet has made a Pod.
fn node_of(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields =
        required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.find_map(|field| Some(field.values.as_ref()?.first()?.as_str()))
}
