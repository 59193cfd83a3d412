//! Cargo, started by a program that cargo itself has started.

use std::process::Stdio;

use tokio::process::Command;

use crate::workspace;

/// A cargo command in the workspace, killed when its future is dropped.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(workspace()).stdin(Stdio::null()).kill_on_drop(true);
    // `cargo run` has set these for this program; crates that mind them would be built anew each time.
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy();
        if own.starts_with("CARGO_PKG_") || own.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}
