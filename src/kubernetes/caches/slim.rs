//! The cached form of each watched type. Most of a Node or an ImageWarm is bookkeeping that nothing
//! here reads, which matters with thousands of nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;

use super::Change;
use super::source::{Kind, Watched};
use imagewarm_core::api::cached::Shared;
use imagewarm_core::api::knative::{
    CONFIGURATION_LABEL, REVISION_LABEL, ROUTING_STATE_LABEL, ROUTING_STATE_MODIFIED, SERVICE_LABEL,
};
use imagewarm_core::api::{
    CachedImageWarm, DeploymentConfig, ImageWarm, KnativeImage, Revision, WARM_KEY,
};
use imagewarm_core::placement::namespace::retain_read;

/// Drops managed fields, and the annotations for which `retain` is false.
fn slim_metadata(metadata: &mut ObjectMeta, retain: impl Fn(&str) -> bool) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| retain(key));
    }
}

/// The labels that Knative gives a Revision or an Image and that are read.
const KNATIVE_LABELS: [&str; 4] =
    [ROUTING_STATE_LABEL, REVISION_LABEL, CONFIGURATION_LABEL, SERVICE_LABEL];
/// What begins so is Knative's.
const KNATIVE_PREFIX: &str = "serving.knative.dev/";
/// The further labels of a Revision that are kept: Knative may choose the RuntimeClass by any. Users may add any
/// number.
const USERS_LABELS: usize = 64;
/// The owners of a Revision or an Image that are kept: it has one that controls it.
const OWNERS: usize = 8;

/// The same for objects that users make, of which nothing may take more memory than we read.
fn slim_users_metadata(
    metadata: &mut ObjectMeta,
    users_labels: usize,
    retain: impl Fn(&str) -> bool,
) {
    slim_metadata(metadata, retain);
    if let Some(labels) = &mut metadata.labels {
        let mut others = 0;
        labels.retain(|key, _| {
            let is_users = !key.starts_with(KNATIVE_PREFIX) && others < users_labels;
            others += usize::from(is_users);
            is_users || KNATIVE_LABELS.contains(&key.as_str())
        });
    }
    if let Some(owners) = &mut metadata.owner_references {
        owners.truncate(OWNERS);
        owners.shrink_to_fit();
    }
    metadata.finalizers = None;
}

fn metadata_differs(new: &ObjectMeta, old: &ObjectMeta) -> bool {
    new.uid != old.uid
        || new.labels != old.labels
        || new.annotations != old.annotations
        || new.owner_references != old.owner_references
        || new.deletion_timestamp != old.deletion_timestamp
}

fn key(metadata: &ObjectMeta) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

impl Watched for ImageWarm {
    const KIND: Kind = Kind::ImageWarm;
    const PAGE: u32 = 500;
    type CachedObject = CachedImageWarm;
    fn into_cached(self, shared: &mut Shared) -> CachedImageWarm {
        CachedImageWarm::new(self, shared)
    }
    /// Every version differs: a status write requires the newest resourceVersion.
    fn differs(_new: &CachedImageWarm, _old: &CachedImageWarm) -> bool {
        true
    }
    fn changed(object: Arc<CachedImageWarm>) -> Change {
        Change::ImageWarm(object)
    }
    fn deleted(object: Arc<CachedImageWarm>) -> Change {
        Change::ImageWarmDeleted(object)
    }
}

impl Watched for Revision {
    const KIND: Kind = Kind::Revision;
    const PAGE: u32 = 50;
    type CachedObject = Self;
    fn into_cached(mut self, _shared: &mut Shared) -> Self {
        slim_users_metadata(&mut self.metadata, USERS_LABELS, |key| {
            key == WARM_KEY || key == ROUTING_STATE_MODIFIED
        });
        self.spec.volumes.retain(|volume| volume.image.is_some());
        self.spec.volumes.shrink_to_fit();
        self
    }
    fn differs(new: &Self, old: &Self) -> bool {
        metadata_differs(&new.metadata, &old.metadata)
            || new.spec != old.spec
            || new.status != old.status
    }
    fn changed(object: Arc<Self>) -> Change {
        let (namespace, name) = key(&object.metadata);
        Change::Revision(namespace, name)
    }
}

