//! `cargo xtask demo`.

use anyhow::Result;
use std::process::ExitCode;

/// .
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {}

/// .
pub async fn run(_arguments: DemoArgs) -> Result<ExitCode> {
    anyhow::bail!("not yet")
}
