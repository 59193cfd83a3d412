//! As many ImageWarms as the limits allow that are set without a flag, in the memory limit that is
//! shipped: the leader is not killed, denies what goes beyond, and everything else goes on. None of them
//! shares anything with another, and each is as large as what the leader keeps of one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, KnativeImage, Reason};
use imagewarm_core::policy::Bounds;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, Resource as _};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Options};
use xtask::images::TestImage;
use xtask::memory_limit::MemoryLimit;
use xtask::wait::wait_for;

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");
/// A debug build reads a hundred thousand objects for a while.
const DEADLINE: Duration = Duration::from_secs(300);
const MODEST: &str = "modest";
/// How often somebody else deploys. Each time the leader plans anew, which takes memory, too; meanwhile its
/// garbage collection looks at everything several times.
const DEPLOYS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_limits_fit_into_the_shipped_memory_limit() -> Result<()> {
    let options = Options { nodes: 1, ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let client = cluster.client();
    let Bounds { image_warms: all, image_warms_per_namespace: each, .. } = Bounds::default();
    let greedy: Vec<String> = (1..=all / each).map(|number| format!("greedy-{number}")).collect();
    for namespace in greedy.iter().map(String::as_str).chain([MODEST]) {
        let body = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &body).await?;
    }
    // Whose owner does not exist is deleted by Kubernetes.
    let mut owners = vec![];
    for namespace in &greedy {
        owners.push(owner(&client, namespace).await?);
    }
    // Room for one more in all, and none in the first namespace.
    let objects = (0..all - 1).map(|number| {
        let at = number / each;
        stored(&greedy[at], &owners[at], number)
    });
    let began = Instant::now();
    cluster.store(objects).await?;
    println!("{} ImageWarms stored in {:.0} s", all - 1, began.elapsed().as_secs_f32());

    let began = Instant::now();
    // Within the test, it also comes to what waits for a warmer.
    let flags = ["--waiting-after", "2s"];
    let controller = cluster.start_controller(BINARY.as_ref(), "controller-1", &flags).await?;
    let limit = MemoryLimit::as_shipped(controller.pid())?;
    let health = controller.health().context("no health port")?;
    controller.wait_ready(health, "/readyz", DEADLINE).await?;
    println!("ready after {:.0} s with {} MiB", began.elapsed().as_secs_f32(), limit.peak()?);
    deploy_and_delete(&cluster).await?;
    let text = format!("no more than {each} ImageWarms (--max-image-warms-per-namespace)");
    is_denied(&client, &greedy[0], &text).await?;
    let last = warm("last", "app", "node-1");
    let modest: Api<ImageWarm> = Api::namespaced(client.clone(), MODEST);
    // The place of the one before is free once the controller has seen that it is gone.
    wait_for(DEADLINE, "the last ImageWarm to be admitted", async || {
        modest.create(&PostParams::default(), &last).await.ok()
    })
    .await?;
    let text = format!("no more than {all} ImageWarms (--max-image-warms)");
    is_denied(&client, MODEST, &text).await?;
    println!("{} MiB at most", limit.peak()?);
    ensure!(limit.kills()? == 0, "the controller was killed for want of memory");
    ensure!(controller.exit_status().is_none(), "it ended:\n{}", controller.log_tail());
    Ok(())
}

/// An Image with a long name that wants nothing to be warmed, as the reference of what it owns.
async fn owner(client: &Client, namespace: &str) -> Result<OwnerReference> {
    let image: KnativeImage = serde_json::from_value(json!({
        "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "o".repeat(253)},
        // Of a registry that is skipped.
        "spec": {"image": "dev.local/app:v1"},
    }))?;
    let images: Api<KnativeImage> = Api::namespaced(client.clone(), namespace);
    let image = images.create(&PostParams::default(), &image).await?;
    image.owner_ref(&()).context("an Image without uid")
}

