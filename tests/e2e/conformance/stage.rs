//! The node of one runtime, and what its cases do there.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use serde_json::json;
use tokio::sync::{OnceCell, RwLock};
use xtask::cluster::{ContainerdVersion, Fault, Registry};
use xtask::images::TestImage;

use crate::world::{Pushed, World};

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
}

impl Conformance {
    pub fn turns(&self, runtime: RuntimeKind) -> &RwLock<()> {
        &self.turns[runtime as usize]
    }
}

pub const WARMER_FLAGS: [&str; 8] = [
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
}

impl<'a> Stage<'a> {
    /// The runtime's node, which joins the cluster at its first case.
    pub async fn enter(world: &'a World, runtime: RuntimeKind) -> Result<Self> {
        let node = world.conformance.nodes[runtime as usize]
            .get_or_try_init(|| async {
                let name = format!("conformance-{}", runtime.name().replace('_', "-"));
                let cluster = &world.cluster;
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
                world.taint_node(&name, Some(("conformance", "NoSchedule"))).await?;
                world.start_warmer_with(&name, &WARMER_FLAGS).await?;
                anyhow::Ok(name)
            })
            .await?;
        Ok(Self { world, runtime, node: node.clone() })
    }

    /// A new namespace.
    pub async fn namespace(&self) -> Result<String> {
        self.world.namespace(&self.runtime.name().replace('_', "-")).await
    }

    /// Pushes a new small image of two layers to the open registry.
    pub async fn push(&self, case: &str) -> Result<Pushed> {
        self.world.push(&self.repository(case), "v1").await
    }

    /// The same to the registry with TLS and password.
    pub async fn push_private(&self, case: &str) -> Result<Pushed> {
        self.world.push_private(&self.repository(case), "v1").await
    }

    fn repository(&self, case: &str) -> String {
        format!("conformance/{}-{case}", self.runtime.name())
    }

