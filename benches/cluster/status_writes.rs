//! Status writes of ImageWarms as fast as the API server takes them, by each way in which a status can be written.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::TryStreamExt as _;
use imagewarm_core::api::ImageWarm;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{CONCURRENCY, Stage, seconds};

/// How a status is written.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// A JSON merge patch of the subresource, for one version of the object, as imagewarm writes.
    MergePatch,
    /// The whole object, PUT to the subresource.
    Replace,
    /// Server-side apply of the subresource.
    Apply,
}

/// Rows: statuses written in a second by each way, with 8, 16 and 32 requests in flight; baseline: merge patches, 16
/// at a time.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(0).await?;
    let client = stage.as_controller().await?;
    let nodes: Vec<String> =
        (0..scale.pick(1_000, 3_000)).map(|at| format!("no-node-{at:05}")).collect();
    let ways = [
        (Way::MergePatch, 8),
        (Way::MergePatch, CONCURRENCY),
        (Way::MergePatch, 32),
        (Way::Replace, 8),
        (Way::Replace, CONCURRENCY),
        (Way::Replace, 32),
        (Way::Apply, CONCURRENCY),
    ];
    let mut rows: Vec<Series> = ways.iter().map(|_| Series::default()).collect();
    for round in 0..scale.pick(3, 5) {
        let raw = stage.namespace(&format!("raw-{round}")).await?;
        raw.raw_creates(&client, "registry.example.com/team/app:v1", &nodes).await?;
        let mut paces = Vec::new();
        for (number, (way, in_flight)) in ways.into_iter().enumerate() {
            paces.push(pace(&client, &raw.namespace, way, in_flight, number).await?);
        }
        let baseline = *paces.get(1).context("no merge patches")?;
        rows.iter_mut().zip(paces).for_each(|(row, pace)| row.round(pace, baseline));
    }
    for ((way, in_flight), row) in ways.into_iter().zip(rows) {
        let name = format!("status writes: {way:?}, {in_flight} in flight");
        report.add(name, "writes/s", row, Limit::None);
    }
    Ok(())
}

/// Writes the status of every ImageWarm of the namespace once; how many in a second. `number` makes it another status
/// than before.
pub async fn pace(
    client: &Client,
    namespace: &str,
    way: Way,
    in_flight: usize,
    number: usize,
) -> Result<f64> {
    let warms: Api<ImageWarm> = Api::namespaced(client.clone(), namespace);
    let all = warms.list(&ListParams::default()).await?.items;
    let count = all.len();
    let began = Instant::now();
    futures::stream::iter(all.into_iter().map(Ok))
        .try_for_each_concurrent(in_flight, |warm| {
            let warms = warms.clone();
            async move { write(&warms, warm, way, number).await }
        })
        .await?;
    Ok(count as f64 / seconds(began, Instant::now()))
}

async fn write(warms: &Api<ImageWarm>, mut warm: ImageWarm, way: Way, number: usize) -> Result<()> {
    let name = warm.metadata.name.clone().context("an ImageWarm without name")?;
    let status = status(number);
    match way {
        Way::MergePatch => {
            let version = &warm.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
            warms.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Way::Replace => {
            warm.status = Some(serde_json::from_value(status)?);
            warms.replace_status(&name, &PostParams::default(), &warm).await?;
        }
        Way::Apply => {
            let patch = json!({
                "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
                "metadata": {"name": name}, "status": status,
            });
            let parameters = PatchParams::apply("benchmark").force();
            warms.patch_status(&name, &parameters, &Patch::Apply(patch)).await?;
        }
    }
    Ok(())
}

/// As large as that of a pull that has ended.
fn status(number: usize) -> Value {
    json!({
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Pulled", "message": "",
            "lastTransitionTime": "2026-11-24T12:00:00Z",
        }],
        "digest": format!("sha256:{number:064x}"),
        "sizeBytes": 123_456_789,
        "observedGeneration": 1,
        "attempts": number,
        "startedAt": "2026-11-24T12:00:00Z",
        "finishedAt": "2026-11-24T12:00:09Z",
    })
}
