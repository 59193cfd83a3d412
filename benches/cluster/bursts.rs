//! Bursts of Revisions through the real API server: the first after a start, and later ones, beside the
//! same in a namespace that is left out.

use anyhow::{Context, Result};

use crate::Scale;
use crate::report::{Limit, Report, Series, percentile};
use crate::stage::{DEADLINE, Revisions, Stage};

/// Revisions of one burst, created one after another.
const BURST: usize = 30;

/// Rows: p50 and p99 of a create, in the first burst of a new cluster, in the first of a new
/// controller, and in later ones.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (mut new_cluster, mut new_controller, mut later) =
        (Burst::default(), Burst::default(), Burst::default());
    for _ in 0..scale.pick(3, 7) {
        let (stage, controller) = Stage::new(0).await?;
        stage.plain_nodes((1..=10).map(|number| format!("plain-{number}")).collect()).await?;
        let pair = Pair {
            warmed: stage.namespace("warmed").await?,
            left_out: stage.namespace_left_out("left-out").await?,
        };
        pair.burst("new-cluster", &mut new_cluster).await?;
        for number in 0..scale.pick(2, 4) {
            pair.burst(&format!("later-{number}"), &mut later).await?;
        }
        controller.terminate(DEADLINE).await?;
        let _controller = stage.controller("controller-2").await?;
        stage.admission_answers().await?;
        pair.burst("new-controller", &mut new_controller).await?;
    }
    // In the first of a new cluster the API server also uses the type for the first time; in the first
    // of a new controller it opens a connection to the webhook.
    let rows = [
        ("first burst of a new cluster", new_cluster, Limit::None),
        ("first burst of a new controller", new_controller, Limit::RatioOrAdded(1.3, 10.0)),
        ("later bursts", later, Limit::RatioOrAdded(1.3, 5.0)),
    ];
    for (name, burst, limit) in rows {
        report.add(format!("{name}, create of a Revision, p50"), "ms", burst.p50, limit);
        report.add(format!("{name}, create of a Revision, p99"), "ms", burst.p99, limit);
    }
    Ok(())
}

#[derive(Default)]
struct Burst {
    p50: Series,
    p99: Series,
}

/// A namespace, and one that is left out.
struct Pair {
    warmed: Revisions,
    left_out: Revisions,
}

impl Pair {
    /// Bursts in both, one after the other.
    async fn burst(&self, name: &str, burst: &mut Burst) -> Result<()> {
        let without = creates(&self.left_out, name).await?;
        let with = creates(&self.warmed, name).await?;
        let share = |times: &[f64], share| percentile(times, share).context("no Revision was made");
        burst.p50.round(share(&with, 0.5)?, share(&without, 0.5)?);
        burst.p99.round(share(&with, 0.99)?, share(&without, 0.99)?);
        Ok(())
    }
}

/// Milliseconds of each create.
async fn creates(revisions: &Revisions, burst: &str) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(BURST);
    for number in 0..BURST {
        let name = format!("{burst}-{number:02}");
        let took = revisions.create(&name, &["registry.example.com/team/app:v1"]).await?;
        times.push(took.as_secs_f64() * 1000.0);
    }
    Ok(times)
}
