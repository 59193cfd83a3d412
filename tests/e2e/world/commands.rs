//! Commands that people run.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::prerequisites::Prerequisite;

use super::system::System;
use super::{BINARY, DEADLINE};

#[derive(Clone)]
pub struct Commands {
    system: Arc<System>,
}

impl Commands {
    pub fn new(system: &Arc<System>) -> Commands {
        Commands { system: system.clone() }
    }

    /// Runs `imagewarm` as an operator does; returns its exit code and what it printed.
    pub async fn imagewarm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.run(BINARY.as_ref(), arguments, &[]).await
    }

    /// The same, with more environment variables.
    pub async fn imagewarm_with(
        &self,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<(i32, String)> {
        self.run(BINARY.as_ref(), arguments, variables).await
    }

    /// Runs `kubectl`, which must succeed; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let (code, output) = self.run(self.system.cluster.kubectl()?, arguments, &[]).await?;
        if code != 0 {
            bail!("kubectl {arguments:?} exited with {code}:\n{output}");
        }
        Ok(output)
    }

    /// Runs `helm`, which keeps its own settings in the cluster's folder; returns its exit code and what it
    /// printed.
    pub async fn helm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let cluster = &self.system.cluster;
        let folder = cluster.folder().join("helm").display().to_string();
        let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"];
        let homes = homes.map(|home| (home, folder.clone()));
        self.run(cluster.program(Prerequisite::Helm)?, arguments, &homes).await
    }

    /// The same; it must succeed.
    pub async fn helm_well(&self, arguments: &[&str]) -> Result<String> {
        let (code, output) = self.helm(arguments).await?;
        if code != 0 {
            bail!("helm {arguments:?} exited with {code}:\n{output}");
        }
        Ok(output)
    }

    /// Renders a shipped overlay with `kubectl kustomize`, with this file in its folder.
    pub async fn overlay_with(&self, name: &str, file: (&str, &str)) -> Result<Vec<Value>> {
        let copy = tempfile::tempdir()?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["deploy", "overlays"] {
            copy_folder(&root.join(folder), &copy.path().join(folder))?;
        }
        let overlay = copy.path().join("overlays").join(name);
        std::fs::write(overlay.join(file.0), file.1)?;
        let output = self.kubectl(&["kustomize", &overlay.display().to_string()]).await?;
        Ok(serde_saphyr::from_multiple(&output)?)
    }

    async fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<(i32, String)> {
        let command = tokio::process::Command::new(program)
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("KUBECONFIG", self.system.cluster.kubeconfig_path())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, command)
            .await
            .with_context(|| format!("{program:?} {arguments:?} did not end"))??;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&printed).into_owned()))
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?.path();
        let to = to.join(entry.file_name().context("a file without name")?);
        match entry.is_dir() {
            true => copy_folder(&entry, &to)?,
            false => drop(std::fs::copy(&entry, &to)?),
        }
    }
    Ok(())
}
