//! The programs that a development cluster is made of: found, installed or built, once.
//!
//! Each is looked for in `KUBEBUILDER_ASSETS` and `PATH`. What Debian packages is installed when we
//! are root; Kubernetes' own programs, CRI-O and a newer containerd are built from the Go modules
//! beside this crate into the user's cache.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The Kubernetes version that `xtask/kubernetes/go.mod` names.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// The CRI-O version that `xtask/crio/go.mod` names.
pub const CRIO_VERSION: &str = "v1.34.0";

/// The containerd version that `xtask/containerd/go.mod` names, beside Debian's older one.
pub const CONTAINERD_VERSION: &str = "v2.2.3";

/// Program and the Debian package that has it.
const DEBIAN: [(&str, &str); 11] = [
    ("etcd", "etcd-server"),
    ("docker-registry", "docker-registry"),
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("htpasswd", "apache2-utils"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("host-local", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
];

/// Where each program is.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names say it all
pub struct Programs {
    pub etcd: PathBuf,
    pub docker_registry: PathBuf,
    pub dockerd: PathBuf,
    pub containerd: PathBuf,
    pub containerd_2: PathBuf,
    pub crio: PathBuf,
    pub htpasswd: PathBuf,
    pub ip: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
    pub kubectl: PathBuf,
    pub kubelet: PathBuf,
    /// One of the network plugins (CNI); the others lie beside it.
    pub host_local: PathBuf,
    /// Linked statically: it runs in images of nothing else.
    pub busybox: PathBuf,
}

/// Finds every program, and installs or builds what is missing. Waits while another process does
/// the same. Blocks: a first build takes minutes.
pub fn ensure() -> Result<Programs> {
    let cache = cache_folder(&format!("kubernetes-{KUBERNETES_VERSION}"))?;
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("wait for another run that prepares the same programs")?;
    install_packages(&cache)?;
    build_kubernetes(&cache)?;
    let wanted = |name: &str| {
        find(name, &cache).with_context(|| format!("{name} is still missing after its install"))
    };
    Ok(Programs {
        etcd: wanted("etcd")?,
        docker_registry: wanted("docker-registry")?,
        dockerd: wanted("dockerd")?,
        containerd: wanted("containerd")?,
        containerd_2: containerd_2()?,
        crio: crio(&cache)?,
        htpasswd: wanted("htpasswd")?,
        ip: wanted("ip")?,
        kube_apiserver: wanted("kube-apiserver")?,
        kube_controller_manager: wanted("kube-controller-manager")?,
        kube_scheduler: wanted("kube-scheduler")?,
        kubectl: wanted("kubectl")?,
        kubelet: wanted("kubelet")?,
        host_local: wanted("host-local")?,
        busybox: wanted("busybox")?,
    })
}

/// Whether this process runs as root, as dockerd must.
pub fn is_root() -> bool {
    // The owner of our own entry in /proc is the effective user.
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn cache_folder(what: &str) -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => {
            let home =
                std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
            PathBuf::from(home).join(".cache")
        }
    };
    Ok(base.join("imagewarm").join(what))
}

fn find(name: &str, cache: &Path) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        // An ordinary user's PATH lacks the folders of system programs.
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        // Where Debian has network plugins.
        .chain([PathBuf::from("/usr/lib/cni")])
        .chain([cache.to_owned()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn install_packages(cache: &Path) -> Result<()> {
    let missing = DEBIAN.iter().filter(|(program, _)| find(program, cache).is_none());
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() || find("apt-get", cache).is_none() {
        bail!(
            "programs are missing; install these packages and try again: {list} \
             (on Debian, as root: apt-get install {list})"
        );
    }
    eprintln!("installing {list}");
    let _guard = NoServices::put()?;
    let log = cache.join("apt.log");
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&packages);
    for arguments in [vec!["update"], install] {
        let output = File::options().create(true).append(true).open(&log)?;
        let status = Command::new("apt-get")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()?;
        if !status.success() {
            bail!("apt-get {} failed; see {}", arguments.join(" "), log.display());
        }
    }
    Ok(())
}

/// While it lives, packages that are installed start no service.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn put() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn build_kubernetes(cache: &Path) -> Result<()> {
    let programs =
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];
    for program in programs.into_iter().filter(|program| find(program, cache).is_none()) {
        let version = format!("-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}");
        GoProgram {
            name: program,
            version: KUBERNETES_VERSION,
            module: "xtask/kubernetes",
            package: &format!("k8s.io/kubernetes/cmd/{program}"),
            tags: "",
            set: &version,
        }
        .build(cache)?;
    }
    Ok(())
}

