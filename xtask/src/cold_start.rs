//! Cold starts, seen by a user: Knative Serving, two nodes with kubelet and containerd, and requests to
//! Services that are scaled to zero. The image of each Service is new, so nobody has it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Knative, KubeletNode, Link, Options, SCHEDULER, manifests};
use crate::images::TestImage;
use crate::prerequisites::{Prerequisite, Programs};
use crate::wait::wait_for;

/// A namespace whose Services are warmed.
pub const WARMED: &str = "warmed";
/// A namespace that is left out.
pub const LEFT_OUT: &str = "left-out";

/// Megabits a second from the registry to each node.
pub const MEGABITS: u32 = 240;

const NODES: u8 = 2;
const DEADLINE: Duration = Duration::from_secs(120);

/// The programs that are needed.
pub fn prerequisites() -> BTreeSet<Prerequisite> {
    use Prerequisite::*;
    [
        Etcd,
        DockerRegistry,
        Ip,
        Containerd,
        HostLocal,
        Busybox,
        KubeApiserver,
        KubeControllerManager,
        KubeScheduler,
        Kubelet,
    ]
    .into_iter()
    .chain(Prerequisite::knative().iter().copied())
    .collect()
}

/// A running system.
pub struct ColdStarts {
    /// The cluster.
    pub cluster: Cluster,
    nodes: Vec<KubeletNode>,
}

impl ColdStarts {
    /// Starts everything, with a controller and a warmer for each node, each with a link of its own.
    pub async fn start(programs: Programs, binary: &Path) -> Result<Self> {
        Self::start_with(programs, binary, || Link::of_megabits(MEGABITS), &[]).await
    }

    /// The same with these links from the registry to each node, and with these flags of the controller.
    pub async fn start_with(
        programs: Programs,
        binary: &Path,
        link: impl Fn() -> Link,
        flags: &[&str],
    ) -> Result<Self> {
        let options = Options { nodes: 0, knative: Knative::Real, ..Options::default() };
        let mut cluster = Cluster::start_from(programs, options, &[]).await?;
        cluster.start_scheduler()?;
        let nodes = (1..=NODES).map(|number| (number, link()));
        let adding = nodes.map(|(number, link)| {
            let cluster = &cluster;
            async move { cluster.add_pod_node(number, &link).await }
        });
        let nodes = try_join_all(adding).await?;
        let started = ColdStarts { cluster, nodes };
        started.start_imagewarm(binary, flags).await?;
        Ok(started)
    }

