//! A benchmark's environment: a development cluster of its own, with the shipped manifests, and
//! controllers under the shipped ServiceAccount.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use imagewarm_core::api::{ConditionStatus, ImageWarm, Revision};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{
    ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use serde_json::{Value, json};
use xtask::cluster::{CONTROLLER_ACCOUNT, Cluster, Imagewarm, NAMESPACE, Options};
use xtask::http_get::http_get;
use xtask::wait::wait_for;

/// The program that is measured.
pub const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");

/// Timeout of every wait, generous for a slow machine.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// Requests in flight of everything that is not imagewarm; more gives no more on a few cores.
pub const CONCURRENCY: usize = 16;

/// Without time limits that would delete or mark what a benchmark made without a Revision, and without a
/// limit on how much that is.
const PATIENT: [&str; 8] = [
    "--collect-grace",
    "24h",
    "--waiting-after",
    "24h",
    "--max-image-warms-per-namespace",
    "0",
    "--max-image-warms",
    "0",
];

/// A cluster, with at least one controller.
pub struct Stage {
    pub cluster: Cluster,
}

impl Stage {
    /// A cluster with so many nodes that have a dockerd, and no controller.
    pub async fn empty(docker_nodes: usize) -> Result<Stage> {
        let options = Options { nodes: docker_nodes, ..Options::default() };
        Ok(Stage { cluster: Cluster::start(options).await? })
    }

    /// The same with one controller, which admits and leads.
    pub async fn new(docker_nodes: usize) -> Result<(Stage, Arc<Imagewarm>)> {
        let stage = Stage::empty(docker_nodes).await?;
        let controller = stage.controller("controller-1").await?;
        stage.admission_answers().await?;
        Ok((stage, controller))
    }

    /// The same, without a node, on an API server with further flags.
    pub async fn with_api_server(flags: &[&str]) -> Result<(Stage, Arc<Imagewarm>)> {
        let options = Options { nodes: 0, ..Options::default() };
        let stage = Stage { cluster: Cluster::start_with(options, flags).await? };
        let controller = stage.controller("controller-1").await?;
        stage.admission_answers().await?;
        Ok((stage, controller))
    }

    /// Starts a controller and waits until it is ready.
    pub async fn controller(&self, name: &str) -> Result<Arc<Imagewarm>> {
        self.controller_with(name, &[]).await
    }

    /// The same with further flags.
    pub async fn controller_with(&self, name: &str, flags: &[&str]) -> Result<Arc<Imagewarm>> {
        let flags = [&PATIENT, flags].concat();
        let started = self.cluster.start_controller(BINARY.as_ref(), name, &flags).await?;
        let health = started.health().context("no health port")?;
        started.wait_ready(health, "/readyz", DEADLINE).await?;
        Ok(started)
    }

    /// Waits until so many warmers have a stream to this controller, and admission answers.
    pub async fn connected(&self, controller: &Imagewarm, count: usize) -> Result<()> {
        let health = controller.health().context("no health port")?;
        let streams = format!("imagewarm_dispatch_nodes_connected {count}");
        wait_for(DEADLINE, "all warmers to be connected", async || {
            let (_, metrics) = http_get(health, "/metrics").await.ok()?;
            metrics.lines().any(|line| line == streams).then_some(())
        })
        .await?;
        self.admission_answers().await
    }

