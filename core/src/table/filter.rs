//! Which ImageWarms a command is about: those of a Service or a Revision, of an image, of a node, the failed ones.

use std::collections::{BTreeSet, HashSet};
use std::str::FromStr;

use crate::api::knative::SERVICE_LABEL;
use crate::api::names::{NodeName, is_dns_subdomain};
use crate::api::{ConditionStatus, ImageWarm, Revision};
use crate::demand::revision::{WantedImage, demand, is_routable};
use crate::image::quoted::quoted;
use crate::image::{Named, Reference};
use crate::policy::Policy;

/// Which ImageWarms are meant; each part narrows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those of this node.
    pub node: Option<NodeName>,
    /// Those of this image.
    pub image: Option<ImageName>,
    /// Those of these images, such as of a Revision.
    pub wanted: Option<Vec<WantedImage>>,
    /// Those that may serve the Pod with these images.
    pub of_pod: Option<Vec<Reference>>,
    /// Those of these names.
    pub names: Option<BTreeSet<String>>,
    /// Those whose pull failed, or whose image was removed.
    pub failed: bool,
}

/// An image by name: with a tag or a digest exactly that one, without both all of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// This one.
    Exactly(Reference),
    /// `docker.io/library/app`
    Repository(String),
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Named::parse(text).map_err(|error| error.to_string())?;
        let reference = Reference::parse(text).map_err(|error| error.to_string())?;
        Ok(match (named.tag(), named.digest()) {
            (None, None) => ImageName::Repository(reference.repository().to_owned()),
            _ => ImageName::Exactly(reference),
        })
    }
}

impl ImageName {
    /// The one image, where it is only one.
    pub fn exact(&self) -> Option<&Reference> {
        match self {
            ImageName::Exactly(one) => Some(one),
            ImageName::Repository(_) => None,
        }
    }

    fn is(&self, image: &Reference) -> bool {
        match self {
            ImageName::Exactly(one) => one == image,
            ImageName::Repository(repository) => image.repository() == repository,
        }
    }
}

impl Filter {
    /// Whether it leaves out nothing.
    pub fn is_empty(&self) -> bool {
        let Filter { node, image, wanted, of_pod, names, failed } = self;
        node.is_none()
            && image.is_none()
            && wanted.is_none()
            && of_pod.is_none()
            && names.is_none()
            && !failed
    }

    /// Whether the ImageWarm is meant.
    pub fn keeps(&self, warm: &ImageWarm) -> bool {
        if self.node.as_ref().is_some_and(|node| **node != *warm.spec.node_name) {
            return false;
        }
        let has_failed =
            || warm.ready().is_some_and(|ready| ready.status == ConditionStatus::False);
        if self.failed && !has_failed() {
            return false;
        }
        let is_named = |names: &BTreeSet<String>| {
            warm.metadata.name.as_ref().is_some_and(|name| names.contains(name))
        };
        if !self.names.as_ref().is_none_or(is_named) {
            return false;
        }
        if self.image.is_none() && self.wanted.is_none() && self.of_pod.is_none() {
            return true;
        }
        // Admission refuses others; the API server may hold some from before it was installed.
        let Ok(image) = Reference::parse(&warm.spec.image) else { return false };
        self.image.as_ref().is_none_or(|name| name.is(&image))
            && self.wanted.as_ref().is_none_or(|all| all.iter().any(|one| one.is(&image)))
            && self
                .of_pod
                .as_ref()
                .is_none_or(|all| all.iter().any(|one| serves(warm, &image, one)))
    }

    /// The images that are wanted and have no ImageWarm yet.
    pub fn missing<'a>(&self, images: impl Iterator<Item = &'a str>) -> Vec<&Reference> {
        let there: HashSet<Reference> =
            images.filter_map(|image| Reference::parse(image).ok()).collect();
        let is_there = |name: &&WantedImage| !name.names().any(|name| there.contains(name));
        self.wanted.iter().flatten().filter(is_there).map(|wanted| &wanted.reference).collect()
    }
}

