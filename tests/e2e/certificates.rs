//! The CA is replaced again and again while the API server calls the webhook all the time, and
//! nobody notices: neither deploys nor warmers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::world::{World, containers};

crate::tests![people_see_certificates_and_who_serves_what, twenty_rotations_fail_no_admission];

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
    world.controllers.restart_with_own_certificates(&FLAGS).await?;
    let asked = world.controllers.admissions_while(rotations(world)).await?;
    ensure!(asked > 10 * ROTATIONS, "only {asked} admission requests");
    // The warmers have followed.
    let app = world.registries.push("rotation", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn people_see_certificates_and_who_serves_what(world: &World) -> Result<()> {
    let replica = world.admission_port.address()?.to_string();
    let (code, output) = world.commands.imagewarm(&["certs", "--connect", &replica]).await?;
    ensure!(code == 0, "{code}\n{output}");
    let service = "imagewarm-webhook.imagewarm-system.svc";
    let served = format!("served by {replica}");
    for part in ["webhook CA", service, &served, "both webhook configurations hold all CAs"] {
        ensure!(output.contains(part), "no {part:?} in:\n{output}");
    }
    for word in ["ca: cn=", "names:", "not after:", "next rotation:"] {
        ensure!(output.to_lowercase().contains(word), "nothing of {word:?} in:\n{output}");
    }
    ensure!(!output.contains("PRIVATE"), "a key is shown");
    // Somebody overwrites what the API server trusts, and nobody is there to repair it.
    world.controllers.stop().await?;
    world.installation.break_ca_bundles().await?;
    let (code, output) = world.commands.imagewarm(&["certs"]).await?;
    ensure!(code == 1 && output.contains("WRONG: "), "{code}\n{output}");
    let (code, output) = world.commands.imagewarm(&["certs", "-n", "default"]).await?;
    ensure!(code == 1, "{code}\n{output}");
    ensure!(output.contains("there is no Secret default/imagewarm-certs"), "{output}");
    Ok(())
}

/// Returns once that many CAs have signed, one after another.
async fn rotations(world: &World) -> Result<()> {
    let (mut seen, start) = (BTreeSet::new(), Instant::now());
    while seen.len() <= ROTATIONS {
        ensure!(start.elapsed() < LIMIT, "only {} CAs in {LIMIT:?}", seen.len());
        seen.insert(world.installation.signing_ca().await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
