//! Whatever is killed, doubled, cut off or answered wrongly: in the end every ImageWarm is there
//! once, and none was deleted by mistake.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, KnativeImage, Reason};
use kube::Api;
use serde_json::{Value, json};
use xtask::cluster::ApiProxy;
use xtask::cluster::api_proxy::{Answer, Call, Rule, Verb};

use crate::world::{Audited, World, containers};

crate::tests![
    every_crash_point_of_a_fan_out_converges,
    two_leaders_do_no_harm,
    a_steady_cluster_writes_leases_only,
    a_leader_that_is_told_to_stop_hands_over_at_once,
    a_node_that_is_made_anew_is_checked_anew,
    a_namespace_that_refuses_is_not_asked_again_and_again,
    a_namespace_that_is_being_deleted_is_left_alone,
];

/// Counts the leader's looks at everything.
const RUNS: &str = "imagewarm_reconcile_duration_seconds_count";
const DEADLINE: Duration = Duration::from_secs(60);

/// Images × nodes of each Revision whose fan-out is cut short.
const IMAGES: usize = 3;
const NODES: usize = 8;

/// Odd crash points lie in the fan-out at admission, even ones in the next leader's repair of it.
async fn every_crash_point_of_a_fan_out_converges(world: &World) -> Result<()> {
    world.stop_controllers().await?;
    let nodes = world.fake_nodes("crash", NODES).await?;
    let checked = crash_points(world, &nodes).await;
    world.kill_controllers().await?;
    world.delete_nodes(&nodes).await?;
    world.start_controllers().await?;
    checked
}

async fn crash_points(world: &World, nodes: &[String]) -> Result<()> {
    let proxy = world.api_proxy().await?;
    start_behind(world, &proxy).await?;
    for point in (1..=20).step_by(2) {
        let namespace = world.namespace("crash").await?;
        proxy.cut_off_after(point, Verb::Create, "imagewarms");
        world.revision(&namespace, "hello-00001", fake_images(&namespace, "crash")).await?;
        crash(world, &proxy).await.with_context(|| format!("fan-out, write {point}"))?;
        ensure!(world.warms(&namespace).await?.len() == point, "crash point {point} was missed");

        let repaired = (point + 1).min(IMAGES * NODES - point);
        proxy.end_cut_off();
        proxy.cut_off_after(repaired, Verb::Create, "imagewarms");
        world.start_controller_through(&proxy, "controller-1", &["--repair-delay", "1s"]).await?;
        crash(world, &proxy).await.with_context(|| format!("repair, write {repaired}"))?;
        let made = world.warms(&namespace).await?.len();
        ensure!(made == point + repaired, "{made} ImageWarms after {point} and {repaired} writes");

        proxy.end_cut_off();
        start_behind(world, &proxy).await?;
        is_complete(world, &namespace, nodes).await?;
    }
    Ok(())
}

async fn start_behind(world: &World, proxy: &ApiProxy) -> Result<()> {
    world.start_controller_through(proxy, "controller-1", &["--repair-delay", "1s"]).await?;
    world.controllers_are_ready().await
}

/// Waits for the cut-off and kills what is cut off.
async fn crash(world: &World, proxy: &ApiProxy) -> Result<()> {
    proxy.is_cut_off(DEADLINE).await?;
    world.kill_controllers().await
}

