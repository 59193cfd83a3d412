//! Programs that Go builds, from the modules beside this crate into the user's cache.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::{cache_folder, find};
use crate::progress::Step;
use crate::workspace;

/// A program of a module of ours, which names its version.
pub(super) struct GoProgram {
    pub(super) name: &'static str,
    /// Folder of the module, beside this crate's `src`.
    pub(super) module: &'static str,
    pub(super) version: &'static str,
    pub(super) package: &'static str,
    /// Build tags.
    pub(super) tags: &'static str,
    /// The variable that the linker sets to the version, if there is one.
    pub(super) version_variable: Option<&'static str>,
    /// Whether one that is installed already is taken, of whatever version.
    pub(super) any_version: bool,
    /// How long its build takes the first time, after those that come before it.
    pub(super) about: Duration,
}

impl GoProgram {
    /// Where it is, installed or built.
    pub(super) fn find(&self) -> Result<Option<PathBuf>> {
        if let Some(installed) = self.any_version.then(|| find(self.name)).flatten() {
            return Ok(Some(installed));
        }
        let built = self.cache()?.join(self.name);
        Ok(built.is_file().then_some(built))
    }

    fn cache(&self) -> Result<PathBuf> {
        cache_folder(&format!("{}-{}", self.module, self.version))
    }

    /// Builds it if it is not there.
    pub(super) async fn ensure(&self) -> Result<()> {
        if self.find()?.is_some() {
            return Ok(());
        }
        let what = format!("{} {}", self.name, self.version);
        let step = Step { verb: "building", past: "built", what, about: self.about };
        step.run(self.build()).await
    }

    async fn build(&self) -> Result<()> {
        let (name, cache) = (self.name, self.cache()?);
        let go = find("go").with_context(|| {
            format!(
                "{name} is missing, and so is Go to build it: install Go 1.26, or set \
                 KUBEBUILDER_ASSETS to a folder that has {name}"
            )
        })?;
        std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
        // Built beside and renamed: what is in the cache is always whole.
        let stage = tempfile::Builder::new().prefix("build-").tempdir_in(&cache)?;
        let built = stage.path().join(name);
        let log = cache.join(format!("{name}.build.log"));
        let output = File::create(&log)?;
        let version = self.version_variable.map(|name| format!("-X {name}={}", self.version));
        let status = Command::new(go)
            .args(["build", "-trimpath", "-ldflags"])
            .arg(format!("-s -w {}", version.unwrap_or_default()))
            // The linker would drop it: without it compilers have a seventh less to do.
            .arg("-gcflags=all=-dwarf=false")
            .args(["-tags", self.tags, "-o"])
            .arg(&built)
            .arg(self.package)
            .current_dir(workspace().join("xtask").join(self.module))
            .env("CGO_ENABLED", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .status()
            .await
            .context("start go build")?;
        if !status.success() {
            let reason = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("go build of {name} failed:\n{}", reason.trim());
        }
        std::fs::rename(&built, cache.join(name))?;
        Ok(())
    }
}
