//! Who may run an image that the kubelet did not pull itself, by the kubelet's
//! `imagePullCredentialsVerificationPolicy` (KEP-2535): what `docs/security.md` says of it.

use anyhow::{Context, Result, bail, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use xtask::cluster::{Cluster, Knative, KubeletNode, Options, Registry};
use xtask::images::TestImage;
use xtask::wait::wait_for;

use crate::{BINARY, DEADLINE, TURNS, create_namespace, nothing_is_left};

/// Whose image it is, and who has its pull secret.
const OWNER: &str = "owner";
/// Who has no pull secret.
const OTHER: &str = "other";
const SECRET: &str = "regcred";
const SIZE: usize = 1 << 20;

/// What became of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It runs; the kubelet asked no registry.
    Present,
    /// It runs; the kubelet asked the registry for the manifest. No layer was downloaded.
    Verified,
    /// It does not run: the kubelet would not use the image, and could not pull it.
    Refused,
}
use Outcome::{Present, Refused, Verified};

/// How a Pod names the image.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Whether the kubelet has a record of a pull of its own.
    recorded: bool,
    has_secret: bool,
    pull_policy: &'static str,
}

const fn case(recorded: bool, has_secret: bool, pull_policy: &'static str) -> Case {
    Case { recorded, has_secret, pull_policy }
}

const IF_NOT_PRESENT: &str = "IfNotPresent";
const NEVER: &str = "Never";

/// In this order: under `AlwaysVerify` the last one leaves a record.
const CASES: [Case; 8] = [
    case(true, false, IF_NOT_PRESENT),
    case(true, false, NEVER),
    case(true, true, IF_NOT_PRESENT),
    case(true, true, NEVER),
    case(false, false, IF_NOT_PRESENT),
    case(false, false, NEVER),
    case(false, true, NEVER),
    case(false, true, IF_NOT_PRESENT),
];

/// Each policy, or none in the kubelet's settings, and the outcome of each case.
const POLICIES: [(Option<&str>, [Outcome; 8]); 4] = [
    (Some("NeverVerify"), [Present; 8]),
    (Some("NeverVerifyPreloadedImages"), PRELOADED),
    (None, PRELOADED),
    (
        Some("AlwaysVerify"),
        [Refused, Refused, Present, Present, Refused, Refused, Refused, Verified],
    ),
];

const PRELOADED: [Outcome; 8] =
    [Refused, Refused, Present, Present, Present, Present, Present, Present];

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelets_policy_says_who_may_run_a_warmed_image() -> Result<()> {
    let _alone = TURNS.lock().await;
    let options = Options { nodes: 0, tls_registry: true, knative: Knative::StandIn, deploy: true };
    let cluster = Cluster::start(options).await?;
    let folder = cluster.folder().to_owned();
    let tested = all_policies(&cluster).await;
    drop(cluster);
    nothing_is_left(&folder, &tested?)
}

/// Returns the ids of all containers.
async fn all_policies(cluster: &Cluster) -> Result<Vec<String>> {
    let client = cluster.client();
    let registry = cluster.registry_tls.as_ref().context("no private registry")?;
    for namespace in [OWNER, OTHER] {
        create_namespace(&client, namespace).await?;
    }
    let secret = serde_json::from_value(json!({
        "metadata": {"name": SECRET}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": registry.docker_config_json()},
    }))?;
    let secrets: Api<Secret> = Api::namespaced(client, OWNER);
    secrets.create(&PostParams::default(), &secret).await?;
    let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &[]).await?;
    let health = controller.health().context("no health port")?;
    controller.wait_ready(health, "/readyz", DEADLINE).await?;
    let mut containers = vec![];
    for (policy, expected) in POLICIES {
        let name = policy.unwrap_or("default").to_lowercase();
        let fields = match policy {
            Some(policy) => json!({"imagePullCredentialsVerificationPolicy": policy}),
            None => json!({}),
        };
        let node = cluster.add_kubelet_node_with(&name, &fields).await?;
        let tested = one_policy(cluster, registry, &node, &expected).await;
        let tested = tested.and_then(|()| node.containers());
        let tested =
            tested.with_context(|| format!("{name}; log of the kubelet:\n{}", node.log_tail()));
        let stopped = node.stop().await;
        containers.extend(tested?);
        stopped?;
    }
    Ok(containers)
}

