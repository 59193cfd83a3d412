//! containerd as a node's runtime: its settings, and what its own tool says of its images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::registry::Registry;
use crate::process::Program;

/// The kubelet's images are in this namespace of containerd.
const NAMESPACE: &str = "k8s.io";
const ANSWER: Duration = Duration::from_secs(20);

/// One containerd with its own folders, stopped or running.
pub(super) struct Containerd {
    containerd: PathBuf,
    ctr: PathBuf,
    settings: PathBuf,
    socket: PathBuf,
}

impl Containerd {
    /// Writes its settings. It trusts the authorities of the registries with TLS, and speaks plain
    /// HTTP to the others.
    pub(super) fn new(
        (containerd, ctr): (&Path, &Path),
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
        let content = format!(
            r#"version = 2
root = {root}
state = {state}
# The runtimes are of no use here: nothing runs.
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.internal.v1.opt"]

[grpc]
address = {socket}

[plugins."io.containerd.grpc.v1.cri"]
# Not ours to lower where CAP_SYS_RESOURCE is missing.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {trusted}
"#,
            root = text(folder.join("containerd-root")),
            state = text(folder.join("containerd-state")),
            socket = text(socket.to_owned()),
            trusted = text(trusted),
        );
        fs::write(&settings, content)?;
        let (containerd, ctr, socket) = (containerd.to_owned(), ctr.to_owned(), socket.to_owned());
        Ok(Self { containerd, ctr, settings, socket })
    }

    /// In its own mount namespace, so that what it mounts ends with it.
    pub(super) fn program(&self) -> Program {
        Program::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(&self.containerd)
            .arg("--config")
            .arg(&self.settings)
    }

    /// Whether it answers and has its CRI part.
    pub(super) async fn ready(&self) -> Option<()> {
        let plugins = self.ctr(&["plugins", "ls"]).await.ok()?;
        let cri = plugins.lines().find(|line| line.split_whitespace().nth(1) == Some("cri"))?;
        cri.trim_end().ends_with("ok").then_some(())
    }

    /// Name and digest of each image, in containerd's own words.
    async fn images(&self) -> Result<Vec<(String, String)>> {
        let said = self.ctr(&["images", "ls"]).await?;
        // REF TYPE DIGEST SIZE …
        let rows = said.lines().skip(1).filter_map(|line| {
            let mut columns = line.split_whitespace();
            Some((columns.next()?.to_owned(), columns.nth(1)?.to_owned()))
        });
        Ok(rows.collect())
    }

    /// The digest under which it holds an image, or None when it lacks it.
    pub(super) async fn digest(&self, reference: &str) -> Result<Option<String>> {
        let images = self.images().await?;
        Ok(images.into_iter().find(|(name, _)| name == reference).map(|(_, digest)| digest))
    }

    /// Removes an image under all its names.
    pub(super) async fn remove_image(&self, reference: &str) -> Result<()> {
        let images = self.images().await?;
        let Some((_, digest)) = images.iter().find(|(name, _)| name == reference).cloned() else {
            bail!("containerd does not hold {reference}");
        };
        // Its id, under which the CRI part keeps it as well, has the same digest column.
        let names = images.iter().filter(|(_, its)| *its == digest).map(|(name, _)| name.as_str());
        let arguments: Vec<&str> = ["images", "rm", "--sync"].into_iter().chain(names).collect();
        self.ctr(&arguments).await.map(drop)
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let command = tokio::process::Command::new(&self.ctr)
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .kill_on_drop(true)
            .output();
        let Output { status, stdout, stderr } =
            tokio::time::timeout(ANSWER, command).await.context("ctr does not end")??;
        if !status.success() {
            bail!("ctr {arguments:?}: {}", String::from_utf8_lossy(&stderr).trim());
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
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
