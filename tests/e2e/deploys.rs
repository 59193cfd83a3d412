//! A Revision is created: which ImageWarms appear, and what the nodes' dockerds hold in the end.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{MANAGED_BY, MANAGED_BY_LABEL, Reason};
use serde_json::json;

use crate::world::{AuditedRequest, World, containers, eventually};

crate::tests![
    every_image_reaches_every_node,
    a_shared_image_has_one_image_warm_for_each_node,
    a_cordoned_node_is_left_out,
    a_repushed_tag_is_warmed_again_by_a_new_revision,
    a_new_revision_of_an_unchanged_tag_downloads_nothing,
    a_known_digest_is_what_repairs_and_new_nodes_pull,
    opted_out_revisions_and_namespaces_are_left_alone,
    dry_run_creates_nothing,
    a_refused_revision_leaves_no_orphans,
    deleting_the_configuration_deletes_its_image_warms,
    what_terminates_with_its_configuration_is_not_made_again,
    a_deleted_revision_is_garbage_collected_and_hand_made_image_warms_stay,
];

async fn every_image_reaches_every_node(world: &World) -> Result<()> {
    let namespace = world.namespace("deploy").await?;
    let (app, sidecar, init) = (
        world.registries.push("app", "v1").await?,
        world.registries.push("sidecar", "v1").await?,
        world.registries.push("init", "v1").await?,
    );
    let mut spec = containers(&[&app.tag, &sidecar.tag]);
    spec["initContainers"] = json!([{"name": "init", "image": init.tag}]);
    namespace.revision("hello-00001", spec).await?;

    let warms = namespace.all_ready(9).await?;
    for image in [&app, &sidecar, &init] {
        for node in world.nodes.names() {
            ensure!(
                world.nodes.digest(node, &image.tag).await? == Some(image.digest.clone()),
                "{node} does not hold {} at {}",
                image.tag,
                image.digest
            );
        }
    }
    for warm in warms {
        let status = warm.status.clone().unwrap_or_default();
        let expected = [&app, &sidecar, &init].into_iter().find(|i| warm.spec.image == i.tag);
        ensure!(status.digest.as_deref() == expected.map(|i| i.digest.as_str()), "{warm:?}");
        ensure!(status.size_bytes.is_some_and(|size| size > 0), "{warm:?}");
        ensure!(status.observed_generation == warm.metadata.generation, "{warm:?}");
        let labels = warm.metadata.labels.clone().unwrap_or_default();
        ensure!(labels.get(MANAGED_BY_LABEL).map(String::as_str) == Some(MANAGED_BY), "{warm:?}");
        let owner = warm.metadata.owner_references.clone().unwrap_or_default();
        ensure!(owner.len() == 1 && owner[0].kind == "Configuration", "{warm:?}");
        ensure!(owner[0].controller != Some(true), "{warm:?}");
    }
    Ok(())
}

async fn a_shared_image_has_one_image_warm_for_each_node(world: &World) -> Result<()> {
    let namespace = world.namespace("shared").await?;
    let app = world.registries.push("shared", "v1").await?;
    // Three containers name the same image, two of them in other spellings.
    let by_digest_and_tag = format!("{}@{}", app.tag, app.digest);
    let by_digest = app.by_digest();
    let spec = containers(&[&app.tag, &app.tag, &by_digest_and_tag, &by_digest]);
    namespace.revision("same-00001", spec.clone()).await?;
    namespace.revision("same-00002", spec).await?;
    let warms = namespace.all_ready(6).await?;
    let mut images: Vec<_> = warms.iter().map(|warm| warm.spec.image.clone()).collect();
    images.sort();
    images.dedup();
    ensure!(images == [app.tag.clone(), by_digest], "{images:?}");
    Ok(())
}

