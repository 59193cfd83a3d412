//! Cost of one admission call, beside a server that only answers `allowed`.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use xtask::cluster::{Imagewarm, NAMESPACE};
use xtask::ports::Port;
use xtask::process::{Process, Program};
use xtask::wait::wait_for;

use imagewarm_core::webhook_paths::REVISIONS_WEBHOOK;

use crate::Scale;
use crate::load::Target;
use crate::report::{Limit, Report, Series, percentile};
use crate::stage::{DEADLINE, Stage};

const REVIEW: &[u8] =
    include_bytes!("../../tests/fixtures/knative/admission-review.revision-create.mutating.json");
/// About as many as the API server keeps open.
const CONNECTIONS: usize = 16;

/// Rows: p50 and p99 at 200 calls in a second, and calls in a second back to back.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, controller) = Stage::new(0).await?;
    stage.plain_nodes((1..=10).map(|number| format!("plain-{number}")).collect()).await?;
    let baseline = Baseline::start(&stage).await?;
    let (ours, theirs) = baseline.beside(&stage, &controller, false).await?;

    let duration = Duration::from_secs(scale.pick(3, 10));
    let (mut p50, mut p99, mut saturated) =
        (Series::default(), Series::default(), Series::default());
    for _ in 0..scale.pick(3, 9) {
        let (a, b) = (ours.at_rate(200, duration).await?, theirs.at_rate(200, duration).await?);
        let share = |times: &[f64], share| percentile(times, share).context("no call was made");
        p50.round(share(&a, 0.5)?, share(&b, 0.5)?);
        p99.round(share(&a, 0.99)?, share(&b, 0.99)?);
        saturated.round(
            ours.saturated(CONNECTIONS, duration).await?,
            theirs.saturated(CONNECTIONS, duration).await?,
        );
    }
    report.add("admission at 200/s, p50", "ms", p50, Limit::RatioOrAdded(1.3, 1.0));
    report.add("admission at 200/s, p99", "ms", p99, Limit::RatioOrAdded(1.3, 1.0));
    report.add("admission saturated", "calls/s", saturated, Limit::AtLeast(0.8));
    Ok(())
}

fn review_of_three_images(dry_run: bool) -> Result<Vec<u8>> {
    let mut review: Value = serde_json::from_slice(REVIEW)?;
    review["request"]["dryRun"] = json!(dry_run);
    let containers = review.pointer_mut("/request/object/spec/containers");
    let containers = containers.and_then(Value::as_array_mut).context("no containers")?;
    let one = containers.first().cloned().context("no container")?;
    *containers = (0..3)
        .map(|at| {
            let mut container = one.clone();
            container["name"] = json!(format!("container-{at}"));
            container["image"] = json!(format!("registry.example.com/team/app-{at}:v1"));
            container
        })
        .collect();
    Ok(serde_json::to_vec(&review)?)
}

/// The server that only answers `allowed`, with the webhook's own certificate.
pub struct Baseline {
    port: Port,
    _process: Process,
}

impl Baseline {
    /// Starts it.
    pub async fn start(stage: &Stage) -> Result<Baseline> {
        let secrets: Api<Secret> = Api::namespaced(stage.cluster.client(), NAMESPACE);
        let data = secrets.get("imagewarm-certs").await?.data.unwrap_or_default();
        let folder = stage.cluster.folder();
        for name in ["tls.crt", "tls.key"] {
            std::fs::write(folder.join(name), &data.get(name).context("no certificate")?.0)?;
        }
        let port = Port::reserve()?;
        let program = Program::new(std::env::current_exe()?)
            .args(["--noop-listen", &port.address().to_string()])
            .arg("--noop-certificate")
            .arg(folder.join("tls.crt"))
            .arg("--noop-key")
            .arg(folder.join("tls.key"));
        Ok(Baseline { _process: Process::start("noop", program, folder)?, port })
    }

    /// This replica and the baseline, for the same calls, once both answer. A dry run is answered
    /// like any other call, but creates nothing.
    pub async fn beside(
        &self,
        stage: &Stage,
        controller: &Imagewarm,
        dry_run: bool,
    ) -> Result<(Target, Target)> {
        let name = format!("imagewarm-webhook.{NAMESPACE}.svc");
        let address = controller.webhook().context("a controller has a webhook")?;
        let body = review_of_three_images(dry_run)?;
        let path = stage.cluster.webhook_path(REVISIONS_WEBHOOK).await?;
        let target = |address, path: &str| {
            Target::new(address, &name, path, &stage.cluster.dispatch_ca_file(), &body)
        };
        let (ours, theirs) = (target(address, &path)?, target(self.port.address(), "/mutate")?);
        wait_for(DEADLINE, "the baseline to answer", async || theirs.ask_once().await.ok()).await?;
        ours.ask_once().await?;
        Ok((ours, theirs))
    }
}
