//! CRI-O as a node's runtime: its settings, all in folders of the node's own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::registry::Registry;
use crate::process::Program;

/// Folder of the signature policies of namespaces, in the node's own.
pub(super) const SIGNATURE_POLICIES: &str = "signature-policies";

/// One CRI-O with its own folders, stopped or running.
pub(super) struct Crio {
    crio: PathBuf,
    folder: PathBuf,
}

impl Crio {
    /// Writes its settings. It trusts the authorities of the registries with TLS, and speaks plain
    /// HTTP to the others and to those at the given addresses.
    pub(super) fn new(
        crio: &Path,
        folder: &Path,
        socket: &Path,
        registries: &[&Registry],
        plain: &[String],
    ) -> Result<Self> {
        let containers = folder.join("etc-containers");
        fs::create_dir_all(&containers)?;
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(containers.join("policy.json"), policy.to_string())?;
        let mut known = String::new();
        let mut insecure = plain.to_vec();
        for registry in registries {
            let Some(ca) = &registry.ca_pem else {
                insecure.push(registry.address.clone());
                continue;
            };
            let host = containers.join("certs.d").join(&registry.address);
            fs::create_dir_all(&host)?;
            fs::write(host.join("ca.crt"), ca)?;
        }
        for address in insecure {
            known += &format!("[[registry]]\nlocation = {}\ninsecure = true\n", json!(address));
        }
        fs::write(containers.join("registries.conf"), known)?;
        let at = |name: &str| folder.join(name);
        fs::write(at("crio.toml"), settings(folder, socket))?;
        // Asked for its version at the start, and never again.
        let monitor = at("monitor");
        fs::write(&monitor, "#!/bin/sh\necho monitor version 2.1.0\n")?;
        fs::set_permissions(&monitor, fs::Permissions::from_mode(0o755))?;
        for empty in ["crio.d", "hooks", "cni", "nothing", SIGNATURE_POLICIES] {
            fs::create_dir_all(at(empty))?;
        }
        Ok(Self { crio: crio.to_owned(), folder: folder.to_owned() })
    }

    /// In its own mount namespace, so that what it mounts ends with it and `/etc/containers` is its
    /// own.
    pub(super) fn program(&self) -> Program {
        let script = "mkdir -p /etc/containers && mount --bind \"$1\" /etc/containers && \
             shift && exec \"$@\"";
        Program::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(self.folder.join("etc-containers"))
            .arg(&self.crio)
            .arg("--config")
            .arg(self.folder.join("crio.toml"))
            .arg("--config-dir")
            .arg(self.folder.join("crio.d"))
    }
}

fn settings(folder: &Path, socket: &Path) -> String {
    // A JSON string is a TOML string.
    let at = |name: &str| json!(folder.join(name)).to_string();
    format!(
        r#"[crio]
root = {root}
runroot = {runroot}
storage_driver = "overlay"
log_dir = {logs}
version_file = {version}
version_file_persist = {version_persist}
clean_shutdown_file = {clean}

[crio.api]
listen = {socket}

[crio.runtime]
# Nothing runs here; these need only exist.
default_runtime = "runc"
pinns_path = "/bin/true"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
hooks_dir = [{hooks}]
cdi_spec_dirs = [{nothing}]
namespaces_dir = {namespaces}
container_exits_dir = {exits}
container_attach_socket_dir = {attach}

[crio.runtime.runtimes.runc]
monitor_path = {monitor}
monitor_cgroup = "pod"
runtime_root = {runtime_root}

[crio.image]
signature_policy = {policy}
signature_policy_dir = {policies}
# As the containerd nodes do: given up when no byte comes for so long.
pull_progress_timeout = "{idle}s"

[crio.network]
network_dir = {cni}
plugin_dirs = [{nothing}]

[crio.nri]
enable_nri = false

[crio.stats]
"#,
        root = at("crio-root"),
        runroot = at("crio-runroot"),
        logs = at("crio-logs"),
        version = at("run/version"),
        version_persist = at("version"),
        clean = at("clean.shutdown"),
        socket = json!(socket),
        hooks = at("hooks"),
        nothing = at("nothing"),
        namespaces = at("run/namespaces"),
        exits = at("run/exits"),
        attach = at("run/attach"),
        runtime_root = at("run/runc"),
        policy = at("etc-containers/policy.json"),
        policies = at(SIGNATURE_POLICIES),
        idle = super::PULL_IDLE_SECONDS,
        cni = at("cni"),
        monitor = at("monitor"),
    )
}
