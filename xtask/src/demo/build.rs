//! Builds the `imagewarm` that the demo runs, as tests build it: `cargo xtask` itself has compiled
//! most of its dependencies in that profile already.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::cargo;
use crate::progress::Step;

/// Builds the program and returns its path.
pub(super) async fn imagewarm() -> Result<PathBuf> {
    let step = Step {
        verb: "building",
        past: "built",
        what: "imagewarm".to_owned(),
        about: Duration::from_secs(180),
    };
    step.run(build()).await
}

async fn build() -> Result<PathBuf> {
    // Quiet, and its output kept: other steps print their lines at the same time.
    let output = cargo("build")
        .args(["--quiet", "--package", "imagewarm", "--bin", "imagewarm"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::piped())
        .output()
        .await
        .context("start cargo build")?;
    if !output.status.success() {
        bail!("imagewarm does not build:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo build names no program")
}

/// The program that cargo's messages name, one JSON object a line: wherever the target folder is.
fn executable(messages: &str) -> Option<PathBuf> {
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    messages.find_map(|message: Value| Some(PathBuf::from(message["executable"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_one_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
             {\"reason\":\"compiler-artifact\",\"executable\":\"/target/debug/imagewarm\"}\n\
             {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/target/debug/imagewarm")));
        assert_eq!(executable("{\"reason\":\"build-finished\",\"success\":true}"), None);
    }
}