    /// The API server backs off after refused connections; returns once it calls the webhook.
    pub async fn admission_answers(&self) -> Result<()> {
        let client = self.cluster.client();
        let warms: Api<ImageWarm> = Api::namespaced(client, "default");
        let probe: ImageWarm = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": "probe"}, "spec": {"image": "app", "nodeName": "probe"},
        }))?;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        wait_for(DEADLINE, "admission to answer", async || warms.create(&dry, &probe).await.ok())
            .await
            .map(drop)
    }

    /// A client with the controller's own account: the same priority and fairness as it has.
    pub async fn as_controller(&self) -> Result<Client> {
        client_of(&self.cluster.kubeconfig_for(NAMESPACE, CONTROLLER_ACCOUNT).await?).await
    }

    /// Plain Node objects, Ready, without anything behind them.
    pub async fn plain_nodes(&self, names: Vec<String>) -> Result<()> {
        plain_nodes(self.cluster.client(), names).await
    }

    /// Makes a namespace with a Configuration `app` in it, and returns what makes its Revisions.
    pub async fn namespace(&self, name: &str) -> Result<Revisions> {
        self.namespace_with(json!({"name": name})).await
    }

    /// The same for one whose label leaves it out: imagewarm receives none of its Revisions.
    pub async fn namespace_left_out(&self, name: &str) -> Result<Revisions> {
        let labels = json!({"caching.knative.dev/warm": "false"});
        self.namespace_with(json!({"name": name, "labels": labels})).await
    }

    async fn namespace_with(&self, metadata: Value) -> Result<Revisions> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": metadata}))?;
        let name = namespace.metadata.name.clone().context("a namespace without name")?;
        let name = name.as_str();
        let client = self.cluster.client();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await?;
        let kind = ApiResource {
            kind: "Configuration".into(),
            plural: "configurations".into(),
            ..ApiResource::erase::<Revision>(&())
        };
        let configurations: Api<DynamicObject> = Api::namespaced_with(client.clone(), name, &kind);
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
            "metadata": {"name": "app"}, "spec": {},
        });
        let made =
            configurations.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        let kind = ApiResource::erase::<Revision>(&());
        Ok(Revisions {
            namespace: name.to_owned(),
            api: Api::namespaced_with(client, name, &kind),
            configurations,
            owner: made.metadata.uid.context("a Configuration without uid")?,
        })
    }

    /// From now on, sees ImageWarms of the namespace appear.
    pub async fn watch(&self, namespace: &str) -> Result<Appearing> {
        let warms: Api<ImageWarm> = Api::namespaced(self.cluster.client(), namespace);
        let now = warms.list_metadata(&Default::default()).await?.metadata.resource_version;
        let since = now.context("a list without resourceVersion")?;
        let events = warms.watch_metadata(&WatchParams::default(), &since).await?.boxed();
        Ok(Appearing { warms, since, events })
    }

    /// Waits until so many ImageWarms of the namespace are Ready.
    pub async fn all_ready(&self, namespace: &str, count: usize) -> Result<()> {
        let warms: Api<ImageWarm> = Api::namespaced(self.cluster.client(), namespace);
        let is_ready = |warm: &ImageWarm| {
            warm.ready().is_some_and(|ready| ready.status == ConditionStatus::True)
        };
        wait_for(DEADLINE, "all ImageWarms to be Ready", async || {
            let all = warms.list(&Default::default()).await.ok()?.items;
            (all.iter().filter(|warm| is_ready(warm)).count() >= count).then_some(())
        })
        .await
    }

    /// Number of answers of 429 to the controller's account.
    pub fn throttled(&self) -> Result<usize> {
        let account = format!("system:serviceaccount:{NAMESPACE}:{CONTROLLER_ACCOUNT}");
        let events = self.cluster.audit_events()?;
        let of_ours = events.iter().filter(|event| event["user"]["username"] == account.as_str());
        Ok(of_ours.filter(|event| event["responseStatus"]["code"] == 429).count())
    }
}

/// A client from a kubeconfig.
async fn client_of(path: &Path) -> Result<Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

/// Makes Revisions of one Configuration, as Knative's controller does.
pub struct Revisions {
    /// Their namespace.
    pub namespace: String,
    api: Api<DynamicObject>,
    configurations: Api<DynamicObject>,
    owner: String,
}

impl Revisions {
    /// Creates one with a container for each image, and returns how long its creation took.
    pub async fn create(&self, name: &str, images: &[&str]) -> Result<Duration> {
        let containers = images.iter().enumerate();
        let containers: Vec<Value> = containers
            .map(|(at, image)| json!({"name": format!("container-{at}"), "image": image}))
            .collect();
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {
                "name": name,
                "labels": {
                    "serving.knative.dev/configuration": "app",
                    "serving.knative.dev/configurationUID": self.owner,
                    "serving.knative.dev/routingState": "active",
                },
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
                    "name": "app", "uid": self.owner, "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
            "spec": {"containers": containers},
        });
        // As in Knative, the Configuration has the template before it has the Revision.
        let template = json!({"spec": {"template": {"spec": body["spec"]}}});
        let params = PatchParams::default();
        self.configurations.patch("app", &params, &Patch::Merge(template)).await?;
        let revision = serde_json::from_value(body)?;
        let began = Instant::now();
        self.api.create(&PostParams::default(), &revision).await?;
        Ok(began.elapsed())
    }

    /// Deletes the Configuration, and with it what belongs to it.
    pub async fn delete_configuration(&self) -> Result<()> {
        self.configurations.delete("app", &Default::default()).await?;
        Ok(())
    }

    /// Creates ImageWarms like those of a fan-out, for these nodes, as fast as plain POSTs can.
    pub async fn raw_creates(&self, client: &Client, image: &str, nodes: &[String]) -> Result<()> {
        let warms: Api<ImageWarm> = Api::namespaced(client.clone(), &self.namespace);
        futures::stream::iter(nodes.iter().map(Ok))
            .try_for_each_concurrent(CONCURRENCY, |node| {
                let warms = warms.clone();
                async move {
                    warms.create(&PostParams::default(), &self.raw(image, node)?).await?;
                    anyhow::Ok(())
                }
            })
            .await
    }

    /// An ImageWarm with as much in it as one of a fan-out, that no Revision demands.
    fn raw(&self, image: &str, node: &str) -> Result<ImageWarm> {
        let name = image.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        Ok(serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {
                "name": format!("{name}-{node}-4veiyqt56lgtomw2y7rn"),
                "labels": {"app.kubernetes.io/managed-by": "benchmark"},
                "annotations": {
                    "example.com/made-instead-for": format!("{}/hello-00001", self.owner),
                    "example.com/service-account": "default",
                },
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
                    "name": "app", "uid": self.owner,
                    "controller": false, "blockOwnerDeletion": false,
                }],
            },
            "spec": {"image": image, "nodeName": node},
        }))?)
    }
}