    /// Pushes a new small image, to be asked for through the proxy.
    pub async fn push_behind_proxy(&self, case: &str) -> Result<Proxied<'a>> {
        let pushed = self.push(case).await?;
        Ok(self.through_proxy(&self.repository(case), pushed.digest))
    }

    /// The large image through the proxy; the registry has it once, for all.
    pub async fn large_behind_proxy(&self) -> Result<Proxied<'a>> {
        let registry = &self.world.cluster.registry_plain;
        let image = TestImage::new(&LARGE).seed(7);
        let push = || registry.push(&image, "conformance/large", "v1");
        let digest = self.world.conformance.large.get_or_try_init(push).await?;
        Ok(self.through_proxy("conformance/large", digest.clone()))
    }

    fn through_proxy(&self, repository: &str, digest: String) -> Proxied<'a> {
        let repository = format!("{}/{repository}", self.runtime.name());
        let address = self.world.cluster.registry_proxy.address();
        let tag = format!("{address}/{repository}:v1");
        Proxied { world: self.world, repository, image: Pushed { tag, digest } }
    }

    /// A registry whose authority the node does not trust.
    pub async fn untrusted_registry(&self) -> Result<&'a Registry> {
        let start = || self.world.cluster.start_untrusted_registry();
        self.world.conformance.untrusted.get_or_try_init(start).await
    }

    /// Orders an image for this node, as a person does.
    pub async fn order(&self, namespace: &str, name: &str, image: &str) -> Result<ImageWarm> {
        self.order_with(namespace, name, image, &[]).await
    }

    pub async fn order_with(
        &self,
        namespace: &str,
        name: &str,
        image: &str,
        secrets: &[&str],
    ) -> Result<ImageWarm> {
        self.world.hand_made(namespace, name, image, &self.node, secrets).await
    }

    /// Waits until the order is as wanted.
    pub async fn until(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&ImageWarm) -> bool,
    ) -> Result<ImageWarm> {
        let found = self
            .world
            .eventually(&format!("{name} is as it should be"), async || {
                let warms = self.world.warms(namespace).await?;
                let warm = warms.into_iter().find(|w| w.metadata.name.as_deref() == Some(name));
                Ok(warm.filter(&wanted))
            })
            .await;
        match found {
            Ok(warm) => Ok(warm),
            Err(error) => {
                let warms = self.world.warms(namespace).await?;
                let statuses: Vec<_> = warms.iter().map(|warm| json!(warm.status)).collect();
                Err(error.context(format!("instead: {}", json!(statuses))))
            }
        }
    }

    /// Waits until the order has this reason.
    pub async fn reaches(&self, namespace: &str, name: &str, reason: Reason) -> Result<ImageWarm> {
        let found = self.until(namespace, name, |warm| warm.reason() == Some(reason)).await;
        found.with_context(|| format!("{name} never was {reason}"))
    }

    /// Waits until the order is Ready, and compares what the runtime itself holds.
    pub async fn arrives(&self, namespace: &str, name: &str, digest: &str) -> Result<ImageWarm> {
        let there = [Some(Reason::Pulled), Some(Reason::AlreadyPresent)];
        let warm = self.until(namespace, name, |warm| there.contains(&warm.reason())).await?;
        let image = &warm.spec.image;
        let held = self.held(image).await?;
        ensure!(held.as_deref() == Some(digest), "{image}: the runtime holds {held:?}");
        let told = warm.status.as_ref().and_then(|status| status.digest.as_deref());
        ensure!(told == Some(digest), "{image}: told was {told:?}");
        Ok(warm)
    }

    /// Under which digest the runtime itself holds an image.
    pub async fn held(&self, image: &str) -> Result<Option<String>> {
        self.world.node_digest(&self.node, image).await
    }

    /// Starts the node's warmer again: with other flags, or as at first.
    pub async fn restart_warmer(&self, flags: &[&str]) -> Result<()> {
        self.world.stop_warmer(&self.node).await?;
        self.start_warmer(flags).await
    }

    pub async fn start_warmer(&self, flags: &[&str]) -> Result<()> {
        let flags = [&WARMER_FLAGS, flags].concat();
        self.world.start_warmer_with(&self.node, &flags).await
    }
}

/// An image behind the proxy, which spoils nothing any more once this is dropped.
pub struct Proxied<'a> {
    world: &'a World,
    repository: String,
    pub image: Pushed,
}

impl Proxied<'_> {
    pub fn spoil(&self, fault: Fault) {
        self.world.cluster.registry_proxy.set(&self.repository, Some(fault));
    }

    pub fn heal(&self) {
        self.world.cluster.registry_proxy.set(&self.repository, None);
    }

    /// Downloads of layers that were begun so far.
    pub fn layers_begun(&self) -> usize {
        self.world.cluster.registry_proxy.layers_begun(&self.repository)
    }

    /// Waits until a download is held in its middle.
    pub async fn is_held(&self) -> Result<()> {
        let holding = async || self.world.cluster.registry_proxy.holding(&self.repository);
        self.world
            .eventually("a layer is on its way", async || Ok((holding().await > 0).then_some(())))
            .await
    }

    /// Waits until layers broke off and were asked for again.
    pub async fn is_cut_off_again(&self) -> Result<()> {
        let cuts = || self.world.cluster.registry_proxy.cuts(&self.repository);
        self.world
            .eventually("layers were cut off again", async || Ok((cuts() > 2).then_some(())))
            .await
    }

    /// Waits until nobody waits for the rest of a layer.
    pub async fn is_given_up(&self) -> Result<()> {
        let holding = || self.world.cluster.registry_proxy.holding(&self.repository);
        self.world
            .eventually("the download is given up", async || Ok((holding() == 0).then_some(())))
            .await
    }
}

impl Drop for Proxied<'_> {
    fn drop(&mut self) {
        self.heal();
    }
}
