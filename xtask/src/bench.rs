//! `cargo xtask bench`: builds the benchmarks as a release is built, and runs those against the
//! development cluster. What they measure is `benches/cluster/`; this only starts it.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::prerequisites;
use crate::workspace;

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
    tokio::task::spawn_blocking(prerequisites::ensure).await??;
    let mut words = cluster;
    words.extend(arguments.quick.then_some("--quick"));
    let done = cargo_bench("cluster", &words).await?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn cargo_bench(target: &str, words: &[&str]) -> Result<bool> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Static, as `deploy/Dockerfile` builds it: less of it is resident. With a target of its own, the
    // flag holds for the program and not for build scripts and macros.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.args(["bench", "--package", "imagewarm", "--target", &triple, "--bench", target, "--"]);
    command.args(words).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // `cargo run` has set these for this program; crates that mind them would be built anew each time.
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy();
        if own.starts_with("CARGO_PKG_") || own.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    // In our own process group: Ctrl-C reaches it as well.
    command.current_dir(workspace()).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command.status().await.context("start cargo bench")?.success())
}
