//! Tags beside the digests that Knative resolved, and tags that the registry cannot be asked for.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ConditionStatus, ImageWarm, Reason};
use serde_json::json;
use xtask::cluster::Fault;

use crate::world::{World, containers, eventually};

crate::tests![
    a_digest_is_pulled_where_its_tag_cannot_be_had,
    a_digest_that_came_by_another_way_ends_a_failure,
    a_tag_that_cannot_be_checked_is_present_where_the_node_holds_it,
    what_the_cluster_makes_of_an_image_is_warmed,
];

fn digest(warm: &ImageWarm) -> Option<&str> {
    warm.status.as_ref()?.digest.as_deref()
}

async fn a_digest_is_pulled_where_its_tag_cannot_be_had(world: &World) -> Result<()> {
    let namespace = world.namespace("tag-gone").await?;
    let app = world.registries.push("tag-gone", "elsewhere").await?;
    let tag = app.tag.replace(":elsewhere", ":v1");
    let revision = namespace.revision("hello-00001", containers(&[&tag])).await?;
    let failed = namespace.all_failed(3, Reason::NotFound).await?;
    // Knative asks a mirror that has the tag.
    namespace.resolve("hello-00001", &[("container-0", &app.by_digest())]).await?;
    namespace.image("any-name", json!({"image": app.by_digest()}), Some(&revision)).await?;
    let ready = namespace.all_ready(3).await?;
    for warm in &ready {
        ensure!(failed.iter().any(|old| old.metadata.uid == warm.metadata.uid), "{warm:?}");
        ensure!(warm.spec.image == tag && digest(warm) == Some(&app.digest), "{warm:?}");
    }
    namespace.image_is("any-name", "True", "").await?;
    Ok(())
}

async fn a_digest_that_came_by_another_way_ends_a_failure(world: &World) -> Result<()> {
    let namespace = world.namespace("tag-other-way").await?;
    let app = world.registries.push("tag-other-way", "v1").await?;
    let proxied = world.registries.behind_proxy("way", "tag-other-way");
    let tag = proxied.image("v1");
    let by_digest = tag.replace(":v1", &format!("@{}", app.digest));
    let [node, others @ ..] = world.nodes.names();
    // As a kubelet does for a Pod.
    world.nodes.pull(node, &by_digest).await?;
    proxied.spoil(Fault::Status(403, ""));
    namespace.revision("hello-00001", containers(&[&tag])).await?;
    namespace.all_failed(3, Reason::NoCredentials).await?;
    namespace.resolve("hello-00001", &[("container-0", &by_digest)]).await?;
    let is_ready = |warm: &ImageWarm| warm.reason() == Some(Reason::AlreadyPresent);
    let found = eventually("the node with the digest is ready", async || {
        let warms = namespace.image_warms().await?;
        Ok(warms.into_iter().find(is_ready))
    })
    .await?;
    ensure!(found.spec.node_name == node && digest(&found) == Some(&app.digest), "{found:?}");
    let warms = namespace.image_warms().await?;
    let still = warms.iter().filter(|warm| warm.reason() == Some(Reason::NoCredentials));
    ensure!(still.count() == others.len(), "{warms:?}");
    proxied.heal();
    Ok(())
}

async fn a_tag_that_cannot_be_checked_is_present_where_the_node_holds_it(
    world: &World,
) -> Result<()> {
    let namespace = world.namespace("tag-unchecked").await?;
    world.registries.push("tag-unchecked", "v1").await?;
    let proxied = world.registries.behind_proxy("unchecked", "tag-unchecked");
    let tag = proxied.image("v1");
    namespace.revision("hello-00001", containers(&[&tag])).await?;
    namespace.all_ready(3).await?;
    proxied.spoil(Fault::Status(503, ""));
    // Each new Revision asks whether the tag has moved.
    namespace.revision("hello-00002", containers(&[&tag])).await?;
    let message = |warm: &ImageWarm| warm.ready().map(|ready| ready.message.clone());
    let shows = async |text: &str| {
        eventually(&format!("all ImageWarms are Ready and show {text:?}"), async || {
            let warms = namespace.image_warms().await?;
            let is_shown = |warm: &ImageWarm| {
                let is_ready = warm.reason().is_some_and(|r| r.ready() == ConditionStatus::True);
                is_ready && message(warm).is_some_and(|message| message.contains(text))
            };
            Ok((warms.len() == 3 && warms.iter().all(is_shown)).then_some(()))
        })
        .await
    };
    shows("whether it is the newest is not known: RegistryUnreachable").await?;
    proxied.heal();
    eventually("the tag was checked for the newest Revision", async || {
        let warms = namespace.image_warms().await?;
        let is_checked = |warm: &ImageWarm| {
            let token = warm.status.as_ref().and_then(|status| status.checked_for.clone());
            token.is_some_and(|token| token.ends_with("/hello-00002"))
                && message(warm).as_deref() == Some("")
        };
        Ok(warms.iter().all(is_checked).then_some(()))
    })
    .await
}

async fn what_the_cluster_makes_of_an_image_is_warmed(world: &World) -> Result<()> {
    let namespace = world.namespace("rewritten").await?;
    let app = world.registries.push("rewritten", "v1").await?;
    let registry = app.tag.split('/').next().unwrap_or_default();
    let rewrites = format!("index.docker.io/library={registry}");
    world.controllers.restart_with(&["--image-rewrites", &rewrites]).await?;
    let revision = namespace.revision("hello-00001", containers(&["rewritten:v1"])).await?;
    let warms = namespace.all_ready(3).await?;
    ensure!(warms.iter().all(|warm| warm.spec.image == app.tag), "{warms:?}");
    // Knative names what the Revision names.
    let resolved = format!("index.docker.io/library/rewritten@{}", app.digest);
    namespace.resolve("hello-00001", &[("container-0", &resolved)]).await?;
    namespace.image("any-name", json!({"image": resolved}), Some(&revision)).await?;
    namespace.image_is("any-name", "True", "").await?;
    let after = namespace.all_ready(3).await?;
    ensure!(after.iter().all(|warm| warm.spec.image == app.tag), "{after:?}");
    Ok(())
}
