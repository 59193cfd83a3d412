//! Small Revisions, Nodes and ImageWarms for tests.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::api::condition::READY;
use crate::api::knative::{
    Container, ContainerStatus, ImageVolume, REVISION_LABEL, ROUTING_STATE_LABEL, RevisionStatus,
    Volume,
};
use crate::api::{
    CachedImageWarm, Condition, ImageWarm, ImageWarmStatus, KnativeImage, Reason, Revision,
};
use crate::demand::revision::demand;
use crate::image::Reference;
use crate::plan::fan_out::{self, Origin};
use crate::policy::Policy;

/// A digest of one letter.
pub fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

/// A moment, in seconds since 1970.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A reference that parses.
pub fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A routable Revision of the namespace `ns` with these images, owned by a Configuration.
pub fn revision(name: &str, created: i64, images: &[&str]) -> Revision {
    let mut revision = Revision::default();
    revision.metadata.name = Some(name.into());
    revision.metadata.namespace = Some("ns".into());
    revision.metadata.uid = Some(format!("uid-{name}"));
    revision.metadata.creation_timestamp = Some(Time(at(created)));
    revision.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "serving.knative.dev/v1".into(),
        kind: "Configuration".into(),
        name: "conf".into(),
        uid: "conf-uid".into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    route(&mut revision, "active");
    let container = |(at, image): (usize, &&str)| Container {
        name: format!("c{at}"),
        image: (*image).into(),
        image_pull_policy: None,
    };
    revision.spec.containers = images.iter().enumerate().map(container).collect();
    revision
}

/// A volume with this image.
pub fn image_volume(image: &str, pull_policy: Option<&str>) -> Volume {
    let pull_policy = pull_policy.map(Into::into);
    Volume { image: Some(ImageVolume { reference: image.into(), pull_policy }) }
}

/// A Knative Image of the namespace `ns`; for `revision` the way Knative makes it, or by hand.
pub fn knative_image(name: &str, image: &str, revision: Option<&Revision>) -> KnativeImage {
    let mut object = KnativeImage::default();
    object.metadata.name = Some(name.into());
    object.metadata.namespace = Some("ns".into());
    object.metadata.uid = Some(format!("uid-{name}"));
    object.metadata.generation = Some(1);
    object.metadata.creation_timestamp = Some(Time(at(0)));
    object.spec.image = image.into();
    if let Some(revision) = revision {
        let name = revision.metadata.name.clone().unwrap();
        let labels = object.metadata.labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.into(), name.clone());
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "serving.knative.dev/v1".into(),
            kind: "Revision".into(),
            name,
            uid: revision.metadata.uid.clone().unwrap(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]);
    }
    object
}

/// The image by a digest of one letter.
pub fn by_digest(image: &str, letter: char) -> String {
    reference(image).with_digest(&digest(letter).parse().unwrap()).as_str().to_owned()
}

/// Gives the Revision this routing state.
pub fn route(revision: &mut Revision, state: &str) {
    let labels = revision.metadata.labels.get_or_insert_default();
    labels.insert(ROUTING_STATE_LABEL.into(), state.into());
}

/// Knative resolved every container of it to this digest.
pub fn resolve(revision: &mut Revision, letter: char) {
    let resolved = |container: &Container| ContainerStatus {
        name: container.name.clone(),
        image_digest: reference(&container.image)
            .with_digest(&digest(letter).parse().unwrap())
            .as_str()
            .to_owned(),
    };
    revision.status = Some(RevisionStatus {
        container_statuses: revision.spec.containers.iter().map(resolved).collect(),
        init_container_statuses: Vec::new(),
    });
}

/// A Node that is Ready.
pub fn node(name: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

/// The Node with one more taint.
pub fn tainted(mut node: Node, key: &str, effect: &str) -> Node {
    let spec = node.spec.get_or_insert_with(NodeSpec::default);
    spec.taints.get_or_insert_default().push(Taint {
        key: key.into(),
        effect: effect.into(),
        value: Some("x".into()),
        ..Taint::default()
    });
    node
}

/// The Node with one more label.
pub fn labelled(mut node: Node, key: &str, value: &str) -> Node {
    let labels: &mut BTreeMap<_, _> = node.metadata.labels.get_or_insert_default();
    labels.insert(key.into(), value.into());
    node
}

/// The ImageWarm that a Revision made, as the API server would store it.
pub fn warm(revision: &Revision, image: &str, node: &str, created: i64) -> ImageWarm {
    let demand = demand(revision, false, &Policy::default());
    let mut warm =
        fan_out::image_warm(&Origin::of_revision(revision), &demand, &reference(image), node);
    warm.metadata.creation_timestamp = Some(Time(at(created)));
    warm.metadata.uid = Some(format!("uid-{}", warm.metadata.name.clone().unwrap()));
    warm
}

/// As the controller keeps it.
pub fn kept(warm: &ImageWarm) -> Arc<CachedImageWarm> {
    Arc::new(warm.clone().into())
}

/// The same with a `Ready` condition of this reason.
pub fn because(mut warm: ImageWarm, reason: Reason) -> ImageWarm {
    let status = warm.status.get_or_insert_with(ImageWarmStatus::default);
    status.conditions = vec![Condition {
        type_: READY.into(),
        status: reason.ready(),
        reason: reason.as_str().into(),
        ..Condition::default()
    }];
    warm
}

/// The same, holding this digest.
pub fn holding(warm: ImageWarm, letter: char) -> ImageWarm {
    let mut warm = because(warm, Reason::Pulled);
    warm.status.as_mut().unwrap().digest = Some(digest(letter));
    warm
}
