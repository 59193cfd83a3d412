//! A Revision is created: which ImageWarms appear, and what the nodes' dockerds hold in the end.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{MANAGED_BY, MANAGED_BY_LABEL, Reason};
use serde_json::json;

use crate::world::{Audited, World, containers};

crate::tests![
    every_image_reaches_every_node,
    a_shared_image_is_ordered_once_for_each_node,
    a_cordoned_node_is_left_out,
    a_repushed_tag_is_warmed_again_by_a_new_revision,
    a_new_revision_of_an_unchanged_tag_downloads_nothing,
    a_known_digest_is_what_repairs_and_new_nodes_pull,
    opted_out_revisions_and_namespaces_are_left_alone,
    dry_run_creates_nothing,
    a_refused_revision_leaves_no_orphans,
    deleting_the_configuration_deletes_its_image_warms,
    what_goes_with_its_configuration_is_not_made_again,
    a_deleted_revision_is_collected_and_hand_made_orders_stay,
];

async fn every_image_reaches_every_node(world: &World) -> Result<()> {
    let namespace = world.namespace("deploy").await?;
    let (app, sidecar, init) = (
        world.push("app", "v1").await?,
        world.push("sidecar", "v1").await?,
        world.push("init", "v1").await?,
    );
    let mut spec = containers(&[&app.tag, &sidecar.tag]);
    spec["initContainers"] = json!([{"name": "init", "image": init.tag}]);
    world.revision(&namespace, "hello-00001", spec).await?;

    let warms = world.all_ready(&namespace, 9).await?;
    for image in [&app, &sidecar, &init] {
        for node in world.nodes() {
            ensure!(
                world.node_digest(&node, &image.tag).await? == Some(image.digest.clone()),
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

async fn a_shared_image_is_ordered_once_for_each_node(world: &World) -> Result<()> {
    let namespace = world.namespace("shared").await?;
    let app = world.push("shared", "v1").await?;
    // Three containers name the same image, two of them in other spellings.
    let by_digest_and_tag = format!("{}@{}", app.tag, app.digest);
    let by_digest = app.by_digest();
    let spec = containers(&[&app.tag, &app.tag, &by_digest_and_tag, &by_digest]);
    world.revision(&namespace, "same-00001", spec.clone()).await?;
    world.revision(&namespace, "same-00002", spec).await?;
    let warms = world.all_ready(&namespace, 6).await?;
    let mut images: Vec<_> = warms.iter().map(|warm| warm.spec.image.clone()).collect();
    images.sort();
    images.dedup();
    ensure!(images == [app.tag.clone(), by_digest], "{images:?}");
    Ok(())
}

async fn a_cordoned_node_is_left_out(world: &World) -> Result<()> {
    let namespace = world.namespace("cordon").await?;
    let app = world.push("cordon", "v1").await?;
    let nodes = world.nodes();
    world.cordon(&nodes[1], true).await?;
    let revision = world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await;
    let checked = async {
        revision?;
        let warms = world.all_ready(&namespace, 2).await?;
        ensure!(warms.iter().all(|warm| warm.spec.node_name != nodes[1]), "{warms:?}");
        ensure!(
            world.node_digest(&nodes[1], &app.tag).await?.is_none(),
            "the cordoned node pulled"
        );
        Ok(())
    }
    .await;
    world.cordon(&nodes[1], false).await?;
    checked?;
    // Schedulable again: it is warmed like the rest.
    world.all_ready(&namespace, 3).await?;
    // A cordon deletes nothing: the next Revision's own order proves that the leader went by.
    world.cordon(&nodes[1], true).await?;
    let checked = async {
        let next = world.push("cordon", "v2").await?;
        world.revision(&namespace, "hello-00002", containers(&[&next.tag])).await?;
        world.all_ready(&namespace, 5).await.map(|_| ())
    }
    .await;
    world.cordon(&nodes[1], false).await?;
    checked
}

async fn a_repushed_tag_is_warmed_again_by_a_new_revision(world: &World) -> Result<()> {
    let namespace = world.namespace("repush").await?;
    let first = world.push("repush", "latest").await?;
    world.revision(&namespace, "hello-00001", containers(&[&first.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let second = world.push("repush", "latest").await?;
    ensure!(first.digest != second.digest, "the push did not change the content");
    world.revision(&namespace, "hello-00002", containers(&[&second.tag])).await?;
    world
        .eventually("every node holds the new content of the tag", async || {
            for node in world.nodes() {
                if world.node_digest(&node, &second.tag).await? != Some(second.digest.clone()) {
                    return Ok(None);
                }
            }
            let warms = world.warms(&namespace).await?;
            let told = |digest: &Option<String>| digest.as_deref() == Some(&second.digest);
            let known = warms.iter().all(|w| w.status.as_ref().is_some_and(|s| told(&s.digest)));
            Ok(known.then_some(()))
        })
        .await
}

async fn a_new_revision_of_an_unchanged_tag_downloads_nothing(world: &World) -> Result<()> {
    let namespace = world.namespace("unchanged").await?;
    let app = world.push("unchanged", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    world.revision(&namespace, "hello-00002", containers(&[&app.tag])).await?;
    let warms = world
        .eventually("the tag is checked once more, for the new Revision", async || {
            let warms = world.warms(&namespace).await?;
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
    let app = world.push("resolved", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    let by_tag = world.all_ready(&namespace, 3).await?;
    // Knative resolves the tag; then somebody pushes other content under it.
    world.resolve(&namespace, "hello-00001", &[("container-0", &app.by_digest())]).await?;
    world.push("resolved", "v1").await?;
    world.leader_has_caught_up().await?;
    let after = world.warms(&namespace).await?;
    ensure!(after.len() == 3, "the same digest costs no new ImageWarm: {after:?}");
    world.delete_image_warm(&by_tag[0]).await?;
    let after = world.all_ready(&namespace, 3).await?;
    let made = after.iter().find(|warm| warm.spec.node_name == by_tag[0].spec.node_name);
    let made = made.context("the deleted order was not made again")?;
    ensure!(made.spec.image == app.by_digest(), "repaired by {}", made.spec.image);
    ensure!(made.reason() == Some(Reason::AlreadyPresent), "{:?}", made.status);

    let joined = world.join_node("resolved").await?;
    let checked = async {
        let warms = world.all_ready(&namespace, 4).await?;
        let there = warms.iter().find(|warm| warm.spec.node_name == joined);
        let image = there.map(|warm| warm.spec.image.clone());
        ensure!(image == Some(app.by_digest()), "the new node pulls {image:?}");
        Ok(())
    }
    .await;
    world.remove_node(&joined).await?;
    checked
}

async fn opted_out_revisions_and_namespaces_are_left_alone(world: &World) -> Result<()> {
    let app = world.push("opt-out", "v1").await?;
    let by_annotation = world.namespace("opt-out").await?;
    let annotations = json!({"caching.knative.dev/warm": "false"});
    let spec = containers(&[&app.tag]);
    world.revision_with(&by_annotation, "quiet-00001", annotations, spec.clone()).await?;
    let by_label = world.namespace("opt-out").await?;
    world.label_namespace(&by_label, "caching.knative.dev/warm", "false").await?;
    world.revision(&by_label, "quiet-00001", spec).await?;
    // The controller has seen both once it has repaired something that came after them.
    world.leader_has_caught_up().await?;
    for namespace in [by_annotation, by_label] {
        let warms = world.warms(&namespace).await?;
        ensure!(warms.is_empty(), "{namespace} opted out, and yet: {warms:?}");
    }
    Ok(())
}

async fn dry_run_creates_nothing(world: &World) -> Result<()> {
    let namespace = world.namespace("dry-run").await?;
    let app = world.push("dry-run", "v1").await?;
    world.dry_run_revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.leader_has_caught_up().await?;
    ensure!(world.warms(&namespace).await?.is_empty(), "a dry run made ImageWarms");
    Ok(())
}

async fn a_refused_revision_leaves_no_orphans(world: &World) -> Result<()> {
    let namespace = world.namespace("refused").await?;
    let app = world.push("refused", "v1").await?;
    world.refuse_revisions(&namespace).await?;
    let refused = world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await;
    ensure!(refused.is_err(), "the policy did not refuse the Revision");
    // Our webhook came before the refusal: the orders exist, until the leader collects them.
    world
        .eventually("the webhook has fanned out", async || {
            Ok((!world.warms(&namespace).await?.is_empty()).then_some(()))
        })
        .await?;
    world
        .eventually("the orders of the refused Revision are collected", async || {
            Ok(world.warms(&namespace).await?.is_empty().then_some(()))
        })
        .await
}

async fn deleting_the_configuration_deletes_its_image_warms(world: &World) -> Result<()> {
    let namespace = world.namespace("cascade").await?;
    let app = world.push("cascade", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    world.delete_configuration(&namespace, "hello").await?;
    world
        .eventually("the garbage collector deletes the ImageWarms", async || {
            Ok(world.warms(&namespace).await?.is_empty().then_some(()))
        })
        .await
}

/// The garbage collector takes a Configuration's ImageWarms one by one, and its Revision last at
/// times: none of them is made again, and pulled again, just to be deleted.
async fn what_goes_with_its_configuration_is_not_made_again(world: &World) -> Result<()> {
    let namespace = world.namespace("going").await?;
    let app = world.push("going", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    let all = world.all_ready(&namespace, 3).await?;
    world.hold_configuration(&namespace, "hello", true).await?;
    world.delete_configuration(&namespace, "hello").await?;
    let asked = || -> Result<usize> {
        let audited = world.audited()?;
        let looks = audited.iter().filter(|one| one.resource == "configurations");
        Ok(looks.filter(|one| one.namespace == namespace && one.status == 200).count())
    };
    let before = asked()?;
    world.delete_image_warm(all.first().context("an ImageWarm")?).await?;
    world
        .eventually("the leader asks for the Configuration", async || {
            Ok((asked()? > before).then_some(()))
        })
        .await?;
    world.hold_configuration(&namespace, "hello", false).await?;
    world
        .eventually("everything goes", async || {
            Ok(world.warms(&namespace).await?.is_empty().then_some(()))
        })
        .await?;
    let audited = world.audited()?;
    let created = |one: &&Audited| {
        one.verb == "create" && one.resource == "imagewarms" && one.namespace == namespace
    };
    let created = audited.iter().filter(created).count();
    ensure!(created == 3, "{created} ImageWarms were created, of which 3 are wanted");
    Ok(())
}

async fn a_deleted_revision_is_collected_and_hand_made_orders_stay(world: &World) -> Result<()> {
    let namespace = world.namespace("collect").await?;
    let app = world.push("collect", "v1").await?;
    let node = world.nodes().remove(0);
    world.hand_made(&namespace, "by-hand", &app.tag, &node, &[]).await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 4).await?;
    world.delete_revision(&namespace, "hello-00001").await?;
    let left = world
        .eventually("what no Revision wants is deleted", async || {
            let warms = world.warms(&namespace).await?;
            Ok((warms.len() < 2).then_some(warms))
        })
        .await?;
    ensure!(left.len() == 1 && left[0].metadata.name.as_deref() == Some("by-hand"), "{left:?}");
    Ok(())
}
