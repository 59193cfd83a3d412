//! Knative's Images: which cost an ImageWarm, what their status says, and that Knative can read it.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{KnativeImage, Reason};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::world::{World, containers, eventually};

crate::tests![
    an_image_by_digest_costs_nothing_where_the_tag_was_warmed,
    a_moved_tag_is_warmed_by_digest_for_its_image,
    an_image_without_a_revision_is_warmed_and_takes_its_image_warms_along,
    nothing_is_known_of_an_image_without_content,
    an_image_uses_its_own_pull_secrets,
    an_image_that_cannot_be_had_names_reason_and_nodes,
    a_node_without_a_warmer_is_named,
    a_revision_in_reserve_loses_its_image_warms_and_gets_them_back,
    an_image_keeps_what_its_revision_no_longer_wants,
    a_status_that_somebody_spoiled_is_put_right,
    one_image_is_written_at_most_once_a_second,
];

async fn an_image_by_digest_costs_nothing_where_the_tag_was_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("image").await?;
    let app = world.registries.push("image", "v1").await?;
    let revision = namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let name = "hello-00001-cache-container-0";
    namespace.image(name, json!({"image": app.by_digest()}), Some(&revision)).await?;
    let image = namespace.image_is(name, "True", "").await?;
    reads_as_knative_does(&image)?;
    let counts = &image["status"]["annotations"];
    ensure!(counts["caching.knative.dev/nodes"] == "3", "{counts}");
    ensure!(counts["caching.knative.dev/nodes-ready"] == "3", "{counts}");
    ensure!(counts["caching.knative.dev/nodes-failed"] == "0", "{counts}");
    let ready = &image["status"]["conditions"][0];
    ensure!(ready.get("reason").is_none() && ready.get("message").is_none(), "{ready}");
    let warms = namespace.all_ready(3).await?;
    ensure!(warms.iter().all(|warm| warm.spec.image == app.tag), "{warms:?}");
    Ok(())
}

async fn a_moved_tag_is_warmed_by_digest_for_its_image(world: &World) -> Result<()> {
    let namespace = world.namespace("image-moved").await?;
    let old = world.registries.push("image-moved", "latest").await?;
    let revision = namespace.revision("hello-00001", containers(&[&old.tag])).await?;
    namespace.all_ready(3).await?;
    // Knative asked the registry a little later, and found other content under the tag.
    let new = world.registries.push("image-moved", "latest").await?;
    namespace.image("any-name", json!({"image": new.by_digest()}), Some(&revision)).await?;
    namespace.image_is("any-name", "True", "").await?;
    namespace.all_ready(6).await?;
    for node in world.nodes.names() {
        let held = world.nodes.digest(node, &new.by_digest()).await?;
        ensure!(held == Some(new.digest.clone()), "{node} holds {held:?}");
    }
    Ok(())
}

async fn an_image_without_a_revision_is_warmed_and_takes_its_image_warms_along(
    world: &World,
) -> Result<()> {
    let namespace = world.namespace("image-own").await?;
    let queue = world.registries.push("queue", "v1").await?;
    let image = namespace.image("queue-proxy", json!({"image": queue.tag}), None).await?;
    let first = namespace.image_is("queue-proxy", "True", "").await?;
    let warms = namespace.all_ready(3).await?;
    for warm in &warms {
        let owner = warm.metadata.owner_references.clone().unwrap_or_default();
        ensure!(owner.len() == 1 && Some(&owner[0].uid) == image.metadata.uid.as_ref(), "{warm:?}");
    }
    // An upgrade of Knative changes the Image in place.
    let next = world.registries.push("queue", "v2").await?;
    let images = namespace.api::<KnativeImage>();
    let body = json!({"spec": {"image": next.tag}});
    images.patch("queue-proxy", &PatchParams::default(), &Patch::Merge(body)).await?;
    let image_now = eventually(
        "the status is of the new generation, and the old ImageWarms are deleted",
        async || {
            let warms = namespace.image_warms().await?;
            let image = images.get("queue-proxy").await?;
            let status = image.status.clone().unwrap_or_default();
            let current = status.observed_generation == image.metadata.generation;
            let ready = status.conditions.iter().any(|one| one.message.is_empty());
            let only_new = warms.len() == 3 && warms.iter().all(|one| one.spec.image == next.tag);
            Ok((current && ready && only_new).then_some(image))
        },
    )
    .await?;
    ensure!(image_now.metadata.generation > image.metadata.generation, "{first}");
    images.delete("queue-proxy", &Default::default()).await?;
    namespace.until_empty("the ImageWarms go with their Image").await
}