/// Any CRI-O that is installed, or else the one of our version, built if need be.
fn crio(cache: &Path) -> Result<PathBuf> {
    if let Some(found) = find("crio", cache) {
        return Ok(found);
    }
    let program = GoProgram {
        name: "crio",
        version: CRIO_VERSION,
        module: "xtask/crio",
        package: "github.com/cri-o/cri-o/cmd/crio",
        tags: "containers_image_openpgp containers_image_ostree_stub \
               exclude_graphdriver_btrfs exclude_graphdriver_devicemapper",
        set: "",
    };
    program.in_cache(&cache_folder(&format!("crio-{CRIO_VERSION}"))?)
}

/// Our version, built if need be: the one in `PATH` is Debian's older one.
fn containerd_2() -> Result<PathBuf> {
    let version =
        format!("-X github.com/containerd/containerd/v2/version.Version={CONTAINERD_VERSION}");
    let program = GoProgram {
        name: "containerd",
        version: CONTAINERD_VERSION,
        module: "xtask/containerd",
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        tags: "no_btrfs no_devmapper no_zfs",
        set: &version,
    };
    program.in_cache(&cache_folder(&format!("containerd-{CONTAINERD_VERSION}"))?)
}

/// A program that Go builds from a module of ours, which names its version.
struct GoProgram<'a> {
    name: &'a str,
    version: &'a str,
    /// Folder of the module, in the workspace.
    module: &'a str,
    package: &'a str,
    /// Build tags.
    tags: &'a str,
    /// What the linker sets.
    set: &'a str,
}

impl GoProgram<'_> {
    fn in_cache(&self, cache: &Path) -> Result<PathBuf> {
        let built = cache.join(self.name);
        if !built.is_file() {
            std::fs::create_dir_all(cache)
                .with_context(|| format!("create {}", cache.display()))?;
            self.build(cache)?;
        }
        Ok(built)
    }

    fn build(&self, cache: &Path) -> Result<()> {
        let (name, version) = (self.name, self.version);
        let go = find("go", cache).with_context(|| {
            format!(
                "{name} is missing, and so is Go to build it: install Go 1.26, or set \
                 KUBEBUILDER_ASSETS to a folder that has {name}"
            )
        })?;
        eprintln!("building {name} {version} (once; some minutes the first time)");
        let start = Instant::now();
        // Built beside and renamed: what is in the cache is always whole.
        let stage = tempfile::Builder::new().prefix("build-").tempdir_in(cache)?;
        let built = stage.path().join(name);
        let log = cache.join(format!("{name}.build.log"));
        let output = File::create(&log)?;
        let status = Command::new(go)
            .args(["build", "-trimpath", "-ldflags", &format!("-s -w {}", self.set)])
            .args(["-tags", self.tags, "-o"])
            .arg(&built)
            .arg(self.package)
            .current_dir(workspace().join(self.module))
            .env("CGO_ENABLED", "0")
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .context("start go build")?;
        if !status.success() {
            let reason = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("go build of {name} failed:\n{}", reason.trim());
        }
        std::fs::rename(&built, cache.join(name))?;
        eprintln!("built {name} in {} s", start.elapsed().as_secs());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_go_modules_are_of_the_named_versions() {
        let modules = [
            ("kubernetes", format!("k8s.io/kubernetes {KUBERNETES_VERSION}")),
            ("crio", format!("github.com/cri-o/cri-o {CRIO_VERSION}")),
            ("containerd", format!("github.com/containerd/containerd/v2 {CONTAINERD_VERSION}")),
        ];
        for (module, wanted) in modules {
            let path = workspace().join("xtask").join(module).join("go.mod");
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(&wanted), "{module} is not {wanted}");
        }
    }
}
