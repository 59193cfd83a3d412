//! A Revision as admission saw it: text, read only behind the answer. Bytes that wait are bounded
//! by who keeps them.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::review::Request;
use crate::api::Revision;

/// A Revision that is being made.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Its namespace; empty where the request names none.
    pub namespace: String,
    /// Its name; empty with `generateName`.
    pub name: String,
    object: Box<RawValue>,
}

impl Sighting {
    /// What a request shows; `None` without an object.
    pub fn new(request: &Request<'_>) -> Option<Sighting> {
        Some(Sighting {
            namespace: request.namespace.clone().unwrap_or_default(),
            name: request.name.clone().unwrap_or_default(),
            object: request.object?.to_owned(),
        })
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.object.get().len()
    }

    /// Containers of both kinds, without reading them; `None` where they are no lists.
    pub fn containers(&self) -> Option<usize> {
        let Glance { spec } = serde_json::from_str(self.object.get()).ok()?;
        Some(spec.containers.len() + spec.init_containers.len())
    }

    /// Reads it. What the object does not say of itself is taken from the request.
    pub fn revision(&self) -> Result<Revision, serde_json::Error> {
        let mut revision: Revision = serde_json::from_str(self.object.get())?;
        let metadata = &mut revision.metadata;
        metadata.managed_fields = None;
        if !self.namespace.is_empty() {
            metadata.namespace = Some(self.namespace.clone());
        }
        if metadata.name.as_deref().unwrap_or_default().is_empty() {
            metadata.name = Some(self.name.clone()).filter(|name| !name.is_empty());
        }
        Ok(revision)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Glance {
    spec: GlanceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GlanceSpec {
    containers: Vec<IgnoredAny>,
    init_containers: Vec<IgnoredAny>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn sighting(object: Value) -> Option<Sighting> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "namespace": "ns", "name": "r-1", "object": object},
        });
        let body = review.to_string();
        Sighting::new(&Request::parse(Some("application/json"), body.as_bytes()).unwrap())
    }

    #[test]
    fn containers_are_counted_where_they_are_a_list() {
        let counted = [
            (json!({"spec": {"containers": [{}, 1], "initContainers": ["x"]}}), Some(3)),
            (json!({"spec": {"containers": []}}), Some(0)),
            (json!({"metadata": {}}), Some(0)),
            (json!({"spec": {"containers": {}}}), None),
            (json!({"spec": null}), None),
        ];
        for (object, count) in counted {
            assert_eq!(sighting(object.clone()).unwrap().containers(), count, "{object}");
        }
        assert!(sighting(Value::Null).is_none());
    }

    #[test]
    fn the_request_says_what_the_object_does_not() {
        let object = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"generateName": "r-", "managedFields": [{"manager": "controller"}]},
            "spec": {"containers": [{"image": "app"}]},
        });
        let sighting = sighting(object.clone()).unwrap();
        assert_eq!(sighting.size(), object.to_string().len());
        let revision = sighting.revision().unwrap();
        assert_eq!(revision.metadata.namespace.as_deref(), Some("ns"));
        assert_eq!(revision.metadata.name.as_deref(), Some("r-1"));
        assert!(revision.metadata.managed_fields.is_none());
        assert_eq!(revision.spec.containers[0].image, "app");
    }
}
