//! A node with a real kubelet, whose Pods really run: containerd and kubelet together in namespaces
//! of their own (network, mounts, processes), so that whatever they start or mount ends with them.
//!
//! The node is its own small network; the API server and the registries are reached there under the
//! same addresses as here.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::certificates::Identity;
use super::containerd::{ContainerdVersion, Pods};
use super::network::{Link, NODES, Network};
use super::{Cluster, Node};
use crate::images::TestImage;
use crate::prerequisites::Prerequisite;
use crate::process::{Process, Program, Signal, send};

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(20);

/// Makes the node's own view of the machine. The kubelet sets some of the kernel's settings; those
/// must stay as they are, so it finds copies. Folders that kubelet and containerd cannot be told
/// to leave alone are the node's own.
const ENTER: &str = r#"set -e
own="$1"; shift
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  copy="$own/setting-${setting##*/}"
  cat "/proc/sys/$setting" > "$copy"
  mount --bind "$copy" "/proc/sys/$setting"
done
mkdir -p "$own/var-lib" "$own/var-log"
mount --bind "$own/var-lib" /var/lib
mount --bind "$own/var-log" /var/log
mount -t tmpfs tmpfs /run
if [ -e "$own/disk.img" ]; then
  mkdir -p "$own/containerd-root"
  mount -o loop "$own/disk.img" "$own/containerd-root"
fi
exec "$@""#;

/// A node whose kubelet runs Pods; it is a [`Node`].
pub struct KubeletNode {
    node: Arc<Node>,
    kubelet: Process,
    folder: PathBuf,
    _forwards: JoinSet<()>,
    _network: Network,
}

impl Deref for KubeletNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl KubeletNode {
    /// The kubelet's log, for a failure message.
    pub fn log_tail(&self) -> String {
        self.kubelet.log_tail()
    }

