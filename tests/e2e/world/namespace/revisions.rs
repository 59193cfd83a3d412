//! Revisions and their Configurations, made and changed as Knative does.

use anyhow::{Context, Result};
use imagewarm_core::api::Revision;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::Namespace;
use crate::world::eventually;

/// The spec of a Revision with one container for each image.
pub fn containers(images: &[&str]) -> Value {
    let containers: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(at, image)| json!({"name": format!("container-{at}"), "image": image}))
        .collect();
    json!({"containers": containers})
}

impl Namespace {
    fn configurations(&self) -> Api<DynamicObject> {
        let kind = ApiResource {
            group: "serving.knative.dev".into(),
            version: "v1".into(),
            api_version: "serving.knative.dev/v1".into(),
            kind: "Configuration".into(),
            plural: "configurations".into(),
        };
        Api::namespaced_with(self.client(), &self.name, &kind)
    }

    /// Creates a Revision as Knative's controller does: of the Configuration that its name names
    /// (`hello-00001` is of `hello`), with the Configuration's labels and owner reference.
    pub async fn revision(&self, name: &str, spec: Value) -> Result<Revision> {
        self.revision_with(name, json!({}), spec).await
    }

    pub async fn revision_with(
        &self,
        name: &str,
        annotations: Value,
        spec: Value,
    ) -> Result<Revision> {
        self.post_revision(name, annotations, spec, false).await
    }

    pub async fn dry_run_revision(&self, name: &str, spec: Value) -> Result<()> {
        self.post_revision(name, json!({}), spec, true).await.map(drop)
    }

    async fn post_revision(
        &self,
        name: &str,
        annotations: Value,
        spec: Value,
        dry_run: bool,
    ) -> Result<Revision> {
        let configuration = name.rsplit_once('-').map_or(name, |(configuration, _)| configuration);
        let owner = self.configuration(configuration, &spec).await?;
        let uid = owner.metadata.uid.context("the Configuration has no uid")?;
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {
                "name": name, "annotations": annotations,
                "labels": {
                    "serving.knative.dev/configuration": configuration,
                    "serving.knative.dev/configurationUID": uid,
                    "serving.knative.dev/routingState": "active",
                },
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
                    "name": configuration, "uid": uid, "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
            "spec": spec,
        });
        let kind = ApiResource::erase::<Revision>(&());
        let revisions: Api<DynamicObject> = Api::namespaced_with(self.client(), &self.name, &kind);
        let params = PostParams { dry_run, ..PostParams::default() };
        let made = revisions.create(&params, &serde_json::from_value(body)?).await?;
        Ok(serde_json::from_value(serde_json::to_value(made)?)?)
    }

    /// The Configuration with this template, as it is before Knative makes a Revision of it.
    async fn configuration(&self, name: &str, template: &Value) -> Result<DynamicObject> {
        let configurations = self.configurations();
        let spec = json!({"template": {"spec": template}});
        if configurations.get_opt(name).await?.is_some() {
            let body = Patch::Merge(json!({"spec": spec}));
            return Ok(configurations.patch(name, &PatchParams::default(), &body).await?);
        }
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
            "metadata": {"name": name}, "spec": spec,
        });
        Ok(configurations.create(&PostParams::default(), &serde_json::from_value(body)?).await?)
    }

    async fn patch_revision(&self, name: &str, body: Value) -> Result<()> {
        let revisions = self.api::<Revision>();
        revisions.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Writes the digests that Knative found into the Revision's status.
    pub async fn resolve(&self, name: &str, digests: &[(&str, &str)]) -> Result<()> {
        let statuses: Vec<_> = digests
            .iter()
            .map(|(container, image)| json!({"name": container, "imageDigest": image}))
            .collect();
        let body = json!({"status": {"containerStatuses": statuses}});
        let revisions = self.api::<Revision>();
        revisions.patch_status(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Sets whether a Revision may get traffic, as Knative does.
    pub async fn route(&self, name: &str, state: &str) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let body = json!({"metadata": {
            "labels": {"serving.knative.dev/routingState": state},
            "annotations": {"serving.knative.dev/routingStateModified": now},
        }});
        self.patch_revision(name, body).await
    }

    /// Makes a Revision one of a Service, as Knative does.
    pub async fn of_service(&self, name: &str, service: &str) -> Result<()> {
        let labels = json!({"serving.knative.dev/service": service});
        self.patch_revision(name, json!({"metadata": {"labels": labels}})).await
    }

    pub async fn delete_revision(&self, name: &str) -> Result<()> {
        self.api::<Revision>().delete(name, &Default::default()).await?;
        Ok(())
    }

    pub async fn delete_configuration(&self, name: &str) -> Result<()> {
        self.configurations().delete(name, &Default::default()).await?;
        Ok(())
    }

    /// Keeps a Revision, once deleted, in the terminating state.
    pub async fn hold_revision(&self, name: &str) -> Result<()> {
        let (namespace, held) = (self.clone(), name.to_owned());
        self.undo.register(&format!("finalizer of {name} in {}", self.name), async move || {
            match namespace.release_revision(&held).await {
                Err(error) if !is_not_found(&error) => Err(error),
                _ => Ok(()),
            }
        });
        self.patch_revision(name, json!({"metadata": {"finalizers": ["tests.example/held"]}})).await
    }

    pub async fn release_revision(&self, name: &str) -> Result<()> {
        self.patch_revision(name, json!({"metadata": {"finalizers": null}})).await
    }

    /// Keeps a Configuration, once deleted, in the terminating state.
    pub async fn hold_configuration(&self, name: &str) -> Result<()> {
        let (namespace, held) = (self.clone(), name.to_owned());
        self.undo.register(&format!("finalizer of {name} in {}", self.name), async move || {
            match namespace.release_configuration(&held).await {
                Err(error) if !is_not_found(&error) => Err(error),
                _ => Ok(()),
            }
        });
        self.set_finalizers_of_configuration(name, Some("tests.example/held")).await
    }

    pub async fn release_configuration(&self, name: &str) -> Result<()> {
        self.set_finalizers_of_configuration(name, None).await
    }

    async fn set_finalizers_of_configuration(&self, name: &str, one: Option<&str>) -> Result<()> {
        let body = json!({"metadata": {"finalizers": one.map(|one| [one])}});
        let configurations = self.configurations();
        configurations.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// Refuses every Revision of the namespace after the mutating webhooks; returns once the API
    /// server enforces it.
    pub async fn refuse_revisions(&self) -> Result<()> {
        let name = format!("refuse-revisions-{}", self.name);
        let policies = [
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": name},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": ["serving.knative.dev"], "apiVersions": ["*"],
                        "operations": ["CREATE"], "resources": ["revisions"],
                    }]},
                    "validations": [{"expression": "false", "message": "refused by the test"}],
                },
            }),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {
                    "policyName": name, "validationActions": ["Deny"],
                    "matchResources": {"namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": self.name},
                    }},
                },
            }),
        ];
        for policy in policies {
            let object: DynamicObject = serde_json::from_value(policy)?;
            let types = object.types.clone().context("the policy has a kind")?;
            let kind = ApiResource::from_gvk(&types.try_into()?);
            let api: Api<DynamicObject> = Api::all_with(self.client(), &kind);
            api.create(&PostParams::default(), &object).await?;
        }
        eventually("the policy is enforced", async || {
            let probe = self.dry_run_revision("probe-00001", containers(&[])).await;
            Ok(probe.is_err().then_some(()))
        })
        .await
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}
