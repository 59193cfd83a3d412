//! What a release is made of: version, revision, and the one point in time that its files have.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use crate::workspace;

/// The version that is released.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the program is for, in a line.
pub(crate) const DESCRIPTION: &str =
    "Warms container images on every node the moment a Knative Revision is created";

/// The sources that a release is made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// The commit; `-dirty` after it when files differ from it. Empty outside of a checkout.
    pub revision: String,
    /// Seconds since 1970 that every file of the release has.
    pub epoch: u64,
    /// Where the sources are on the web, if that is known.
    pub repository: Option<String>,
}

impl Source {
    /// Reads the commit of the checkout. `SOURCE_DATE_EPOCH` replaces its time.
    pub fn of_checkout(repository: Option<String>) -> Result<Self> {
        let set = std::env::var("SOURCE_DATE_EPOCH").ok();
        let revision = git(&["rev-parse", "HEAD"]).unwrap_or_default();
        let epoch = match &set {
            Some(text) => text.clone(),
            None => git(&["log", "-1", "--format=%ct"]).context(
                "the sources are no git checkout: set SOURCE_DATE_EPOCH to the seconds since 1970 that \
                 the files of the release are to have",
            )?,
        };
        let epoch = epoch.parse().with_context(|| {
            format!("SOURCE_DATE_EPOCH is {epoch:?}: it must be a number of seconds since 1970")
        })?;
        let changed = !revision.is_empty() && !git(&["status", "--porcelain"])?.is_empty();
        let revision = if changed { format!("{revision}-dirty") } else { revision };
        Ok(Self { revision, epoch, repository })
    }

    /// The time of the release as RFC 3339 has it.
    pub(crate) fn time(&self) -> Result<String> {
        let time = Timestamp::from_second(i64::try_from(self.epoch)?)
            .context("SOURCE_DATE_EPOCH is no point in time")?;
        Ok(time.to_string())
    }
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output()
        .context("start git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
