//! A node: a Node object, and a dockerd, containerd or CRI-O of its own with its own data and socket. Its
//! warmer is started apart, by [`super::Cluster::start_warmer`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bollard::Docker;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::containerd::{Containerd, ContainerdVersion, Pods};
use super::cri_images::CriImages;
use super::crio::{Crio, SIGNATURE_POLICIES};
use super::name_server;
use super::registry::Registry;
use crate::images::architecture;
use crate::prerequisites::{Prerequisite, Programs};
use crate::process::{Process, Program, Signal, send};

/// Until a runtime must answer.
const START: Duration = Duration::from_secs(60);

/// A node of the cluster.
pub struct Node {
    /// `metadata.name` of the Node object.
    pub name: String,
    /// Path of its runtime's socket.
    pub socket: PathBuf,
    folder: PathBuf,
    sandbox: PathBuf,
    runtime: NodeRuntime,
    names: Option<PathBuf>,
    process: Mutex<Option<Process>>,
    /// Size of its dockerd's own small disk, in MiB.
    disk: Option<u32>,
}

enum NodeRuntime {
    Docker(PathBuf),
    Containerd(Containerd, ContainerdVersion),
    Crio(Crio),
}

impl Node {
    /// A node with dockerd.
    pub(super) fn with_docker(
        name: &str,
        programs: &Programs,
        sandbox: &Path,
        registry: Option<&Registry>,
    ) -> Result<Self> {
        let folder = sandbox.join(name);
        let trusted = folder.join("etc-docker/certs.d");
        fs::create_dir_all(&trusted)?;
        if let Some((registry, ca)) = registry.and_then(|r| Some((r, r.ca_pem.as_ref()?))) {
            let host = trusted.join(&registry.address);
            fs::create_dir_all(&host)?;
            fs::write(host.join("ca.crt"), ca)?;
        }
        Ok(Self {
            name: name.to_owned(),
            socket: folder.join("run/docker.sock"),
            folder,
            sandbox: sandbox.to_owned(),
            runtime: NodeRuntime::Docker(programs.path(Prerequisite::Dockerd)?.to_owned()),
            names: None,
            process: Mutex::new(None),
            disk: None,
        })
    }

    /// Gives its dockerd a disk of its own of so many MiB, which only this dockerd and the node's
    /// warmer see, and which is new at each start.
    pub(super) fn with_disk(mut self, mebibytes: u32) -> Result<Self> {
        fs::create_dir_all(self.folder.join("data"))?;
        self.disk = Some(mebibytes);
        Ok(self)
    }