async fn one_policy(
    cluster: &Cluster,
    registry: &Registry,
    node: &KubeletNode,
    expected: &[Outcome; 8],
) -> Result<()> {
    let warmer = cluster.start_warmer(BINARY.as_ref(), node, &[]).await?;
    let health = warmer.health().context("no health port")?;
    warmer.wait_ready(health, "/readyz", DEADLINE).await?;
    let pods = Pods { client: cluster.client(), registry, node: &node.name };
    let recorded = pods.warm(cluster, "recorded").await?;
    let warmed = pods.warm(cluster, "warmed").await?;
    // Only a pull of its own gives the kubelet a record.
    let pulls = Case { recorded: true, has_secret: true, pull_policy: "Always" };
    ensure!(pods.outcome("pulls", &recorded, pulls).await? == Verified, "no pull of the kubelet");
    let mut wrong = vec![];
    for (at, (case, expected)) in CASES.into_iter().zip(expected).enumerate() {
        let image = if case.recorded { &recorded } else { &warmed };
        let outcome = pods.outcome(&format!("pod-{at}"), image, case).await?;
        println!("{}: {case:?}: {outcome:?}", node.name);
        if outcome != *expected {
            wrong.push(format!("{case:?} is {outcome:?}, not {expected:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Pods that are bound to one node.
struct Pods<'a> {
    client: Client,
    registry: &'a Registry,
    node: &'a str,
}

impl Pods<'_> {
    /// Pushes an image, and has imagewarm pull it onto the node.
    async fn warm(&self, cluster: &Cluster, name: &str) -> Result<String> {
        let repository = format!("{}/{name}", self.node);
        let image = cluster.running_image(TestImage::new(&[SIZE]))?;
        self.registry.push(&image, &repository, "v1").await?;
        let image = self.registry.image(&repository, "v1");
        let layers = self.layers_served();
        let warms: Api<ImageWarm> = Api::namespaced(self.client.clone(), OWNER);
        let warm_name = format!("{}-{name}", self.node);
        let warm = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": warm_name},
            "spec": {
                "image": image, "nodeName": self.node, "imagePullSecrets": [{"name": SECRET}],
            },
        }))?;
        warms.create(&PostParams::default(), &warm).await?;
        wait_for(DEADLINE, &format!("{image} to be warm"), async || {
            let warm = warms.get(&warm_name).await.ok()?;
            (warm.reason() == Some(Reason::Pulled)).then_some(())
        })
        .await?;
        ensure!(self.layers_served() > layers, "no layer of {image} was seen to be downloaded");
        Ok(image)
    }

    /// Creates a Pod, and waits until it runs or the kubelet says why it does not.
    async fn outcome(&self, name: &str, image: &str, case: Case) -> Result<Outcome> {
        let name = format!("{}-{name}", self.node);
        let namespace = if case.has_secret { OWNER } else { OTHER };
        let secrets = if case.has_secret { json!([{"name": SECRET}]) } else { json!([]) };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.node,
                "imagePullSecrets": secrets,
                "containers": [
                    {"name": "main", "image": image, "imagePullPolicy": case.pull_policy},
                ],
            },
        }))?;
        let layers = self.layers_served();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &pod).await?;
        let runs = wait_for(DEADLINE, &format!("Pod {name} to run or to fail"), async || {
            let status = api.get(&name).await.ok()?.status?;
            let state = status.container_statuses?.first()?.state.clone()?;
            let waits = state.waiting.and_then(|waiting| waiting.reason);
            match waits.as_deref() {
                Some("ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull") => Some(false),
                _ => state.running.map(|_| true),
            }
        })
        .await?;
        let events = self.events(namespace, &name, if runs { "Started" } else { "Failed" }).await?;
        ensure!(self.layers_served() == layers, "{name}: a layer was downloaded again");
        let present = format!("Container image \"{image}\" already present on machine");
        match (runs, events.iter().any(|(reason, _)| reason == "Pulling")) {
            (true, true) => Ok(Verified),
            (true, false) if events.iter().any(|(_, said)| said.starts_with(&present)) => {
                Ok(Present)
            }
            (false, _) => Ok(Refused),
            _ => bail!("{name}: {events:?}"),
        }
    }

    /// What the kubelet said of the Pod up to this reason: reasons and messages.
    async fn events(
        &self,
        namespace: &str,
        pod: &str,
        last: &str,
    ) -> Result<Vec<(String, String)>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let of_pod = format!("involvedObject.kind=Pod,involvedObject.name={pod}");
        wait_for(DEADLINE, &format!("the Events of Pod {pod}"), async || {
            let list = api.list(&ListParams::default().fields(&of_pod)).await.ok()?;
            let said = |event: Event| {
                (event.reason.unwrap_or_default(), event.message.unwrap_or_default())
            };
            let events: Vec<_> = list.items.into_iter().map(said).collect();
            events.iter().any(|(reason, _)| reason == last).then_some(events)
        })
        .await
    }

    /// How many layers and configurations of images the registry has sent in full.
    fn layers_served(&self) -> usize {
        let log = self.registry.log();
        log.lines().filter(|line| line.contains("\"GET ") && line.contains("/blobs/")).count()
    }
}