/// ImageWarms as they appear.
pub struct Appearing {
    warms: Api<ImageWarm>,
    since: String,
    events:
        futures::stream::BoxStream<'static, kube::Result<WatchEvent<PartialObjectMeta<ImageWarm>>>>,
}

impl Appearing {
    /// Returns when so many more are there, with the moment of the last.
    pub async fn count(&mut self, wanted: usize) -> Result<Instant> {
        let mut last = Instant::now();
        self.each(wanted, |_, seen| last = seen).await?;
        Ok(last)
    }

    /// Returns the names of so many more, and when each was seen.
    pub async fn each(&mut self, wanted: usize, mut tell: impl FnMut(&str, Instant)) -> Result<()> {
        let mut seen = 0;
        let counted = async {
            while seen < wanted {
                let Some(event) = self.events.try_next().await? else {
                    // The API server closes watches at any time; the next one resumes.
                    let (warms, params) = (&self.warms, WatchParams::default());
                    self.events = warms.watch_metadata(&params, &self.since).await?.boxed();
                    continue;
                };
                if let WatchEvent::Added(warm) = &event {
                    seen += 1;
                    tell(warm.metadata.name.as_deref().unwrap_or_default(), Instant::now());
                }
                match event {
                    WatchEvent::Added(warm) | WatchEvent::Modified(warm) => {
                        self.since = warm.metadata.resource_version.unwrap_or_default();
                    }
                    WatchEvent::Error(status) => anyhow::bail!("the watch: {status:?}"),
                    WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
                }
            }
            anyhow::Ok(())
        };
        let counted = tokio::time::timeout(DEADLINE, counted).await;
        let Ok(done) = counted else { anyhow::bail!("{seen} of {wanted} ImageWarms appeared") };
        done
    }
}

/// Seconds since.
pub fn seconds(began: Instant, ended: Instant) -> f64 {
    ended.saturating_duration_since(began).as_secs_f64()
}

/// Milliseconds since.
pub fn milliseconds(began: Instant, ended: Instant) -> f64 {
    seconds(began, ended) * 1_000.0
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(number.parse::<f64>()? * 1024.0)
}

/// CPU time of a process so far, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name may hold anything, but ends with the last bracket.
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = (ticks(11).context("no utime")?, ticks(12).context("no stime")?);
    // Linux shows times to programs in hundredths, whatever it counts in itself.
    Ok((user + system) / 100.0)
}

/// Makes Node objects that nobody stands behind, and on which no Pod has room.
pub async fn plain_nodes(client: Client, names: Vec<String>) -> Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let architecture = xtask::images::architecture();
    futures::stream::iter(names.into_iter().map(Ok))
        .try_for_each_concurrent(CONCURRENCY, |name| {
            let nodes = nodes.clone();
            async move {
                let node = json!({
                    "metadata": {"name": name, "labels": {
                        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                        "kubernetes.io/arch": architecture,
                    }},
                    "status": {
                        "conditions": [{"type": "Ready", "status": "True"}],
                        "nodeInfo": {
                            "architecture": architecture, "operatingSystem": "linux",
                            "bootID": "", "containerRuntimeVersion": "docker://28.0.0",
                            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                            "machineID": "", "osImage": "", "systemUUID": "",
                        },
                    },
                });
                nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
                anyhow::Ok(())
            }
        })
        .await
}
