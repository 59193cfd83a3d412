//! Cold starts as a user sees them: Knative Serving, two nodes with kubelet and containerd, a link of
//! 240 Mbit/s to each, and a request to a Service that is scaled to zero.

use std::path::Path;

use anyhow::Result;
use xtask::cold_start::{ColdStarts, LEFT_OUT, WARMED, prerequisites};
use xtask::prerequisites;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::BINARY;

/// Row: seconds from the request to the first byte of the answer with imagewarm, beside the same with
/// an image that is there already, and without imagewarm.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let cold_starts = ColdStarts::start(programs, Path::new(BINARY)).await?;
    let bytes = scale.pick(50_000_000, 200_000_000);
    let (mut beside_present, mut beside_cold) = (Series::default(), Series::default());
    for round in 0..scale.pick(2, 5) {
        let (cold, warmed) = (format!("cold-{round}"), format!("warmed-{round}"));
        let image = cold_starts.image(&cold, bytes).await?;
        let without = first_request(&cold_starts, LEFT_OUT, &cold, &image).await?;
        let image = cold_starts.image(&warmed, bytes).await?;
        let with = first_request(&cold_starts, WARMED, &warmed, &image).await?;
        // The same image once more, which both nodes have now.
        let again = format!("again-{round}");
        let present = first_request(&cold_starts, LEFT_OUT, &again, &image).await?;
        beside_present.round(with, present);
        beside_cold.round(with, without);
    }
    cold_starts.stop().await?;
    let what = "first request to a Service at zero";
    let name = format!("{what}, beside an image that is there");
    report.add(name, "s", beside_present, Limit::Ratio(1.15));
    report.add(format!("{what}, beside one without imagewarm"), "s", beside_cold, Limit::None);
    Ok(())
}

/// Seconds; the Service is deleted after it.
async fn first_request(
    cold_starts: &ColdStarts,
    namespace: &str,
    name: &str,
    image: &str,
) -> Result<f64> {
    let took = cold_starts.first_request(namespace, name, image).await?;
    cold_starts.delete(namespace, name).await?;
    Ok(took.as_secs_f64())
}
