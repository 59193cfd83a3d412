//! The programs that a development cluster is made of: found, installed or built, once.
//!
//! Callers say which ones they need; nothing else is prepared. Each is looked for in
//! `KUBEBUILDER_ASSETS` and `PATH`. What Debian packages is installed when we are root
//! ([`debian`]); Kubernetes' own programs, CRI-O, a newer containerd and Knative Serving are built
//! from Go modules into the user's cache ([`go`]).

mod debian;
mod go;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::debian::Packaged;
use self::go::{GoFolders, GoProgram};

/// The Kubernetes version that `xtask/kubernetes/go.mod` names.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// The CRI-O version that `xtask/crio/go.mod` names.
pub const CRIO_VERSION: &str = "v1.34.0";

/// The containerd version that `xtask/containerd/go.mod` names, beside Debian's older one.
pub const CONTAINERD_VERSION: &str = "v2.2.3";

/// The version of Knative Serving that `xtask/knative/go.mod` names.
pub const KNATIVE_VERSION: &str = "v0.42.2";

/// The Helm version that `xtask/helm/go.mod` names.
pub const HELM_VERSION: &str = "v4.3.2";

/// The version of krew that `xtask/krew/go.mod` names.
pub const KREW_VERSION: &str = "v0.4.3";

/// The version of actionlint that `xtask/actionlint/go.mod` names.
pub const ACTIONLINT_VERSION: &str = "v1.7.12";

/// A program that a development cluster may need. Those that are built stand in the order of their
/// builds: the first of Kubernetes' programs compiles most of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[allow(missing_docs)] // the names say it all
pub enum Prerequisite {
    Etcd,
    DockerRegistry,
    Htpasswd,
    Ip,
    Dockerd,
    /// Debian's containerd.
    Containerd,
    /// One of the network plugins (CNI); the others lie beside it.
    HostLocal,
    /// Linked statically: it runs in images of nothing else.
    Busybox,
    /// Makes file systems.
    Ext4,
    /// Gives a program another wall clock.
    Faketime,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubectl,
    Kubelet,
    /// containerd of [`CONTAINERD_VERSION`].
    #[value(name = "containerd-2")]
    Containerd2,
    Crio,
    /// Installs the chart.
    Helm,
    KnativeController,
    KnativeWebhook,
    KnativeAutoscaler,
    KnativeActivator,
    /// The sidecar of every Pod that Knative makes.
    KnativeQueue,
    /// kubectl's plugin manager.
    Krew,
    /// Judges manifests of krew's index, with krew itself.
    ValidateKrewManifest,
    /// Judges workflows of the forge.
    Actionlint,
    Zsh,
    Fish,
    /// Judges man pages.
    Mandoc,
    /// Judges and tests rules of Prometheus.
    Promtool,
    /// A folder: the manifests of Knative Serving and of the modules that it is made of.
    KnativeManifests,
}

/// One of Kubernetes' own programs, of any version if it is installed.
fn kubernetes(name: &'static str, package: &'static str, seconds: u64) -> GoProgram {
    GoProgram {
        name,
        module: "kubernetes",
        version: KUBERNETES_VERSION,
        package,
        tags: "",
        version_variable: Some("k8s.io/component-base/version.gitVersion"),
        any_version: true,
        about: Duration::from_secs(seconds),
    }
}

/// One of Knative Serving's. Programs of those names may be others: only what is built here is taken.
fn knative(name: &'static str, package: &'static str, seconds: u64) -> GoProgram {
    GoProgram {
        name,
        module: "knative",
        version: KNATIVE_VERSION,
        package,
        tags: "",
        version_variable: None,
        any_version: false,
        about: Duration::from_secs(seconds),
    }
}

/// A program that releases and manifests are judged with.
fn judge(
    name: &'static str,
    (module, version): (&'static str, &'static str),
    package: &'static str,
    seconds: u64,
) -> GoProgram {
    GoProgram {
        name,
        module,
        version,
        package,
        tags: "",
        version_variable: None,
        any_version: false,
        about: Duration::from_secs(seconds),
    }
}

