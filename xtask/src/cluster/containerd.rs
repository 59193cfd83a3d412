//! containerd as a node's runtime: its settings, all in folders of the node's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::registry::Registry;
use crate::process::Program;

/// The containerd of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerdVersion {
    /// Debian's.
    V1_6,
    /// Built from its Go module.
    V2_2,
}

const PARTS_V1_6: &str = r#"
[plugins."io.containerd.grpc.v1.cri"]
# Not ours to lower where CAP_SYS_RESOURCE is missing.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = TRUSTED
"#;
const PARTS_V2_2: &str = r#"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.images"]
# A pull without a byte for so long is given up.
image_pull_progress_timeout = IDLE

[plugins."io.containerd.cri.v1.images".registry]
config_path = TRUSTED
"#;

/// One containerd with its own folders, stopped or running.
pub(super) struct Containerd {
    containerd: PathBuf,
    version: ContainerdVersion,
    settings: PathBuf,
    /// Where it runs, when not on the machine itself.
    place: Option<Program>,
}

/// What containerd must know to run Pods.
pub(super) struct Pods<'a> {
    /// Image of the process that holds a Pod's namespaces.
    pub(super) pause: &'a str,
    /// Folder of the network plugins.
    pub(super) plugins: &'a Path,
    /// Folder of their settings.
    pub(super) networks: &'a Path,
    /// Starts a program in the node's own namespaces.
    pub(super) place: Program,
}

impl Containerd {
    /// Writes its settings. It trusts the authorities of the registries with TLS, and speaks plain
    /// HTTP to the others; on loopback it falls back to that by itself.
    pub(super) fn new(
        (containerd, version): (&Path, ContainerdVersion),
        folder: &Path,
        socket: &Path,
        registries: &[&Registry],
    ) -> Result<Self> {
        let trusted = folder.join("certs.d");
        for registry in registries {
            trust(&trusted, registry)?;
        }
        // A JSON string is a TOML string.
        let text = |path: PathBuf| json!(path).to_string();
        let settings = folder.join("containerd.toml");
        let (number, parts) = match version {
            ContainerdVersion::V1_6 => (2, PARTS_V1_6),
            ContainerdVersion::V2_2 => (3, PARTS_V2_2),
        };
        let parts = parts
            .replace("TRUSTED", &text(trusted))
            .replace("IDLE", &format!("\"{}s\"", super::PULL_IDLE_SECONDS));
        let content = format!(
            r#"version = {number}
root = {root}
state = {state}
# Snapshotters and the like that are of no use here.
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = {socket}
{parts}"#,
            root = text(folder.join("containerd-root")),
            state = text(folder.join("containerd-state")),
            socket = text(socket.to_owned()),
        );
        fs::write(&settings, content)?;
        Ok(Self { containerd: containerd.to_owned(), version, settings, place: None })
    }

    /// The same for Pods that really run, with the shim of Debian's package.
    pub(super) fn running_pods(mut self, pods: Pods<'_>) -> Result<Self> {
        let mut settings = fs::read_to_string(&self.settings)?;
        let (pause, plugins, networks) =
            (json!(pods.pause), json!(pods.plugins), json!(pods.networks));
        let more = match self.version {
            ContainerdVersion::V1_6 => {
                let first = "restrict_oom_score_adj = true\n";
                let sandbox = format!("{first}sandbox_image = {pause}\n");
                settings = settings.replacen(first, &sandbox, 1);
                format!(
                    "\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
                     bin_dir = {plugins}\nconf_dir = {networks}\n"
                )
            }
            ContainerdVersion::V2_2 => format!(
                "\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause}\n\
                 \n[plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
                 bin_dirs = [{plugins}]\nconf_dir = {networks}\n"
            ),
        };
        fs::write(&self.settings, settings + &more)?;
        self.place = Some(pods.place);
        Ok(self)
    }

    /// With further settings, as tables of TOML.
    pub(super) fn with_settings(self, settings: &str) -> Result<Self> {
        let before = fs::read_to_string(&self.settings)?;
        fs::write(&self.settings, before + settings)?;
        Ok(self)
    }

    /// In its own mount namespace, so that what it mounts ends with it.
    pub(super) fn program(&self) -> Program {
        let place = self.place.clone().unwrap_or_else(|| {
            Program::new("unshare").args(["--mount", "--propagation", "private", "--"])
        });
        place.arg(&self.containerd).arg("--config").arg(&self.settings)
    }
}

fn trust(folder: &Path, registry: &Registry) -> Result<()> {
    let host = folder.join(&registry.address);
    fs::create_dir_all(&host)?;
    let scheme = if registry.ca_pem.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", registry.address);
    let mut settings =
        format!("server = \"{url}\"\n\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    if let Some(ca) = &registry.ca_pem {
        let file = host.join("ca.crt");
        fs::write(&file, ca)?;
        settings += &format!("ca = {}\n", json!(file));
    }
    fs::write(host.join("hosts.toml"), settings)?;
    Ok(())
}
