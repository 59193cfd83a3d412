//! The fields that are read of Knative's `Revision` and `Image`, decoded tolerantly: a field of an
//! unexpected shape reads as absent, so that no single object can fail a list or a watch.

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use super::condition::Condition;
use super::lenient::{lenient, lenient_list};

/// Label of a Revision: `active`, `pending` or `reserve` (not routable).
pub const ROUTING_STATE_LABEL: &str = "serving.knative.dev/routingState";
/// Annotation of a Revision: since when its routing state is what it is, RFC 3339.
pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
/// Label of an Image: the Revision that it belongs to.
pub const REVISION_LABEL: &str = "serving.knative.dev/revision";
/// Label of a Revision: its Configuration.
pub const CONFIGURATION_LABEL: &str = "serving.knative.dev/configuration";
/// Label of a Configuration and its Revisions: their Service.
pub const SERVICE_LABEL: &str = "serving.knative.dev/service";

/// `spec` of a `serving.knative.dev/v1` Revision: the fields of the Pod's spec that are read.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    crates(kube_core = "::kube_core", k8s_openapi = "::k8s_openapi"),
    group = "serving.knative.dev",
    version = "v1",
    kind = "Revision",
    plural = "revisions",
    namespaced,
    status = "RevisionStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionSpec {
    /// The Revision's containers.
    #[serde(deserialize_with = "lenient_list")]
    pub containers: Vec<Container>,
    /// The Revision's init containers.
    #[serde(deserialize_with = "lenient_list")]
    pub init_containers: Vec<Container>,
    /// The volumes; of each only its image is read.
    #[serde(deserialize_with = "lenient_list", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Pull secrets as written; those of the ServiceAccount apply only when there are none.
    #[serde(deserialize_with = "lenient_list")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// ServiceAccount of the Pods; `default` when empty.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Node labels that the Pods select.
    #[serde(deserialize_with = "lenient")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the Pods tolerate.
    #[serde(deserialize_with = "lenient_list")]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the Pods; only required node affinity is read.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// RuntimeClass of the Pods.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
}

/// `spec` of a `serving.knative.dev/v1` Configuration.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    crates(kube_core = "::kube_core", k8s_openapi = "::k8s_openapi"),
    group = "serving.knative.dev",
    version = "v1",
    kind = "Configuration",
    plural = "configurations",
    namespaced,
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationSpec {
    /// The template of its next Revision.
    #[serde(deserialize_with = "lenient")]
    pub template: RevisionTemplate,
}

/// The template of a Revision.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionTemplate {
    /// `metadata` of the Revision, as the user writes it.
    #[serde(deserialize_with = "lenient")]
    pub metadata: TemplateMetadata,
    /// `spec` of the Revision.
    #[serde(deserialize_with = "lenient")]
    pub spec: RevisionSpec,
}

/// The metadata that the template of a Revision gives it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct TemplateMetadata {
    /// Labels.
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
}

/// A container of a Revision.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Container name; may be empty before Knative's own defaulting.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Image as the user wrote it.
    #[serde(deserialize_with = "lenient")]
    pub image: String,
    /// `Always`, `IfNotPresent`, `Never` or absent.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
}

/// A volume of a Revision.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// The image that is mounted, if it is an image volume.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
}

/// The source of an image volume.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageVolume {
    /// Image as the user wrote it.
    #[serde(deserialize_with = "lenient")]
    pub reference: String,
    /// `Always`, `IfNotPresent`, `Never` or absent.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<String>,
}

/// `status` of a Revision.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// Digests that Knative resolved, by container name.
    #[serde(deserialize_with = "lenient_list")]
    pub container_statuses: Vec<ContainerStatus>,
    /// The same for init containers.
    #[serde(deserialize_with = "lenient_list")]
    pub init_container_statuses: Vec<ContainerStatus>,
}

/// The digest that Knative resolved a container's tag to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Name of the container.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// `repository@sha256:…`; empty while not resolved.
    #[serde(deserialize_with = "lenient")]
    pub image_digest: String,
}

