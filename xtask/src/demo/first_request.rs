//! `cargo xtask demo --knative`: the first request to a Service that is scaled to zero, twice: in a
//! namespace that is left out, and in one that is warmed.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{say, show_logs};
use crate::cold_start::{ColdStarts, LEFT_OUT, MEGABITS, WARMED};
use crate::prerequisites::Programs;

const BYTES: usize = 200_000_000;

/// Starts everything and shows both.
pub(super) async fn show(programs: Programs, binary: &Path) -> Result<ExitCode> {
    say(
        "starting a control plane, Knative Serving, imagewarm, and 2 nodes with kubelet and containerd",
    );
    let began = Instant::now();
    let cold_starts = ColdStarts::start(programs, binary).await?;
    say(&format!("up in {:.0} s", began.elapsed().as_secs_f32()));
    let shown = compare(&cold_starts).await;
    if let Err(error) = &shown {
        eprintln!("error: {error:#}");
        show_logs(&cold_starts.cluster);
    }
    cold_starts.stop().await?;
    Ok(if shown.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn compare(cold_starts: &ColdStarts) -> Result<()> {
    let megabytes = BYTES / 1_000_000;
    say(&format!("images of {megabytes} MB; each node pulls at {MEGABITS} Mbit/s"));
    let without = first_request(cold_starts, LEFT_OUT, "without").await?;
    let with = first_request(cold_starts, WARMED, "with").await?;
    println!();
    println!("from the request to the first byte of the answer, Service scaled to zero:");
    println!("    {:>5.1} s  without imagewarm", without.as_secs_f32());
    println!("    {:>5.1} s  with imagewarm", with.as_secs_f32());
    println!();
    let saved = without.saturating_sub(with).as_secs_f32();
    println!("With imagewarm the first request was answered {saved:.1} s earlier.");
    ensure!(with < without, "warming did not help");
    Ok(())
}

async fn first_request(cold_starts: &ColdStarts, namespace: &str, name: &str) -> Result<Duration> {
    let image = cold_starts.image(name, BYTES).await?;
    say(&format!("applying Service {namespace}/{name}, which begins at zero"));
    cold_starts.service(namespace, name, &image).await?;
    if namespace == WARMED {
        let began = Instant::now();
        cold_starts.until_warm(namespace, name).await?;
        println!("    warm on both nodes {:.1} s later", began.elapsed().as_secs_f32());
    }
    println!("    sending the first request");
    let took = cold_starts.first_byte(namespace, name).await?;
    println!("    answered after {:.1} s", took.as_secs_f32());
    cold_starts.delete(namespace, name).await?;
    Ok(took)
}