async fn nothing_is_known_of_an_image_without_content(world: &World) -> Result<()> {
    let namespace = world.namespace("image-empty").await?;
    namespace.image("skipped", json!({"image": ""}), None).await?;
    let image = namespace.image_is("skipped", "Unknown", "spec.image is empty").await?;
    reads_as_knative_does(&image)?;
    world.leader_has_caught_up().await?;
    ensure!(namespace.image_warms().await?.is_empty(), "something was warmed");
    Ok(())
}

async fn an_image_uses_its_own_pull_secrets(world: &World) -> Result<()> {
    let namespace = world.namespace("image-private").await?;
    let app = world.registries.push_private("image-private", "v1").await?;
    namespace.pull_secret("regcred", None).await?;
    let spec = json!({"image": app.tag, "imagePullSecrets": [{"name": "regcred"}]});
    namespace.image("private", spec, None).await?;
    namespace.image_is("private", "True", "").await?;
    namespace.service_account("runner", &["regcred"]).await?;
    let other = world.registries.push_private("image-private-account", "v1").await?;
    let spec = json!({"image": other.tag, "serviceAccountName": "runner"});
    namespace.image("by-account", spec, None).await?;
    namespace.image_is("by-account", "True", "").await?;
    Ok(())
}

async fn an_image_that_cannot_be_had_names_reason_and_nodes(world: &World) -> Result<()> {
    let namespace = world.namespace("image-missing").await?;
    let missing = format!("{}/no-such-image:v1", world.registries.open().address);
    namespace.image("missing", json!({"image": missing}), None).await?;
    let image = namespace.image_is("missing", "False", "0 of 3 nodes").await?;
    reads_as_knative_does(&image)?;
    let ready = &image["status"]["conditions"][0];
    ensure!(ready["reason"] == Reason::NotFound.as_str(), "{ready}");
    let message = ready["message"].as_str().unwrap_or_default();
    ensure!(world.nodes.names().iter().any(|node| message.contains(*node)), "{message}");
    Ok(())
}

async fn a_node_without_a_warmer_is_named(world: &World) -> Result<()> {
    let namespace = world.namespace("image-waiting").await?;
    let app = world.registries.push("image-waiting", "v1").await?;
    let before = world.registries.push("image-waiting", "v0").await?;
    namespace.image("before", json!({"image": before.tag}), None).await?;
    namespace.image_is("before", "True", "").await?;
    let node = world.nodes.names()[0];
    world.warmers.stop(node).await?;
    namespace.image("waiting", json!({"image": app.tag}), None).await?;
    let words = format!("2 of 3 nodes hold the image; no warmer is connected on {node}");
    let image = namespace.image_is("waiting", "Unknown", &words).await?;
    reads_as_knative_does(&image)?;
    // What the node was known to hold, it is still known to hold.
    namespace.image_is("before", "True", "").await?;
    world.warmers.start(node).await?;
    namespace.image_is("waiting", "True", "").await.map(drop)
}

async fn a_revision_in_reserve_loses_its_image_warms_and_gets_them_back(
    world: &World,
) -> Result<()> {
    let namespace = world.namespace("reserve").await?;
    let app = world.registries.push("reserve", "v1").await?;
    let revision = namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.image("one", json!({"image": app.by_digest()}), Some(&revision)).await?;
    namespace.image_is("one", "True", "").await?;
    namespace.route("hello-00001", "reserve").await?;
    namespace.image_is("one", "Unknown", "gets no traffic").await?;
    namespace.until_empty("the ImageWarms are deleted").await?;
    namespace.route("hello-00001", "active").await?;
    namespace.image_is("one", "True", "").await?;
    for warm in namespace.all_ready(3).await? {
        ensure!(warm.reason() == Some(Reason::AlreadyPresent), "pulled again: {warm:?}");
    }
    Ok(())
}