/// Whether the ImageWarm is of the image of a Pod, which Knative names by the digest of a tag. The digest of a tag that is
/// not on the node yet may be that.
fn serves(warm: &ImageWarm, image: &Reference, of_pod: &Reference) -> bool {
    let held = warm.status.as_ref().and_then(|status| status.digest.as_deref());
    let digest = image.digest().or(held);
    image == of_pod
        || of_pod.digest().is_some()
            && image.repository() == of_pod.repository()
            && (digest.is_none() || digest == of_pod.digest())
}

/// What a command is asked about: `service/hello`, `revision/hello-00001`, `image/app:v1`, or one of these names
/// alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Knative Service.
    Service(String),
    /// A Revision.
    Revision(String),
    /// An image.
    Image(ImageName),
    /// A Pod.
    Pod(String),
    /// A name alone: a Service or a Revision.
    Name(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |name: &str| match is_dns_subdomain(name) {
            true => Ok(name.to_owned()),
            false => Err(format!(
                "{} is no name of an object; an image is written image/NAME",
                quoted(name)
            )),
        };
        match text.split_once('/') {
            Some(("service" | "ksvc", rest)) => name(rest).map(Target::Service),
            Some(("revision", rest)) => name(rest).map(Target::Revision),
            Some(("pod", rest)) => name(rest).map(Target::Pod),
            Some(("image", rest)) => rest.parse().map(Target::Image),
            None if !text.contains([':', '@', '.']) => name(text).map(Target::Name),
            _ => text.parse().map(Target::Image),
        }
    }
}

impl Target {
    /// What is looked for, and its name.
    pub fn described(&self) -> (&'static str, &str) {
        match self {
            Target::Service(name) => ("Service with traffic called", name),
            Target::Revision(name) => ("Revision called", name),
            Target::Pod(name) => ("Pod called", name),
            Target::Name(name) => ("Service or Revision called", name),
            Target::Image(ImageName::Exactly(image)) => ("image", image.as_str()),
            Target::Image(ImageName::Repository(repository)) => ("image", repository),
        }
    }
}

