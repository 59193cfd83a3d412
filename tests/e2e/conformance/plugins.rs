//! The credential provider plugins of the nodes, and their configuration.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};
use serde_json::json;
use xtask::cluster::{Registry, USER};

/// Each provider, and what its plugin does; `$D` is the folder. Its images are those of its name.
const PROVIDERS: [(&str, &str); 4] = [
    ("identity", "cat > $D/request; echo call >> $D/calls; cat $D/answer.json"),
    ("crash", "cat $D/answer.json; exit 7"),
    ("hang", "cat $D/answer.json; echo call >> $D/hangs; sleep 600 & wait"),
    ("garbage", "echo call; cat $D/answer.json"),
];
/// A provider without a program.
pub const MISSING: &str = "missing";

/// The plugins of one node, and their configuration.
pub struct Plugins(tempfile::TempDir);

impl Plugins {
    /// Those of the node of a runtime.
    pub fn make(runtime: &str, registry: &Registry) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let password = registry.password.as_deref().context("a registry without password")?;
        let answer = json!({
            "kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "Registry",
            "auth": {&registry.address: {"username": USER, "password": password}},
        });
        fs::write(folder.path().join("answer.json"), answer.to_string())?;
        let mut providers = vec![];
        for (name, script) in PROVIDERS.into_iter().chain([(MISSING, "")]) {
            // The shell itself under the provider's name; the arguments are the script.
            if name != MISSING {
                symlink("/bin/sh", folder.path().join(name))?;
            }
            let path = format!("conformance/{}-{name}", runtime);
            providers.push(json!({
                "name": name,
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": [format!("{}/{path}", registry.address)],
                "defaultCacheDuration": "1h",
                "args": ["-c", script],
                "env": [{"name": "D", "value": folder.path()}],
            }));
        }
        let config = json!({
            "kind": "CredentialProviderConfig",
            "apiVersion": "kubelet.config.k8s.io/v1",
            "providers": providers,
        });
        fs::write(folder.path().join("config.yaml"), serde_saphyr::to_string(&config)?)?;
        Ok(Plugins(folder))
    }

    pub fn flags(&self) -> [String; 4] {
        let folder = self.0.path().display();
        [
            "--image-credential-provider-config".into(),
            format!("{folder}/config.yaml"),
            "--image-credential-provider-bin-dir".into(),
            folder.to_string(),
        ]
    }

    /// How often a plugin was called that writes this file.
    pub fn lines(&self, file: &str) -> usize {
        fs::read_to_string(self.0.path().join(file)).unwrap_or_default().lines().count()
    }
}
