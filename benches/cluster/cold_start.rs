//! Cold starts as a user sees them: Knative Serving, two nodes with kubelet and containerd, a link of
//! 240 Mbit/s to each, and a request to a Service that is scaled to zero.

use std::path::Path;

use anyhow::Result;
use xtask::cold_start::{ColdStarts, LEFT_OUT, WARMED, prerequisites};
use xtask::prerequisites;

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::BINARY;

/// Rows: seconds from the request to the first byte of the answer, and from the creation of a second Pod, on
/// the other node, until it is Ready: with imagewarm, beside the same with an image that is there already,
/// and without imagewarm. Milliseconds from a Revision to its Deployment, with and without imagewarm; and with it,
/// of an image that the nodes have, so that nothing is pulled meanwhile.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let cold_starts = ColdStarts::start(programs, Path::new(BINARY)).await?;
    let bytes = scale.pick(50_000_000, 200_000_000);
    let mut rows: [(&str, [Series; 2]); 2] = [
        ("first request to a Service at zero", Default::default()),
        ("a second Pod on the other node, until it is Ready", Default::default()),
    ];
    let (mut deployment, mut without_pulls) = (Series::default(), Series::default());
    for round in 0..scale.pick(2, 5) {
        let (cold, warmed) = (format!("cold-{round}"), format!("warmed-{round}"));
        let image = cold_starts.image(&cold, bytes).await?;
        let without = deploy(&cold_starts, LEFT_OUT, &cold, &image).await?;
        let image = cold_starts.image(&warmed, bytes).await?;
        let with = deploy(&cold_starts, WARMED, &warmed, &image).await?;
        // The same image once more, which both nodes have now.
        let again = format!("again-{round}");
        let present = deploy(&cold_starts, LEFT_OUT, &again, &image).await?;
        for (at, (_, [beside_present, beside_cold])) in rows.iter_mut().enumerate() {
            beside_present.round(with.starts[at], present.starts[at]);
            beside_cold.round(with.starts[at], without.starts[at]);
        }
        deployment.round(with.deployment_ms, without.deployment_ms);
        let there = format!("there-{round}");
        let made = cold_starts.service(WARMED, &there, &image).await?;
        without_pulls.round(made.as_secs_f64() * 1e3, without.deployment_ms);
        cold_starts.delete(WARMED, &there).await?;
    }
    cold_starts.stop().await?;
    for (what, [beside_present, beside_cold]) in rows {
        let name = format!("{what}, beside an image that is there");
        report.add(name, "s", beside_present, Limit::Ratio(1.15));
        report.add(format!("{what}, beside one without imagewarm"), "s", beside_cold, Limit::None);
    }
    let name = "from a Revision to its Deployment, beside one without imagewarm";
    report.add(name, "ms", deployment, Limit::Ratio(1.15));
    let name = "the same of an image that the nodes have";
    report.add(name, "ms", without_pulls, Limit::None);
    Ok(())
}

struct Deploy {
    deployment_ms: f64,
    /// Seconds of the first request, and of the second Pod.
    starts: [f64; 2],
}

/// The Service is deleted after it.
async fn deploy(
    cold_starts: &ColdStarts,
    namespace: &str,
    name: &str,
    image: &str,
) -> Result<Deploy> {
    let deployment = cold_starts.service(namespace, name, image).await?;
    if namespace == WARMED {
        cold_starts.until_warm(namespace, name).await?;
    }
    let first = cold_starts.first_byte(namespace, name).await?;
    let second = cold_starts.scale_out(namespace, name, image).await?;
    cold_starts.delete(namespace, name).await?;
    let starts = [first.as_secs_f64(), second.as_secs_f64()];
    Ok(Deploy { deployment_ms: deployment.as_secs_f64() * 1e3, starts })
}