impl Watched for KnativeImage {
    const KIND: Kind = Kind::Image;
    const PAGE: u32 = 50;
    type CachedObject = Self;
    fn into_cached(mut self, _shared: &mut Shared) -> Self {
        slim_users_metadata(&mut self.metadata, 0, |key| key == WARM_KEY);
        self
    }
    /// Every version differs: a status write requires the newest resourceVersion.
    fn differs(_new: &Self, _old: &Self) -> bool {
        true
    }
    fn changed(object: Arc<Self>) -> Change {
        let (namespace, name) = key(&object.metadata);
        Change::Image(namespace, name)
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
    const PAGE: u32 = 500;
    type CachedObject = Self;
    fn into_cached(mut self, _shared: &mut Shared) -> Self {
        slim_metadata(&mut self.metadata, |_| false);
        let spec = self.spec.take().unwrap_or_default();
        self.spec = Some(NodeSpec {
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
        let status = self.status.take().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| condition.type_ == "Ready");
        for condition in &mut conditions {
            condition.last_heartbeat_time = None;
        }
        let node_info = status.node_info.map(|info| NodeSystemInfo {
            container_runtime_version: info.container_runtime_version,
            ..NodeSystemInfo::default()
        });
        let conditions = Some(conditions);
        self.status = Some(NodeStatus { conditions, node_info, ..NodeStatus::default() });
        self
    }
    fn differs(new: &Self, old: &Self) -> bool {
        metadata_differs(&new.metadata, &old.metadata)
            || new.spec != old.spec
            || new.status != old.status
    }
    fn changed(object: Arc<Self>) -> Change {
        Change::Node(key(&object.metadata).1)
    }
}

impl Watched for PartialObjectMeta<Namespace> {
    const KIND: Kind = Kind::Namespace;
    const PAGE: u32 = 500;
    type CachedObject = Self;
    fn into_cached(mut self, _shared: &mut Shared) -> Self {
        slim_metadata(&mut self.metadata, |_| true);
        if let Some(annotations) = &mut self.metadata.annotations {
            retain_read(annotations);
        }
        self
    }
    fn differs(new: &Self, old: &Self) -> bool {
        metadata_differs(&new.metadata, &old.metadata)
    }
    fn changed(object: Arc<Self>) -> Change {
        Change::Namespace(key(&object.metadata).1)
    }
}

impl Watched for RuntimeClass {
    const KIND: Kind = Kind::RuntimeClass;
    const PAGE: u32 = 500;
    type CachedObject = Self;
    fn into_cached(mut self, _shared: &mut Shared) -> Self {
        slim_metadata(&mut self.metadata, |_| false);
        self.overhead = None;
        self
    }
    fn differs(new: &Self, old: &Self) -> bool {
        metadata_differs(&new.metadata, &old.metadata)
            || (&new.handler, &new.scheduling) != (&old.handler, &old.scheduling)
    }
    fn changed(object: Arc<Self>) -> Change {
        Change::RuntimeClass(key(&object.metadata).1)
    }
}

impl Watched for ConfigMap {
    const KIND: Kind = Kind::DeploymentConfig;
    const PAGE: u32 = 50;
    const OPTIONAL: bool = true;
    type CachedObject = DeploymentConfig;
    fn into_cached(self, _shared: &mut Shared) -> DeploymentConfig {
        DeploymentConfig::new(self)
    }
    fn differs(new: &DeploymentConfig, old: &DeploymentConfig) -> bool {
        !new.is_like(old)
    }
    fn changed(_object: Arc<DeploymentConfig>) -> Change {
        Change::DeploymentConfig
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use imagewarm_core::sample::image_volume;

    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

    #[test]
    fn a_heartbeat_of_a_node_is_no_change() {
        let read = |beat: &str, images: &str, ready: &str| -> Node {
            let node: Node = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a", "labels": {"k": "v"}, "annotations": {"x": beat},
                    "managedFields": [{"manager": "kubelet"}], "resourceVersion": beat},
                "spec": {"podCIDR": "10.0.0.0/24", "unschedulable": true},
                "status": {
                    "images": [{"names": [images]}],
                    "nodeInfo": {
                        "containerRuntimeVersion": "containerd://2.2.3", "osImage": images,
                        "architecture": "", "bootID": "", "kernelVersion": "", "machineID": "",
                        "kubeProxyVersion": "", "kubeletVersion": "", "operatingSystem": "",
                        "systemUUID": "",
                    },
                    "conditions": [
                        {"type": "Ready", "status": ready, "lastHeartbeatTime": beat},
                        {"type": "MemoryPressure", "status": "False"},
                    ],
                },
            }))
            .unwrap();
            node.into_cached(&mut Shared::default())
        };
        let (first, beat) = ("2026-11-23T02:00:00Z", "2026-11-23T02:00:10Z");
        let node = read(first, "a", "True");
        assert!(!Node::differs(&read(beat, "b", "True"), &node));
        assert!(Node::differs(&read(beat, "b", "False"), &node));
        let json = serde_json::to_string(&node).unwrap();
        assert!(!json.contains("images") && !json.contains("managedFields"), "{json}");
        assert!(json.contains("containerd://2.2.3"), "{json}");
    }

    #[test]
    fn bookkeeping_is_not_cached() {
        fn read<K: Watched>() -> K {
            serde_json::from_value(serde_json::json!({
                "apiVersion": <K as kube::Resource>::api_version(&()),
                "kind": <K as kube::Resource>::kind(&()),
                "spec": {"image": "a", "nodeName": "n"},
                "handler": "h",
                "metadata": {"name": "a", "annotations": {LAST_APPLIED: "{}", "other": "x"},
                    "managedFields": [{"manager": "kubectl"}]},
            }))
            .unwrap()
        }
        fn slimmed<K: Watched<CachedObject = K>>() -> Vec<String> {
            let object = read::<K>().into_cached(&mut Shared::default());
            assert!(object.meta().managed_fields.is_none());
            object.meta().annotations.clone().unwrap_or_default().into_keys().collect()
        }
        let warm = read::<ImageWarm>().into_cached(&mut Shared::default());
        assert!(warm.common.annotations.is_empty());
        assert!(slimmed::<KnativeImage>().is_empty());
        assert!(slimmed::<Node>().is_empty());
        assert!(slimmed::<PartialObjectMeta<Namespace>>().is_empty());
        assert!(slimmed::<RuntimeClass>().is_empty());
    }

    #[test]
    fn of_a_namespace_the_annotations_of_schedulers_are_cached() {
        let namespace: PartialObjectMeta<Namespace> = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "annotations": {"openshift.io/node-selector": "pool=a", "x": "y"}},
        }))
        .unwrap();
        let cached = namespace.clone().into_cached(&mut Shared::default());
        let differs = <PartialObjectMeta<Namespace> as Watched>::differs;
        let keys: Vec<_> = cached.metadata.annotations.clone().unwrap().into_keys().collect();
        assert_eq!(keys, ["openshift.io/node-selector"]);
        let mut other = namespace;
        other.metadata.annotations.as_mut().unwrap().insert("x".into(), "z".into());
        assert!(!differs(&other.clone().into_cached(&mut Shared::default()), &cached));
        other.metadata.annotations.as_mut().unwrap().clear();
        assert!(differs(&other.into_cached(&mut Shared::default()), &cached));
    }

    #[test]
    fn of_a_revision_bounded_labels_and_image_volumes_are_cached() {
        let mut revision = Revision::default();
        let labels = revision.metadata.labels.get_or_insert_default();
        labels.extend((0..1_000).map(|at| (format!("label-{at}"), "v".to_owned())));
        labels.extend((0..10).map(|at| (format!("{KNATIVE_PREFIX}x{at}"), "v".to_owned())));
        labels.extend(KNATIVE_LABELS.map(|key| (key.to_owned(), "v".to_owned())));
        revision.spec.volumes = vec![Default::default(), image_volume("model:1", None)];
        let cached = revision.clone().into_cached(&mut Shared::default());
        let labels = cached.metadata.labels.unwrap();
        assert_eq!(labels.len(), KNATIVE_LABELS.len() + USERS_LABELS);
        assert!(KNATIVE_LABELS.iter().all(|key| labels.contains_key(*key)));
        assert_eq!(cached.spec.volumes, [image_volume("model:1", None)]);
        let mut image = KnativeImage::default();
        image.metadata.labels = revision.metadata.labels;
        let cached = image.into_cached(&mut Shared::default());
        assert_eq!(cached.metadata.labels.unwrap().len(), KNATIVE_LABELS.len());
    }

    #[test]
    fn a_config_map_differs_where_it_decides() {
        let read = |version: &str, image: &str| {
            let config: ConfigMap = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "config-deployment", "resourceVersion": version},
                "data": {"queue-sidecar-image": image, "progress-deadline": version},
            }))
            .unwrap();
            config.into_cached(&mut Shared::default())
        };
        assert!(!ConfigMap::differs(&read("2", "queue:v1"), &read("1", "queue:v1")));
        assert!(ConfigMap::differs(&read("2", "queue:v2"), &read("1", "queue:v1")));
    }

    #[test]
    fn of_a_revision_only_our_annotations_are_cached() {
        let text = include_str!("../../../tests/fixtures/knative/revision.direct-undefaulted.yaml");
        let mut revision: Revision = serde_saphyr::from_str(text).unwrap();
        let annotations = revision.metadata.annotations.get_or_insert_default();
        annotations.insert(WARM_KEY.into(), "false".into());
        let cached = revision.into_cached(&mut Shared::default());
        let keys: Vec<_> = cached.metadata.annotations.unwrap().into_keys().collect();
        assert_eq!(keys, [WARM_KEY]);
    }
}
