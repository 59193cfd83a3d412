//! The fixtures themselves: what a test changes for others is put back after it, whatever its end
//! was.

use anyhow::{Context, Result, bail, ensure};

use crate::world::World;

crate::tests![a_change_is_put_back_whatever_the_tests_end];

#[allow(clippy::panic, reason = "one of the ends that a test may have")]
async fn a_change_is_put_back_whatever_the_tests_end(world: &World) -> Result<()> {
    let node = world.nodes.names()[2];
    let change = async |inner: &World| -> Result<()> {
        inner.nodes.cordon(node).await?;
        inner.warmers.kill(node)?;
        inner.controllers.kill_leader().await?;
        ensure!(inner.nodes.is_cordoned(node).await?, "nothing was changed");
        Ok(())
    };
    let passed = World::run(world.system(), change).await;
    passed.context("a test that passes")?;
    is_as_at_first(world, node).await.context("after a test that passed")?;

    let failed = World::run(world.system(), async |inner| {
        change(inner).await?;
        bail!("failed on purpose")
    });
    let failure = failed.await.err().context("a failure was lost")?;
    ensure!(format!("{failure:#}").contains("failed on purpose"), "{failure:#}");
    is_as_at_first(world, node).await.context("after a failure")?;

    let panicked = World::run(world.system(), async |inner| {
        change(inner).await?;
        panic!("panicked on purpose")
    });
    let failure = panicked.await.err().context("a panic was lost")?;
    ensure!(format!("{failure:#}").contains("panicked"), "{failure:#}");
    is_as_at_first(world, node).await.context("after a panic")
}

async fn is_as_at_first(world: &World, node: &str) -> Result<()> {
    ensure!(!world.nodes.is_cordoned(node).await?, "{node} is cordoned");
    ensure!(world.warmers.runs(node), "no warmer runs on {node}");
    let controllers = world.controllers.replicas();
    let running = controllers.iter().filter(|controller| controller.is_running()).count();
    ensure!(running == 2, "{running} controllers run");
    Ok(())
}
