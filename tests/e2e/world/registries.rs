//! The registries, images in them, and the proxy that spoils what it passes on. After a test
//! nothing is spoiled or frozen any more.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result};
use xtask::cluster::{Fault, Registry, RegistryProxy};
use xtask::images::TestImage;

use super::eventually;
use super::system::System;
use super::undo::Undo;

/// A pushed image.
pub struct Pushed {
    /// `host:port/repository:tag`.
    pub tag: String,
    /// `sha256:…`.
    pub digest: String,
}

impl Pushed {
    /// `host:port/repository@sha256:…`.
    pub fn by_digest(&self) -> String {
        let repository = self.tag.rsplit_once(':').map_or("", |(repository, _)| repository);
        format!("{repository}@{}", self.digest)
    }
}

#[derive(Clone)]
pub struct Registries {
    system: Arc<System>,
    undo: Undo,
}

impl Registries {
    pub fn new(system: &Arc<System>, undo: &Undo) -> Registries {
        Registries { system: system.clone(), undo: undo.clone() }
    }

    /// The open registry.
    pub fn open(&self) -> &Registry {
        &self.system.cluster.registry_plain
    }

    /// The registry with TLS and password.
    pub fn private(&self) -> Result<&Registry> {
        self.system.cluster.registry_tls.as_ref().context("no private registry")
    }

    /// Pushes an image of new random content to the open registry.
    pub async fn push(&self, repository: &str, tag: &str) -> Result<Pushed> {
        push_to(self.open(), &TestImage::new(&[200_000, 50_000]), repository, tag).await
    }

    /// Pushes an image that takes a moment to pull.
    pub async fn push_large(&self, repository: &str, tag: &str) -> Result<Pushed> {
        push_to(self.open(), &TestImage::new(&[30_000_000]), repository, tag).await
    }

    /// Pushes an image of new random content with layers of these sizes; containers' files make each
    /// a little larger.
    pub async fn push_layers(
        &self,
        layers: &[usize],
        repository: &str,
        tag: &str,
    ) -> Result<Pushed> {
        push_to(self.open(), &TestImage::new(layers), repository, tag).await
    }

    /// Pushes an image that has no variant for this machine.
    pub async fn push_for_other_platform(&self, repository: &str, tag: &str) -> Result<Pushed> {
        let image = TestImage::new(&[1_000]).platforms(&[("linux", "s390x")]);
        push_to(self.open(), &image, repository, tag).await
    }

    /// Pushes a small image to the private registry.
    pub async fn push_private(&self, repository: &str, tag: &str) -> Result<Pushed> {
        push_to(self.private()?, &TestImage::new(&[200_000]), repository, tag).await
    }

    /// `127.0.0.1:PORT` that was free a moment ago: nothing listens there.
    pub fn unused_address(&self) -> Result<SocketAddr> {
        Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
    }

    /// Lets every request to a registry hang.
    pub fn freeze(&self, registry: &Registry) {
        let registries = self.clone();
        self.undo.register("frozen registry", async move || {
            registries.open().thaw();
            registries.private()?.thaw();
            Ok(())
        });
        registry.freeze();
    }

    fn proxy(&self) -> &RegistryProxy {
        &self.system.cluster.registry_proxy
    }

    /// The open registry's repository behind the proxy, under a name that shows who asks:
    /// `WHO/REPOSITORY`.
    pub fn behind_proxy(&self, who: &str, repository: &str) -> Proxied {
        Proxied { registries: self.clone(), repository: format!("{who}/{repository}") }
    }
}

async fn push_to(
    registry: &Registry,
    image: &TestImage,
    repository: &str,
    tag: &str,
) -> Result<Pushed> {
    let digest = registry.push(image, repository, tag).await?;
    Ok(Pushed { tag: registry.image(repository, tag), digest })
}

/// A repository behind the proxy.
#[derive(Clone)]
pub struct Proxied {
    registries: Registries,
    repository: String,
}

impl Proxied {
    /// `host:port/WHO/REPOSITORY:tag`.
    pub fn image(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.registries.proxy().address(), self.repository)
    }

    /// Spoils what is downloaded from now on.
    pub fn spoil(&self, fault: Fault) {
        let proxied = self.clone();
        self.registries.undo.register(&format!("spoiled {}", self.repository), async move || {
            proxied.heal();
            Ok(())
        });
        self.registries.proxy().set(&self.repository, Some(fault));
    }

    /// Spoils nothing any more; what is held goes on.
    pub fn heal(&self) {
        self.registries.proxy().set(&self.repository, None);
    }

    /// Downloads of layers that were begun so far.
    pub fn layers_begun(&self) -> usize {
        self.registries.proxy().layers_begun(&self.repository)
    }

    /// How many downloads are held in the middle of a layer.
    pub fn held(&self) -> usize {
        self.registries.proxy().holding(&self.repository)
    }

    /// Waits until a download is held in its middle.
    pub async fn until_held(&self) -> Result<()> {
        let held = async || Ok((self.held() > 0).then_some(()));
        eventually("a layer is on its way", held).await
    }

    /// Waits until layers broke off and were asked for again.
    pub async fn until_cut_off_again(&self) -> Result<()> {
        let cuts = || self.registries.proxy().cuts(&self.repository);
        eventually("layers were cut off again", async || Ok((cuts() > 2).then_some(()))).await
    }

    /// Waits until nobody waits for the rest of a layer.
    pub async fn until_given_up(&self) -> Result<()> {
        let given_up = async || Ok((self.held() == 0).then_some(()));
        eventually("the download is given up", given_up).await
    }
}
