//! The objects of the demo: images, a pull secret, a Configuration and its Revision.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Registry, manifests};
use crate::images::TestImage;
use crate::wait::wait_for;

/// The namespace of the demo.
pub(super) const NAMESPACE: &str = "demo";
const REVISION: &str = "shop-00001";
const SECRET: &str = "registry-password";
const MIB: usize = 1 << 20;

/// An image of the Revision.
#[derive(Clone)]
pub(super) struct SceneImage {
    /// As the Revision names it.
    pub(super) reference: String,
    /// The same by digest.
    pub(super) by_digest: String,
    /// Without registry, for people.
    pub(super) short: String,
    pub(super) bytes: u64,
}

pub(super) struct Scene {
    pub(super) images: Vec<SceneImage>,
    configuration_uid: String,
}

impl Scene {
    /// Pushes the images and makes all but the Revision.
    pub(super) async fn prepare(cluster: &Cluster) -> Result<Self> {
        let plain = &cluster.registry_plain;
        let tls = cluster.registry_tls.as_ref().context("the demo needs the private registry")?;
        let web = push(plain, "shop/web", &[20 * MIB, 10 * MIB, 4 * MIB]).await?;
        let ledger = push(tls, "shop/ledger", &[32 * MIB, 16 * MIB, 8 * MIB]).await?;
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": tls.docker_config_json()},
        });
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        });
        manifests::apply(&cluster.client(), vec![namespace, secret]).await?;
        let images = vec![web, ledger];
        let mut scene = Self { images, configuration_uid: String::new() };
        let (api, resource) = knative(cluster, "Configuration");
        let template = json!({"template": {"spec": scene.revision_spec()}});
        let configuration = DynamicObject::new("shop", &resource).data(json!({"spec": template}));
        let created = api.create(&PostParams::default(), &configuration).await?;
        scene.configuration_uid = created.metadata.uid.context("a Configuration without uid")?;
        Ok(scene)
    }

    /// Creates the Revision as Knative's controller would, and returns its name.
    pub(super) async fn create_revision(&self, cluster: &Cluster) -> Result<String> {
        let (api, _) = knative(cluster, "Revision");
        let revision: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {
                "name": REVISION,
                "labels": {
                    "serving.knative.dev/configuration": "shop",
                    "serving.knative.dev/configurationGeneration": "1",
                    "serving.knative.dev/configurationUID": self.configuration_uid,
                    "serving.knative.dev/routingState": "active",
                },
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1",
                    "kind": "Configuration",
                    "name": "shop",
                    "uid": self.configuration_uid,
                    "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
            "spec": self.revision_spec(),
        }))?;
        api.create(&PostParams::default(), &revision).await.context("create the Revision")?;
        Ok(REVISION.to_owned())
    }

    fn revision_spec(&self) -> Value {
        let names = ["web", "ledger"];
        let containers =
            self.images.iter().zip(names).map(
                |(image, name)| json!({"name": name, "image": image.reference, "resources": {}}),
            );
        json!({
            "containerConcurrency": 0,
            "containers": containers.collect::<Vec<_>>(),
            "enableServiceLinks": false,
            "imagePullSecrets": [{"name": SECRET}],
            "timeoutSeconds": 300,
        })
    }

    /// An ImageWarm that nobody should accept.
    pub(super) fn malformed(&self) -> Value {
        json!({
            "apiVersion": "caching.knative.dev/v1alpha1",
            "kind": "ImageWarm",
            "metadata": {"name": "malformed", "namespace": NAMESPACE},
            "spec": {
                "image": "registry.example.com/Shop/Web:v1",
                "nodeName": "node-1",
                "imagePullSecrets": [{"name": "no-such-secret"}],
            },
        })
    }

    /// Waits until the API server has seen the webhooks' certificate authority: then a malformed
    /// ImageWarm is refused by the webhook, and not for want of a connection.
    pub(super) async fn wait_for_admission(&self, cluster: &Cluster) -> Result<()> {
        let api = image_warms(cluster);
        let malformed: DynamicObject = serde_json::from_value(self.malformed())?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        wait_for(Duration::from_secs(20), "admission to work", async || {
            match api.create(&params, &malformed).await {
                Err(kube::Error::Api(status)) if status.message.contains("spec.image") => Some(()),
                _ => None,
            }
        })
        .await
    }
}

async fn push(registry: &Registry, repository: &str, layers: &[usize]) -> Result<SceneImage> {
    let digest = registry.push(&TestImage::new(layers), repository, "v1").await?;
    Ok(SceneImage {
        reference: registry.image(repository, "v1"),
        by_digest: format!("{}/{repository}@{digest}", registry.address),
        short: format!("{repository}:v1"),
        bytes: layers.iter().map(|layer| *layer as u64).sum(),
    })
}

/// The demo's ImageWarms.
pub(super) fn image_warms(cluster: &Cluster) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("caching.knative.dev", "v1alpha1", "ImageWarm");
    Api::namespaced_with(cluster.client(), NAMESPACE, &ApiResource::from_gvk(&kind))
}

fn knative(cluster: &Cluster, kind: &str) -> (Api<DynamicObject>, ApiResource) {
    let kind = GroupVersionKind::gvk("serving.knative.dev", "v1", kind);
    let resource = ApiResource::from_gvk(&kind);
    (Api::namespaced_with(cluster.client(), NAMESPACE, &resource), resource)
}