impl Prerequisite {
    /// All of them, which tests and benchmarks need.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// What [`crate::cluster::Knative::Real`] needs.
    pub fn knative() -> &'static [Self] {
        &[
            Self::Ip,
            Self::KnativeController,
            Self::KnativeWebhook,
            Self::KnativeAutoscaler,
            Self::KnativeActivator,
            Self::KnativeQueue,
            Self::KnativeManifests,
        ]
    }

    /// The packaged programs that it needs; one that Debian packages is the first itself.
    fn packaged(self) -> &'static [Packaged] {
        match self {
            Self::Etcd => &[("etcd", "etcd-server")],
            Self::DockerRegistry => &[("docker-registry", "docker-registry")],
            Self::Htpasswd => &[("htpasswd", "apache2-utils")],
            Self::Ip => &[("ip", "iproute2"), ("nsenter", "util-linux")],
            Self::Dockerd => &[
                ("dockerd", "docker.io"),
                ("containerd", "containerd"),
                ("runc", "runc"),
                ("iptables", "iptables"),
            ],
            // Debian's package has the shim of the newer one too.
            Self::Containerd | Self::Containerd2 => {
                &[("containerd", "containerd"), ("runc", "runc")]
            }
            Self::HostLocal => &[("host-local", "containernetworking-plugins")],
            Self::Busybox => &[("busybox", "busybox-static")],
            Self::Ext4 => &[("mkfs.ext4", "e2fsprogs"), ("mount", "mount")],
            Self::Faketime => &[("faketime", "faketime")],
            Self::Kubelet => &[("iptables", "iptables"), ("nsenter", "util-linux")],
            Self::Crio => &[("runc", "runc")],
            // krew downloads nothing without git.
            Self::Krew => &[("git", "git")],
            Self::Zsh => &[("zsh", "zsh")],
            Self::Fish => &[("fish", "fish")],
            Self::Mandoc => &[("mandoc", "mandoc")],
            Self::Promtool => &[("promtool", "prometheus")],
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::Kubectl
            | Self::Helm
            | Self::KnativeController
            | Self::KnativeWebhook
            | Self::KnativeAutoscaler
            | Self::KnativeActivator
            | Self::KnativeQueue
            | Self::ValidateKrewManifest
            | Self::Actionlint
            | Self::KnativeManifests => &[],
        }
    }

    /// How it is built, for those that are.
    fn built(self) -> Option<GoProgram> {
        Some(match self {
            Self::Etcd
            | Self::DockerRegistry
            | Self::Htpasswd
            | Self::Ip
            | Self::Dockerd
            | Self::Containerd
            | Self::HostLocal
            | Self::Busybox
            | Self::Ext4
            | Self::Faketime
            | Self::Zsh
            | Self::Fish
            | Self::Mandoc
            | Self::Promtool
            | Self::KnativeManifests => return None,
            Self::KubeApiserver => {
                kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 360)
            }
            Self::KubeControllerManager => kubernetes(
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                60,
            ),
            Self::KubeScheduler => {
                kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 30)
            }
            Self::Kubectl => kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl", 30),
            Self::Kubelet => kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet", 60),
            // The one in `PATH` is Debian's older one.
            Self::Containerd2 => GoProgram {
                name: "containerd",
                module: "containerd",
                version: CONTAINERD_VERSION,
                package: "github.com/containerd/containerd/v2/cmd/containerd",
                tags: "no_btrfs no_devmapper no_zfs",
                version_variable: Some("github.com/containerd/containerd/v2/version.Version"),
                any_version: false,
                about: Duration::from_secs(60),
            },
            Self::Crio => GoProgram {
                name: "crio",
                module: "crio",
                version: CRIO_VERSION,
                package: "github.com/cri-o/cri-o/cmd/crio",
                tags: "containers_image_openpgp containers_image_ostree_stub \
                       exclude_graphdriver_btrfs exclude_graphdriver_devicemapper",
                version_variable: None,
                any_version: true,
                about: Duration::from_secs(120),
            },
            // The one in `PATH` may be Helm 3, whose answers are others.
            Self::Helm => GoProgram {
                name: "helm",
                module: "helm",
                version: HELM_VERSION,
                package: "helm.sh/helm/v4/cmd/helm",
                tags: "",
                version_variable: Some("helm.sh/helm/v4/internal/version.version"),
                any_version: false,
                about: Duration::from_secs(60),
            },
            Self::KnativeController => {
                knative("knative-controller", "knative.dev/serving/cmd/controller", 300)
            }
            Self::KnativeWebhook => {
                knative("knative-webhook", "knative.dev/serving/cmd/webhook", 10)
            }
            Self::KnativeAutoscaler => {
                knative("knative-autoscaler", "knative.dev/serving/cmd/autoscaler", 10)
            }
            Self::KnativeActivator => {
                knative("knative-activator", "knative.dev/serving/cmd/activator", 10)
            }
            Self::KnativeQueue => knative("knative-queue", "knative.dev/serving/cmd/queue", 10),
            Self::Krew => {
                judge("kubectl-krew", ("krew", KREW_VERSION), "sigs.k8s.io/krew/cmd/krew", 30)
            }
            Self::ValidateKrewManifest => judge(
                "validate-krew-manifest",
                ("krew", KREW_VERSION),
                "sigs.k8s.io/krew/cmd/validate-krew-manifest",
                10,
            ),
            Self::Actionlint => judge(
                "actionlint",
                ("actionlint", ACTIONLINT_VERSION),
                "github.com/rhysd/actionlint/cmd/actionlint",
                15,
            ),
        })
    }

    /// Which folders of Go modules it is, if it is no program.
    fn copied(self) -> Option<GoFolders> {
        (self == Self::KnativeManifests).then_some(GoFolders {
            name: "manifests",
            module: "knative",
            version: KNATIVE_VERSION,
            sources: &[
                ("serving", "knative.dev/serving", "config/core"),
                ("networking", "knative.dev/networking", "config"),
                ("caching", "knative.dev/caching", "config"),
            ],
        })
    }

    fn find(self) -> Result<Option<PathBuf>> {
        if let Some(folders) = self.copied() {
            return folders.find();
        }
        match (self.built(), self.packaged()) {
            (Some(program), _) => program.find(),
            (None, packaged) => Ok(packaged.first().and_then(|(program, _)| find(program))),
        }
    }
}

