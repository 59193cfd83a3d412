//! The nodes: Node objects, their runtimes and what these hold. After a test the nodes are as at
//! first, and those that have joined are gone.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use xtask::cluster::ContainerdVersion;

use super::system::{JOINED, System, wait_ready};
use super::undo::Undo;
use super::warmers::Warmers;
use super::{BINARY, eventually};

/// Those that are there from the start, with Docker.
pub const NAMES: [&str; 3] = ["node-1", "node-2", "node-3"];

#[derive(Clone)]
pub struct Nodes {
    system: Arc<System>,
    warmers: Warmers,
    undo: Undo,
}

impl Nodes {
    pub fn new(system: &Arc<System>, undo: &Undo) -> Nodes {
        let warmers = Warmers::new(system, undo);
        Nodes { system: system.clone(), warmers, undo: undo.clone() }
    }

    /// The names of those that are there from the start, in order.
    pub fn names(&self) -> [&'static str; 3] {
        NAMES
    }

    /// The names of all Nodes, those of the conformance suite among them.
    pub async fn all(&self) -> Result<Vec<String>> {
        let nodes = self.objects().list(&ListParams::default()).await?.items;
        Ok(nodes.iter().map(ResourceExt::name_any).collect())
    }

    fn objects(&self) -> Api<Node> {
        Api::all(self.system.client())
    }

