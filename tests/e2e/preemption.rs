//! A Pod that waits for its image has the registry to itself: what warms other nodes is suspended
//! meanwhile, and done afterwards. There is no kubelet: the test creates its Events.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use serde_json::json;
use xtask::cluster::Fault;

use crate::world::{Namespace, Proxied, World, containers, eventually};

crate::tests![
    a_pull_is_suspended_until_the_pods_container_starts,
    a_pod_that_gets_no_bytes_suspends_nothing_for_long,
    what_a_pending_pod_needs_is_pulled_first_and_alone,
    without_preemption_nothing_is_suspended,
];

const SUSPENDED: &str = "imagewarm_dispatch_pulls_suspended_total";
const PENDING: &str = "imagewarm_dispatch_images_pending";
const WAITING: &str = "imagewarm_dispatch_pods_waiting";

/// Two nodes that pull, each from a repository of its own of the same registry.
struct Pulls {
    of_the_pod: Proxied,
    other: Proxied,
}

impl Pulls {
    async fn begin(world: &World, namespace: &Namespace) -> Result<Pulls> {
        world.registries.push("preempted", "v1").await?;
        let [first, second, _] = world.nodes.names();
        let of_the_pod = world.registries.behind_proxy("pod", "preempted");
        let other = world.registries.behind_proxy("other", "preempted");
        for (name, proxied, node) in [("pod", &of_the_pod, first), ("other", &other, second)] {
            proxied.spoil(Fault::Hold);
            namespace.create_image_warm(name, &proxied.image("v1"), node, &[]).await?;
            proxied.until_held().await?;
        }
        Ok(Pulls { of_the_pod, other })
    }

    async fn end(&self, namespace: &Namespace) -> Result<()> {
        self.of_the_pod.heal();
        self.other.heal();
        for name in ["pod", "other"] {
            namespace.reaches(name, Reason::Pulled).await?;
        }
        Ok(())
    }
}

async fn until(world: &World, metric: &'static str, value: f64) -> Result<()> {
    eventually(&format!("{metric} is {value}"), async || {
        let found = world.controllers.metric_sum(metric, "").await?;
        Ok((found == value).then_some(()))
    })
    .await
}

async fn a_pull_is_suspended_until_the_pods_container_starts(world: &World) -> Result<()> {
    let namespace = world.namespace("preemption").await?;
    let pulls = Pulls::begin(world, &namespace).await?;
    let suspended = world.controllers.metric_sum(SUSPENDED, "").await?;
    let (node, image) = (world.nodes.names()[0], pulls.of_the_pod.image("v1"));
    let pulling = format!("Pulling image \"{image}\"");
    namespace.kubelet_event("Pulling", node, &pulling).await?;
    until(world, SUSPENDED, suspended + 1.0).await?;
    // Also when the kubelet is faster than the warmer.
    let pulled = format!("Successfully pulled image \"{image}\" in 1s (1s including waiting)");
    namespace.kubelet_event("Pulled", node, &pulled).await?;
    until(world, WAITING, 0.0).await?;
    pulls.end(&namespace).await
}

/// Whatever is said in Events, by whomever.
async fn a_pod_that_gets_no_bytes_suspends_nothing_for_long(world: &World) -> Result<()> {
    let namespace = world.namespace("preemption-stalled").await?;
    let pulls = Pulls::begin(world, &namespace).await?;
    let begun = pulls.other.layers_begun();
    let suspended = world.controllers.metric_sum(SUSPENDED, "").await?;
    let pulling = format!("Pulling image \"{}\"", pulls.of_the_pod.image("v1"));
    namespace.kubelet_event("Pulling", world.nodes.names()[0], &pulling).await?;
    until(world, SUSPENDED, suspended + 1.0).await?;
    until(world, WAITING, 0.0).await?;
    eventually("the other pull goes on", async || {
        Ok((pulls.other.layers_begun() > begun).then_some(()))
    })
    .await?;
    pulls.end(&namespace).await
}

/// No node has room for a Pod; then one comes.
async fn what_a_pending_pod_needs_is_pulled_first_and_alone(world: &World) -> Result<()> {
    let namespace = world.namespace("pending").await?;
    world.registries.push("pending", "v1").await?;
    let needed = world.registries.behind_proxy("needed", "pending");
    let newer = world.registries.push("pending-newer", "v1").await?;
    let node = world.nodes.names()[0];
    world.warmers.stop(node).await?;
    for (name, image) in [("needed-00001", needed.image("v1")), ("newer-00001", newer.tag.clone())]
    {
        let mut spec = containers(&[&image]);
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        namespace.revision(name, spec).await?;
    }
    eventually("both have an ImageWarm", async || {
        Ok((namespace.image_warms().await?.len() == 2).then_some(()))
    })
    .await?;
    namespace.scheduler_event("needed-00001-deployment-6c5c6f7b9-x2x2x").await?;
    until(world, PENDING, 1.0).await?;

    needed.spoil(Fault::Hold);
    world.warmers.start(node).await?;
    needed.until_held().await?;
    eventually("the newer one waits for its turn", async || {
        let mut warms = namespace.image_warms().await?.into_iter();
        let is_queued = |warm: &ImageWarm| {
            warm.spec.image == newer.tag && warm.reason() == Some(Reason::Queued)
        };
        Ok(warms.any(|warm| is_queued(&warm)).then_some(()))
    })
    .await?;
    ensure!(world.nodes.digest(node, &newer.tag).await?.is_none(), "it was pulled beside");
    needed.heal();
    namespace.all_ready(2).await?;
    let pulled = format!("Container image \"{}\" already present on machine", needed.image("v1"));
    namespace.kubelet_event("Pulled", node, &pulled).await?;
    until(world, PENDING, 0.0).await
}

async fn without_preemption_nothing_is_suspended(world: &World) -> Result<()> {
    world.controllers.restart_with(&["--preemption=false"]).await?;
    world.controllers.until_all_connected().await?;
    let namespace = world.namespace("preemption-off").await?;
    let pulls = Pulls::begin(world, &namespace).await?;
    let pulling = format!("Pulling image \"{}\"", pulls.of_the_pod.image("v1"));
    namespace.kubelet_event("Pulling", world.nodes.names()[0], &pulling).await?;
    pulls.end(&namespace).await?;
    let suspended = world.controllers.metric_sum(SUSPENDED, "").await?;
    ensure!(suspended == 0.0, "{suspended} pulls were suspended");
    Ok(())
}