/// Where each program is that was asked for.
#[derive(Clone, Debug)]
pub struct Programs(BTreeMap<Prerequisite, PathBuf>);

impl Programs {
    /// The path of a program; an error if it was not asked for.
    pub fn path(&self, program: Prerequisite) -> Result<&Path> {
        self.0.get(&program).map(PathBuf::as_path).with_context(|| {
            format!("{program:?} is needed, but it is not among the programs that were asked for")
        })
    }

    /// Whether it was asked for.
    pub fn contains(&self, program: Prerequisite) -> bool {
        self.0.contains_key(&program)
    }
}

impl fmt::Display for Programs {
    /// A line with name and path for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(program, path)| {
            let value = program.to_possible_value();
            let name = value.as_ref().map_or("", |value| value.get_name());
            writeln!(f, "{name:<26}{}", path.display())
        })
    }
}

/// Finds the programs asked for, and installs and builds what is missing, side by side. Waits while
/// another process does that. A first build takes minutes.
pub async fn ensure(asked: &[Prerequisite]) -> Result<Programs> {
    if let Some(found) = find_all(asked)? {
        return Ok(found);
    }
    let cache = cache_folder(&format!("kubernetes-{KUBERNETES_VERSION}"))?;
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let _lock = lock(&cache.join("lock")).await?;
    let mut asked = asked.to_vec();
    asked.sort_unstable();
    asked.dedup();
    let packaged: Vec<Packaged> =
        asked.iter().flat_map(|program| program.packaged()).copied().collect();
    let install = debian::install(&packaged, &cache);
    let build = async {
        for program in asked.iter().filter_map(|program| program.built()) {
            program.ensure().await?;
        }
        for folders in asked.iter().filter_map(|program| program.copied()) {
            folders.ensure().await?;
        }
        Ok(())
    };
    tokio::try_join!(install, build)?;
    let found = asked.into_iter().map(|program| {
        let path = program.find()?;
        Ok((program, path.with_context(|| format!("{program:?} is still missing"))?))
    });
    Ok(Programs(found.collect::<Result<_>>()?))
}

