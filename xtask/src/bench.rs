//! `cargo xtask bench`: builds the benchmarks as a release is built, and runs those against the
//! development cluster. What they measure is `benches/cluster/`; this only starts it.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::prerequisites::{self, Prerequisite};

/// The benchmark without a cluster, which criterion runs.
const HOT_PATHS: &str = "hot_paths";

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// Only these; all of the cluster's without a name. `hot_paths` are those without a cluster
    names: Vec<String>,
    /// Smaller numbers and fewer rounds.
    #[arg(long)]
    quick: bool,
}

/// Runs the benchmarks; fails when one could not be measured.
pub async fn run(arguments: BenchArgs) -> Result<ExitCode> {
    let (hot_paths, cluster): (Vec<_>, Vec<_>) =
        arguments.names.iter().map(String::as_str).partition(|name| *name == HOT_PATHS);
    if !hot_paths.is_empty() && !cargo_bench(HOT_PATHS, &[]).await? {
        return Ok(ExitCode::FAILURE);
    }
    if !hot_paths.is_empty() && cluster.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    prerequisites::ensure(Prerequisite::all()).await?;
    let mut words = cluster;
    words.extend(arguments.quick.then_some("--quick"));
    let done = cargo_bench("cluster", &words).await?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn cargo_bench(target: &str, words: &[&str]) -> Result<bool> {
    let mut command = cargo("bench");
    // Static, as a release is built: less of it is resident. With a target of its own, the
    // flag holds for the program and not for build scripts and macros.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.args(["--package", "imagewarm", "--target", &triple, "--bench", target, "--"]);
    command.args(words).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // In our own process group: Ctrl-C reaches it as well.
    Ok(command.status().await.context("start cargo bench")?.success())
}
