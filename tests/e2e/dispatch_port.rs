//! Traffic on the dispatch port that no warmer sends: whoever reaches the port may send it. Warmers
//! still connect, and images still arrive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::world::{World, eventually, half_open, reset_calls};
use anyhow::{Context, Result, ensure};

crate::tests![crowds_leave_room_for_warmers];

/// Far more than the leader needs, and far less than what the crowds could take without limits.
const MEMORY_MIB: u64 = 150;
const HALF_OPEN: usize = 400;
const SILENT: usize = 50;
const RESETTING: usize = 3;

async fn crowds_leave_room_for_warmers(world: &World) -> Result<()> {
    world.controllers.start_only(&["controller-1"], &[]).await?;
    world.controllers.until_all_connected().await?;
    let address: SocketAddr = world.controllers.leader_address().await?.parse()?;
    let memory = world.controllers.memory()?;
    let mut crowd = half_open(address, HALF_OPEN);
    // Connections that are complete, and on which nobody calls.
    let leader = world.streams.leader().await?;
    let mut silent = vec![];
    for _ in 0..SILENT {
        silent.push(leader.connect().await?);
    }
    // Calls that are cancelled as soon as they are sent.
    let resets = Arc::<AtomicUsize>::default();
    for _ in 0..RESETTING {
        let (leader, resets) = (leader.clone(), resets.clone());
        crowd.spawn(async move {
            loop {
                // Cut off, it comes back.
                if let Ok(channel) = leader.connect().await {
                    let _ = reset_calls(channel, &resets).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let many = |more: usize| {
        let wanted = resets.load(Ordering::Relaxed) + more;
        let resets = resets.clone();
        async move || Ok((resets.load(Ordering::Relaxed) >= wanted).then_some(()))
    };
    eventually("calls are cancelled one after another", many(1_000)).await?;
    let before = resets.load(Ordering::Relaxed);

    let namespace = world.namespace("dispatch-crowd").await?;
    let app = world.registries.push("dispatch-crowd", "v1").await?;
    for node in world.nodes.names() {
        world.warmers.restart(node).await.context("a warmer in the crowd")?;
        namespace.create_image_warm(node, &app.tag, node, &[]).await?;
    }
    namespace.all_ready(3).await.context("the images of warmers that came in the crowd")?;
    let during = resets.load(Ordering::Relaxed) - before;
    println!("{during} calls were cancelled meanwhile");
    ensure!(during > 0, "the crowd was gone");
    let grown = world.controllers.memory()?.saturating_sub(memory);
    ensure!(grown < MEMORY_MIB, "the leader grew by {grown} MiB");
    ensure!(world.controllers.all_run(), "a controller ended");
    Ok(())
}
