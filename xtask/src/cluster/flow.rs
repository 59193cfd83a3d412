//! Where the API server's priority and fairness puts an account's requests.

use anyhow::{Context, Result};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::{Api, Client, ResourceExt as _};

use super::{Cluster, control_plane};

/// Each answer names by uid what its request was put under.
const SCHEMA: &str = "x-kubernetes-pf-flowschema-uid";
const LEVEL: &str = "x-kubernetes-pf-prioritylevel-uid";

impl Cluster {
    /// A client with a token of the ServiceAccount, and nothing else.
    pub async fn client_for(&self, namespace: &str, service_account: &str) -> Result<Client> {
        control_plane::client_from(&self.kubeconfig_for(namespace, service_account).await?).await
    }

    /// The names of the FlowSchema and the priority level under which the client's GET of this path
    /// was served, or refused; nothing when they were replaced meanwhile.
    pub async fn flow_of(&self, client: &Client, path: &str) -> Result<Option<(String, String)>> {
        let request = http::Request::get(path).body(kube::client::Body::empty())?;
        let answer = client.send(request).await?;
        let uid = |header: &str| {
            let value = answer.headers().get(header);
            let value = value.with_context(|| format!("an answer without {header}"))?;
            anyhow::Ok(value.to_str()?.to_owned())
        };
        let (schema, level) = (uid(SCHEMA)?, uid(LEVEL)?);
        let schemas: Api<FlowSchema> = Api::all(self.client());
        let schemas = schemas.list(&Default::default()).await?;
        let levels: Api<PriorityLevelConfiguration> = Api::all(self.client());
        let levels = levels.list(&Default::default()).await?;
        let schema = schemas.iter().find(|it| it.uid().as_ref() == Some(&schema));
        let level = levels.iter().find(|it| it.uid().as_ref() == Some(&level));
        Ok(schema.zip(level).map(|(schema, level)| (schema.name_any(), level.name_any())))
    }
}