    async fn start_imagewarm(&self, binary: &Path, flags: &[&str]) -> Result<()> {
        let cluster = &self.cluster;
        let mut processes = vec![cluster.start_controller(binary, "controller-1", flags).await?];
        for node in &self.nodes {
            processes.push(cluster.start_warmer(binary, node, &[]).await?);
        }
        for process in processes {
            let health = process.health().context("no health port")?;
            process.wait_ready(health, "/readyz", DEADLINE).await?;
        }
        let namespace = |name: &str, warm: &str| {
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"caching.knative.dev/warm": warm}},
            })
        };
        let namespaces = vec![namespace(WARMED, "true"), namespace(LEFT_OUT, "false")];
        manifests::apply(&cluster.client(), namespaces).await?;
        self.until_queue_proxy_is_warm(self.nodes.len()).await
    }

    /// Waits until so many nodes have the image of queue-proxy, which every Pod has, in all cases.
    pub async fn until_queue_proxy_is_warm(&self, nodes: usize) -> Result<()> {
        let warms = self.api("caching.knative.dev", "v1alpha1", "ImageWarm", "knative-serving");
        wait_for(DEADLINE, "queue-proxy to be warm", async || {
            let mut warms = warms.list(&ListParams::default()).await.ok()?.items;
            warms.retain(|warm| warm.data["status"]["conditions"][0]["status"] == "True");
            (warms.len() >= nodes).then_some(())
        })
        .await
    }

    /// Pushes a new image of so many bytes that serves HTTP, and returns its name.
    pub async fn image(&self, repository: &str, bytes: usize) -> Result<String> {
        let busybox = self.cluster.program(Prerequisite::Busybox)?;
        let command = ["/busybox", "httpd", "-f", "-p", "8080", "-h", "/"];
        let image = TestImage::new(&[bytes / 4; 4]).program(busybox, &command)?;
        let registry = &self.cluster.registry_plain;
        registry.push(&image, repository, "v1").await?;
        Ok(registry.image(repository, "v1"))
    }

    /// Makes a Service that is scaled to zero, and waits until Knative has made all but its Pods. Returns how
    /// long its Deployment came after its Revision.
    pub async fn service(&self, namespace: &str, name: &str, image: &str) -> Result<Duration> {
        self.create_service(namespace, name, image, "0").await?;
        let revisions = self.serving(namespace, "Revision");
        let deployments = self.api("apps", "v1", "Deployment", namespace);
        let scalers =
            self.api("autoscaling.internal.knative.dev", "v1alpha1", "PodAutoscaler", namespace);
        let revision = format!("{name}-00001");
        let what = format!("the Revision of {name}");
        soon(&what, async || revisions.get_opt(&revision).await.ok()?.map(drop)).await?;
        let (began, deployment) = (Instant::now(), format!("{revision}-deployment"));
        let what = format!("the Deployment of {name}");
        soon(&what, async || deployments.get_opt(&deployment).await.ok()?.map(drop)).await?;
        let deployment_took = began.elapsed();
        wait_for(DEADLINE, &format!("Service {name} to be at zero"), async || {
            let revision_is_ready = {
                let revision = revisions.get(&revision).await.ok()?;
                let conditions = revision.data["status"]["conditions"].as_array()?.clone();
                let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
                conditions.iter().any(is_ready)
            };
            // The autoscaler has looked at it: a request before that would wait for its next look.
            let scaler = scalers.get(&revision).await.ok()?;
            let is_scaled = scaler.data["status"]["desiredScale"] == 0;
            (revision_is_ready && is_scaled).then_some(())
        })
        .await?;
        Ok(deployment_took)
    }

    async fn create_service(
        &self,
        namespace: &str,
        name: &str,
        image: &str,
        initial_scale: &str,
    ) -> Result<()> {
        let service = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": name},
            "spec": {"template": {
                "metadata": {"annotations": {
                    "autoscaling.knative.dev/initial-scale": initial_scale,
                    "autoscaling.knative.dev/window": "6s",
                    // Until it is deleted: while it scales down, its Pod takes minutes to go.
                    "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "2m",
                    // The activator stays in the path: there is no ingress to take it out.
                    "autoscaling.knative.dev/target-burst-capacity": "-1",
                }},
                "spec": {
                    "schedulerName": SCHEDULER,
                    "containers": [{"image": image}],
                },
            }},
        }))?;
        self.serving(namespace, "Service").create(&PostParams::default(), &service).await?;
        Ok(())
    }

    /// Makes a Service with one Pod, and returns how long it took until that Pod was Ready.
    pub async fn first_pod(&self, namespace: &str, name: &str, image: &str) -> Result<Duration> {
        let pods = self.api("", "v1", "Pod", namespace);
        let of_service =
            ListParams::default().labels(&format!("serving.knative.dev/service={name}"));
        let began = Instant::now();
        self.create_service(namespace, name, image, "1").await?;
        soon(&format!("the first Pod of {name} to be Ready"), async || {
            pods.list(&of_service).await.ok()?.items.iter().any(is_ready).then_some(())
        })
        .await?;
        Ok(began.elapsed())
    }

    /// Waits until the image of a Service is on every node that has a kubelet.
    pub async fn until_warm(&self, namespace: &str, name: &str) -> Result<()> {
        self.until_warm_on(self.nodes.len(), namespace, name).await
    }

    /// Waits until the image of a Service is on so many nodes.
    pub async fn until_warm_on(&self, count: usize, namespace: &str, name: &str) -> Result<()> {
        let warms = self.api("caching.knative.dev", "v1alpha1", "ImageWarm", namespace);
        let repository = format!("/{name}");
        wait_for(DEADLINE, &format!("the image of {name} to be warm"), async || {
            let mut warms: Vec<DynamicObject> =
                warms.list(&ListParams::default()).await.ok()?.items;
            warms.retain(|warm| {
                let image = warm.data["spec"]["image"].as_str().unwrap_or_default();
                let is_ready = warm.data["status"]["conditions"][0]["status"] == "True";
                is_ready && image.contains(&repository)
            });
            let nodes: BTreeSet<String> =
                warms.iter().map(|warm| warm.data["spec"]["nodeName"].to_string()).collect();
            (nodes.len() >= count).then_some(())
        })
        .await
    }

    /// Makes a Service of the image, warms it where Services are warmed, and returns how long its first
    /// request took.
    pub async fn first_request(
        &self,
        namespace: &str,
        name: &str,
        image: &str,
    ) -> Result<Duration> {
        self.service(namespace, name, image).await?;
        if namespace == WARMED {
            self.until_warm(namespace, name).await?;
        }
        self.first_byte(namespace, name).await
    }

    /// Asks the Service's first Revision, through the activator as an ingress does, and returns how
    /// long the first byte of the answer took.
    pub async fn first_byte(&self, namespace: &str, name: &str) -> Result<Duration> {
        let revision = format!("{name}-00001");
        let asked = first_byte(&self.cluster, namespace, &revision);
        let answered = tokio::time::timeout(DEADLINE, asked).await;
        match answered {
            Ok(answered) => answered,
            Err(_) => {
                let seen = self.seen(namespace).await?;
                bail!("Service {name} does not answer within {DEADLINE:?}:\n{seen}")
            }
        }
    }

    /// Makes one more Pod of a Service's image on the node that has none, as when the Service is scaled out,
    /// and returns how long it took from its creation until it was Ready. [`ColdStarts::delete`] deletes it,
    /// too.
    pub async fn scale_out(&self, namespace: &str, name: &str, image: &str) -> Result<Duration> {
        let pods = self.api("", "v1", "Pod", namespace);
        let of_service =
            ListParams::default().labels(&format!("serving.knative.dev/service={name}"));
        let taken: Vec<Value> = pods
            .list(&of_service)
            .await?
            .items
            .into_iter()
            .map(|pod| pod.data["spec"]["nodeName"].clone())
            .collect();
        let free = self.nodes.iter().find(|node| !taken.iter().any(|taken| *taken == *node.name));
        let free = free.with_context(|| format!("Pods of {name} on all nodes: {taken:?}"))?;
        let second = format!("{name}-second");
        let pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": second},
            "spec": {"nodeName": free.name, "containers": [{"name": "user-container", "image": image}]},
        }))?;
        let began = Instant::now();
        pods.create(&PostParams::default(), &pod).await?;
        soon(&format!("Pod {second} to be Ready"), async || {
            pods.get(&second).await.ok().filter(is_ready)
        })
        .await?;
        Ok(began.elapsed())
    }

    /// The Pods of a namespace, and what was said of them, for people.
    async fn seen(&self, namespace: &str) -> Result<String> {
        let all = ListParams::default();
        let pods = self.api("", "v1", "Pod", namespace).list(&all).await?.items;
        let pods = pods.iter().map(|pod| {
            let (node, status) = (&pod.data["spec"]["nodeName"], &pod.data["status"]);
            format!(
                "{:?} on {node}: {} {}",
                pod.metadata.name, status["phase"], status["conditions"]
            )
        });
        let events = self.api("", "v1", "Event", namespace).list(&all).await?.items;
        let events = events.iter().map(|event| {
            let (of, reason) = (&event.data["involvedObject"], &event.data["reason"]);
            format!("{} {}: {reason} {}", of["kind"], of["name"], event.data["message"])
        });
        Ok(pods.chain(events).collect::<Vec<_>>().join("\n"))
    }

    /// Deletes a Service and waits until its Pods are gone.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.serving(namespace, "Service").delete(name, &DeleteParams::default()).await?;
        let pods = self.api("", "v1", "Pod", namespace);
        // The program heeds no signal, and Knative gives it five minutes.
        let at_once = DeleteParams::default().grace_period(1);
        let what = format!("the Pods of {name} to go");
        let gone = wait_for(DEADLINE, &what, async || {
            let left = pods.list(&ListParams::default()).await.ok()?.items;
            for pod in &left {
                let _ = pods.delete(pod.metadata.name.as_deref()?, &at_once).await;
            }
            left.is_empty().then_some(())
        });
        match gone.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.seen(namespace).await?)),
        }
    }

    /// Ends the nodes in good order, and then everything else.
    pub async fn stop(self) -> Result<()> {
        for node in self.nodes {
            node.stop().await?;
        }
        Ok(())
    }

    fn serving(&self, namespace: &str, kind: &str) -> Api<DynamicObject> {
        self.api("serving.knative.dev", "v1", kind, namespace)
    }

    fn api(&self, group: &str, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.cluster.client(), namespace, &kind)
    }
}

