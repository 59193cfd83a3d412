//! A Revision as admission received it: as text, parsed only after the response. The queue that
//! holds it bounds the bytes.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::api::Revision;

/// A Revision that is being admitted.
#[derive(Clone, Debug)]
pub struct AdmittedRevision {
    /// Its namespace; empty where the request names none.
    pub namespace: String,
    /// Its name; empty with `generateName`.
    pub name: String,
    object: Box<RawValue>,
}

impl AdmittedRevision {
    /// The object of a request, with the namespace and name of the request.
    pub fn new(namespace: &str, name: &str, object: &RawValue) -> AdmittedRevision {
        AdmittedRevision {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            object: object.to_owned(),
        }
    }

    /// Size of the object in bytes.
    pub fn size(&self) -> usize {
        self.object.get().len()
    }

    /// Number of containers and init containers, without parsing them; `None` if they are not
    /// lists.
    pub fn containers(&self) -> Option<usize> {
        let Lists { spec } = serde_json::from_str(self.object.get()).ok()?;
        Some(spec.containers.len() + spec.init_containers.len())
    }

    /// Parses the object. Missing metadata is taken from the request.
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
struct Lists {
    spec: ListsSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListsSpec {
    containers: Vec<IgnoredAny>,
    init_containers: Vec<IgnoredAny>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn admitted(object: &Value) -> AdmittedRevision {
        let object = RawValue::from_string(object.to_string()).unwrap();
        AdmittedRevision::new("ns", "r-1", &object)
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
            assert_eq!(admitted(&object).containers(), count, "{object}");
        }
    }

    #[test]
    fn the_request_says_what_the_object_does_not() {
        let object = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"generateName": "r-", "managedFields": [{"manager": "controller"}]},
            "spec": {"containers": [{"image": "app"}]},
        });
        let admitted = admitted(&object);
        assert_eq!(admitted.size(), object.to_string().len());
        let revision = admitted.revision().unwrap();
        assert_eq!(revision.metadata.namespace.as_deref(), Some("ns"));
        assert_eq!(revision.metadata.name.as_deref(), Some("r-1"));
        assert!(revision.metadata.managed_fields.is_none());
        assert_eq!(revision.spec.containers[0].image, "app");
    }
}
