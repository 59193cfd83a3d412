//! ImageWarms that a person asks for: one for each image and node, under the names that the leader's own have, so
//! that one object serves both.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{EXPIRES_AT_ANNOTATION, ImageWarm, ImageWarmSpec, SecretReference};
use crate::image::Reference;
use crate::image::object_name::object_name;
use crate::placement::{NodeFacts, PodConstraints, is_eligible};
use crate::policy::Policy;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct ByHand {
    /// The namespace of the ImageWarms.
    pub namespace: String,
    /// The images.
    pub images: Vec<Reference>,
    /// Pull secrets of that namespace.
    pub secrets: Vec<SecretReference>,
    /// When the leader may delete them; never without.
    pub expires_at: Option<Timestamp>,
}

/// The ImageWarms, for the nodes where a Pod without any constraint may start. Without the label of managed objects:
/// the leader keeps them until they expire.
pub fn by_hand(request: &ByHand, nodes: &[NodeFacts<'_>]) -> Vec<ImageWarm> {
    let policy = Policy::default();
    let anywhere = PodConstraints::default();
    let eligible = || nodes.iter().filter(|node| is_eligible(node, &anywhere, &policy).is_ok());
    let of = |image: &Reference, node: &NodeFacts<'_>| ImageWarm {
        metadata: ObjectMeta {
            name: Some(object_name(image, node.name)),
            namespace: Some(request.namespace.clone()),
            annotations: request.expires_at.map(|at| {
                BTreeMap::from([(EXPIRES_AT_ANNOTATION.into(), whole_second(at).to_string())])
            }),
            ..ObjectMeta::default()
        },
        spec: ImageWarmSpec {
            image: image.as_str().to_owned(),
            node_name: node.name.to_owned(),
            image_pull_secrets: request.secrets.clone(),
        },
        status: None,
    };
    let mut images: Vec<&Reference> = Vec::new();
    for image in &request.images {
        if !images.contains(&image) {
            images.push(image);
        }
    }
    images
        .into_iter()
        .flat_map(|image| eligible().map(|node| of(image, node)).collect::<Vec<_>>())
        .collect()
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;
    use crate::sample::{at, reference};

    #[test]
    fn each_image_gets_one_on_each_eligible_node() {
        let node = |name: &str, cordoned: bool| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"unschedulable": cordoned},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }))
            .unwrap()
        };
        let nodes = [node("a", false), node("b", true), node("c", false)];
        let none = Default::default();
        let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &none)).collect();
        let request = ByHand {
            namespace: "ns".into(),
            images: ["app:v1", "docker.io/library/app:v1", "side"].map(reference).into(),
            secrets: vec![SecretReference { name: "regcred".into() }],
            expires_at: Some(at(3_600)),
        };
        let made = by_hand(&request, &facts);
        let places: Vec<_> = made
            .iter()
            .map(|warm| (warm.spec.image.as_str(), warm.spec.node_name.as_str()))
            .collect();
        let (app, side) = ("docker.io/library/app:v1", "docker.io/library/side:latest");
        assert_eq!(places, [(app, "a"), (app, "c"), (side, "a"), (side, "c")]);
        let metadata = &made[0].metadata;
        assert_eq!(metadata.name, Some(object_name(&reference("app:v1"), "a")));
        assert_eq!(
            metadata.annotations.as_ref().unwrap()[EXPIRES_AT_ANNOTATION],
            "1970-01-01T01:00:00Z"
        );
        assert!(!made[0].is_managed(), "the leader keeps it");
        assert_eq!(made[0].spec.image_pull_secrets, request.secrets);
        let forever = by_hand(&ByHand { expires_at: None, ..request }, &facts);
        assert_eq!(forever[0].metadata.annotations, None);
    }
}