fn is_ready(pod: &DynamicObject) -> bool {
    let conditions = pod.data["status"]["conditions"].as_array();
    let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(is_ready))
}

/// Waits for what is measured: seldom is too late.
async fn soon<T>(what: &str, probe: impl AsyncFn() -> Option<T>) -> Result<T> {
    let seen = async {
        loop {
            if let Some(seen) = probe().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(DEADLINE, seen).await;
    seen.with_context(|| format!("waited {DEADLINE:?} in vain for {what}"))
}

/// Asks a Revision, as an ingress asks the activator; returns how long the first byte of a good answer
/// took, which waits for a Pod.
pub async fn first_byte(cluster: &Cluster, namespace: &str, revision: &str) -> Result<Duration> {
    let activator = cluster.serving()?.activator.address();
    let request = format!(
        "GET /busybox HTTP/1.0\r\nHost: service\r\nKnative-Serving-Namespace: {namespace}\r\n\
         Knative-Serving-Revision: {revision}\r\n\r\n"
    );
    let began = Instant::now();
    let mut stream = TcpStream::connect(activator).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).await?;
    let took = began.elapsed();
    let answer = String::from_utf8_lossy(&answer[..read]);
    ensure!(answer.split(' ').nth(1) == Some("200"), "{revision} answered {answer:?}");
    Ok(took)
}
