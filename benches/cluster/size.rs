//! The shipped program: its size, the number of its crates, and its build time.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::{BINARY, seconds};

/// Rows: megabytes of the program, crates in it, and in a full run a build from nothing.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let bytes = std::fs::metadata(BINARY)?.len() as f64;
    report.add("size of the program", "MB", Series::one(bytes / 1e6), Limit::None);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(&cargo)
        .args(["tree", "--package", "imagewarm", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--offline"])
        .current_dir(xtask::workspace())
        .output()
        .context("start cargo tree")?;
    ensure!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8_lossy(&tree.stdout);
    let crates: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split(" (").next()).filter(|l| !l.is_empty()).collect();
    let others = crates.len().saturating_sub(1);
    report.add("crates that it is made of", "crates", Series::one(others as f64), Limit::None);
    // Some minutes: not in a quick run.
    if !scale.pick(true, false) {
        let folder = tempfile::tempdir()?;
        let began = Instant::now();
        let built = Command::new(cargo)
            .args(["build", "--release", "--package", "imagewarm", "--bin", "imagewarm", "--quiet"])
            .args(["--offline", "--target-dir"])
            .arg(folder.path())
            .current_dir(xtask::workspace())
            .stdin(Stdio::null())
            .status()
            .context("start cargo build")?;
        ensure!(built.success(), "the program could not be built");
        let took = Series::one(seconds(began, Instant::now()));
        report.add("release build from nothing, crates downloaded before", "s", took, Limit::None);
    }
    Ok(())
}