/// The images of a Service or a Revision, out of all Revisions of its namespace; `None` when there is no such one.
/// Of a Service, those Revisions count that may get traffic.
pub fn images_of(target: &Target, revisions: &[Revision]) -> Option<Vec<WantedImage>> {
    let is_named =
        |revision: &&Revision, name: &String| revision.metadata.name.as_ref() == Some(name);
    let is_of = |revision: &&Revision, name: &String| {
        let labels = revision.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(SERVICE_LABEL)) == Some(name) && is_routable(revision)
    };
    let found: Vec<&Revision> = match target {
        Target::Image(_) | Target::Pod(_) => return None,
        Target::Revision(name) => revisions.iter().filter(|one| is_named(one, name)).collect(),
        Target::Service(name) => revisions.iter().filter(|one| is_of(one, name)).collect(),
        Target::Name(name) => {
            revisions.iter().filter(|one| is_named(one, name) || is_of(one, name)).collect()
        }
    };
    if found.is_empty() {
        return None;
    }
    // The controllers' own settings are not known here: all images count.
    let policy = Policy::default();
    let mut images: Vec<WantedImage> = Vec::new();
    for image in found.into_iter().flat_map(|revision| demand(revision, false, &policy).images) {
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Some(images)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::sample::{by_digest, reference, resolve, revision, route};

    fn warm(node: &str, image: &str, ready: &str) -> ImageWarm {
        serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": "x"}, "spec": {"image": image, "nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn each_part_narrows() {
        let app = warm("a", "docker.io/library/app:v1", "True");
        let named =
            |image: &str| Filter { image: Some(image.parse().unwrap()), ..Filter::default() };
        assert!(Filter::default().is_empty() && Filter::default().keeps(&app));
        for (image, kept) in [
            ("app", true),
            ("app:v1", true),
            ("app:v2", false),
            ("docker.io/library/app", true),
            ("other/app", false),
        ] {
            assert_eq!(named(image).keeps(&app), kept, "{image}");
            assert!(!named(image).is_empty());
        }
        let on = |node: &str| Filter { node: Some(node.into()), ..Filter::default() };
        assert!(on("a").keeps(&app) && !on("b").keeps(&app));
        let failed = Filter { failed: true, ..Filter::default() };
        assert!(!failed.keeps(&app) && failed.keeps(&warm("a", "app", "False")));
        assert!(!failed.keeps(&warm("a", "app", "Unknown")));
        assert!("App".parse::<ImageName>().is_err());
        let named = Filter { names: Some(["x".to_owned()].into()), ..Filter::default() };
        assert!(named.keeps(&app) && !named.is_empty());
        assert!(!Filter { names: Some(["y".to_owned()].into()), ..Filter::default() }.keeps(&app));
    }

    #[test]
    fn targets_are_told_apart_by_how_they_are_written() {
        let parse = |text: &str| text.parse::<Target>();
        assert_eq!(parse("hello"), Ok(Target::Name("hello".into())));
        assert_eq!(parse("service/hello"), Ok(Target::Service("hello".into())));
        assert_eq!(parse("revision/hello-00001"), Ok(Target::Revision("hello-00001".into())));
        let repository = |name: &str| Ok(Target::Image(ImageName::Repository(name.into())));
        assert_eq!(parse("image/app"), repository("docker.io/library/app"));
        assert_eq!(parse("r.example/app"), repository("r.example/app"));
        assert_eq!(parse("app:v1"), Ok(Target::Image(ImageName::Exactly(reference("app:v1")))));
        assert_eq!(parse("pod/hello-1"), Ok(Target::Pod("hello-1".into())));
        for bad in ["", "Hello", "service/", "service/a b", "image/App", "a/../B"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_images_of_a_service_are_those_of_its_revisions_with_traffic() {
        let of_service = |name: &str, service: &str, images: &[&str]| {
            let mut one = revision(name, 0, images);
            one.metadata.labels.as_mut().unwrap().insert(SERVICE_LABEL.into(), service.into());
            one
        };
        let mut old = of_service("hello-1", "hello", &["app:v1"]);
        route(&mut old, "reserve");
        let mut new = of_service("hello-2", "hello", &["app:v2", "side:v1"]);
        resolve(&mut new, 'a');
        let other = of_service("other-1", "other", &["side:v1"]);
        let all = [old, new, other];
        let names = |target: &str| -> Option<Vec<String>> {
            let images = images_of(&target.parse().unwrap(), &all)?;
            Some(images.iter().map(|image| image.reference.as_str().to_owned()).collect())
        };
        let of = |images: &[&str]| {
            Some(images.iter().map(|it| format!("docker.io/library/{it}")).collect())
        };
        assert_eq!(names("hello"), of(&["app:v2", "side:v1"]));
        assert_eq!(names("revision/hello-1"), of(&["app:v1"]));
        assert_eq!(names("other"), of(&["side:v1"]));
        assert_eq!((names("none"), names("service/hello-1")), (None, None));

        let wanted = images_of(&Target::Service("hello".into()), &all);
        let filter = Filter { wanted, ..Filter::default() };
        assert!(filter.keeps(&warm("a", "side:v1", "True")), "another Service shares it");
        assert!(filter.keeps(&warm("a", &by_digest("app:v2", 'a'), "True")));
        assert!(
            !filter.keeps(&warm("a", "app:v1", "True")) && !filter.keeps(&warm("a", "§", "True"))
        );
        let missing = filter.missing([by_digest("app:v2", 'a').as_str()].into_iter());
        assert_eq!(missing, [&reference("side:v1")]);
    }

    #[test]
    fn a_pod_names_the_digest_of_a_tag() {
        let of_pod =
            |image: &str| Filter { of_pod: Some(vec![reference(image)]), ..Filter::default() };
        let by_a = of_pod(&by_digest("app", 'a'));
        let mut tag = warm("a", "app:v1", "True");
        assert!(by_a.keeps(&tag), "its digest is not known yet");
        tag.status.as_mut().unwrap().digest = Some(crate::sample::digest('b'));
        assert!(!by_a.keeps(&tag));
        tag.status.as_mut().unwrap().digest = Some(crate::sample::digest('a'));
        assert!(by_a.keeps(&tag) && !of_pod("side").keeps(&tag));
        assert!(of_pod("app:v1").keeps(&tag));
    }
}
