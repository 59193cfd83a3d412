//! `cargo xtask dist`: builds and runs the crate that makes releases. It depends on the program, and this crate
//! must not: the tests of the program depend on it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::workspace;

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args, Clone, Debug)]
pub struct DistArgs {
    /// What `cargo xtask dist --help` lists.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Runs it where the user is, since it takes paths.
pub async fn run(arguments: DistArgs) -> Result<ExitCode> {
    let status = cargo("run")
        .args(["--locked", "--quiet", "--package", "imagewarm-release", "--manifest-path"])
        .arg(workspace().join("Cargo.toml"))
        .arg("--")
        .args(arguments.arguments)
        .current_dir(std::env::current_dir()?)
        .status()
        .await
        .context("start cargo run")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