/// `spec` of a `caching.internal.knative.dev/v1alpha1` Image.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    crates(kube_core = "::kube_core", k8s_openapi = "::k8s_openapi"),
    group = "caching.internal.knative.dev",
    version = "v1alpha1",
    kind = "Image",
    root = "KnativeImage",
    plural = "images",
    namespaced,
    status = "KnativeImageStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct KnativeImageSpec {
    /// The image, usually by digest; empty means that there is nothing to warm.
    #[serde(deserialize_with = "lenient")]
    pub image: String,
    /// ServiceAccount whose pull secrets apply when none are named.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Pull secrets as the Revision names them.
    #[serde(deserialize_with = "lenient_list", skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// `status` of an Image: duck/v1.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct KnativeImageStatus {
    /// The generation that this status was computed from.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(deserialize_with = "lenient_list")]
    pub conditions: Vec<Condition>,
    /// Further details for tools.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The owner reference that names a Revision's Configuration, if there is one.
pub fn configuration_owner(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_ref()?.iter().find(|owner| {
        owner.kind == "Configuration" && owner.api_version.starts_with("serving.knative.dev/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_shapes_read_as_absent() -> Result<(), serde_json::Error> {
        let revision: Revision = serde_json::from_value(serde_json::json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "odd", "namespace": "default"},
            "spec": {
                "containers": [{"image": "a"}, 7, {"image": 8, "name": "b"}],
                "initContainers": null, "imagePullSecrets": "none", "nodeSelector": [1],
                "affinity": "north", "tolerations": [{"key": "k", "operator": "Exists"}, "x"],
                "volumes": [{"name": "v"}, {"image": 1}, {"image": {"reference": "m:1", "pullPolicy": 2}}],
            },
            "status": {"containerStatuses": {}, "conditions": 3},
        }))?;
        let images: Vec<_> = revision.spec.containers.iter().map(|c| c.image.as_str()).collect();
        assert_eq!(images, ["a", ""]);
        assert!(revision.spec.init_containers.is_empty());
        assert_eq!(revision.spec.tolerations.len(), 1);
        assert!(revision.spec.affinity.is_none());
        let volumes: Vec<_> = revision.spec.volumes.into_iter().map(|one| one.image).collect();
        let model = ImageVolume { reference: "m:1".into(), pull_policy: None };
        assert_eq!(volumes, [None, None, Some(model)]);
        Ok(())
    }

    #[test]
    fn the_owner_is_a_configuration_of_knative_serving() {
        let owner = |api_version: &str, kind: &str| {
            let owner = OwnerReference {
                api_version: api_version.into(),
                kind: kind.into(),
                name: "o".into(),
                uid: "u".into(),
                ..OwnerReference::default()
            };
            let metadata =
                ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() };
            configuration_owner(&metadata).is_some()
        };
        assert!(owner("serving.knative.dev/v1", "Configuration"));
        assert!(!owner("serving.knative.dev/v1", "Service"));
        assert!(!owner("example.com/v1", "Configuration"));
        assert!(configuration_owner(&ObjectMeta::default()).is_none());
    }

    #[test]
    fn a_missing_status_or_field_is_no_error() -> Result<(), serde_json::Error> {
        let image: KnativeImage = serde_json::from_value(serde_json::json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": {"name": "i"}, "spec": {},
        }))?;
        assert_eq!(image.spec.image, "");
        Ok(())
    }

    #[test]
    fn real_objects_read_and_keep_what_decides() -> Result<(), Box<dyn std::error::Error>> {
        let image: KnativeImage =
            serde_saphyr::from_str(include_str!("../../../tests/fixtures/knative/image.yaml"))?;
        assert!(image.spec.image.contains("/demo/app@sha256:"), "{:?}", image.spec);
        let labels = image.metadata.labels.unwrap_or_default();
        assert_eq!(labels.get(REVISION_LABEL).map(String::as_str), Some("hello-00001"));
        let review =
            include_str!("../../../tests/fixtures/knative/admission-review.image-create.json");
        let review: serde_json::Value = serde_json::from_str(review)?;
        let created: KnativeImage = serde_json::from_value(review["request"]["object"].clone())?;
        assert!(!created.spec.image.is_empty());
        let revisions = [
            include_str!("../../../tests/fixtures/knative/revision.yaml"),
            include_str!("../../../tests/fixtures/knative/revision.multi-container.yaml"),
            include_str!("../../../tests/fixtures/knative/revision.direct-undefaulted.yaml"),
        ];
        for text in revisions {
            let revision: Revision = serde_saphyr::from_str(text)?;
            assert!(revision.spec.containers.iter().all(|one| !one.image.is_empty()));
        }
        Ok(())
    }
}