    /// That disk, as it can be reached from outside while dockerd runs.
    pub fn disk(&self) -> Option<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.runtime_pid()?));
        let data = self.folder.join("data");
        self.disk.map(|_| root.join(data.strip_prefix("/").unwrap_or(&data)))
    }

    /// How its warmer is started: on a node with a disk of its own as in a container there, with an
    /// overlay on that disk as root, and with sight of the given paths and the runtime's socket only.
    pub(super) fn warmer_program(&self, binary: &Path, needs: &[&Path]) -> Result<Program> {
        let Some(pid) = self.disk.and(self.runtime_pid()) else {
            return Ok(Program::new(binary));
        };
        let binary = std::path::absolute(binary)?;
        let script = r#"set -e
data="$1/data"; layer="$data/warmer"; root="$layer/root"
mkdir -p "$layer/upper" "$layer/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$root"
rm -rf "$root$data"
mount -t proc proc "$root/proc"
shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$1"
  elif [ ! -e "$root$1" ]; then mkdir -p "$root${1%/*}"; touch "$root$1"; fi
  mount --bind "$1" "$root$1"
  shift
done
shift
exec chroot "$root" "$@""#;
        Ok(Program::new("nsenter")
            .arg(format!("--mount=/proc/{pid}/ns/mnt"))
            .args(["--", "unshare", "--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", script, "sh"])
            .arg(&self.folder)
            .arg(self.folder.join("run"))
            .arg(&binary)
            .args(needs)
            .arg("--")
            .arg(&binary))
    }

    /// A node with containerd, and with what it needs when Pods are to run.
    pub(super) fn with_containerd(
        name: &str,
        version: ContainerdVersion,
        programs: &Programs,
        sandbox: &Path,
        registries: &[&Registry],
        pods: Option<Pods<'_>>,
    ) -> Result<Self> {
        let (folder, socket) = prepare(name, sandbox, "containerd.sock")?;
        let containerd = match version {
            ContainerdVersion::V1_6 => programs.path(Prerequisite::Containerd)?,
            ContainerdVersion::V2_2 => programs.path(Prerequisite::Containerd2)?,
        };
        let mut containerd = Containerd::new((containerd, version), &folder, &socket, registries)?;
        if let Some(pods) = pods {
            containerd = containerd.running_pods(pods)?;
        }
        let runtime = NodeRuntime::Containerd(containerd, version);
        Ok(Self::of(name, folder, socket, sandbox, runtime))
    }

    /// The same with further settings of containerd, as tables of TOML.
    pub(super) fn with_containerd_settings(mut self, settings: &str) -> Result<Self> {
        if let NodeRuntime::Containerd(containerd, version) = self.runtime {
            self.runtime = NodeRuntime::Containerd(containerd.with_settings(settings)?, version);
        }
        Ok(self)
    }

    /// A node with CRI-O, which speaks plain HTTP also to registries at the given addresses.
    pub(super) fn with_crio(
        name: &str,
        programs: &Programs,
        sandbox: &Path,
        registries: &[&Registry],
        plain: &[String],
    ) -> Result<Self> {
        let (folder, socket) = prepare(name, sandbox, "crio.sock")?;
        let crio =
            Crio::new(programs.path(Prerequisite::Crio)?, &folder, &socket, registries, plain)?;
        Ok(Self::of(name, folder, socket, sandbox, NodeRuntime::Crio(crio)))
    }

    fn of(
        name: &str,
        folder: PathBuf,
        socket: PathBuf,
        sandbox: &Path,
        runtime: NodeRuntime,
    ) -> Self {
        Self {
            name: name.to_owned(),
            socket,
            folder,
            sandbox: sandbox.to_owned(),
            runtime,
            names: None,
            process: Mutex::new(None),
            disk: None,
        }
    }

    /// Its runtime asks the name server of this `resolv.conf`.
    pub(super) fn asking_names(mut self, settings: &Path) -> Self {
        self.names = Some(settings.to_owned());
        self
    }

    fn start(&self, what: &str, program: Program) -> Result<Process> {
        let program = match &self.names {
            Some(settings) => name_server::asking(settings, program),
            None => program,
        };
        Process::start(&format!("{}-{what}", self.name), program, &self.sandbox)
    }

    /// Makes the Node object, Ready and with the usual labels and those given. No kubelet renews
    /// it, and no controller minds.
    pub(super) async fn register(
        &self,
        client: kube::Client,
        labels: &BTreeMap<String, String>,
    ) -> Result<()> {
        let api: Api<NodeObject> = Api::all(client);
        let mut node = json!({
            "metadata": {"name": self.name, "labels": {
                "kubernetes.io/hostname": self.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": architecture(),
            }},
        });
        for (key, value) in labels {
            node["metadata"]["labels"][key] = json!(value);
        }
        api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        self.set_ready(api, true).await
    }

    async fn set_ready(&self, api: Api<NodeObject>, ready: bool) -> Result<()> {
        let now = jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string();
        let (status, reason) =
            if ready { ("True", "KubeletReady") } else { ("Unknown", "NodeStatusUnknown") };
        let runtime = match &self.runtime {
            NodeRuntime::Docker(_) => "docker://20.10",
            NodeRuntime::Containerd(_, ContainerdVersion::V1_6) => "containerd://1.6",
            NodeRuntime::Containerd(_, ContainerdVersion::V2_2) => "containerd://2.2",
            NodeRuntime::Crio(_) => "cri-o://1.34",
        };
        let patch = json!({"status": {
            "conditions": [{
                "type": "Ready",
                "status": status,
                "reason": reason,
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            }],
            "addresses": [{"type": "Hostname", "address": self.name}],
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "nodeInfo": {
                "architecture": architecture(),
                "operatingSystem": "linux",
                "bootID": "", "containerRuntimeVersion": runtime, "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "",
                "systemUUID": "",
            },
        }});
        let params = PatchParams::default();
        api.patch_status(&self.name, &params, &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Writes the Node's Ready condition: True, or Unknown as after a kubelet's silence.
    pub async fn write_ready(&self, client: kube::Client, ready: bool) -> Result<()> {
        self.set_ready(Api::all(client), ready).await
    }

    /// A client for its dockerd.
    pub fn docker(&self) -> Result<Docker> {
        if !matches!(self.runtime, NodeRuntime::Docker(_)) {
            bail!("{} has no dockerd", self.name);
        }
        let socket = self.socket.display().to_string();
        Docker::connect_with_unix(&socket, 120, bollard::API_DEFAULT_VERSION)
            .with_context(|| format!("connect to the dockerd of {}", self.name))
    }

    /// What `docker image inspect` says, or None when the node does not hold the image.
    pub async fn inspect(&self, reference: &str) -> Option<bollard::models::ImageInspect> {
        // The oldest API version of all daemons in use; negotiation is for the real client.
        self.docker().ok()?.inspect_image(reference).await.ok()
    }

    /// The image's id (`sha256:…`), asked from dockerd itself, or None when the node lacks it.
    pub async fn image_id(&self, reference: &str) -> Option<String> {
        self.inspect(reference).await?.id
    }

    /// The digest under which a runtime with CRI holds an image of exactly this name, asked from the
    /// runtime itself, or None when it lacks it.
    pub async fn cri_digest(&self, reference: &str) -> Result<Option<String>> {
        match self.cri_images() {
            Some(images) => images.digest(reference).await,
            None => bail!("{} has no runtime with CRI", self.name),
        }
    }

    /// The snapshotters for which its containerd has unpacked an image of exactly this name.
    pub async fn snapshotters(&self, reference: &str) -> Result<BTreeSet<String>> {
        match self.cri_images() {
            Some(images) => images.snapshotters(reference).await,
            None => bail!("{} has no containerd", self.name),
        }
    }

    /// The signature policy of its CRI-O for images of this namespace's Pods.
    pub fn set_signature_policy(&self, namespace: &str, policy: &serde_json::Value) -> Result<()> {
        let file = self.folder.join(SIGNATURE_POLICIES).join(format!("{namespace}.json"));
        Ok(fs::write(file, policy.to_string())?)
    }

    /// Whether its runtime speaks CRI: containerd or CRI-O.
    pub fn has_cri(&self) -> bool {
        !matches!(self.runtime, NodeRuntime::Docker(_))
    }

    fn cri_images(&self) -> Option<CriImages> {
        self.has_cri().then(|| CriImages::new(&self.socket))
    }

    /// Whether it holds an image of exactly this name.
    pub async fn holds(&self, reference: &str) -> bool {
        match self.cri_images() {
            Some(images) => images.digest(reference).await.is_ok_and(|digest| digest.is_some()),
            None => self.image_id(reference).await.is_some(),
        }
    }

    /// Whether a runtime with CRI reports an image of exactly this name as pinned, asked from the runtime
    /// itself; None when it lacks the image.
    pub async fn is_pinned(&self, reference: &str) -> Result<Option<bool>> {
        self.cri_images().context("no runtime with CRI")?.is_pinned(reference).await
    }

    /// Pulls an image over CRI, without credentials.
    pub async fn cri_pull(&self, reference: &str) -> Result<()> {
        self.cri_images().context("no runtime with CRI")?.pull(reference).await
    }

    /// Sets a label in containerd's record of an image, as an administrator does with `ctr`: in the record of
    /// this name, or in that of the image's ID. An empty value removes it.
    pub async fn label_image(
        &self,
        reference: &str,
        by_id: bool,
        label: (&str, &str),
    ) -> Result<()> {
        self.cri_images().context("no runtime with CRI")?.label(reference, by_id, label).await
    }

    /// Writes a file into CRI-O's folder of settings, and lets CRI-O read them again, as `systemctl reload crio`
    /// does.
    pub fn reload_crio_with(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join("crio.d").join(name), text)?;
        send(self.runtime_pid().context("CRI-O has ended")?, Signal::Hangup);
        Ok(())
    }

    /// What its runtime is called, for people.
    pub fn runtime_name(&self) -> &'static str {
        match self.runtime {
            NodeRuntime::Docker(_) => "dockerd",
            NodeRuntime::Containerd(..) => "containerd",
            NodeRuntime::Crio(_) => "CRI-O",
        }
    }

    /// Removes an image as `docker rmi --force` does; over CRI under all its names.
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        if let Some(images) = self.cri_images() {
            return images.remove(reference).await;
        }
        let options = bollard::query_parameters::RemoveImageOptionsBuilder::default();
        let options = options.force(true).build();
        self.docker()?.remove_image(reference, Some(options), None).await?;
        Ok(())
    }

    /// Pulls an image by digest as a kubelet does, with the dockerd of this node: `repository`, `digest`.
    pub async fn pull(&self, repository: &str, digest: &str) -> Result<()> {
        let options = bollard::query_parameters::CreateImageOptionsBuilder::default();
        let options = options.from_image(repository).tag(digest).build();
        let pull = self.docker()?.create_image(Some(options), None, None);
        pull.try_collect::<Vec<_>>().await.with_context(|| format!("cannot pull {repository}"))?;
        Ok(())
    }

    /// Process id of its runtime, while it runs.
    pub fn runtime_pid(&self) -> Option<u32> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Process::pid)
    }

    /// Starts its runtime (again) and waits until it answers.
    pub async fn start_runtime(&self) -> Result<()> {
        self.forget_old_run();
        fs::create_dir_all(self.folder.join("run"))?;
        let process = match &self.runtime {
            NodeRuntime::Docker(dockerd) => {
                let process = self.start("dockerd", self.dockerd_program(dockerd))?;
                let answers = async || self.docker().ok()?.ping().await.ok();
                process.wait_until(START, answers).await?;
                process
            }
            NodeRuntime::Containerd(containerd, _) => {
                self.start_cri("containerd", containerd.program()).await?
            }
            NodeRuntime::Crio(crio) => self.start_cri("crio", crio.program()).await?,
        };
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    async fn start_cri(&self, what: &str, program: Program) -> Result<Process> {
        let process = self.start(what, program)?;
        let images = CriImages::new(&self.socket);
        process.wait_until(START, async || images.version().await.ok()).await?;
        Ok(process)
    }

    fn dockerd_program(&self, dockerd: &Path) -> Program {
        let at = |name: &str| self.folder.join(name).display().to_string();
        // Its own mount namespace: each dockerd has its own /etc/docker (and so its own trusted
        // authorities), and its overlay mounts end with it.
        let script = "mkdir -p /etc/docker && mount --bind \"$1\" /etc/docker && \
             if [ -n \"$2\" ]; then mount -t tmpfs -o \"size=$2\" tmpfs \"$3\"; fi && \
             shift 3 && exec \"$@\"";
        Program::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(at("etc-docker"))
            .arg(self.disk.map(|size| format!("{size}m")).unwrap_or_default())
            .arg(at("data"))
            .arg(dockerd)
            .arg(format!("--host=unix://{}", self.socket.display()))
            .arg(format!("--data-root={}", at("data")))
            .arg(format!("--exec-root={}", at("exec")))
            .arg(format!("--pidfile={}", at("run/docker.pid")))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"])
            .arg("--max-concurrent-downloads=6")
            // By itself it tries five times, for more than a minute.
            .arg("--max-download-attempts=2")
    }

    /// Ends its runtime in good order (SIGTERM).
    pub async fn stop_runtime(&self) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            process.terminate(Duration::from_secs(30)).await?;
        }
        Ok(())
    }

    /// Kills its runtime (SIGKILL), as a crash would.
    pub fn kill(&self) {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// After a kill: the kernel has ended dockerd's containerd too, but both process id files are
    /// still there and would block the next start.
    fn forget_old_run(&self) {
        let left = ["run/docker.pid", "run/docker.sock", "exec/containerd/containerd.pid"];
        for file in left {
            let _ = fs::remove_file(self.folder.join(file));
        }
    }
}

fn prepare(name: &str, sandbox: &Path, socket: &str) -> Result<(PathBuf, PathBuf)> {
    let folder = sandbox.join(name);
    fs::create_dir_all(&folder)?;
    let socket = folder.join("run").join(socket);
    Ok((folder, socket))
}
