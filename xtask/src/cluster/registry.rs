//! The two registries: a plain one on loopback, and one with TLS and a password on an address of
//! its own network namespace, since dockerd trusts anything on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::certificates::{Authority, Identity};
use super::control_plane::write_private;
use super::network::{Network, run};
use crate::images::TestImage;
use crate::ports::Port;
use crate::prerequisites::{Prerequisite, Programs};
use crate::process::Program;
use crate::restartable::Restartable;
use crate::upload::Target;

/// User name that the registry with TLS asks for.
pub const USER: &str = "warm";

const START: Duration = Duration::from_secs(20);

/// A running registry.
pub struct Registry {
    /// `host:port`, as image references name it.
    pub address: String,
    /// The password of [`USER`], where the registry asks for one.
    pub password: Option<String>,
    /// The authority that a client must trust, where the registry speaks TLS.
    pub ca_pem: Option<String>,
    client: kube::Client,
    program: Restartable,
    // Dropped after the registry that runs in it.
    _network: Option<Network>,
    _port: Option<Port>,
}

impl Registry {
    pub(super) async fn plain(programs: &Programs, sandbox: &Path) -> Result<Self> {
        let port = Port::reserve()?;
        let address = port.address().to_string();
        let folder = sandbox.join("registry-plain");
        let settings = write_settings(&folder, json!({"addr": address}), None)?;
        let registry = Self {
            client: client(&format!("http://{address}"), None, None)?,
            address,
            password: None,
            ca_pem: None,
            program: Restartable::new("registry-plain", program(programs, &settings)?, sandbox),
            _network: None,
            _port: Some(port),
        };
        registry.start().await?;
        Ok(registry)
    }

    pub(super) async fn with_tls(
        programs: &Programs,
        sandbox: &Path,
        name: &'static str,
    ) -> Result<Self> {
        let folder = sandbox.join(name);
        fs::create_dir_all(&folder)?;
        let network = Network::create(programs, &folder, sandbox).await?;
        let address = format!("{}:5000", network.address);
        let authority = Authority::new("imagewarm development registry")?;
        let pair = authority.issue(Identity::server(&[&network.address]))?;
        fs::write(folder.join("tls.crt"), pair.certificate)?;
        fs::write(folder.join("tls.key"), pair.key)?;
        let password = format!("{:016x}", rand::random::<u64>());
        let passwords = folder.join("htpasswd");
        let line =
            run(Command::new(programs.path(Prerequisite::Htpasswd)?)
                .args(["-Bbn", USER, &password]))?;
        write_private(&passwords, line.trim())?;
        let http = json!({
            "addr": address,
            "tls": {"certificate": folder.join("tls.crt"), "key": folder.join("tls.key")},
        });
        let auth = json!({"htpasswd": {"realm": "development", "path": passwords}});
        let settings = write_settings(&folder, http, Some(auth))?;
        let registry = Self {
            client: client(&format!("https://{address}"), Some(&authority), Some(&password))?,
            address,
            password: Some(password),
            ca_pem: Some(authority.pem()),
            program: Restartable::new(
                name,
                network.program(program(programs, &settings)?),
                sandbox,
            ),
            _network: Some(network),
            _port: None,
        };
        registry.start().await?;
        Ok(registry)
    }

    /// Makes an image, pushes it, and returns the digest under which it is served.
    pub async fn push(&self, image: &TestImage, repository: &str, tag: &str) -> Result<String> {
        let pushed = image.push(&self.client, repository, tag).await;
        pushed.with_context(|| format!("push {}", self.image(repository, tag)))
    }

    /// Pushes the image of an OCI layout, and returns the digest under which it is served.
    pub async fn push_layout(&self, layout: &Path, repository: &str, tag: &str) -> Result<String> {
        let target = Target { registry: &self.client, repository };
        let pushed = target.layout(layout, tag).await;
        pushed.with_context(|| format!("push {}", self.image(repository, tag)))
    }

    /// `host:port/repository:tag`.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// `.dockerconfigjson` of a pull secret with the right user and password.
    pub fn docker_config_json(&self) -> String {
        self.docker_config_json_with(USER, self.password.as_deref().unwrap_or_default())
    }

    /// The same with the given user and password, right or wrong.
    pub fn docker_config_json_with(&self, user: &str, password: &str) -> String {
        json!({"auths": {&self.address: {"username": user, "password": password}}}).to_string()
    }

    /// Everything that it logged, an access log among it.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Starts it again after [`Registry::stop`].
    pub async fn start(&self) -> Result<()> {
        let answers = async || {
            let request = http::Request::get("/v2/").body(Vec::new()).ok()?;
            self.client.request_text(request).await.ok()
        };
        self.program.start(START, answers).await
    }

    /// Kills it; connections are refused from now on. What was pushed is kept.
    pub fn stop(&self) {
        self.program.kill();
    }

    /// Freezes it: connections are taken and never answered.
    pub fn freeze(&self) {
        self.program.freeze();
    }

    /// Ends a [`Registry::freeze`].
    pub fn thaw(&self) {
        self.program.thaw();
    }
}

fn program(programs: &Programs, settings: &Path) -> Result<Program> {
    let registry = programs.path(Prerequisite::DockerRegistry)?;
    Ok(Program::new(registry).arg("serve").arg(settings))
}

fn write_settings(
    folder: &Path,
    http: serde_json::Value,
    auth: Option<serde_json::Value>,
) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let mut settings = json!({
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {
            "filesystem": {"rootdirectory": folder.join("data")},
            "delete": {"enabled": true},
        },
        "http": http,
    });
    if let Some(auth) = auth {
        settings["auth"] = auth;
    }
    // JSON is YAML.
    let path = folder.join("settings.yml");
    fs::write(&path, settings.to_string())?;
    Ok(path)
}

/// kube's client is a plain HTTP client with TLS and basic authentication, all that is needed here.
fn client(
    url: &str,
    authority: Option<&Authority>,
    password: Option<&str>,
) -> Result<kube::Client> {
    let mut config = kube::Config::new(url.parse()?);
    config.root_cert = authority.map(|authority| vec![authority.der()]);
    if let Some(password) = password {
        config.auth_info.username = Some(USER.to_owned());
        config.auth_info.password = Some(password.to_owned().into());
    }
    Ok(kube::Client::try_from(config)?)
}
