//! The manifest with which krew, kubectl's plugin manager, installs the program as `kubectl imagewarm`.

use anyhow::Result;
use serde_json::{Value, json};

use crate::platform::Platform;
use crate::source::{DESCRIPTION, VERSION};

/// An archive that can be downloaded.
pub(crate) struct Download {
    pub(crate) platform: Platform,
    pub(crate) url: String,
    pub(crate) sha256: String,
    /// The folder in the archive that has everything.
    pub(crate) folder: String,
}

/// The manifest for these archives, with the project's page.
pub(crate) fn manifest(downloads: &[Download], homepage: &str) -> Result<String> {
    let platforms: Vec<Value> = downloads
        .iter()
        .map(|download| {
            let from =
                |file: &str| json!({"from": format!("{}/{file}", download.folder), "to": "."});
            json!({
                "selector": {"matchLabels": {
                    "os": "linux",
                    "arch": download.platform.architecture(),
                }},
                "uri": download.url,
                "sha256": download.sha256,
                "files": [from("imagewarm"), from("licenses/*")],
                "bin": "imagewarm",
            })
        })
        .collect();
    let manifest = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "imagewarm"},
        "spec": {
            "version": format!("v{VERSION}"),
            "homepage": homepage,
            "shortDescription": "Show which images are warm on which nodes",
            "description": format!(
                "{DESCRIPTION}.\nThis is its command line: status of images and nodes, a report of what \
                 warming was worth,\ncertificates, and settings of runtimes. The controller and the warmers \
                 are installed in the cluster.\n"
            ),
            "platforms": platforms,
        },
    });
    Ok(serde_saphyr::to_string(&manifest)?)
}
