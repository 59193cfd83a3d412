//! Pull secrets and ServiceAccounts. Each credential that is written is searched for at the run's
//! end.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use xtask::cluster::USER;

use super::Namespace;
use crate::world::credentials;

impl Namespace {
    /// A pull secret for the private registry, with its password or another one.
    pub async fn pull_secret(&self, name: &str, password: Option<&str>) -> Result<()> {
        self.secret(name, &self.docker_config(password)?).await
    }

    /// A pull secret with this content: of the type for `{"auths": …}`, or else of the older one.
    pub async fn secret(&self, name: &str, content: &Value) -> Result<()> {
        let (kind, key) = match content.get("auths") {
            Some(_) => ("kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
            None => ("kubernetes.io/dockercfg", ".dockercfg"),
        };
        self.secret_of_type(name, kind, key, content).await
    }

    /// A Secret of any type with this content under one key.
    pub async fn secret_of_type(
        &self,
        name: &str,
        kind: &str,
        key: &str,
        content: &Value,
    ) -> Result<()> {
        self.remember_credentials(content);
        let content = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        let body = json!({"metadata": {"name": name}, "type": kind, "stringData": {key: content}});
        self.api::<Secret>().create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(())
    }

    /// Puts the right password into a pull secret.
    pub async fn correct_pull_secret(&self, name: &str) -> Result<()> {
        let content = self.docker_config(None)?.to_string();
        let body = json!({"stringData": {".dockerconfigjson": content}});
        let secrets = self.api::<Secret>();
        secrets.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn service_account(&self, name: &str, secrets: &[&str]) -> Result<()> {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let body = json!({"metadata": {"name": name}, "imagePullSecrets": secrets});
        let accounts = self.api::<ServiceAccount>();
        accounts.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        Ok(())
    }

    fn docker_config(&self, password: Option<&str>) -> Result<Value> {
        let registry = self.system.cluster.registry_tls.as_ref().context("no private registry")?;
        let config = match password {
            None => registry.docker_config_json(),
            Some(password) => registry.docker_config_json_with(USER, password),
        };
        Ok(serde_json::from_str(&config)?)
    }

    fn remember_credentials(&self, content: &Value) {
        for credential in credentials::found_in(content) {
            self.system.remember_credential(&credential);
        }
    }
}
