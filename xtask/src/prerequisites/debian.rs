//! Programs that Debian packages: installed when we are root, else named in the error.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::Command;

use super::{find, is_root};
use crate::progress::Step;

/// A program and the Debian package that has it.
pub(super) type Packaged = (&'static str, &'static str);

/// Installs packages; while it runs, those that are installed start no service. Waits while another
/// program installs, as a new machine does by itself.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit
fi
apt-get update && apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
"#;

/// Installs the packages of those programs that are not there.
pub(super) async fn install(wanted: &[Packaged], cache: &Path) -> Result<()> {
    let mut packages: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() || find("apt-get").is_none() {
        bail!(
            "programs are missing; install these packages and try again: {list} \
             (on Debian, as root: apt-get install {list})"
        );
    }
    let step =
        Step { verb: "installing", past: "installed", what: list, about: Duration::from_secs(60) };
    step.run(apt_get(&packages, &cache.join("apt.log"))).await
}

async fn apt_get(packages: &[&str], log: &Path) -> Result<()> {
    let output = File::options().create(true).append(true).open(log)?;
    // In a group of its own, and not killed when this future is dropped: whatever ends this program,
    // no package is left half installed, and the policy is removed.
    let status = Command::new("sh")
        .args(["-c", INSTALL, "sh"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .await?;
    if !status.success() {
        bail!("apt-get install {} failed; see {}", packages.join(" "), log.display());
    }
    Ok(())
}
