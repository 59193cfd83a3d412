//! The time that the webhook adds to the creation of a Revision through the real API server.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::Scale;
use crate::report::{Limit, Report, Series, median};
use crate::stage::{Revisions, Stage};

/// Row: median milliseconds of a create with the webhook registered, and without.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::new(0).await?;
    let revisions = stage.namespace("creates").await?;
    let mut series = Series::default();
    let many = scale.pick(100, 300);
    for round in 0..scale.pick(5, 9) {
        // The same configuration, but without a rule that any Revision meets.
        register(&stage, true).await?;
        let with = creates(&revisions, &format!("with-{round}"), many).await?;
        register(&stage, false).await?;
        let without = creates(&revisions, &format!("without-{round}"), many).await?;
        series.round(with, without);
    }
    report.add("Revision create through the API server, median", "ms", series, Limit::Added(5.0));
    Ok(())
}

async fn register(stage: &Stage, registered: bool) -> Result<()> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(stage.cluster.client());
    let resource = if registered { "revisions" } else { "none" };
    let body = json!([
        {"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": [resource]},
    ]);
    let patch = Patch::<()>::Json(serde_json::from_value(body)?);
    configurations.patch("imagewarm", &PatchParams::default(), &patch).await?;
    // The API server's own watch delivers the change; nothing shows when it has.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    Ok(())
}

/// The median of creates one after another; the first few open connections and do not count.
async fn creates(revisions: &Revisions, prefix: &str, many: usize) -> Result<f64> {
    let mut times = Vec::with_capacity(many);
    for number in 0..many + 5 {
        let name = format!("{prefix}-{number:05}");
        let took = revisions.create(&name, &["registry.example.com/team/app:v1"]).await?;
        times.push(took.as_secs_f64() * 1000.0);
    }
    Ok(median(&times[5..]).unwrap_or_default())
}