/// Images that nobody pulls, since the nodes of the pool have no warmers.
fn fake_images(name: &str, pool: &str) -> Value {
    let images: Vec<_> =
        (1..=IMAGES).map(|n| format!("registry.example/{name}/app-{n}:v1")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut spec = containers(&images);
    spec["nodeSelector"] = json!({"pool": pool});
    spec
}

/// Waits until there is exactly one ImageWarm for each of the images on each of the nodes.
async fn is_complete(world: &World, namespace: &str, nodes: &[String]) -> Result<()> {
    world
        .eventually("one ImageWarm for each image and node", async || {
            let warms = world.warms(namespace).await?;
            let pairs: BTreeSet<_> =
                warms.iter().map(|w| (&w.spec.image, &w.spec.node_name)).collect();
            ensure!(pairs.len() == warms.len(), "some are there twice: {pairs:?}");
            ensure!(warms.len() <= IMAGES * nodes.len(), "{} ImageWarms", warms.len());
            Ok((warms.len() == IMAGES * nodes.len()).then_some(()))
        })
        .await
}

/// Two controllers that both lead, as after a clock jump; all warmers speak to the first.
async fn two_leaders_do_no_harm(world: &World) -> Result<()> {
    world.stop_controllers().await?;
    let proxy = world.api_proxy().await?;
    let checked = async {
        world.start_controller_through(&proxy, "controller-1", &[]).await?;
        world.controllers_are_ready().await?;
        world.is_served_by("controller-1").await?;
        let other = ["--lease-name", "imagewarm-other"];
        world.start_controller_through(&proxy, "controller-2", &other).await?;
        world.controllers_are_ready().await?;
        world
            .eventually("both lead", async || {
                let leading = world.metric_sum("imagewarm_leading", "").await?;
                Ok((leading == 2.0).then_some(()))
            })
            .await?;
        two_leaders(world).await
    }
    .await;
    world.kill_controllers().await?;
    world.start_controllers().await?;
    checked
}

async fn two_leaders(world: &World) -> Result<()> {
    let namespace = world.namespace("two").await?;
    let mut pushed = vec![];
    for tag in ["v1", "v2", "v3"] {
        pushed.push(world.push("two", tag).await?);
    }
    let images: Vec<&str> = pushed.iter().map(|image| image.tag.as_str()).collect();
    let knative: Api<KnativeImage> = Api::namespaced(world.client(), &namespace);
    knative.create(&Default::default(), &knative_image("same", images[0])?).await?;
    // The pulls take a while, so that there is a state for the second leader to be wrong about.
    world.freeze_registry(true);
    let made = world.revision(&namespace, "hello-00001", containers(&images)).await;
    let told = world
        .eventually("the second leader misses the warmers", async || {
            let warms = world.warms(&namespace).await?;
            let wrong = |warm: &ImageWarm| warm.reason() == Some(Reason::WaitingForWarmer);
            Ok((warms.len() == 9 && warms.iter().any(wrong)).then_some(()))
        })
        .await;
    world.freeze_registry(false);
    made?;
    told?;
    world.all_ready(&namespace, 9).await?;
    // Both repair what is deleted, and neither makes it twice.
    for victim in world.warms(&namespace).await? {
        world.delete_image_warm(&victim).await?;
    }
    let settled = world.all_ready(&namespace, 9).await?;
    let image_before = world
        .eventually("the Image is Ready", async || {
            let image = knative.get("same").await?;
            let ready = serde_json::to_value(&image)?["status"]["conditions"].to_string();
            Ok(ready.contains(r#""status":"True""#).then_some(image))
        })
        .await?;
    let runs = (
        world.metric_of("controller-1", RUNS).await?,
        world.metric_of("controller-2", RUNS).await?,
    );
    for turn in 0.. {
        world.label_node("node-1", "turn", Some(&turn.to_string())).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let later = (
            world.metric_of("controller-1", RUNS).await?,
            world.metric_of("controller-2", RUNS).await?,
        );
        if later.0 >= runs.0 + 5.0 && later.1 >= runs.1 + 5.0 {
            break;
        }
        ensure!(turn < 200, "one of the leaders does nothing");
    }
    let after = world.warms(&namespace).await?;
    for (before, after) in settled.iter().zip(&after) {
        ensure!(before.metadata.resource_version == after.metadata.resource_version, "{after:?}");
    }
    let image_after = knative.get("same").await?;
    ensure!(
        image_before.metadata.resource_version == image_after.metadata.resource_version,
        "{image_after:?}"
    );
    let audited = world.audited()?;
    let of_image = |one: &&Audited| one.resource == "images/status" && one.namespace == namespace;
    let writes = audited.iter().filter(of_image).count();
    ensure!((1..=40).contains(&writes), "{writes} writes of the status of the Image");
    for warm in &after {
        let of_it = |one: &&Audited| {
            one.resource == "imagewarms/status"
                && one.namespace == namespace
                && Some(&one.name) == warm.metadata.name.as_ref()
                && one.status == 200
        };
        let writes = audited.iter().filter(of_it).count();
        // Waiting, queued, pulling with its progress, pulled; then once more for the second object.
        ensure!(writes <= 14, "{writes} writes of the status of {:?}", warm.metadata.name);
    }
    let deleted = audited.iter().any(|one| one.verb == "delete" && one.namespace == namespace);
    ensure!(!deleted, "a leader deleted what the other had made");
    Ok(())
}

async fn a_steady_cluster_writes_leases_only(world: &World) -> Result<()> {
    let namespace = world.namespace("steady").await?;
    let app = world.push("steady", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let images: Api<KnativeImage> = Api::namespaced(world.client(), &namespace);
    for (name, image) in [("same", app.by_digest()), ("nothing", String::new())] {
        images.create(&Default::default(), &knative_image(name, &image)?).await?;
    }
    world.all_ready(&namespace, 3).await?;
    world.leader_has_caught_up().await?;
    // What earlier tests left behind comes to rest: nothing was written for five seconds.
    let mut quiet = (0, Instant::now());
    let began = Instant::now();
    while quiet.1.elapsed() < Duration::from_secs(5) {
        let busy = busy_calls(&world.audited()?).len();
        if busy != quiet.0 {
            quiet = (busy, Instant::now());
        }
        ensure!(began.elapsed() < DEADLINE, "it does not come to rest");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let before = world.audited()?.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let calls = world.audited()?.split_off(before);
    let busy = busy_calls(&calls);
    ensure!(busy.is_empty(), "not quiet: {busy:?}");
    ensure!(calls.iter().any(|one| one.resource == "leases"), "the audit log shows no Lease");
    Ok(())
}

fn knative_image(name: &str, image: &str) -> Result<KnativeImage> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": name}, "spec": {"image": image},
    }))?)
}

