//! Bursts of Revisions through the real API server: the first after a start, and later ones, beside the
//! same in a namespace that is left out.

use anyhow::{Context, Result};

use crate::Scale;
use crate::report::{Limit, Report, Series, percentile};
use crate::stage::{Revisions, Stage};

/// Revisions of one burst, created one after another.
const BURST: usize = 30;

/// Rows: p50 and p99 of a create, in the first burst and in later ones.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let mut rows = Rows::default();
    for _ in 0..scale.pick(3, 7) {
        // Each first burst needs a controller, and an API server, that have just started.
        let (stage, _controller) = Stage::new(0).await?;
        stage.plain_nodes((1..=10).map(|number| format!("plain-{number}")).collect()).await?;
        let warmed = stage.namespace("warmed").await?;
        let left_out = stage.namespace_left_out("left-out").await?;
        for number in 0..scale.pick(3, 5) {
            let without = burst(&left_out, number).await?;
            let with = burst(&warmed, number).await?;
            rows.of(number).add(&with, &without)?;
        }
    }
    let limit = Limit::RatioOrAdded(1.3, 5.0);
    for (name, burst) in [("first burst", rows.first), ("later bursts", rows.later)] {
        report.add(format!("{name}, create of a Revision, p50"), "ms", burst.p50, limit);
        report.add(format!("{name}, create of a Revision, p99"), "ms", burst.p99, limit);
    }
    Ok(())
}

#[derive(Default)]
struct Rows {
    first: Burst,
    later: Burst,
}

impl Rows {
    fn of(&mut self, number: usize) -> &mut Burst {
        if number == 0 { &mut self.first } else { &mut self.later }
    }
}

#[derive(Default)]
struct Burst {
    p50: Series,
    p99: Series,
}

impl Burst {
    fn add(&mut self, with: &[f64], without: &[f64]) -> Result<()> {
        let share = |times: &[f64], share| percentile(times, share).context("no Revision was made");
        self.p50.round(share(with, 0.5)?, share(without, 0.5)?);
        self.p99.round(share(with, 0.99)?, share(without, 0.99)?);
        Ok(())
    }
}

/// Milliseconds of each create.
async fn burst(revisions: &Revisions, number: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(BURST);
    for revision in 0..BURST {
        let name = format!("burst-{number}-{revision:02}");
        let took = revisions.create(&name, &["registry.example.com/team/app:v1"]).await?;
        times.push(took.as_secs_f64() * 1000.0);
    }
    Ok(times)
}
