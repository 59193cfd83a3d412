//! Whatever is killed, doubled, cut off or answered wrongly: in the end every ImageWarm is there
//! once, and none was deleted by mistake.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, KnativeImage, Reason};
use kube::Api;
use serde_json::{Value, json};
use xtask::cluster::api_proxy::{Answer, Call, Rule, Verb};
use xtask::cluster::{ApiProxy, NAMESPACE};

use crate::world::{AuditedRequest, DEADLINE, Namespace, World, containers, eventually};

crate::tests![
    every_crash_point_of_a_fan_out_converges,
    two_leaders_do_no_harm,
    a_steady_cluster_writes_leases_only,
    a_leader_that_is_terminated_hands_over_at_once,
    a_node_that_is_made_anew_is_checked_anew,
    a_namespace_that_refuses_is_not_asked_again_and_again,
    a_namespace_that_is_being_deleted_is_left_alone,
];

/// Counts how often the leader has reconciled everything.
const RUNS: &str = "imagewarm_reconcile_duration_seconds_count";

/// Images × nodes of each Revision whose fan-out is cut short.
const IMAGES: usize = 3;
const NODES: usize = 8;

/// Odd crash points lie in the fan-out at admission, even ones in the next leader's repair of it.
async fn every_crash_point_of_a_fan_out_converges(world: &World) -> Result<()> {
    world.controllers.stop().await?;
    let nodes = world.nodes.create_fake("crash", NODES).await?;
    let proxy = world.cluster().api_proxy().await?;
    start_behind(world, &proxy).await?;
    for point in (1..=20).step_by(2) {
        let namespace = world.namespace("crash").await?;
        proxy.cut_off_after(point, Verb::Create, "imagewarms");
        namespace.revision("hello-00001", fake_images(&namespace.name, "crash")).await?;
        crash(world, &proxy).await.with_context(|| format!("fan-out, write {point}"))?;
        ensure!(namespace.image_warms().await?.len() == point, "crash point {point} was missed");

        let repaired = (point + 1).min(IMAGES * NODES - point);
        proxy.end_cut_off();
        proxy.cut_off_after(repaired, Verb::Create, "imagewarms");
        world.controllers.start_through(&proxy, "controller-1", &["--repair-delay", "1s"]).await?;
        crash(world, &proxy).await.with_context(|| format!("repair, write {repaired}"))?;
        let made = namespace.image_warms().await?.len();
        ensure!(made == point + repaired, "{made} ImageWarms after {point} and {repaired} writes");

        proxy.end_cut_off();
        start_behind(world, &proxy).await?;
        is_complete(&namespace, &nodes).await?;
    }
    Ok(())
}

async fn start_behind(world: &World, proxy: &ApiProxy) -> Result<()> {
    world.controllers.start_through(proxy, "controller-1", &["--repair-delay", "1s"]).await?;
    world.controllers.until_ready().await
}

/// Waits for the cut-off and kills what is cut off.
async fn crash(world: &World, proxy: &ApiProxy) -> Result<()> {
    proxy.is_cut_off(DEADLINE).await?;
    world.controllers.kill_all().await
}

