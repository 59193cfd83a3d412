//! The CA is replaced again and again while the API server calls the webhook all the time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::json;

use crate::world::{World, containers};

crate::tests![twenty_rotations_fail_no_admission];

const ROTATIONS: usize = 20;
/// The API server, and the leader in publishing, have to be quicker than the lags.
const FLAGS: [&str; 16] = [
    "--ca-lifetime",
    "40s",
    "--ca-renew-before",
    "39s",
    "--serving-lifetime",
    "20s",
    "--serving-renew-before",
    "10s",
    "--ca-publish-lag",
    "2s",
    "--ca-retire-lag",
    "2s",
    "--certificate-check-interval",
    "300ms",
    "--publish-ca-bundle",
    "true",
];
/// Time for all rotations on a slow machine; it ends when they are done.
const LIMIT: Duration = Duration::from_secs(240);

async fn twenty_rotations_fail_no_admission(world: &World) -> Result<()> {
    let namespace = world.namespace("rotation").await?;
    world.restart_controllers_with(&FLAGS).await?;
    let rotated = rotations_under_load(world, &namespace).await;
    // With usual lifetimes again: what ends soon is renewed, and all goes on.
    world.restart_controllers().await?;
    let (requests, cas) = rotated?;
    ensure!(cas > ROTATIONS, "only {cas} CAs");
    ensure!(requests > cas, "only {requests} admission requests in {cas} CAs' time");
    // The warmers have followed.
    let app = world.push("rotation", "v1").await?;
    world.revision(&namespace, "hello-00001", containers(&[&app.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    Ok(())
}

/// Admission requests that passed, and CAs that were seen to sign.
async fn rotations_under_load(world: &World, namespace: &str) -> Result<(usize, usize)> {
    let done = tokio_util::sync::CancellationToken::new();
    let _guard = done.clone().drop_guard();
    // Both webhooks with failurePolicy Fail are called before anything is stored; nothing is.
    let load = (0..4).map(|_| async {
        let (client, mut passed) = (world.client(), 0);
        let order = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"generateName": "load-"},
            "spec": {"image": "app", "nodeName": "probe"},
        });
        while !done.is_cancelled() {
            let path = "/apis/caching.knative.dev/v1alpha1/namespaces";
            let path = format!("{path}/{namespace}/imagewarms?dryRun=All");
            let request = http::Request::post(path).header("content-type", "application/json");
            let request = request.body(serde_json::to_vec(&order)?)?;
            let answer = client.request::<serde_json::Value>(request).await;
            answer.with_context(|| format!("admission failed after {passed} requests"))?;
            passed += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(passed)
    });
    let rotations = async {
        let (mut seen, start) = (BTreeSet::new(), Instant::now());
        while seen.len() <= ROTATIONS {
            ensure!(start.elapsed() < LIMIT, "only {} CAs in {LIMIT:?}", seen.len());
            seen.insert(world.signing_ca().await?);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        done.cancel();
        Ok(seen.len())
    };
    let (passed, cas) = tokio::try_join!(try_join_all(load), rotations)?;
    Ok((passed.into_iter().sum(), cas))
}
