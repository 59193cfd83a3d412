//! A Revision as admission received it: as text, parsed only after the response. The queue that
//! holds it bounds the bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::api::Revision;
use crate::api::knative::{
    CONFIGURATION_LABEL, Configuration, ROUTING_STATE_LABEL, RevisionSpec, SERVICE_LABEL,
    configuration_owner,
};
use crate::api::lenient::for_each_element;
use crate::api::names::Namespace;
use crate::image::Reference;

/// The largest object that an API server stores, in bytes: etcd's default `--max-request-bytes`. A larger
/// one is refused by it, or comes from somebody else.
const LARGEST_STORED: usize = 1536 * 1024;

/// A Revision that is being admitted.
#[derive(Clone, Debug)]
pub struct AdmittedRevision {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name; empty with `generateName`.
    pub name: String,
    object: Box<RawValue>,
}

impl AdmittedRevision {
    /// The object of a request, with the namespace and name of the request.
    pub fn new(namespace: Namespace, name: &str, object: &RawValue) -> AdmittedRevision {
        AdmittedRevision { namespace, name: name.to_owned(), object: object.to_owned() }
    }

    /// Size of the object in bytes.
    pub fn size(&self) -> usize {
        self.object.get().len()
    }

    /// Whether an API server can store it.
    pub fn is_storable(&self) -> bool {
        self.size() <= LARGEST_STORED
    }

    /// Number of containers, init containers and image volumes, without decoding more than their images,
    /// and why the first image that is no reference is none; `None` if they are not lists.
    pub fn images(&self) -> Option<(usize, Option<String>)> {
        let Lists { spec } = serde_json::from_str(self.object.get()).ok()?;
        let lists = [spec.containers, spec.init_containers, spec.volumes.0];
        let count = lists.iter().map(|list| list.count).sum();
        Some((count, lists.into_iter().find_map(|list| list.invalid)))
    }

    /// Parses the object. Missing metadata is taken from the request.
    pub fn revision(&self) -> Result<Revision, serde_json::Error> {
        let mut revision: Revision = serde_json::from_str(self.object.get())?;
        let metadata = &mut revision.metadata;
        metadata.managed_fields = None;
        metadata.namespace = Some(self.namespace.to_string());
        if metadata.name.as_deref().unwrap_or_default().is_empty() {
            metadata.name = Some(self.name.clone()).filter(|name| !name.is_empty());
        }
        Ok(revision)
    }
}

/// Why a Revision that admission received is not fanned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconfirmed {
    /// The Configuration is another one of the same name, or is being deleted.
    OtherOwner,
    /// It names an image that the template does not, of a container or a volume.
    OtherImages,
}

/// The Revision as its Configuration has it. A review may be forged or outdated: of it only the name
/// and the metadata are kept, and images, credentials and placement are those of the template.
pub fn confirmed(mut revision: Revision, owner: &Configuration) -> Result<Revision, Unconfirmed> {
    let uid = configuration_owner(&revision.metadata).map(|owner| owner.uid.as_str());
    let is_terminating = owner.metadata.deletion_timestamp.is_some();
    if uid.is_none() || uid != owner.metadata.uid.as_deref() || is_terminating {
        return Err(Unconfirmed::OtherOwner);
    }
    let template = &owner.spec.template.spec;
    let images = |spec: &RevisionSpec| -> BTreeSet<String> {
        let containers = spec.containers.iter().chain(&spec.init_containers);
        let volumes = spec.volumes.iter().filter_map(|volume| volume.image.as_ref());
        let named = containers.map(|container| container.image.clone());
        named.chain(volumes.map(|image| image.reference.clone())).collect()
    };
    if !images(&revision.spec).is_subset(&images(template)) {
        return Err(Unconfirmed::OtherImages);
    }
    revision.spec = template.clone();
    revision.metadata.labels = Some(confirmed_labels(&revision, owner));
    Ok(revision)
}

/// The labels that Knative gives a Revision of this Configuration, as far as they are read. Whether it may
/// get traffic only the review says: nothing is warmed that the template does not name.
fn confirmed_labels(revision: &Revision, owner: &Configuration) -> BTreeMap<String, String> {
    let mut labels = owner.spec.template.metadata.labels.clone();
    let of_owner = owner.metadata.labels.as_ref();
    let own = [
        (CONFIGURATION_LABEL, owner.metadata.name.as_ref()),
        (SERVICE_LABEL, of_owner.and_then(|labels| labels.get(SERVICE_LABEL))),
        (
            ROUTING_STATE_LABEL,
            revision.metadata.labels.as_ref().and_then(|labels| labels.get(ROUTING_STATE_LABEL)),
        ),
    ];
    let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.clone())));
    labels.extend(own);
    labels
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lists {
    spec: ListsSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListsSpec {
    containers: Counted,
    init_containers: Counted,
    volumes: CountedVolumes,
}

/// A list of containers, of which nothing is kept but their number and the first mistake.
#[derive(Default)]
struct Counted {
    count: usize,
    invalid: Option<String>,
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counted = Counted::default();
        let count = for_each_element(deserializer, |container: ListedContainer<'_>| {
            counted.check(container.image.as_deref());
        })?;
        Ok(Counted { count, ..counted })
    }
}

impl Counted {
    /// Notes why the image is no reference, if it is the first such.
    fn check(&mut self, image: Option<&str>) {
        if let Some(image) = image.filter(|image| !image.is_empty() && self.invalid.is_none()) {
            self.invalid = Reference::check(image).err().map(|error| error.to_string());
        }
    }
}

