//! Pulls that fail: each by its name, on the real registry.

use anyhow::{Result, ensure};
use imagewarm_core::api::Reason;

use crate::world::{World, containers, eventually};

crate::tests![
    a_missing_tag_is_not_found,
    a_missing_repository_is_not_found,
    an_image_of_another_platform_is_a_mismatch,
    a_dead_registry_is_unreachable,
    one_failing_image_does_not_hold_up_the_other,
    a_restarted_runtime_is_found_again,
];

async fn a_missing_tag_is_not_found(world: &World) -> Result<()> {
    let namespace = world.namespace("no-tag").await?;
    let app = world.registries.push("no-tag", "v1").await?;
    let missing = app.tag.replace(":v1", ":v2");
    namespace.revision("hello-00001", containers(&[&missing])).await?;
    let warms = namespace.all_failed(3, Reason::NotFound).await?;
    ensure!(warms.iter().all(|w| w.ready().is_some_and(|r| !r.message.is_empty())), "{warms:?}");
    Ok(())
}

async fn a_missing_repository_is_not_found(world: &World) -> Result<()> {
    let namespace = world.namespace("no-repository").await?;
    let missing = format!("{}/never/pushed:v1", world.registries.open().address);
    namespace.revision("hello-00001", containers(&[&missing])).await?;
    namespace.all_failed(3, Reason::NotFound).await?;
    Ok(())
}

async fn an_image_of_another_platform_is_a_mismatch(world: &World) -> Result<()> {
    let namespace = world.namespace("platform").await?;
    let image = world.registries.push_for_other_platform("platform", "v1").await?.tag;
    namespace.revision("hello-00001", containers(&[&image])).await?;
    namespace.all_failed(3, Reason::PlatformMismatch).await?;
    Ok(())
}

async fn a_dead_registry_is_unreachable(world: &World) -> Result<()> {
    let namespace = world.namespace("no-registry").await?;
    let dead = format!("{}/app:v1", world.registries.unused_address()?);
    namespace.revision("hello-00001", containers(&[&dead])).await?;
    namespace.all_failed(3, Reason::RegistryUnreachable).await?;
    Ok(())
}

async fn one_failing_image_does_not_hold_up_the_other(world: &World) -> Result<()> {
    let namespace = world.namespace("mixed").await?;
    let app = world.registries.push("mixed", "v1").await?;
    let missing = app.tag.replace(":v1", ":gone");
    namespace.revision("hello-00001", containers(&[&missing, &app.tag])).await?;
    eventually("three are ready and three are not found", async || {
        let warms = namespace.image_warms().await?;
        let count = |reasons: &[Reason]| {
            warms.iter().filter(|w| w.reason().is_some_and(|r| reasons.contains(&r))).count()
        };
        let ready = count(&[Reason::Pulled, Reason::AlreadyPresent]);
        Ok((ready == 3 && count(&[Reason::NotFound]) == 3).then_some(()))
    })
    .await
}

async fn a_restarted_runtime_is_found_again(world: &World) -> Result<()> {
    let namespace = world.namespace("runtime").await?;
    let node = world.nodes.names()[2];
    let app = world.registries.push("runtime", "v1").await?;
    world.nodes.stop_runtime(node).await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    eventually("the node without a runtime is reported", async || {
        let warms = namespace.image_warms().await?;
        let down = warms.iter().find(|warm| warm.spec.node_name == node);
        Ok((down.and_then(|w| w.reason()) == Some(Reason::RuntimeUnavailable)).then_some(()))
    })
    .await?;
    world.nodes.start_runtime(node).await?;
    namespace.all_ready(3).await?;
    Ok(())
}
