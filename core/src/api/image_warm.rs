//! `ImageWarm`: the assignment of one image to one node, and its status. The field docs below are
//! the CRD's documentation (`kubectl explain imagewarm`).
// The lint reports the equal types of the columns as duplicates.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, READY, Reason};

/// ImageWarm assigns one image to one node, and reports the state of its pull. One exists for each
/// namespace, image and node that a Knative Revision needs; one can also be created by hand.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    crates(kube_core = "::kube_core", k8s_openapi = "::k8s_openapi"),
    group = "caching.knative.dev",
    version = "v1alpha1",
    kind = "ImageWarm",
    plural = "imagewarms",
    shortname = "iw",
    category = "knative",
    namespaced,
    status = "ImageWarmStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "ImageWarm assigns one image to one node, and reports the state of its pull. One exists for each namespace, image and node that a Knative Revision needs; one can also be created by hand.",
    selectable = ".spec.nodeName",
    selectable = ".spec.image",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.sizeBytes", priority = 1),
    printcolumn(name = "Took", type_ = "string", json_path = ".status.took", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ImageWarmSpec {
    /// The image to hold on the node, by tag or by digest, as in a Pod: `app`,
    /// `registry.example.com/team/app:v1`, `app@sha256:…`. Cannot be changed; make another
    /// ImageWarm instead.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("image cannot be changed: make another ImageWarm instead"))]
    pub image: String,

    /// The Node (its `metadata.name`) that is to hold the image. Cannot be changed; create another
    /// ImageWarm instead.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodeName cannot be changed: make another ImageWarm instead"))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("nodeName must be the name of a Node: a DNS-1123 subdomain, such as node-a or ip-10-0-0-1.example.com"))]
    pub node_name: String,

    /// Secrets of the same namespace that hold registry credentials (type
    /// `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`). At most 16, whose names have at most 1024 characters together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.map(secret, size(secret.name)).sum() <= 1024").message("the names of all imagePullSecrets together may have at most 1024 characters"))]
    pub image_pull_secrets: Vec<SecretReference>,
}

/// A Secret of the same namespace, by name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct SecretReference {
    /// `metadata.name` of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be the name of a Secret: a DNS-1123 subdomain"))]
    pub name: String,
}

/// Observed state of the assignment: duck/v1 Status, and the details of the pull.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageWarmStatus {
    /// The `metadata.generation` that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` is True while the node holds the image; its reason and message give details.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Further details for tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Digest (`sha256:…`) under which the registry served the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size on the node, unpacked, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Progress of a running pull, where the runtime reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Number of pull attempts since the image was last known to be on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// When the last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the last attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How long the last successful attempt took, such as `2.4s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<String>,
    /// The newest Revision for which the tag was last checked with the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_for: Option<String>,
}

/// Bytes of a running pull. The total grows while the runtime learns of more layers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes downloaded so far.
    pub downloaded_bytes: i64,
    /// Bytes to download, as far as known.
    pub total_bytes: i64,
}

impl ImageWarm {
    /// The `Ready` condition, if it was ever written.
    pub fn ready(&self) -> Option<&Condition> {
        self.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == READY)
    }

    /// The typed reason of the `Ready` condition.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_name(&self.ready()?.reason)
    }

    /// Whether this program created the object (and so may delete it).
    pub fn is_managed(&self) -> bool {
        let labels = self.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(super::MANAGED_BY_LABEL)).map(String::as_str)
            == Some(super::MANAGED_BY)
    }
}