/// An ImageWarm that is as large as what the leader keeps of one, as tenants may make them.
fn stored(namespace: &str, owner: &OwnerReference, number: usize) -> (String, Value) {
    let name = format!("by-hand-{number:06}{}", "-long".repeat(47));
    // Another one in each, of so many characters.
    let text = |part: usize, length: usize| {
        let start = format!("{number:06}-{part:02}");
        format!("{start}{}", "x".repeat(length - start.len()))
    };
    let object = json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {
            "name": name, "namespace": namespace, "generation": 1,
            "uid": format!("00000000-0000-0000-0000-{number:012x}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {
                "caching.knative.dev/created-for": text(0, 512),
                "caching.knative.dev/service-account": text(1, 512),
            },
            "ownerReferences": [owner],
        },
        "spec": {
            // As long as a path, a tag and a digest may be.
            "image": format!(
                "registry.example.com/{}:{}@sha256:{number:064x}", text(4, 255), text(5, 128),
            ),
            "nodeName": "no-such-node",
            "imagePullSecrets": (0..16).map(|secret| {
                json!({"name": text(10 + secret, 64)})
            }).collect::<Vec<_>>(),
        },
        "status": {
            "observedGeneration": 1,
            "conditions": [{
                "type": "Ready", "status": "False", "reason": "Unauthorized",
                "message": text(30, 1_024), "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "annotations": {"runtime": "containerd 2.2.3", "runtimeReports": "progress"},
            "attempts": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z",
            "took": "1.0s",
        },
    });
    (format!("caching.knative.dev/imagewarms/{namespace}/{name}"), object)
}

/// Deploys of somebody else, beside all that, each of which takes the one place that is left.
async fn deploy_and_delete(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(1)?;
    let warmer = cluster.start_warmer(BINARY.as_ref(), &node, &[]).await?;
    let health = warmer.health().context("no health port")?;
    warmer.wait_ready(health, "/readyz", DEADLINE).await?;
    let warms: Api<ImageWarm> = Api::namespaced(cluster.client(), MODEST);
    let mut slowest = Duration::ZERO;
    for number in 0..DEPLOYS {
        let name = format!("app-{number}");
        cluster.registry_plain.push(&TestImage::new(&[20_000]), &name, "v1").await?;
        let image = cluster.registry_plain.image(&name, "v1");
        let body = warm(&name, &image, &node.name);
        wait_for(DEADLINE, &format!("ImageWarm {name} to be admitted"), async || {
            warms.create(&PostParams::default(), &body).await.ok()
        })
        .await?;
        let began = Instant::now();
        wait_for(DEADLINE, &format!("ImageWarm {name} to be Ready"), async || {
            let warm = warms.get(&name).await.ok()?;
            (warm.reason() == Some(Reason::Pulled)).then_some(())
        })
        .await?;
        match number {
            // A debug build has not yet looked at everything.
            0 => {
                println!("the first deploy was Ready after {:.1} s", began.elapsed().as_secs_f32())
            }
            _ => slowest = slowest.max(began.elapsed()),
        }
        warms.delete(&name, &Default::default()).await?;
        wait_for(DEADLINE, &format!("ImageWarm {name} to be deleted"), async || {
            warms.get_opt(&name).await.ok()?.is_none().then_some(())
        })
        .await?;
    }
    println!("the other {} within {:.1} s", DEPLOYS - 1, slowest.as_secs_f32());
    Ok(())
}

async fn is_denied(client: &Client, namespace: &str, text: &str) -> Result<()> {
    let warms: Api<ImageWarm> = Api::namespaced(client.clone(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let warm = warm("beyond", "app", "node-1");
    wait_for(DEADLINE, &format!("a denial in {namespace} with {text:?}"), async || {
        let denied = warms.create(&dry_run, &warm).await.err()?;
        denied.to_string().contains(text).then_some(())
    })
    .await
}

fn warm(name: &str, image: &str, node: &str) -> ImageWarm {
    serde_json::from_value(json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"name": name}, "spec": {"image": image, "nodeName": node},
    }))
    .expect("it has every field")
}
