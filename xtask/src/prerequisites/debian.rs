//! Programs that Debian packages: installed when we are root, else named in the error.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::Command;

use super::{find, is_root};
use crate::progress::Step;

/// A program and the Debian package that has it.
pub(super) type Packaged = (&'static str, &'static str);

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
    let _guard = NoServices::put()?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    for arguments in [vec!["update"], install] {
        let output = File::options().create(true).append(true).open(log)?;
        // Not killed when this future is dropped: dpkg would be left in the middle of a package.
        let status = Command::new("apt-get")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .await?;
        if !status.success() {
            bail!("apt-get {} failed; see {}", arguments.join(" "), log.display());
        }
    }
    Ok(())
}

/// While it lives, packages that are installed start no service.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn put() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}
