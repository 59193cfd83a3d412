//! Programs that Go builds, and folders that come with their sources: from the modules beside this
//! crate into the user's cache.

use std::fs::File;
use std::path::{Path, PathBuf};
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
        cache_of(self.module, self.version)
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

/// Folders of the modules that a module of ours requires: copied once, since Go may empty its own
/// cache.
pub(super) struct GoFolders {
    /// The folder in the cache.
    pub(super) name: &'static str,
    /// Folder of the module, beside this crate's `src`.
    pub(super) module: &'static str,
    pub(super) version: &'static str,
    /// Name of the copy, required module, folder in that module.
    pub(super) sources: &'static [(&'static str, &'static str, &'static str)],
}

impl GoFolders {
    /// Where the copies are, if they are there.
    pub(super) fn find(&self) -> Result<Option<PathBuf>> {
        let copied = cache_of(self.module, self.version)?.join(self.name);
        Ok(copied.is_dir().then_some(copied))
    }

    /// Copies them if they are not there.
    pub(super) async fn ensure(&self) -> Result<()> {
        if self.find()?.is_some() {
            return Ok(());
        }
        let cache = cache_of(self.module, self.version)?;
        std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
        // Copied beside and renamed: what is in the cache is always whole.
        let stage = tempfile::Builder::new().prefix("copy-").tempdir_in(&cache)?;
        let copies = stage.path().join(self.name);
        for (name, required, folder) in self.sources {
            let source = self.folder_of(required).await?.join(folder);
            copy(&source, &copies.join(name))
                .with_context(|| format!("copy {}", source.display()))?;
        }
        std::fs::rename(&copies, cache.join(self.name))?;
        Ok(())
    }

    /// The folder of a required module, which is downloaded where it is missing.
    async fn folder_of(&self, required: &str) -> Result<PathBuf> {
        let go = find("go").with_context(|| {
            format!("the {} of {} are missing: install Go 1.26", self.name, self.module)
        })?;
        let output = Command::new(go)
            .args(["mod", "download", "-json", required])
            .current_dir(workspace().join("xtask").join(self.module))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("start go mod download")?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match answer["Dir"].as_str() {
            Some(folder) if output.status.success() => Ok(folder.into()),
            _ => bail!(
                "go mod download of {required} failed:\n{}{}",
                answer["Error"].as_str().unwrap_or_default(),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }
}

/// Copies a folder with all that is in it; the copies are ours to delete.
fn copy(source: &Path, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target)?;
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let copy_of_it = target.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &copy_of_it)?,
            // The modules' files are read-only, and so would be their copies.
            false => std::fs::write(copy_of_it, std::fs::read(entry.path())?)?,
        }
    }
    Ok(())
}

fn cache_of(module: &str, version: &str) -> Result<PathBuf> {
    cache_folder(&format!("{module}-{version}"))
}