/// Images that nobody pulls, since the nodes of the pool have no warmers.
fn fake_images(name: &str, pool: &str) -> Value {
    let images: Vec<_> =
        (1..=IMAGES).map(|n| format!("registry.example/{name}/app-{n}:v1")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut spec = containers(&images);
    spec["nodeSelector"] = json!({"pool": pool});
    spec["tolerations"] = json!([{"key": "pool", "operator": "Exists"}]);
    spec
}

/// Waits until there is exactly one ImageWarm for each of the images on each of the nodes.
async fn is_complete(namespace: &Namespace, nodes: &[String]) -> Result<()> {
    eventually("one ImageWarm for each image and node", async || {
        let warms = namespace.image_warms().await?;
        let pairs: BTreeSet<_> = warms.iter().map(|w| (&w.spec.image, &w.spec.node_name)).collect();
        ensure!(pairs.len() == warms.len(), "some are there twice: {pairs:?}");
        ensure!(warms.len() <= IMAGES * nodes.len(), "{} ImageWarms", warms.len());
        Ok((warms.len() == IMAGES * nodes.len()).then_some(()))
    })
    .await
}

/// Two controllers that both lead, as after a clock jump; all warmers speak to the first.
async fn two_leaders_do_no_harm(world: &World) -> Result<()> {
    world.controllers.stop().await?;
    let proxy = world.cluster().api_proxy().await?;
    world.controllers.start_through(&proxy, "controller-1", &[]).await?;
    world.controllers.until_ready().await?;
    world.controllers.until_serving("controller-1").await?;
    let other = ["--lease-name", "imagewarm-other"];
    world.controllers.start_through(&proxy, "controller-2", &other).await?;
    world.controllers.until_ready().await?;
    eventually("both lead", async || {
        let leading = world.controllers.metric_sum("imagewarm_leading", "").await?;
        Ok((leading == 2.0).then_some(()))
    })
    .await?;
    two_leaders(world).await
}

async fn two_leaders(world: &World) -> Result<()> {
    let namespace = world.namespace("two").await?;
    let mut pushed = vec![];
    for tag in ["v1", "v2", "v3"] {
        pushed.push(world.registries.push("two", tag).await?);
    }
    let images: Vec<&str> = pushed.iter().map(|image| image.tag.as_str()).collect();
    let knative: Api<KnativeImage> = namespace.api();
    namespace.image("same", json!({"image": images[0]}), None).await?;
    // The pulls take a while, so that there is a state for the second leader to be wrong about.
    world.registries.freeze(world.registries.open());
    namespace.revision("hello-00001", containers(&images)).await?;
    eventually("the second leader misses the warmers", async || {
        let warms = namespace.image_warms().await?;
        let wrong = |warm: &ImageWarm| warm.reason() == Some(Reason::WaitingForWarmer);
        Ok((warms.len() == 9 && warms.iter().any(wrong)).then_some(()))
    })
    .await?;
    world.registries.open().thaw();
    namespace.all_ready(9).await?;
    // Both repair what is deleted, and neither makes it twice.
    for victim in namespace.image_warms().await? {
        namespace.delete_image_warm(&victim).await?;
    }
    let settled = namespace.all_ready(9).await?;
    let image_before = eventually("the Image is Ready", async || {
        let image = knative.get("same").await?;
        let ready = serde_json::to_value(&image)?["status"]["conditions"].to_string();
        Ok(ready.contains(r#""status":"True""#).then_some(image))
    })
    .await?;
    let runs = (
        world.controllers.metric_of("controller-1", RUNS).await?,
        world.controllers.metric_of("controller-2", RUNS).await?,
    );
    for turn in 0.. {
        world.nodes.label("node-1", "turn", &turn.to_string()).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let later = (
            world.controllers.metric_of("controller-1", RUNS).await?,
            world.controllers.metric_of("controller-2", RUNS).await?,
        );
        if later.0 >= runs.0 + 5.0 && later.1 >= runs.1 + 5.0 {
            break;
        }
        ensure!(turn < 200, "one of the leaders does nothing");
    }
    let after = namespace.image_warms().await?;
    for (before, after) in settled.iter().zip(&after) {
        ensure!(before.metadata.resource_version == after.metadata.resource_version, "{after:?}");
    }
    let image_after = knative.get("same").await?;
    ensure!(
        image_before.metadata.resource_version == image_after.metadata.resource_version,
        "{image_after:?}"
    );
    let audited = world.audit.of_controllers_in(&namespace.name)?;
    let of_image = |one: &&AuditedRequest| one.resource == "images/status";
    let writes = audited.iter().filter(of_image).count();
    ensure!((1..=40).contains(&writes), "{writes} writes of the status of the Image");
    for warm in &after {
        let of_it = |one: &&AuditedRequest| {
            one.resource == "imagewarms/status"
                && Some(&one.name) == warm.metadata.name.as_ref()
                && one.status == 200
        };
        let writes = audited.iter().filter(of_it).count();
        // Waiting, queued, pulling with its progress, pulled; then once more for the second object.
        ensure!(writes <= 14, "{writes} writes of the status of {:?}", warm.metadata.name);
    }
    let deleted = audited.iter().any(|one| one.verb == "delete");
    ensure!(!deleted, "a leader deleted what the other had made");
    Ok(())
}

async fn a_steady_cluster_writes_leases_only(world: &World) -> Result<()> {
    let namespace = world.namespace("steady").await?;
    let app = world.registries.push("steady", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    for (name, image) in [("same", app.by_digest()), ("nothing", String::new())] {
        namespace.image(name, json!({"image": image}), None).await?;
    }
    namespace.all_ready(3).await?;
    world.leader_has_caught_up().await?;
    // What has been made comes to rest: nothing was written for five seconds.
    let mut quiet = (0, Instant::now());
    let began = Instant::now();
    while quiet.1.elapsed() < Duration::from_secs(5) {
        let busy = busy_requests(&world.audit.of_controllers()?, &namespace).len();
        if busy != quiet.0 {
            quiet = (busy, Instant::now());
        }
        ensure!(began.elapsed() < DEADLINE, "it does not come to rest");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let before = world.audit.of_controllers()?.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let requests = world.audit.of_controllers()?.split_off(before);
    let busy = busy_requests(&requests, &namespace);
    ensure!(busy.is_empty(), "not quiet: {busy:?}");
    ensure!(requests.iter().any(|one| one.resource == "leases"), "the audit log shows no Lease");
    Ok(())
}

/// Lists, and writes of anything but the Lease: of this namespace, of our own one, and of the whole
/// cluster. What other tests have left in theirs may fail and be tried again.
fn busy_requests<'a>(
    requests: &'a [AuditedRequest],
    namespace: &Namespace,
) -> Vec<&'a AuditedRequest> {
    let busy = |one: &&AuditedRequest| {
        let counts = ["", NAMESPACE, &namespace.name].contains(&one.namespace.as_str());
        counts && !matches!(one.verb.as_str(), "get" | "watch") && one.resource != "leases"
    };
    requests.iter().filter(busy).collect()
}

async fn a_leader_that_is_terminated_hands_over_at_once(world: &World) -> Result<()> {
    let first = world.controllers.leader().await?;
    world.controllers.until_serving(&first).await?;
    let next = if first == "controller-1" { "controller-2" } else { "controller-1" };
    let stopped = world.controllers.terminate(&first)?;
    let began = Instant::now();
    within(Duration::from_secs(8), "the other replica holds the Lease and leads", async || {
        let leads = world.controllers.metric_of(next, "imagewarm_leading").await? == 1.0;
        Ok(leads && world.controllers.leader().await? == next)
    })
    .await?;
    let led = began.elapsed();
    within(Duration::from_secs(20), "all warmers are back", async || {
        let metric = "imagewarm_dispatch_nodes_connected";
        Ok(world.controllers.metric_of(next, metric).await? >= world.warmers.count() as f64)
    })
    .await?;
    println!("next leader after {led:?}, all streams after {:?}", began.elapsed());
    let namespace = world.namespace("handover").await?;
    let app = world.registries.push("handover", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let ended = stopped.terminate(DEADLINE).await?;
    ensure!(ended.success(), "{first} ended with {ended}");
    Ok(())
}

async fn within(
    deadline: Duration,
    what: &str,
    probe: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while !probe().await? {
        ensure!(began.elapsed() < deadline, "not so within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Once so quickly that its ImageWarms are still there, and once after they were deleted.
async fn a_node_that_is_made_anew_is_checked_anew(world: &World) -> Result<()> {
    let namespace = world.namespace("anew").await?;
    let app = world.registries.push("anew", "v1").await?;
    let node = world.nodes.join("anew").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(4).await?;
    for image_warms_are_deleted in [false, true] {
        world.warmers.stop(&node).await?;
        world.nodes.delete_objects(std::slice::from_ref(&node)).await?;
        // The new machine holds nothing.
        world.nodes.remove_image(&node, &app.tag).await?;
        if image_warms_are_deleted {
            eventually("the ImageWarms of the deleted node go", async || {
                Ok((namespace.image_warms().await?.len() == 3).then_some(()))
            })
            .await?;
        }
        world.nodes.register(&node).await?;
        world.warmers.start(&node).await?;
        eventually("the new node holds the image", async || {
            Ok(world.nodes.digest(&node, &app.tag).await?.map(drop))
        })
        .await?;
        let warms = namespace.all_ready(4).await?;
        let stuck = |warm: &ImageWarm| {
            warm.metadata.deletion_timestamp.is_some() || warm.metadata.finalizers.is_some()
        };
        ensure!(!warms.iter().any(stuck), "{warms:?}");
    }
    world.nodes.remove(&node).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn a_namespace_that_refuses_is_not_asked_again_and_again(world: &World) -> Result<()> {
    world.controllers.stop().await?;
    let nodes = world.nodes.create_fake("refused", NODES).await?;
    let proxy = world.cluster().api_proxy().await?;
    world.controllers.start_through(&proxy, "controller-1", &[]).await?;
    world.controllers.until_ready().await?;
    let (refused, open) = (world.namespace("refused").await?, world.namespace("open").await?);
    let refuse = Rule::new(&[Verb::Create], "imagewarms", Answer::Status(403));
    proxy.set_rules(vec![refuse.in_namespace(&refused.name)]);
    refused.revision("hello-00001", fake_images(&refused.name, "refused")).await?;
    open.revision("hello-00001", fake_images(&open.name, "refused")).await?;
    is_complete(&open, &nodes).await?;
    let attempts = || creations(&proxy, &refused.name);
    eventually("the leader has tried too", async || {
        let failed =
            world.controllers.metric_of("controller-1", "imagewarm_failed_writes_total").await?;
        Ok((failed > 0.0).then_some(()))
    })
    .await?;
    let tried = attempts();
    runs_pass(world, 10.0).await?;
    // No more than were under way at the same time, of the fan-out and of the leader.
    ensure!(tried <= 16 + 16, "{tried} attempts");
    ensure!(attempts() == tried, "{tried} attempts have become {}", attempts());
    ensure!(refused.image_warms().await?.is_empty(), "the rule does not work");
    // The others are served as ever.
    let later = world.namespace("open").await?;
    later.revision("hello-00001", fake_images(&later.name, "refused")).await?;
    is_complete(&later, &nodes).await?;
    for namespace in [refused, open, later] {
        namespace.delete_configuration("hello").await?;
    }
    Ok(())
}

/// Waits until the leader has reconciled everything so often, for reasons that have nothing to do
/// with the test.
async fn runs_pass(world: &World, count: f64) -> Result<()> {
    let before = world.controllers.metric_sum(RUNS, "").await?;
    let began = Instant::now();
    for turn in 0.. {
        if world.controllers.metric_sum(RUNS, "").await? >= before + count {
            break;
        }
        world.nodes.label("node-1", "turn", &turn.to_string()).await?;
        tokio::time::sleep(Duration::from_millis(250)).await;
        ensure!(began.elapsed() < DEADLINE, "the leader does nothing");
    }
    Ok(())
}

fn creations(proxy: &ApiProxy, namespace: &str) -> usize {
    let calls = proxy.calls();
    let of_it = |call: &&Call| {
        call.verb == Verb::Create && call.resource == "imagewarms" && call.namespace == namespace
    };
    calls.iter().filter(of_it).count()
}

async fn a_namespace_that_is_being_deleted_is_left_alone(world: &World) -> Result<()> {
    world.controllers.stop().await?;
    let nodes = world.nodes.create_fake("terminating", NODES).await?;
    let proxy = world.cluster().api_proxy().await?;
    world.controllers.start_through(&proxy, "controller-1", &[]).await?;
    world.controllers.until_ready().await?;
    let namespace = world.namespace("terminating").await?;
    let revision = namespace.revision("hello-00001", fake_images(&namespace.name, "terminating"));
    revision.await?;
    is_complete(&namespace, &nodes).await?;
    // Kept by somebody's finalizer: the Revision is still listed while its namespace goes.
    namespace.hold_revision("hello-00001").await?;
    namespace.delete().await?;
    namespace.until_empty("the ImageWarms go with the namespace").await?;
    let before = creations(&proxy, &namespace.name);
    runs_pass(world, 10.0).await?;
    let attempts = creations(&proxy, &namespace.name) - before;
    namespace.release_revision("hello-00001").await?;
    ensure!(attempts == 0, "{attempts} attempts in a namespace that goes");
    ensure!(before <= 2 * IMAGES * NODES, "{before} attempts in all");
    eventually("the namespace goes", async || Ok((!namespace.exists().await?).then_some(()))).await
}
