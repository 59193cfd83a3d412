//! Many nodes in one process: Node objects without anything behind them, and for each the real
//! warmer, on a real stream with a token of its own, over a runtime that holds images in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use imagewarm::runtime::{Runtime, RuntimeFuture};
use imagewarm::warmer::{Warmer, WarmerArgs, WarmerMetrics};
use imagewarm_core::api::Reason;
use imagewarm_core::image::{Credential, Reference};
use imagewarm_core::runtime::{
    PresentImage, PullProgress, PulledImage, RuntimeError, RuntimeVersion, Sandboxes,
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xtask::cluster::{AUDIENCE, Cluster, NAMESPACE, WARMER_ACCOUNT};

/// What the registries hold, for runtimes that ask none.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By canonical reference, tags and digests: digest, and the password that a pull needs.
    pub images: BTreeMap<String, (String, Option<String>)>,
}

/// A runtime that pulls by waiting a little.
#[derive(Debug)]
pub struct MemoryRuntime {
    catalog: Arc<Catalog>,
    pull_takes: Duration,
    held: Mutex<BTreeMap<String, PresentImage>>,
    lost: AtomicUsize,
}

impl MemoryRuntime {
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PresentImage>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it holds the image, by just this name.
    pub fn holds(&self, image: &str) -> bool {
        self.held().contains_key(image)
    }

    /// Forgets every image.
    pub fn lose(&self) {
        self.held().clear();
        self.lost.fetch_add(1, Ordering::SeqCst);
    }

    /// How often it did.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Runtime for MemoryRuntime {
    fn version(&self) -> RuntimeFuture<'_, Result<RuntimeVersion, RuntimeError>> {
        Box::pin(async {
            Ok(RuntimeVersion {
                name: "memory".into(),
                version: "1".into(),
                os: "linux".into(),
                architecture: "amd64".into(),
            })
        })
    }

    fn present<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
    ) -> RuntimeFuture<'a, Result<Option<PresentImage>, RuntimeError>> {
        Box::pin(async { Ok(self.held().get(image.as_str()).cloned()) })
    }

    fn image_folder(&self) -> RuntimeFuture<'_, Result<PathBuf, RuntimeError>> {
        Box::pin(async { Ok("/".into()) })
    }

    fn pull<'a>(
        &'a self,
        image: &'a Reference,
        _sandboxes: &'a Sandboxes,
        credential: Option<&'a Credential>,
        _: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> RuntimeFuture<'a, Result<PulledImage, RuntimeError>> {
        Box::pin(async move {
            tokio::time::sleep(self.pull_takes).await;
            let fail = |reason: Reason| RuntimeError { reason, message: reason.to_string() };
            let Some((digest, password)) = self.catalog.images.get(image.as_str()) else {
                return Err(fail(Reason::NotFound));
            };
            let given = credential.map(|credential| credential.password.as_str());
            if password.is_some() && password.as_deref() != given {
                return Err(fail(Reason::Unauthorized));
            }
            let found = PresentImage { digest: digest.parse().ok(), size_bytes: 1_000 };
            let downloaded = self.held().insert(image.as_str().into(), found.clone()).is_none();
            Ok(PulledImage { image: found, downloaded })
        })
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    warmer: WarmerArgs,
}

/// A node of its own kind.
pub struct FakeNode {
    pub name: String,
    pub runtime: Arc<MemoryRuntime>,
    token_file: PathBuf,
    /// Where the warmer connects to.
    server: [String; 3],
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl FakeNode {
    /// Makes the Node object, Ready, and starts its warmer.
    pub async fn start(
        cluster: &Cluster,
        name: &str,
        pool: char,
        catalog: &Arc<Catalog>,
        pull_takes: Duration,
    ) -> Result<FakeNode> {
        let nodes: Api<Node> = Api::all(cluster.client());
        let node = json!({"metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "pool": pool.to_string(),
        }}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await?;

        let pod = format!("imagewarmer-{name}");
        let account = (NAMESPACE, WARMER_ACCOUNT);
        let token = cluster.token_for_pod(account, (&pod, name), AUDIENCE, 24 * 3600).await?;
        let token_file = cluster.folder().join(format!("{name}.token"));
        tokio::fs::write(&token_file, token).await?;
        let runtime = MemoryRuntime {
            catalog: catalog.clone(),
            pull_takes,
            held: Mutex::default(),
            lost: AtomicUsize::new(0),
        };
        let server = [
            format!("https://{}", cluster.dispatch.address()),
            format!("imagewarm-dispatch.{NAMESPACE}.svc"),
            cluster.dispatch_ca_file().display().to_string(),
        ];
        let runtime = Arc::new(runtime);
        let mut node =
            FakeNode { name: name.to_owned(), runtime, token_file, server, running: None };
        node.start_warmer()?;
        Ok(node)
    }

    /// Starts the warmer unless it runs.
    pub fn start_warmer(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let [server, server_name, ca_file] = &self.server;
        let flags = Flags::try_parse_from([
            "warmer",
            "--dispatch-server",
            server,
            "--dispatch-server-name",
            server_name,
            "--dispatch-ca-file",
            ca_file,
            "--token-file",
            &self.token_file.display().to_string(),
            "--presence-interval",
            "5s",
            "--keep-free-disk",
            "0%",
            "--assumed-image-size",
            "0",
        ])?;
        let metrics = WarmerMetrics::register(&mut Default::default());
        let warmer = Warmer::with_runtime(self.runtime.clone(), &flags.warmer, metrics)?;
        let stop = CancellationToken::new();
        self.running = Some((
            stop.clone(),
            tokio::spawn(async move {
                // It ends early only when its runtime is none, and a runtime this is.
                let _ = warmer.run(stop).await;
            }),
        ));
        Ok(())
    }

    /// Ends the warmer without a good-bye, as SIGKILL would.
    pub fn kill_warmer(&mut self) {
        if let Some((_, task)) = self.running.take() {
            task.abort();
        }
    }

    pub fn has_warmer(&self) -> bool {
        self.running.is_some()
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill_warmer();
    }
}

/// Names of the nodes whose warmer runs.
pub fn connected(nodes: &BTreeMap<usize, FakeNode>) -> BTreeSet<String> {
    nodes.values().filter(|node| node.has_warmer()).map(|node| node.name.clone()).collect()
}