/// All of these, and whatever else their packages have; `None` if one is missing.
fn find_all(asked: &[Prerequisite]) -> Result<Option<Programs>> {
    let mut packaged = asked.iter().flat_map(|program| program.packaged());
    if packaged.any(|(name, _)| find(name).is_none()) {
        return Ok(None);
    }
    let mut programs = BTreeMap::new();
    for program in asked {
        let Some(path) = program.find()? else { return Ok(None) };
        programs.insert(*program, path);
    }
    Ok(Some(Programs(programs)))
}

/// Held until the file is dropped.
async fn lock(path: &Path) -> Result<File> {
    let lock = File::create(path)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another run that prepares programs");
            let locked = move || lock.lock().map(|()| lock);
            tokio::task::spawn_blocking(locked).await?.context("lock the programs' cache")
        }
        Err(TryLockError::Error(error)) => Err(error).context("lock the programs' cache"),
    }
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

fn find(name: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        // An ordinary user's PATH lacks the folders of system programs.
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        // Where Debian has network plugins.
        .chain([PathBuf::from("/usr/lib/cni")])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::workspace;

    #[test]
    fn the_go_modules_are_of_the_named_versions() {
        let modules = [
            ("kubernetes", format!("k8s.io/kubernetes {KUBERNETES_VERSION}")),
            ("crio", format!("github.com/cri-o/cri-o {CRIO_VERSION}")),
            ("containerd", format!("github.com/containerd/containerd/v2 {CONTAINERD_VERSION}")),
            ("knative", format!("knative.dev/serving {KNATIVE_VERSION}")),
            ("helm", format!("helm.sh/helm/v4 {HELM_VERSION}")),
            ("krew", format!("sigs.k8s.io/krew {KREW_VERSION}")),
            ("actionlint", format!("github.com/rhysd/actionlint {ACTIONLINT_VERSION}")),
        ];
        for (module, wanted) in modules {
            let path = workspace().join("xtask").join(module).join("go.mod");
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(&wanted), "{module} is not {wanted}");
        }
    }

    #[test]
    fn every_program_is_packaged_or_built_and_the_api_server_is_built_first() {
        for program in Prerequisite::all() {
            let known = program.built().is_some()
                || program.copied().is_some()
                || !program.packaged().is_empty();
            assert!(known, "{program:?} comes from nowhere");
        }
        let built: Vec<&str> =
            Prerequisite::all().iter().filter_map(|p| Some(p.built()?.name)).collect();
        assert_eq!(built.first(), Some(&"kube-apiserver"));
    }

    #[test]
    fn the_path_of_a_program_that_was_not_asked_for_is_an_error() {
        let programs = Programs(BTreeMap::from([(Prerequisite::Ip, PathBuf::from("/sbin/ip"))]));
        assert_eq!(programs.path(Prerequisite::Ip).unwrap(), Path::new("/sbin/ip"));
        assert!(programs.contains(Prerequisite::Ip) && !programs.contains(Prerequisite::Crio));
        let error = programs.path(Prerequisite::Crio).unwrap_err().to_string();
        assert!(error.starts_with("Crio is needed, but"), "{error}");
    }
}
