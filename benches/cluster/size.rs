//! What is shipped: how large, and made of how many crates.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Scale;
use crate::report::{Limit, Report, Series};
use crate::stage::BINARY;

/// Rows: megabytes of the program, and crates in it.
pub async fn run(_scale: Scale, report: &mut Report) -> Result<()> {
    let bytes = std::fs::metadata(BINARY)?.len() as f64;
    report.add("size of the program", "MB", Series::one(bytes / 1e6), Limit::None);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
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
    Ok(())
}
