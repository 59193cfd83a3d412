//! Many nodes and one registry that answers 429 beyond some pulls at a time: with the cluster's
//! budget, and without it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::Scale;
use crate::fake_warmers::{FakeWarmers, Gate};
use crate::report::{Limit, Report, Series};
use crate::stage::{DEADLINE, Stage, seconds};

/// No limit, no canary, and no shared back-off after a 429.
const WITHOUT: [&str; 3] =
    ["--registry-pulls=0", "--registry-pulls-per-second=0", "--canary-nodes=0"];

/// Rows: seconds until the last node holds the image, and answers of 429, with and without.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    const AT_ONCE: usize = 10;
    let nodes = scale.pick(45, 300);
    let (stage, mut controller) = Stage::new(0).await?;
    let gate = Arc::new(Gate::of(AT_ONCE));
    let _warmers = FakeWarmers::connect_to(&stage, nodes, Some(gate.clone())).await?;
    let (mut time, mut refused) = (Series::default(), Series::default());
    for round in 0..scale.pick(2, 3) {
        let mut measured = vec![];
        for (name, flags) in [("with", &[][..]), ("without", &WITHOUT)] {
            controller.terminate(DEADLINE).await?;
            controller = stage.controller_with(&format!("{name}-{round}"), flags).await?;
            stage.connected(&controller, nodes).await?;
            let revisions = stage.namespace(&format!("herd-{name}-{round}")).await?;
            let image = format!("registry.example.com/team/{name}:v{round}");
            gate.begin();
            let began = Instant::now();
            revisions.create("app-00001", &[&image]).await?;
            stage.all_ready(&revisions.namespace, nodes).await?;
            measured.push((seconds(began, Instant::now()), gate.refused() as f64));
            revisions.delete_configuration().await?;
        }
        if let [(ours, ours_refused), (baseline, baseline_refused)] = measured[..] {
            time.round(ours, baseline);
            refused.round(ours_refused, baseline_refused);
        }
    }
    let registry = format!("{nodes} nodes, a registry that serves {AT_ONCE} pulls at once");
    report.add(format!("{registry}: until the last is Ready"), "s", time, Limit::Ratio(1.0));
    report.add(format!("{registry}: answers of 429"), "answers", refused, Limit::Ratio(0.5));
    Ok(())
}
