//! A Pod that waits for its image has the registry to itself: what warms other nodes is suspended
//! meanwhile, and done afterwards. There is no kubelet: the test creates its Events.

use anyhow::{Result, ensure};
use imagewarm_core::api::Reason;
use xtask::cluster::Fault;

use crate::world::{Namespace, Proxied, World, eventually};

crate::tests![
    a_pull_is_suspended_until_the_pods_container_starts,
    a_pod_that_gets_no_bytes_suspends_nothing_for_long,
    without_preemption_nothing_is_suspended,
];

const SUSPENDED: &str = "imagewarm_dispatch_pulls_suspended_total";
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
