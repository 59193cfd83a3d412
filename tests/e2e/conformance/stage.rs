//! The node of one runtime, and what its cases do there.

use std::ops::Deref;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use tokio::sync::{OnceCell, RwLock};
use xtask::cluster::{ContainerdVersion, Registry};
use xtask::images::TestImage;

use super::plugins::Plugins;
use crate::world::{Namespace, Proxied, Pushed, World};

/// The runtimes that the warmer works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    Docker,
    Containerd16,
    Containerd22,
    Crio,
}

impl RuntimeKind {
    pub const ALL: [Self; 4] = [Self::Docker, Self::Containerd16, Self::Containerd22, Self::Crio];

    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd16 => "containerd_1_6",
            Self::Containerd22 => "containerd_2_2",
            Self::Crio => "crio",
        }
    }
}

/// What all cases share, made when first asked for.
#[derive(Default)]
pub struct Conformance {
    nodes: [OnceCell<String>; 4],
    turns: [RwLock<()>; 4],
    untrusted: OnceCell<Registry>,
    large: OnceCell<String>,
    plugins: [OnceCell<Plugins>; 4],
}

impl Conformance {
    pub fn turns(&self, runtime: RuntimeKind) -> &RwLock<()> {
        &self.turns[runtime as usize]
    }
}

const WARMER_FLAGS: [&str; 8] = [
    "--presence-interval",
    "1s",
    "--parallel-pulls",
    "32",
    "--max-pulls-per-registry",
    "32",
    "--log-level",
    "debug",
];
/// Layers of the large image: 500 MB.
const LARGE: [usize; 5] = [100_000_000; 5];

/// One runtime's node.
pub struct Stage<'a> {
    pub world: &'a World,
    pub runtime: RuntimeKind,
    pub node: String,
    conformance: Arc<Conformance>,
}

impl<'a> Stage<'a> {
    /// The runtime's node, which joins the cluster at its first case.
    pub async fn enter(world: &'a World, runtime: RuntimeKind) -> Result<Self> {
        let conformance: Arc<Conformance> = world.system().shared();
        let node = conformance.nodes[runtime as usize]
            .get_or_try_init(|| async {
                let name = format!("conformance-{}", runtime.name().replace('_', "-"));
                let cluster = world.cluster();
                match runtime {
                    RuntimeKind::Docker => cluster.add_node(&name, &[]).await?,
                    RuntimeKind::Containerd16 => {
                        cluster.add_containerd_node(&name, ContainerdVersion::V1_6).await?
                    }
                    RuntimeKind::Containerd22 => {
                        cluster.add_containerd_node(&name, ContainerdVersion::V2_2).await?
                    }
                    RuntimeKind::Crio => cluster.add_crio_node(&name).await?,
                };
                // The other tests' Revisions do not come here.
                world.nodes.taint_for_good(&name, "conformance", "NoSchedule").await?;
                let make = async || Plugins::make(runtime.name(), world.registries.private()?);
                let plugins =
                    conformance.plugins[runtime as usize].get_or_try_init(make).await?.flags();
                let plugins: Vec<&str> = plugins.iter().map(String::as_str).collect();
                let flags = [&WARMER_FLAGS[..], &plugins].concat();
                world.warmers.start_first(&name, &flags).await?;
                anyhow::Ok(name)
            })
            .await?;
        Ok(Self { world, runtime, node: node.clone(), conformance: conformance.clone() })
    }

    /// A new namespace.
    pub async fn namespace(&self) -> Result<Namespace> {
        self.world.namespace(&self.runtime.name().replace('_', "-")).await
    }

    /// Pushes a new small image of two layers to the open registry.
    pub async fn push(&self, case: &str) -> Result<Pushed> {
        self.world.registries.push(&self.repository(case), "v1").await
    }

    /// The same to the registry with TLS and password.
    pub async fn push_private(&self, case: &str) -> Result<Pushed> {
        self.world.registries.push_private(&self.repository(case), "v1").await
    }

    fn repository(&self, case: &str) -> String {
        format!("conformance/{}-{case}", self.runtime.name())
    }

    /// The credential providers of the node.
    pub fn plugins(&self) -> Result<&Plugins> {
        self.conformance.plugins[self.runtime as usize].get().context("the node has no plugins")
    }

    /// Pushes a new small image, to be asked for through the proxy.
    pub async fn push_behind_proxy(&self, case: &str) -> Result<Behind> {
        let pushed = self.push(case).await?;
        Ok(self.through_proxy(&self.repository(case), pushed.digest))
    }

    /// The large image through the proxy; the registry has it once, for all.
    pub async fn large_behind_proxy(&self) -> Result<Behind> {
        let registry = self.world.registries.open();
        let image = TestImage::new(&LARGE).seed(7);
        let push = || registry.push(&image, "conformance/large", "v1");
        let digest = self.conformance.large.get_or_try_init(push).await?;
        Ok(self.through_proxy("conformance/large", digest.clone()))
    }

    fn through_proxy(&self, repository: &str, digest: String) -> Behind {
        let proxied = self.world.registries.behind_proxy(self.runtime.name(), repository);
        Behind { image: Pushed { tag: proxied.image("v1"), digest }, proxied }
    }

    /// A registry whose authority the node does not trust.
    pub async fn untrusted_registry(&self) -> Result<&Registry> {
        let start = || self.world.cluster().start_untrusted_registry();
        self.conformance.untrusted.get_or_try_init(start).await
    }

    /// Has this node hold an image, as a person does.
    pub async fn warm(&self, namespace: &Namespace, name: &str, image: &str) -> Result<ImageWarm> {
        self.warm_with(namespace, name, image, &[]).await
    }

    pub async fn warm_with(
        &self,
        namespace: &Namespace,
        name: &str,
        image: &str,
        secrets: &[&str],
    ) -> Result<ImageWarm> {
        namespace.create_image_warm(name, image, &self.node, secrets).await
    }

    /// Waits until the ImageWarm is as wanted.
    pub async fn until(
        &self,
        namespace: &Namespace,
        name: &str,
        wanted: impl Fn(&ImageWarm) -> bool,
    ) -> Result<ImageWarm> {
        namespace.until(name, &format!("{name} is as it should be"), wanted).await
    }

    /// Waits until the ImageWarm has this reason.
    pub async fn reaches(
        &self,
        namespace: &Namespace,
        name: &str,
        reason: Reason,
    ) -> Result<ImageWarm> {
        namespace.reaches(name, reason).await
    }

    /// Waits until the ImageWarm is Ready, and compares what the runtime itself holds.
    pub async fn arrives(
        &self,
        namespace: &Namespace,
        name: &str,
        digest: &str,
    ) -> Result<ImageWarm> {
        let there = [Some(Reason::Pulled), Some(Reason::AlreadyPresent)];
        let warm = self.until(namespace, name, |warm| there.contains(&warm.reason())).await?;
        let image = &warm.spec.image;
        let held = self.held(image).await?;
        ensure!(held.as_deref() == Some(digest), "{image}: the runtime holds {held:?}");
        let reported = warm.status.as_ref().and_then(|status| status.digest.as_deref());
        ensure!(reported == Some(digest), "{image}: reported was {reported:?}");
        Ok(warm)
    }

    /// Under which digest the runtime itself holds an image.
    pub async fn held(&self, image: &str) -> Result<Option<String>> {
        self.world.nodes.digest(&self.node, image).await
    }
}

/// An image behind the proxy.
pub struct Behind {
    proxied: Proxied,
    pub image: Pushed,
}

impl Deref for Behind {
    type Target = Proxied;

    fn deref(&self) -> &Proxied {
        &self.proxied
    }
}