    async fn patch(&self, node: &str, body: Value) -> Result<()> {
        self.objects().patch(node, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Registers what is patched once the test is over.
    fn patch_after_test(&self, what: &str, node: &str, body: Value) {
        let (nodes, name) = (self.clone(), node.to_owned());
        self.undo
            .register(&format!("{what} of {node}"), async move || nodes.patch(&name, body).await);
    }

    pub async fn cordon(&self, node: &str) -> Result<()> {
        self.patch_after_test("cordon", node, json!({"spec": {"unschedulable": null}}));
        self.patch(node, json!({"spec": {"unschedulable": true}})).await
    }

    pub async fn uncordon(&self, node: &str) -> Result<()> {
        self.patch(node, json!({"spec": {"unschedulable": null}})).await
    }

    /// Whether it is cordoned.
    pub async fn is_cordoned(&self, node: &str) -> Result<bool> {
        let spec = self.objects().get(node).await?.spec;
        Ok(spec.and_then(|spec| spec.unschedulable).unwrap_or_default())
    }

    pub async fn label(&self, node: &str, key: &str, value: &str) -> Result<()> {
        let label = |value: Option<&str>| json!({"metadata": {"labels": {key: value}}});
        self.patch_after_test(&format!("label {key}"), node, label(None));
        self.patch(node, label(Some(value))).await
    }

    /// Gives it this taint and no other.
    pub async fn taint(&self, node: &str, key: &str, effect: &str) -> Result<()> {
        self.patch_after_test("taint", node, json!({"spec": {"taints": null}}));
        self.taint_for_good(node, key, effect).await
    }

    /// The same for a node of which the tests after this one expect it.
    pub async fn taint_for_good(&self, node: &str, key: &str, effect: &str) -> Result<()> {
        self.patch(node, json!({"spec": {"taints": [{"key": key, "effect": effect}]}})).await
    }

    /// Node objects that are Ready, with neither runtime nor warmer, labelled `pool=NAME`. Their
    /// taint `pool` keeps off whatever does not tolerate it. Returns their names.
    pub async fn create_fake(&self, pool: &str, count: usize) -> Result<Vec<String>> {
        let names: Vec<String> = (1..=count).map(|number| format!("{pool}-{number}")).collect();
        let (nodes, all) = (self.clone(), names.clone());
        self.undo.register(&format!("fake nodes {pool}"), async move || {
            nodes.delete_objects(&all).await
        });
        self.create_again(pool, &names).await?;
        Ok(names)
    }

    /// Such Node objects once more, after they were deleted.
    pub async fn create_again(&self, pool: &str, names: &[String]) -> Result<()> {
        for name in names {
            let spec = json!({"taints": [{"key": "pool", "effect": "NoSchedule"}]});
            self.create_object(name, json!({"pool": pool}), spec).await?;
        }
        Ok(())
    }

    /// A Node object that is Ready, as the kubelet of that name makes it.
    pub async fn register(&self, name: &str) -> Result<()> {
        self.create_object(name, json!({}), json!({})).await
    }

    async fn create_object(&self, name: &str, mut labels: Value, spec: Value) -> Result<()> {
        labels["kubernetes.io/hostname"] = json!(name);
        labels["kubernetes.io/os"] = json!("linux");
        labels["kubernetes.io/arch"] = json!("amd64");
        let body = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
        let nodes = self.objects();
        nodes.create(&Default::default(), &serde_json::from_value(body)?).await?;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await?;
        Ok(())
    }

    /// Deletes Node objects where they exist.
    pub async fn delete_objects(&self, names: &[String]) -> Result<()> {
        for name in names {
            match self.objects().delete(name, &Default::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
        }
        Ok(())
    }

    /// The digest under which the node's runtime holds the image, asked from the runtime itself.
    pub async fn digest(&self, node: &str, image: &str) -> Result<Option<String>> {
        let found = self.system.node(node)?;
        if found.has_cri() {
            return found.cri_digest(image).await;
        }
        let Some(inspect) = found.inspect(image).await else { return Ok(None) };
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

    /// Pulls `repository@digest` on a node with dockerd behind everybody's back, as its kubelet does.
    pub async fn pull(&self, node: &str, image: &str) -> Result<()> {
        let (repository, digest) = image.split_once('@').context("an image by digest")?;
        self.system.node(node)?.pull(repository, digest).await
    }

    /// Removes an image from a node behind everybody's back.
    pub async fn remove_image(&self, node: &str, image: &str) -> Result<()> {
        self.system.node(node)?.remove_image(image).await
    }

    /// Pulls an image over CRI behind everybody's back, as a kubelet does.
    pub async fn cri_pull(&self, node: &str, image: &str) -> Result<()> {
        self.system.node(node)?.cri_pull(image).await
    }

    /// Whether the node's runtime with CRI reports the image as pinned; None when it lacks the image.
    pub async fn is_pinned(&self, node: &str, image: &str) -> Result<Option<bool>> {
        self.system.node(node)?.is_pinned(image).await
    }

    /// Sets a label in containerd's record of this name, or of the image's ID, as `ctr` does.
    pub async fn label_image(
        &self,
        node: &str,
        image: &str,
        by_id: bool,
        label: (&str, &str),
    ) -> Result<()> {
        self.system.node(node)?.label_image(image, by_id, label).await
    }

    /// Gives the node's CRI-O a further file of settings, which it reads without a restart.
    pub fn reload_crio_with(&self, node: &str, name: &str, settings: &str) -> Result<()> {
        self.system.node(node)?.reload_crio_with(name, settings)
    }

    fn start_runtime_after_test(&self, node: &str) {
        let (nodes, name) = (self.clone(), node.to_owned());
        self.undo.register(&format!("runtime of {node}"), async move || {
            match nodes.system.node(&name)?.runtime_pid() {
                Some(_) => Ok(()),
                None => nodes.start_runtime(&name).await,
            }
        });
    }

    pub async fn stop_runtime(&self, node: &str) -> Result<()> {
        self.start_runtime_after_test(node);
        self.system.node(node)?.stop_runtime().await
    }

    /// Kills it as a crash would.
    pub fn kill_runtime(&self, node: &str) -> Result<()> {
        self.start_runtime_after_test(node);
        self.system.node(node)?.kill();
        Ok(())
    }

    pub async fn start_runtime(&self, node: &str) -> Result<()> {
        self.system.node(node)?.start_runtime().await
    }

    /// Lets the kubelet of a node report another runtime; returns what it reported before.
    pub async fn report_runtime(&self, node: &str, runtime: &str) -> Result<String> {
        let nodes: Api<Node> = Api::all(self.system.client());
        let info = nodes.get(node).await?.status.and_then(|status| status.node_info);
        let before = info.context("a node without information")?.container_runtime_version;
        let change = json!({"status": {"nodeInfo": {"containerRuntimeVersion": runtime}}});
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(before)
    }

    /// A new node with dockerd and warmer; returns its name.
    pub async fn join(&self, name: &str) -> Result<String> {
        let name = self.joining(name);
        self.system.cluster.add_node(&name, &[]).await?;
        self.warmers.start(&name).await?;
        Ok(name)
    }

    /// A new node with dockerd and warmer that comes with the label `pool=NAME` and taints of these keys;
    /// returns its name.
    pub async fn join_tainted(&self, name: &str, taints: &[&str]) -> Result<String> {
        let pool = name;
        let name = self.joining(name);
        self.system.cluster.add_node(&name, &[]).await?;
        let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
        let taints: Vec<Value> = taints.iter().map(taint).collect();
        // At the same time: who selects the pool finds no node without the taints.
        let body = json!({"metadata": {"labels": {"pool": pool}}, "spec": {"taints": taints}});
        self.patch(&name, body).await?;
        self.warmers.start(&name).await?;
        Ok(name)
    }

    /// The keys of its taints.
    pub async fn taints(&self, node: &str) -> Result<Vec<String>> {
        let taints = self.objects().get(node).await?.spec.and_then(|spec| spec.taints);
        Ok(taints.unwrap_or_default().into_iter().map(|taint| taint.key).collect())
    }

    /// The Event about it for this reason, once there is one: its type and its note.
    pub async fn event(&self, node: &str, reason: &str) -> Result<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.system.client(), "default");
        let what = format!("an Event {reason} about {node}");
        eventually(&what, async || {
            let all = events.list(&Default::default()).await?.items;
            let about = |event: &Event| {
                event.reason.as_deref() == Some(reason)
                    && event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(node)
            };
            let found = all.into_iter().find(about);
            Ok(found.map(|it| (it.type_.unwrap_or_default(), it.note.unwrap_or_default())))
        })
        .await
    }

    /// A new node with containerd and warmer, which looks every second; returns its name.
    pub async fn join_with_containerd(&self, name: &str) -> Result<String> {
        let name = self.joining(name);
        self.system.cluster.add_containerd_node(&name, ContainerdVersion::V1_6).await?;
        self.warmers.start_first(&name, &["--presence-interval", "1s"]).await?;
        Ok(name)
    }

    /// A new node with containerd 2.2 and these further settings, and warmer; returns its name.
    pub async fn join_with_handlers(&self, name: &str, settings: &[&str]) -> Result<String> {
        let name = self.joining(name);
        let (cluster, settings) = (&self.system.cluster, settings.concat());
        cluster.add_containerd_node_with(&name, ContainerdVersion::V2_2, &settings).await?;
        self.warmers.start_first(&name, &["--presence-interval", "1s"]).await?;
        Ok(name)
    }

    /// A new node with the newer containerd, and a warmer with these flags; returns its name.
    pub async fn join_with_containerd_2(&self, name: &str, flags: &[&str]) -> Result<String> {
        let name = self.joining(name);
        self.system.cluster.add_containerd_node(&name, ContainerdVersion::V2_2).await?;
        self.warmers.start_first(&name, flags).await?;
        Ok(name)
    }

    /// A new node with CRI-O and warmer; returns its name.
    pub async fn join_with_crio(&self, name: &str) -> Result<String> {
        let name = self.joining(name);
        self.system.cluster.add_crio_node(&name).await?;
        self.warmers.start_first(&name, &["--presence-interval", "1s"]).await?;
        Ok(name)
    }

    /// The node, to ask its runtime.
    pub fn runtime(&self, node: &str) -> Result<Arc<xtask::cluster::Node>> {
        self.system.node(node)
    }

    /// A new node whose dockerd has a disk of so many MiB, and whose warmer lives on it as in a
    /// container, without seeing the runtime's own folder. Of the disk the warmer keeps 15% free,
    /// and takes each image for one of 20 MiB. It looks each hour only whether they are still
    /// there. Returns its name.
    pub async fn join_with_disk(&self, name: &str, mebibytes: u32) -> Result<String> {
        let name = self.joining(name);
        self.system.cluster.add_node_with_disk(&name, mebibytes).await?;
        let flags = [
            "--keep-free-disk",
            "15%",
            "--assumed-image-size",
            "20Mi",
            "--presence-interval",
            "1h",
        ];
        self.warmers.start_first(&name, &flags).await?;
        Ok(name)
    }

    /// That disk.
    pub fn disk(&self, node: &str) -> Result<PathBuf> {
        self.system.node(node)?.disk().with_context(|| format!("{node} has no disk of its own"))
    }

    /// A new node with containerd whose warmer finds Docker's socket of another node as well, and is
    /// configured for neither; returns its name.
    pub async fn join_between(&self, name: &str, other: &str) -> Result<String> {
        let name = self.joining(name);
        let cluster = &self.system.cluster;
        let node = cluster.add_containerd_node(&name, ContainerdVersion::V1_6).await?;
        let other = self.system.node(other)?;
        let started = cluster.start_warmer_between(BINARY.as_ref(), &node, &other).await?;
        self.warmers.known(&name, &[], Some(started.clone()));
        wait_ready(&started).await?;
        Ok(name)
    }

    /// The name of a node that joins, and is removed after the test.
    fn joining(&self, name: &str) -> String {
        let name = format!("{JOINED}{name}");
        let (nodes, joined) = (self.clone(), name.clone());
        self.undo.register(&format!("node {name}"), async move || nodes.remove(&joined).await);
        name
    }

    /// Takes a joined node away: its object, its warmer and its runtime.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.delete_objects(&[name.to_owned()]).await?;
        self.warmers.forget(name).await?;
        match self.system.node(name) {
            Ok(node) => node.stop_runtime().await,
            // It never came so far.
            Err(_) => Ok(()),
        }
    }
}