async fn a_cordoned_node_is_left_out(world: &World) -> Result<()> {
    let namespace = world.namespace("cordon").await?;
    let app = world.registries.push("cordon", "v1").await?;
    let nodes = world.nodes.names();
    world.nodes.cordon(nodes[1]).await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let warms = namespace.all_ready(2).await?;
    ensure!(warms.iter().all(|warm| warm.spec.node_name != nodes[1]), "{warms:?}");
    ensure!(world.nodes.digest(nodes[1], &app.tag).await?.is_none(), "the cordoned node pulled");
    world.nodes.uncordon(nodes[1]).await?;
    // Schedulable again: it is warmed like the rest.
    namespace.all_ready(3).await?;
    // A cordon deletes nothing: the next Revision's own ImageWarm proves that the leader went by.
    world.nodes.cordon(nodes[1]).await?;
    let next = world.registries.push("cordon", "v2").await?;
    namespace.revision("hello-00002", containers(&[&next.tag])).await?;
    namespace.all_ready(5).await.map(drop)
}

async fn a_repushed_tag_is_warmed_again_by_a_new_revision(world: &World) -> Result<()> {
    let namespace = world.namespace("repush").await?;
    let first = world.registries.push("repush", "latest").await?;
    namespace.revision("hello-00001", containers(&[&first.tag])).await?;
    namespace.all_ready(3).await?;
    let second = world.registries.push("repush", "latest").await?;
    ensure!(first.digest != second.digest, "the push did not change the content");
    namespace.revision("hello-00002", containers(&[&second.tag])).await?;
    eventually("every node holds the new content of the tag", async || {
        for node in world.nodes.names() {
            if world.nodes.digest(node, &second.tag).await? != Some(second.digest.clone()) {
                return Ok(None);
            }
        }
        let warms = namespace.image_warms().await?;
        let is_new = |digest: &Option<String>| digest.as_deref() == Some(&second.digest);
        let known = warms.iter().all(|w| w.status.as_ref().is_some_and(|s| is_new(&s.digest)));
        Ok(known.then_some(()))
    })
    .await
}

