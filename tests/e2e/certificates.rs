//! The CA is replaced again and again while the API server calls the webhook all the time, and
//! nobody notices: neither deploys nor warmers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::world::{World, containers};

crate::tests![twenty_rotations_fail_no_admission];

const ROTATIONS: usize = 20;
/// Short lives, and lags that the API server and warmers on this machine are quicker than.
const FLAGS: [&str; 14] = [
    "--ca-lifetime",
    "60s",
    "--ca-renew-before",
    "59s",
    "--serving-lifetime",
    "30s",
    "--serving-renew-before",
    "15s",
    "--ca-publish-lag",
    "1500ms",
    "--ca-retire-lag",
    "1500ms",
    "--certificate-check-interval",
    "300ms",
];
/// For all rotations on a slow machine.
const LIMIT: Duration = Duration::from_secs(300);

async fn twenty_rotations_fail_no_admission(world: &World) -> Result<()> {
    let namespace = world.namespace("rotation").await?;
    let checked = async {
        world.restart_controllers_with(&FLAGS).await?;
        let asked = world.admissions_while(&namespace, rotations(world)).await?;
        ensure!(asked > 10 * ROTATIONS, "only {asked} admission requests");
        // The warmers have followed.
        let app = world.push("rotation", "v1").await?;
        world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
        world.all_ready(&namespace, 3).await?;
        Ok(())
    }
    .await;
    world.begin_with_new_certificates().await?;
    checked
}

/// Returns once that many CAs have signed, one after another.
async fn rotations(world: &World) -> Result<()> {
    let (mut seen, start) = (BTreeSet::new(), Instant::now());
    while seen.len() <= ROTATIONS {
        ensure!(start.elapsed() < LIMIT, "only {} CAs in {LIMIT:?}", seen.len());
        seen.insert(world.signing_ca().await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