async fn an_image_keeps_what_its_revision_no_longer_wants(world: &World) -> Result<()> {
    let namespace = world.namespace("image-keeps").await?;
    let app = world.registries.push("image-keeps", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.image("by-hand", json!({"image": app.tag}), None).await?;
    namespace.image_is("by-hand", "True", "").await?;
    let before = namespace.all_ready(3).await?;
    ensure!(
        before.iter().all(|warm| warm.owner_references().iter().all(|o| o.kind == "Configuration")),
        "{before:?}"
    );
    // Kubernetes deletes the ImageWarms with their owner; the leader makes them again for the Image.
    namespace.delete_configuration("hello").await?;
    let warms = eventually("the ImageWarms are made again for the Image", async || {
        let warms = namespace.image_warms().await?;
        let of_image = warms.iter().filter(|warm| {
            warm.owner_references().iter().any(|owner| owner.kind == "Image")
                && warm.reason() == Some(Reason::AlreadyPresent)
        });
        Ok((of_image.count() == 3).then_some(warms))
    })
    .await?;
    ensure!(warms.len() == 3, "{warms:?}");
    Ok(())
}

async fn a_status_that_somebody_spoiled_is_put_right(world: &World) -> Result<()> {
    let namespace = world.namespace("image-spoiled").await?;
    let app = world.registries.push("image-spoiled", "v1").await?;
    namespace.image("spoiled", json!({"image": app.tag}), None).await?;
    namespace.image_is("spoiled", "True", "").await?;
    let body = json!({"status": {"conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-23T02:30:00Z"},
    ]}});
    let images = namespace.api::<KnativeImage>();
    images.patch_status("spoiled", &PatchParams::default(), &Patch::Merge(body)).await?;
    let image = namespace.image_is("spoiled", "True", "").await?;
    reads_as_knative_does(&image)
}

async fn one_image_is_written_at_most_once_a_second(world: &World) -> Result<()> {
    let namespace = world.namespace("image-rate").await?;
    // Many short steps: every pull of every node changes the status.
    let mut images = Vec::new();
    for at in 0..6 {
        let name = format!("image-rate-{at}");
        let pushed = world.registries.push(&name, "v1").await?;
        namespace.image(&name, json!({"image": pushed.tag}), None).await?;
        images.push(name);
    }
    for name in &images {
        namespace.image_is(name, "True", "").await?;
    }
    let mut writes: std::collections::BTreeMap<String, Vec<Timestamp>> = Default::default();
    for event in world.audit.events()? {
        let of = &event["objectRef"];
        if of["resource"] == "images"
            && of["subresource"] == "status"
            && of["namespace"] == namespace.name.as_str()
            && event["verb"] == "patch"
        {
            let name = of["name"].as_str().context("an audit event names its object")?;
            let at = event["requestReceivedTimestamp"].as_str().context("a time")?;
            writes.entry(name.to_owned()).or_default().push(at.parse()?);
        }
    }
    ensure!(writes.len() == images.len(), "the audit log lacks writes: {writes:?}");
    for (name, mut times) in writes {
        times.sort();
        for pair in times.windows(2) {
            let between = pair[1].duration_since(pair[0]);
            // The second one left a second after the first was answered.
            ensure!(between.as_millis() >= 950, "{name} was written again after {between:?}");
        }
        ensure!(times.len() <= 5, "{name}: {} writes for three nodes", times.len());
    }
    Ok(())
}

/// Knative's informers decode Images strictly enough that one bad time stops them cluster-wide:
/// every field of the status must be one that duck/v1 has, of its type, and every time RFC 3339.
fn reads_as_knative_does(image: &Value) -> Result<()> {
    let status = image["status"].as_object().context("no status")?;
    for (key, value) in status {
        let right = match key.as_str() {
            "observedGeneration" => value == &image["metadata"]["generation"],
            "annotations" => {
                value.as_object().is_some_and(|all| all.values().all(Value::is_string))
            }
            "conditions" => value.is_array(),
            _ => false,
        };
        ensure!(right, "status.{key} is not duck/v1: {value}");
    }
    let conditions = status["conditions"].as_array().context("no conditions")?;
    for condition in conditions {
        for (key, value) in condition.as_object().context("a condition is an object")? {
            let text = value.as_str().with_context(|| format!("{key} is no string: {value}"))?;
            let right = match key.as_str() {
                "type" | "reason" | "message" => !text.is_empty(),
                "status" => ["True", "False", "Unknown"].contains(&text),
                "severity" => ["", "Warning", "Info"].contains(&text),
                "lastTransitionTime" => is_strict_rfc3339(text),
                _ => false,
            };
            ensure!(right, "{key}: {text:?} is not duck/v1: {condition}");
        }
        ensure!(condition.get("lastTransitionTime").is_some(), "no time: {condition}");
    }
    let types: Vec<_> = conditions.iter().map(|one| one["type"].as_str()).collect();
    ensure!(types.is_sorted(), "conditions are not sorted by type: {types:?}");
    Ok(())
}

/// `2026-11-23T02:30:00Z` and nothing else, as Go's metav1.Time writes it.
fn is_strict_rfc3339(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00Z" && text.parse::<Timestamp>().is_ok()
}