/// Lists, and writes of anything but the Lease.
fn busy_calls(calls: &[Audited]) -> Vec<&Audited> {
    let busy =
        |one: &&Audited| !matches!(one.verb.as_str(), "get" | "watch") && one.resource != "leases";
    calls.iter().filter(busy).collect()
}

async fn a_leader_that_is_told_to_stop_hands_over_at_once(world: &World) -> Result<()> {
    let first = world.leader().await?;
    world.is_served_by(&first).await?;
    let next = if first == "controller-1" { "controller-2" } else { "controller-1" };
    let stopped = world.terminate_controller(&first)?;
    let began = Instant::now();
    let checked = async {
        within(Duration::from_secs(8), "the other replica holds the Lease and leads", async || {
            let leads = world.metric_of(next, "imagewarm_leading").await? == 1.0;
            Ok(leads && world.leader().await? == next)
        })
        .await?;
        let led = began.elapsed();
        within(Duration::from_secs(20), "all warmers are back", async || {
            let metric = "imagewarm_dispatch_nodes_connected";
            Ok(world.metric_of(next, metric).await? >= world.nodes().len() as f64)
        })
        .await?;
        println!("next leader after {led:?}, all streams after {:?}", began.elapsed());
        let namespace = world.namespace("handover").await?;
        let app = world.push("handover", "v1").await?;
        world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
        world.all_ready(&namespace, 3).await?;
        let ended = stopped.terminate(DEADLINE).await?;
        ensure!(ended.success(), "{first} ended with {ended}");
        Ok(())
    }
    .await;
    world.restart_controller(&first).await?;
    checked
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

/// Once so quickly that its orders are still there, and once after they were collected.
async fn a_node_that_is_made_anew_is_checked_anew(world: &World) -> Result<()> {
    let namespace = world.namespace("anew").await?;
    let app = world.push("anew", "v1").await?;
    let node = world.join_node("anew").await?;
    let checked = async {
        world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
        world.all_ready(&namespace, 4).await?;
        for orders_are_collected in [false, true] {
            world.stop_warmer(&node).await?;
            world.delete_nodes(std::slice::from_ref(&node)).await?;
            // The new machine holds nothing.
            world.remove_image(&node, &app.tag).await?;
            if orders_are_collected {
                world
                    .eventually("the gone node's orders go", async || {
                        Ok((world.warms(&namespace).await?.len() == 3).then_some(()))
                    })
                    .await?;
            }
            world.make_node(&node, "anew").await?;
            world.start_warmer(&node).await?;
            world
                .eventually("the new node holds the image", async || {
                    Ok(world.node_digest(&node, &app.tag).await?.map(drop))
                })
                .await?;
            let warms = world.all_ready(&namespace, 4).await?;
            let stuck = |warm: &ImageWarm| {
                warm.metadata.deletion_timestamp.is_some() || warm.metadata.finalizers.is_some()
            };
            ensure!(!warms.iter().any(stuck), "{warms:?}");
        }
        Ok(())
    }
    .await;
    world.remove_node(&node).await?;
    checked?;
    world.all_ready(&namespace, 3).await?;
    Ok(())
}

async fn a_namespace_that_refuses_is_not_asked_again_and_again(world: &World) -> Result<()> {
    world.stop_controllers().await?;
    let nodes = world.fake_nodes("refused", NODES).await?;
    let checked = async {
        let proxy = world.api_proxy().await?;
        world.start_controller_through(&proxy, "controller-1", &[]).await?;
        world.controllers_are_ready().await?;
        let (refused, open) = (world.namespace("refused").await?, world.namespace("open").await?);
        let refuse = Rule::new(&[Verb::Create], "imagewarms", Answer::Status(403));
        proxy.set_rules(vec![refuse.in_namespace(&refused)]);
        world.revision(&refused, "hello-00001", fake_images(&refused, "refused")).await?;
        world.revision(&open, "hello-00001", fake_images(&open, "refused")).await?;
        is_complete(world, &open, &nodes).await?;
        let attempts = || creations(&proxy, &refused);
        world
            .eventually("the leader has tried too", async || {
                let failed =
                    world.metric_of("controller-1", "imagewarm_failed_writes_total").await?;
                Ok((failed > 0.0).then_some(()))
            })
            .await?;
        let tried = attempts();
        runs_pass(world, 10.0).await?;
        // No more than were under way at the same time, of the fan-out and of the leader.
        ensure!(tried <= 16 + 16, "{tried} attempts");
        ensure!(attempts() == tried, "{tried} attempts have become {}", attempts());
        ensure!(world.warms(&refused).await?.is_empty(), "the rule does not work");
        // The others are served as ever.
        let later = world.namespace("open").await?;
        world.revision(&later, "hello-00001", fake_images(&later, "refused")).await?;
        is_complete(world, &later, &nodes).await?;
        for namespace in [refused, open, later] {
            world.delete_configuration(&namespace, "hello").await?;
        }
        Ok(())
    }
    .await;
    world.kill_controllers().await?;
    world.delete_nodes(&nodes).await?;
    world.start_controllers().await?;
    checked
}

/// Waits until the leader has looked at everything so often, for reasons that have nothing to do
/// with the test.
async fn runs_pass(world: &World, count: f64) -> Result<()> {
    let before = world.metric_sum(RUNS, "").await?;
    let began = Instant::now();
    for turn in 0.. {
        if world.metric_sum(RUNS, "").await? >= before + count {
            break;
        }
        world.label_node("node-1", "turn", Some(&turn.to_string())).await?;
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
    world.stop_controllers().await?;
    let nodes = world.fake_nodes("going", NODES).await?;
    let checked = async {
        let proxy = world.api_proxy().await?;
        world.start_controller_through(&proxy, "controller-1", &[]).await?;
        world.controllers_are_ready().await?;
        let namespace = world.namespace("going").await?;
        let revision = world.revision(&namespace, "hello-00001", fake_images(&namespace, "going"));
        revision.await?;
        is_complete(world, &namespace, &nodes).await?;
        // Kept by somebody's finalizer: the Revision is still listed while its namespace goes.
        world.hold_revision(&namespace, "hello-00001", true).await?;
        world.delete_namespace(&namespace).await?;
        world
            .eventually("the ImageWarms go with the namespace", async || {
                Ok(world.warms(&namespace).await?.is_empty().then_some(()))
            })
            .await?;
        let before = creations(&proxy, &namespace);
        runs_pass(world, 10.0).await?;
        let attempts = creations(&proxy, &namespace) - before;
        world.hold_revision(&namespace, "hello-00001", false).await?;
        ensure!(attempts == 0, "{attempts} attempts in a namespace that goes");
        ensure!(before <= 2 * IMAGES * NODES, "{before} attempts in all");
        world
            .eventually("the namespace goes", async || {
                Ok((!world.namespace_exists(&namespace).await?).then_some(()))
            })
            .await
    }
    .await;
    world.kill_controllers().await?;
    world.delete_nodes(&nodes).await?;
    world.start_controllers().await?;
    checked
}
