//! The image of a Pod's container, as the kubelet names it in Events: `Pulling` when it begins to pull the
//! image, `Pulled` when the image is there. Pure.
//!
//! Anybody who may create Events can say the same.

use k8s_openapi::api::core::v1::Event;

use crate::api::CachedImageWarm;
use crate::api::names::{MAX_SUBDOMAIN, NodeName};
use crate::image::Reference;

/// `reason` of the kubelet's Event when it begins to pull a container's image.
pub const PULLING: &str = "Pulling";
/// `reason` of the kubelet's Event when a container's image is on the node.
pub const PULLED: &str = "Pulled";
/// Selects the Events of this reason about Pods.
pub fn field_selector(reason: &str) -> String {
    format!("involvedObject.kind=Pod,reason={reason}")
}

/// Reasons of the most frequent other Events about Pods.
const OTHERS: [&str; 10] = [
    "Scheduled",
    "Created",
    "Started",
    "Killing",
    "BackOff",
    "Unhealthy",
    "Failed",
    "FailedMount",
    "Evicted",
    "Preempted",
];

/// Selects the Events about Pods that have a reason of interest, and a few more: a selector has no `or`, and each
/// further watch has the API server read all Events once more.
pub fn pod_events_selector() -> String {
    let others = OTHERS.iter().map(|reason| format!(",reason!={reason}"));
    ["involvedObject.kind=Pod".to_owned()].into_iter().chain(others).collect()
}

/// The longest message that is read, in bytes: an image's name and a sentence.
const LONGEST_MESSAGE: usize = 2_048;

/// The image of a container, on the node of its Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodImage {
    /// The Pod's namespace.
    pub namespace: String,
    /// The node.
    pub node: NodeName,
    /// The image, as in the Pod.
    pub image: Reference,
}

impl PodImage {
    /// Reads the kubelet's Event `Pulling` of a Pod's container. `None` for everything else.
    pub fn pulling(event: &Event) -> Option<Self> {
        let said = of_a_kubelet(event, PULLING)?;
        (said.before == "Pulling image ").then_some(said.image)
    }

    /// Whether the ImageWarm is for this image on this node.
    pub fn is_of(&self, warm: &CachedImageWarm) -> bool {
        let Ok(image) = Reference::parse(&warm.image) else { return false };
        // Knative gives Pods the digest of a tag.
        let digest = image.digest().or(warm.digest());
        image == self.image || self.is_by_digest(&image) && digest == self.image.digest()
    }

    /// The same for an ImageWarm whose image is not on the node yet: the digest of its tag may not be known.
    pub fn may_be_of(&self, image: &Reference) -> bool {
        let digest = image.digest();
        *image == self.image
            || self.is_by_digest(image) && (digest.is_none() || digest == self.image.digest())
    }

    fn is_by_digest(&self, image: &Reference) -> bool {
        self.image.digest().is_some() && self.image.repository() == image.repository()
    }
}

/// What a kubelet says of the image of a Pod: the text before the image's name, and that after it.
pub(super) struct Said<'a> {
    pub(super) image: PodImage,
    pub(super) pod: &'a str,
    pub(super) before: &'a str,
    pub(super) after: &'a str,
}

/// Reads a kubelet's Event of this reason about a Pod. `None` for everything else.
pub(super) fn of_a_kubelet<'a>(event: &'a Event, reason: &str) -> Option<Said<'a>> {
    let namespace = event.metadata.namespace.clone()?;
    let object = &event.involved_object;
    let is_of_a_pod = object.kind.as_deref() == Some("Pod")
        && object.namespace.as_deref() == Some(&namespace)
        && event.reason.as_deref() == Some(reason);
    let source = event.source.as_ref();
    let component = source.and_then(|source| source.component.as_deref());
    let component = component.or(event.reporting_component.as_deref());
    if !is_of_a_pod || component != Some("kubelet") {
        return None;
    }
    let node = source.and_then(|source| source.host.as_deref());
    let node = node.or(event.reporting_instance.as_deref())?;
    let pod = object.name.as_deref().unwrap_or_default();
    // The API server bounds neither: many of them are kept until they are counted.
    if node.len() > MAX_SUBDOMAIN || pod.len() > MAX_SUBDOMAIN {
        return None;
    }
    let message = event.message.as_deref().filter(|text| text.len() <= LONGEST_MESSAGE)?;
    let mut parts = message.splitn(3, '"');
    let (before, image, after) = (parts.next()?, parts.next()?, parts.next()?);
    let image = PodImage { namespace, node: node.into(), image: Reference::parse(image).ok()? };
    Some(Said { image, pod, before, after })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn event(reason: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "app-1.17", "namespace": "team"},
            "involvedObject": {"kind": "Pod", "namespace": "team", "name": "app-1"},
            "reason": reason, "message": message,
            "source": {"component": "kubelet", "host": "node-1"},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_waits_for_the_image_that_its_kubelet_pulls() {
        let waits = |reason: &str, message: &str| PodImage::pulling(&event(reason, message));
        let image = waits("Pulling", r#"Pulling image "app:v1""#).unwrap();
        assert_eq!((&*image.namespace, &*image.node), ("team", "node-1"));
        assert_eq!(image.image.as_str(), "docker.io/library/app:v1");
        assert_eq!(waits("Pulled", r#"Pulling image "app:v1""#), None);
        assert_eq!(waits("Pulling", r#"Successfully pulled image "app:v1""#), None);
        assert_eq!(waits("Pulling", r#"Pulling image "NOT/an image""#), None);
        let long = format!("Pulling image \"app\"{}", " ".repeat(3_000));
        assert_eq!(waits("Pulling", &long), None);
        let mut named = event("Pulling", r#"Pulling image "app:v1""#);
        named.involved_object.name = Some("p".repeat(254));
        assert_eq!(PodImage::pulling(&named), None);
        named.involved_object.name = None;
        named.source.as_mut().unwrap().host = Some("n".repeat(254));
        assert_eq!(PodImage::pulling(&named), None);
    }

    #[test]
    fn the_digest_of_a_tag_may_not_be_known_yet() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let message = format!(r#"Pulling image "r.test/app@{digest}""#);
        let pod = PodImage::pulling(&event("Pulling", &message)).unwrap();
        let may_be_of = |image: &str| pod.may_be_of(&Reference::parse(image).unwrap());
        assert!(may_be_of("r.test/app:v1") && may_be_of(&format!("r.test/app@{digest}")));
        let other = format!("r.test/app@sha256:{}", "b".repeat(64));
        assert!(!may_be_of("r.test/other:v1") && !may_be_of(&other));
        let by_tag = PodImage { image: Reference::parse("r.test/app:v1").unwrap(), ..pod };
        assert!(by_tag.may_be_of(&by_tag.image));
        assert!(!by_tag.may_be_of(&Reference::parse("r.test/app:v2").unwrap()));
    }
}