/// The same of volumes, of which only image volumes count.
#[derive(Default)]
struct CountedVolumes(Counted);

impl<'de> Deserialize<'de> for CountedVolumes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counted = Counted::default();
        for_each_element(deserializer, |volume: ListedVolume<'_>| {
            if let Some(image) = volume.image {
                counted.count += 1;
                counted.check(image.reference.as_deref());
            }
        })?;
        Ok(CountedVolumes(counted))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListedVolume<'a> {
    #[serde(borrow)]
    image: Option<ListedImage<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListedImage<'a> {
    #[serde(borrow)]
    reference: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListedContainer<'a> {
    #[serde(borrow)]
    image: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    fn admitted(object: &Value) -> AdmittedRevision {
        let object = RawValue::from_string(object.to_string()).unwrap();
        AdmittedRevision::new("ns".parse().unwrap(), "r-1", &object)
    }

    #[test]
    fn images_are_counted_where_they_are_in_lists() {
        let counted = [
            (json!({"spec": {"containers": [{}, {}], "initContainers": [{}]}}), Some((3, None))),
            (json!({"spec": {"containers": []}}), Some((0, None))),
            (json!({"spec": {"containers": [{"image": "a:v1"}]}}), Some((1, None))),
            (
                json!({"spec": {"containers": [{"image": "a"}], "initContainers": [{"image": "A"}]}}),
                Some((2, Some("repository name must be lower case: \"A\" in \"A\"".into()))),
            ),
            (json!({"metadata": {}}), Some((0, None))),
            (
                json!({"spec": {"containers": [{}], "volumes": [
                    {"name": "v", "secret": {}}, {"image": {"reference": "a"}}, {"image": {"reference": "A"}},
                ]}}),
                Some((3, Some("repository name must be lower case: \"A\" in \"A\"".into()))),
            ),
            (json!({"spec": {"volumes": 1}}), None),
            (json!({"spec": {"containers": [1]}}), None),
            (json!({"spec": {"containers": {}}}), None),
            (json!({"spec": null}), None),
        ];
        for (object, count) in counted {
            assert_eq!(admitted(&object).images(), count, "{object}");
        }
    }

    #[test]
    fn only_what_the_configuration_has_is_believed() {
        let revision = crate::sample::revision("r-1", 0, &["app:v1", "side:v1"]);
        let mut owner = Configuration::default();
        owner.metadata.uid = Some("conf-uid".into());
        owner.spec.template.spec = revision.spec.clone();
        owner.spec.template.spec.service_account_name = Some("robot".into());
        owner.metadata.name = Some("conf".into());
        owner.metadata.labels = Some([(SERVICE_LABEL.to_owned(), "svc".to_owned())].into());
        owner.spec.template.metadata.labels.insert("trust".into(), "low".into());
        let mut forged = revision.clone();
        let labels = forged.metadata.labels.get_or_insert_default();
        labels.extend(
            [("trust", "high"), (SERVICE_LABEL, "x"), ("more", "y")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let mut found = confirmed(forged, &owner).unwrap();
        let labels = found.metadata.labels.take().unwrap();
        let labels: Vec<_> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        let expected = [
            (CONFIGURATION_LABEL, "conf"),
            (ROUTING_STATE_LABEL, "active"),
            (SERVICE_LABEL, "svc"),
            ("trust", "low"),
        ];
        assert_eq!(labels, expected);
        found.metadata.labels.clone_from(&revision.metadata.labels);
        assert_eq!(found.metadata, revision.metadata);
        assert_eq!(found.spec.service_account_name.as_deref(), Some("robot"));

        type Change = fn(&mut Revision, &mut Configuration);
        let table: [(Change, Unconfirmed); 6] = [
            (|revision, _| revision.metadata.owner_references = None, Unconfirmed::OtherOwner),
            (|_, owner| owner.metadata.uid = Some("another".into()), Unconfirmed::OtherOwner),
            (
                |_, owner| owner.metadata.deletion_timestamp = Some(Time(crate::sample::at(1))),
                Unconfirmed::OtherOwner,
            ),
            (
                |revision, _| revision.spec.containers[0].image = "x".into(),
                Unconfirmed::OtherImages,
            ),
            (
                |revision, _| {
                    revision.spec.volumes.push(crate::sample::image_volume("model:1", None))
                },
                Unconfirmed::OtherImages,
            ),
            (|_, owner| owner.spec.template = Default::default(), Unconfirmed::OtherImages),
        ];
        for (at, (change, expected)) in table.into_iter().enumerate() {
            let (mut revision, mut owner) = (revision.clone(), owner.clone());
            change(&mut revision, &mut owner);
            assert_eq!(confirmed(revision, &owner), Err(expected), "case {at}");
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
        assert!(admitted.is_storable());
        let large = json!({"spec": {"containers": [{"image": "a".repeat(LARGEST_STORED)}]}});
        assert!(!self::admitted(&large).is_storable());
        let revision = admitted.revision().unwrap();
        assert_eq!(revision.metadata.namespace.as_deref(), Some("ns"));
        assert_eq!(revision.metadata.name.as_deref(), Some("r-1"));
        assert!(revision.metadata.managed_fields.is_none());
        assert_eq!(revision.spec.containers[0].image, "app");
    }
}