    /// The ids of the containers and sandboxes that run or ran, as their control groups are called.
    pub fn containers(&self) -> Result<Vec<String>> {
        let tasks = self.folder.join("containerd-state/io.containerd.runtime.v2.task/k8s.io");
        let names = fs::read_dir(tasks)?.flatten().map(|task| task.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// The file system of its images, as it can be reached from outside.
    pub fn image_folder(&self) -> Result<PathBuf> {
        let pid = self.node.runtime_pid().and_then(|pid| children_of(pid).first().copied());
        let root = format!("/proc/{}/root", pid.context("containerd has ended")?);
        let folder = self.folder.join("containerd-root");
        Ok(Path::new(&root).join(folder.strip_prefix("/").unwrap_or(&folder)))
    }

    /// Ends the kubelet, and then containerd and with it all that still runs there.
    pub async fn stop(self) -> Result<()> {
        // It is the one child of the process that took it there.
        for pid in children_of(self.kubelet.pid()) {
            send(pid, Signal::Terminate);
        }
        self.kubelet.wait_end(END).await?;
        self.node.kill();
        Ok(())
    }
}

impl Cluster {
    /// Starts a containerd and a kubelet, and waits until the kubelet calls its node ready. Pods with
    /// `spec.nodeName` run there.
    pub async fn add_kubelet_node(&self, name: &str) -> Result<KubeletNode> {
        self.add_kubelet_node_with(name, &json!({})).await
    }

    /// The same with a disk of its own (ext4, of so many MiB) for its images, and with these fields of
    /// the KubeletConfiguration too.
    pub async fn add_kubelet_node_with_disk(
        &self,
        name: &str,
        mebibytes: u64,
        fields: &Value,
    ) -> Result<KubeletNode> {
        self.make_disk(name, mebibytes).await?;
        self.add_kubelet_node_with(name, fields).await
    }

    /// The same with the newer containerd.
    pub async fn add_kubelet_node_with_containerd_2(
        &self,
        name: &str,
        mebibytes: u64,
        fields: &Value,
    ) -> Result<KubeletNode> {
        self.make_disk(name, mebibytes).await?;
        let version = ContainerdVersion::V2_2;
        self.add_kubelet((name, version), fields, 0, &Link::default()).await
    }

    async fn make_disk(&self, name: &str, mebibytes: u64) -> Result<()> {
        let folder = self.folder().join(name);
        fs::create_dir_all(&folder)?;
        let disk = folder.join("disk.img");
        fs::File::create(&disk)?.set_len(mebibytes << 20)?;
        let program = self.programs.path(Prerequisite::Ext4)?;
        // Without blocks that only root may use: df, kubelet and warmer see the same.
        let made =
            tokio::process::Command::new(program).args(["-q", "-F", "-m", "0"]).arg(&disk).status();
        ensure!(made.await?.success(), "cannot make a file system in {}", disk.display());
        Ok(())
    }

    /// The same with these fields of the KubeletConfiguration too.
    pub async fn add_kubelet_node_with(&self, name: &str, fields: &Value) -> Result<KubeletNode> {
        self.add_kubelet((name, ContainerdVersion::V1_6), fields, 0, &Link::default()).await
    }

    /// The same with this link from the registry to the node.
    pub async fn add_kubelet_node_behind(
        &self,
        name: &str,
        fields: &Value,
        link: &Link,
    ) -> Result<KubeletNode> {
        self.add_kubelet((name, ContainerdVersion::V1_6), fields, 0, link).await
    }

    /// Starts the same as the node `node-NUMBER` of a cluster with Knative: its Pods and those of other
    /// such nodes reach each other, and Knative reaches them. Images come to it over this link.
    pub async fn add_pod_node(&self, number: u8, link: &Link) -> Result<KubeletNode> {
        ensure!(NODES.contains(&number), "a node's number must be one of {NODES:?}");
        let name = format!("node-{number}");
        self.add_kubelet((&name, ContainerdVersion::V1_6), &json!({}), number, link).await
    }

    /// On the segment, if there is one, unless the number is 0.
    async fn add_kubelet(
        &self,
        (name, version): (&str, ContainerdVersion),
        fields: &Value,
        number: u8,
        link: &Link,
    ) -> Result<KubeletNode> {
        let folder = self.folder().join(name);
        fs::create_dir_all(&folder)?;
        let network = Network::create(&self.programs, &folder, self.folder()).await?;
        let forwards = self.forward_into(&network, link)?;
        if let Some(segment) = self.segment.as_ref().filter(|_| number > 0) {
            segment.attach(&network, number)?;
        }
        let node =
            Arc::new(self.runtime_for_pods((name, version), &folder, &network, number).await?);
        node.start_runtime().await?;
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(node.clone());
        let kubelet = self.start_kubelet(&node, &folder, &network.address, fields).await?;
        Ok(KubeletNode { node, kubelet, folder, _forwards: forwards, _network: network })
    }

    /// A program for containers that do nothing, put into an image.
    pub fn running_image(&self, image: TestImage) -> Result<TestImage> {
        image.running(self.programs.path(Prerequisite::Busybox)?)
    }

    async fn runtime_for_pods(
        &self,
        (name, version): (&str, ContainerdVersion),
        folder: &Path,
        network: &Network,
        number: u8,
    ) -> Result<Node> {
        let registry = &self.registry_plain;
        registry.push(&self.running_image(TestImage::new(&[]))?, "pause", "v1").await?;
        let networks = folder.join("networks");
        fs::create_dir_all(&networks)?;
        let settings = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{
                "type": "bridge",
                "bridge": "pods",
                "isDefaultGateway": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": format!("10.88.{number}.0/24")}]],
                },
            }],
        });
        fs::write(networks.join("pods.conflist"), settings.to_string())?;
        let place = Program::new("nsenter")
            .arg(format!("--target={}", network.holder.pid()))
            .args(["--net", "--", "unshare", "--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(["sh", "-c", ENTER, "sh"])
            .arg(folder);
        let plugins = self
            .programs
            .path(Prerequisite::HostLocal)?
            .parent()
            .context("no folder of plugins")?;
        let pause = registry.image("pause", "v1");
        let pods = Pods { pause: &pause, plugins, networks: &networks, place };
        let registries = self.registries();
        let programs = &self.programs;
        Node::with_containerd(name, version, programs, self.folder(), &registries, Some(pods))
    }

    async fn start_kubelet(
        &self,
        node: &Node,
        folder: &Path,
        address: &str,
        fields: &Value,
    ) -> Result<Process> {
        let name = &node.name;
        let user = format!("system:node:{name}");
        self.let_be_a_node(&user).await?;
        let identity = Identity::client(&user, Some("system:nodes"));
        let kubeconfig =
            self.control_plane.client_kubeconfig(&format!("{name}.kubeconfig"), identity)?;
        let settings = write_settings(folder, &node.socket, fields)?;
        let runtime = node.runtime_pid().and_then(|pid| children_of(pid).first().copied());
        let program = Program::new("nsenter")
            .arg(format!("--target={}", runtime.context("containerd has ended")?))
            .args(["--net", "--mount", "--pid", "--"])
            .arg(self.programs.path(Prerequisite::Kubelet)?)
            .arg(format!("--config={}", settings.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--root-dir={}", folder.join("kubelet").display()))
            .arg(format!("--cert-dir={}", folder.join("kubelet-certificates").display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={address}"));
        let kubelet = Process::start(&format!("{name}-kubelet"), program, self.folder())?;
        let nodes: Api<NodeObject> = Api::all(self.client());
        kubelet
            .wait_until(START, async || {
                let conditions = nodes.get_opt(name).await.ok()??.status?.conditions?;
                conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True").map(drop)
            })
            .await?;
        Ok(kubelet)
    }

    /// The rights of a kubelet, which the API server's own Node authorizer would give.
    async fn let_be_a_node(&self, user: &str) -> Result<()> {
        let group = "rbac.authorization.k8s.io";
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "system:node"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }))?;
        Api::all(self.client()).create(&PostParams::default(), &binding).await?;
        Ok(())
    }
}

fn write_settings(folder: &Path, socket: &Path, fields: &Value) -> Result<PathBuf> {
    let mut settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "authentication": {"anonymous": {"enabled": false}},
        // It takes the machine as it is: old control groups, swap, no firewall rules.
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        // A developer's disk may be fuller than a node's should be.
        "evictionHard": {
            "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%",
            "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "podLogsDir": folder.join("pod-logs"),
        "volumePluginDir": folder.join("volume-plugins"),
    });
    for (field, value) in fields.as_object().into_iter().flatten() {
        settings[field] = value.clone();
    }
    let path = folder.join("kubelet.json");
    fs::write(&path, settings.to_string())?;
    Ok(path)
}

/// The children of a process, by id.
fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
