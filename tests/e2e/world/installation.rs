//! What is installed: our manifests, webhook configurations and certificates, and Knative's CRDs.
//! After a test all of it is there again.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use imagewarm_core::api::deployment_config::DEPLOYMENT_CONFIG;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use xtask::cluster::{KNATIVE_NAMESPACE, NAMESPACE, manifests};

use super::controllers::Controllers;
use super::eventually;
use super::system::System;
use super::undo::Undo;

const SPOILED: &str = "not a certificate";
const CERTIFICATES: &str = "imagewarm-certs";
/// Of both webhook configurations.
const WEBHOOKS: &str = "imagewarm";

#[derive(Clone)]
pub struct Installation {
    system: Arc<System>,
    undo: Undo,
}

impl Installation {
    pub fn new(system: &Arc<System>, undo: &Undo) -> Installation {
        Installation { system: system.clone(), undo: undo.clone() }
    }

    fn mutating(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.system.client())
    }

    fn validating(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.system.client())
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.system.client(), NAMESPACE)
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.system.client(), NAMESPACE)
    }

    /// Deletes Knative's CRDs, and with them all their objects.
    pub async fn remove_knative(&self) -> Result<()> {
        let installation = self.clone();
        self.undo.register("Knative's CRDs", async move || installation.install_knative().await);
        self.system.cluster.remove_knative().await
    }

    pub async fn install_knative(&self) -> Result<()> {
        self.system.cluster.install_knative().await
    }

    /// Applies the shipped manifests, as every upgrade does.
    pub async fn apply(&self) -> Result<()> {
        self.system.cluster.apply_deploy().await
    }

    /// Applies, of rendered manifests, the controller's ClusterRole and the webhook configurations.
    pub async fn apply_role_and_webhooks(&self, rendered: Vec<Value>) -> Result<()> {
        let installation = self.clone();
        self.undo.register("role and webhooks", async move || installation.apply().await);
        let port = self.system.cluster.webhook.address().port();
        let is_wanted = |object: &Value| match object["kind"].as_str() {
            Some("MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => true,
            Some("ClusterRole") => object["metadata"]["name"] == "imagewarm-controller",
            _ => false,
        };
        let objects: Vec<Value> = rendered
            .into_iter()
            .filter(is_wanted)
            .map(|object| manifests::for_development(object, port))
            .collect();
        ensure!(objects.len() == 3, "{} of 3 objects are rendered", objects.len());
        manifests::apply(&self.system.client(), objects).await
    }

    /// Applies, of rendered manifests, the objects of this name, for the time of the test.
    pub async fn add(&self, rendered: Vec<Value>, name: &str) -> Result<()> {
        let objects: Vec<Value> =
            rendered.into_iter().filter(|object| object["metadata"]["name"] == name).collect();
        ensure!(!objects.is_empty(), "no object is called {name}");
        let (installation, added) = (self.clone(), objects.clone());
        self.undo.register(name, async move || {
            for object in added.iter().rev() {
                manifests::delete(&installation.system.client(), object).await?;
            }
            Ok(())
        });
        manifests::apply(&self.system.client(), objects).await
    }

    /// Deletes the objects of one shipped manifest.
    pub async fn delete(&self, manifest: &'static Path) -> Result<()> {
        let installation = self.clone();
        self.undo.register(&manifest.display().to_string(), async move || {
            installation.system.cluster.apply_manifests(manifest, Some).await
        });
        for object in manifests::read(manifest)? {
            manifests::delete(&self.system.client(), &object).await?;
        }
        Ok(())
    }

    /// A webhook configuration as another installation has it, for objects that nobody makes.
    pub async fn add_second_webhook_configuration(&self) -> Result<()> {
        const SECOND: &str = "imagewarm-second";
        let configuration = serde_json::from_value(json!({
            "metadata": {"name": SECOND},
            "webhooks": [{
                "name": "revisions.caching.knative.dev", "admissionReviewVersions": ["v1"],
                "sideEffects": "None", "failurePolicy": "Ignore",
                "clientConfig": {"url": "https://localhost:9/"},
                "rules": [{
                    "apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["nothings"],
                }],
            }],
        }))?;
        let all = self.mutating();
        self.undo.register(SECOND, async move || {
            all.delete(SECOND, &Default::default()).await?;
            Ok(())
        });
        self.mutating().create(&Default::default(), &configuration).await?;
        Ok(())
    }

    /// Grants a ServiceAccount what `imagewarm check` needs, and nothing else.
    pub async fn allow_check(&self, namespace: &str, account: &str) -> Result<()> {
        let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
        let binding = |kind: &str, place: Value, role: &str| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": place,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "imagewarm-check"},
                "subjects": subjects,
            })
        };
        let name = format!("check-{namespace}");
        let objects = vec![
            binding("ClusterRoleBinding", json!({"name": name}), "ClusterRole"),
            binding("RoleBinding", json!({"name": name, "namespace": NAMESPACE}), "Role"),
        ];
        self.add(objects, &name).await
    }

    /// A RuntimeClass whose Pods start on one node only.
    pub async fn create_runtime_class(&self, name: &str, node: &str) -> Result<()> {
        let scheduling = json!({"nodeSelector": {"kubernetes.io/hostname": node}});
        self.create_class(name, "sandbox", scheduling).await
    }

    /// A RuntimeClass of this handler, for any node.
    pub async fn create_runtime_class_of(&self, name: &str, handler: &str) -> Result<()> {
        self.create_class(name, handler, json!({})).await
    }

    async fn create_class(&self, name: &str, handler: &str, scheduling: Value) -> Result<()> {
        let classes: Api<RuntimeClass> = Api::all(self.system.client());
        let class = serde_json::from_value(json!({
            "metadata": {"name": name}, "handler": handler, "scheduling": scheduling,
        }))?;
        let (all, made) = (classes.clone(), name.to_owned());
        self.undo.register(&format!("RuntimeClass {name}"), async move || {
            all.delete(&made, &Default::default()).await?;
            Ok(())
        });
        classes.create(&Default::default(), &class).await?;
        Ok(())
    }

    /// Knative's ConfigMap `config-deployment` with this content and no other.
    pub async fn set_deployment_config(&self, data: Value) -> Result<()> {
        let configs: Api<ConfigMap> = Api::namespaced(self.system.client(), KNATIVE_NAMESPACE);
        let all = configs.clone();
        self.undo.register(DEPLOYMENT_CONFIG, async move || {
            all.delete(DEPLOYMENT_CONFIG, &Default::default()).await?;
            Ok(())
        });
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": DEPLOYMENT_CONFIG, "namespace": KNATIVE_NAMESPACE}, "data": data,
        });
        let params = PatchParams::apply("knative").force();
        configs.patch(DEPLOYMENT_CONFIG, &params, &Patch::Apply(config)).await?;
        Ok(())
    }

    /// Takes the CA out of one webhook of each configuration, as a careless apply would.
    pub async fn break_ca_bundles(&self) -> Result<()> {
        let installation = self.clone();
        // The leader writes it, once there is one again.
        self.undo.register("CA bundles", async move || {
            Controllers::new(&installation.system, &installation.undo).restore().await?;
            installation.until_ca_bundles_are_right().await
        });
        let body = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
        let patch = Patch::<()>::Json(serde_json::from_value(body)?);
        let params = PatchParams::default();
        self.mutating().patch(WEBHOOKS, &params, &patch).await?;
        self.validating().patch(WEBHOOKS, &params, &patch).await?;
        Ok(())
    }

    /// Puts the CA that warmers trust into all webhooks, as cert-manager's injector does. Waits until
    /// the leader has published it for warmers: by then it has read the configurations without a CA.
    pub async fn inject_ca_bundles(&self) -> Result<()> {
        let ca = eventually("the leader publishes the CA for warmers", async || {
            let map = self.config_maps().get_opt("imagewarm-dispatch-ca").await?;
            Ok(map.and_then(|map| map.data?.remove("ca.crt")))
        })
        .await?;
        let ca = json!(ByteString(ca.into_bytes()));
        let patch = |count: usize| -> Result<Patch<()>> {
            let place = |at| format!("/webhooks/{at}/clientConfig/caBundle");
            let add = (0..count).map(|at| json!({"op": "add", "path": place(at), "value": ca}));
            Ok(Patch::Json(serde_json::from_value(add.collect())?))
        };
        let params = PatchParams::default();
        self.mutating().patch(WEBHOOKS, &params, &patch(2)?).await?;
        self.validating().patch(WEBHOOKS, &params, &patch(1)?).await?;
        Ok(())
    }

    async fn client_configs(&self) -> Result<Vec<WebhookClientConfig>> {
        let mutating = self.mutating().get(WEBHOOKS).await?.webhooks.unwrap_or_default();
        let validating = self.validating().get(WEBHOOKS).await?.webhooks.unwrap_or_default();
        let mutating = mutating.into_iter().map(|webhook| webhook.client_config);
        Ok(mutating.chain(validating.into_iter().map(|webhook| webhook.client_config)).collect())
    }

    /// Whether both configurations trust the CA that the warmers trust, in all their webhooks.
    pub async fn ca_bundles_are_right(&self) -> Result<bool> {
        let map = self.config_maps().get("imagewarm-dispatch-ca").await?;
        let ca = map.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default();
        let webhooks = self.client_configs().await?;
        let is_right = |webhook: &WebhookClientConfig| {
            webhook.ca_bundle.as_ref().is_some_and(|bundle| bundle.0 == ca.as_bytes())
        };
        Ok(!webhooks.is_empty() && webhooks.iter().all(is_right))
    }

    pub async fn until_ca_bundles_are_right(&self) -> Result<()> {
        eventually("the leader publishes the CA", async || {
            Ok(self.ca_bundles_are_right().await?.then_some(()))
        })
        .await
    }

    /// Whether both configurations go with our Namespace.
    pub async fn webhooks_are_owned(&self) -> Result<bool> {
        let owners = [
            self.mutating().get(WEBHOOKS).await?.metadata.owner_references,
            self.validating().get(WEBHOOKS).await?.metadata.owner_references,
        ];
        Ok(owners.iter().all(|owners| {
            owners.iter().flatten().any(|o| o.kind == "Namespace" && o.name == NAMESPACE)
        }))
    }

    /// As if nothing but the controllers had been installed yet.
    pub async fn delete_webhooks_and_certificates(&self) -> Result<()> {
        let installation = self.clone();
        self.undo.register("webhook configurations", async move || installation.apply().await);
        self.mutating().delete(WEBHOOKS, &Default::default()).await?;
        self.validating().delete(WEBHOOKS, &Default::default()).await?;
        self.secrets().delete(CERTIFICATES, &Default::default()).await?;
        self.config_maps().delete("imagewarm-dispatch-ca", &Default::default()).await?;
        Ok(())
    }

    /// Puts something else into the Secret of the certificates.
    pub async fn spoil_certificates(&self) -> Result<()> {
        let installation = self.clone();
        self.undo.register("certificates", async move || {
            match installation.certificates_are_spoiled().await? {
                true => {
                    let undo = &installation.undo;
                    Controllers::new(&installation.system, undo)
                        .restart_with_new_certificates()
                        .await
                }
                false => Ok(()),
            }
        });
        let body = json!({"stringData": {"ca.crt": SPOILED, "tls.crt": SPOILED}});
        let secrets = self.secrets();
        secrets.patch(CERTIFICATES, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn certificates_are_spoiled(&self) -> Result<bool> {
        let data = self.secrets().get(CERTIFICATES).await?.data.unwrap_or_default();
        Ok(data.values().any(|value| value.0 == SPOILED.as_bytes()))
    }

    /// The CA that signs now, as the Secret has it.
    pub async fn signing_ca(&self) -> Result<String> {
        let secret = self.secrets().get(CERTIFICATES).await?;
        let all = secret.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default();
        let all = String::from_utf8(all.0)?;
        let end = "-----END CERTIFICATE-----";
        Ok(all.split(end).next().unwrap_or_default().to_owned())
    }
}