async fn a_new_revision_of_an_unchanged_tag_downloads_nothing(world: &World) -> Result<()> {
    let namespace = world.namespace("unchanged").await?;
    let app = world.registries.push("unchanged", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    namespace.revision("hello-00002", containers(&[&app.tag])).await?;
    let warms = eventually("the tag is checked once more, for the new Revision", async || {
        let warms = namespace.image_warms().await?;
        let checked = |w: &imagewarm_core::api::ImageWarm| {
            let checked_for = w.status.as_ref().and_then(|status| status.checked_for.clone());
            checked_for.is_some_and(|token| token.ends_with("/hello-00002"))
        };
        Ok(warms.iter().all(checked).then_some(warms))
    })
    .await?;
    for warm in warms {
        ensure!(warm.reason() == Some(Reason::AlreadyPresent), "{:?}", warm.status);
    }
    Ok(())
}

async fn a_known_digest_is_what_repairs_and_new_nodes_pull(world: &World) -> Result<()> {
    let namespace = world.namespace("resolved").await?;
    let app = world.registries.push("resolved", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let by_tag = namespace.all_ready(3).await?;
    // Knative resolves the tag; then somebody pushes other content under it.
    namespace.resolve("hello-00001", &[("container-0", &app.by_digest())]).await?;
    world.registries.push("resolved", "v1").await?;
    world.leader_has_caught_up().await?;
    let after = namespace.image_warms().await?;
    ensure!(after.len() == 3, "the same digest costs no new ImageWarm: {after:?}");
    namespace.delete_image_warm(&by_tag[0]).await?;
    let after = namespace.all_ready(3).await?;
    let made = after.iter().find(|warm| warm.spec.node_name == by_tag[0].spec.node_name);
    let made = made.context("the deleted ImageWarm was not made again")?;
    ensure!(made.spec.image == app.by_digest(), "repaired by {}", made.spec.image);
    ensure!(made.reason() == Some(Reason::AlreadyPresent), "{:?}", made.status);

    let joined = world.nodes.join("resolved").await?;
    let warms = namespace.all_ready(4).await?;
    let there = warms.iter().find(|warm| warm.spec.node_name == joined);
    let image = there.map(|warm| warm.spec.image.clone());
    ensure!(image == Some(app.by_digest()), "the new node pulls {image:?}");
    Ok(())
}

async fn opted_out_revisions_and_namespaces_are_left_alone(world: &World) -> Result<()> {
    let app = world.registries.push("opt-out", "v1").await?;
    let by_annotation = world.namespace("opt-out").await?;
    let annotations = json!({"caching.knative.dev/warm": "false"});
    let spec = containers(&[&app.tag]);
    by_annotation.revision_with("quiet-00001", annotations, spec.clone()).await?;
    let by_label = world.namespace("opt-out").await?;
    by_label.label("caching.knative.dev/warm", "false").await?;
    by_label.revision("quiet-00001", spec).await?;
    // The controller has seen both once it has repaired something that came after them.
    world.leader_has_caught_up().await?;
    for namespace in [by_annotation, by_label] {
        let warms = namespace.image_warms().await?;
        ensure!(warms.is_empty(), "{} opted out, and yet: {warms:?}", namespace.name);
    }
    Ok(())
}

async fn dry_run_creates_nothing(world: &World) -> Result<()> {
    let namespace = world.namespace("dry-run").await?;
    let app = world.registries.push("dry-run", "v1").await?;
    namespace.dry_run_revision("hello-00001", containers(&[&app.tag])).await?;
    world.leader_has_caught_up().await?;
    ensure!(namespace.image_warms().await?.is_empty(), "a dry run made ImageWarms");
    Ok(())
}

async fn a_refused_revision_leaves_no_orphans(world: &World) -> Result<()> {
    let namespace = world.namespace("refused").await?;
    let app = world.registries.push("refused", "v1").await?;
    namespace.refuse_revisions().await?;
    let refused = namespace.revision("hello-00001", containers(&[&app.tag])).await;
    ensure!(refused.is_err(), "the policy did not refuse the Revision");
    // Our webhook came before the refusal: the ImageWarms exist, until the leader deletes them.
    eventually("the webhook has fanned out", async || {
        Ok((!namespace.image_warms().await?.is_empty()).then_some(()))
    })
    .await?;
    namespace.until_empty("the ImageWarms of the refused Revision are deleted").await
}

async fn deleting_the_configuration_deletes_its_image_warms(world: &World) -> Result<()> {
    let namespace = world.namespace("cascade").await?;
    let app = world.registries.push("cascade", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    namespace.delete_configuration("hello").await?;
    namespace.until_empty("the garbage collector deletes the ImageWarms").await
}

/// The garbage collector takes a Configuration's ImageWarms one by one, and its Revision last at
/// times: none of them is made again, and pulled again, just to be deleted.
async fn what_terminates_with_its_configuration_is_not_made_again(world: &World) -> Result<()> {
    let namespace = world.namespace("terminating").await?;
    let app = world.registries.push("terminating", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let all = namespace.all_ready(3).await?;
    namespace.hold_configuration("hello").await?;
    namespace.delete_configuration("hello").await?;
    let asked = || -> Result<usize> {
        let audited = world.audit.of_controllers_in(&namespace.name)?;
        let asked = |one: &&AuditedRequest| one.resource == "configurations" && one.status == 200;
        Ok(audited.iter().filter(asked).count())
    };
    let before = asked()?;
    namespace.delete_image_warm(all.first().context("an ImageWarm")?).await?;
    eventually("the leader asks for the Configuration", async || {
        Ok((asked()? > before).then_some(()))
    })
    .await?;
    namespace.release_configuration("hello").await?;
    namespace.until_empty("everything goes").await?;
    let audited = world.audit.of_controllers_in(&namespace.name)?;
    let created = |one: &&AuditedRequest| one.verb == "create" && one.resource == "imagewarms";
    let created = audited.iter().filter(created).count();
    ensure!(created == 3, "{created} ImageWarms were created, of which 3 are wanted");
    Ok(())
}

async fn a_deleted_revision_is_garbage_collected_and_hand_made_image_warms_stay(
    world: &World,
) -> Result<()> {
    let namespace = world.namespace("collect").await?;
    let app = world.registries.push("collect", "v1").await?;
    let node = world.nodes.names()[0];
    namespace.create_image_warm("by-hand", &app.tag, node, &[]).await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(4).await?;
    namespace.delete_revision("hello-00001").await?;
    let left = eventually("what no Revision wants is deleted", async || {
        let warms = namespace.image_warms().await?;
        Ok((warms.len() < 2).then_some(warms))
    })
    .await?;
    ensure!(left.len() == 1 && left[0].metadata.name.as_deref() == Some("by-hand"), "{left:?}");
    Ok(())
}
