//! Pins, in containerd's own records of images on the same socket. There is a record for each name of an image,
//! and one for its ID. An image is pinned if one of its records has the label. The pin is on the record of the ID:
//! the next pull of a tag replaces the labels of the tag's record, but not of that one.

use std::collections::{HashMap, HashSet};

use tonic::codegen::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::api;
use super::content::in_namespace;
use super::image_records_api::images_client::ImagesClient;
use super::image_records_api::{
    Descriptor, FieldMask, Image, ListImagesRequest, UpdateImageRequest, UpdateImageResponse,
};
use super::in_time;
use imagewarm_core::runtime::RuntimeError;
use imagewarm_core::runtime::pins::{HeldImage, Pin};

/// The label for which containerd reports an image as pinned.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Marks the pin as one of a warmer. Its value is the time, in milliseconds since 1970.
const OWN: &str = "caching.knative.dev/pinned";

type Client =
    ImagesClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

/// containerd's records of images.
pub(super) struct ImageRecords(Client);

impl ImageRecords {
    pub(super) fn new(channel: Channel) -> Self {
        ImageRecords(ImagesClient::with_interceptor(channel, in_namespace))
    }

    /// The records that a warmer has pinned, by name, and when.
    pub(super) async fn own(&self) -> Result<HashMap<String, i64>, RuntimeError> {
        let filters = vec![format!("labels.\"{OWN}\"")];
        let mut client = self.0.clone();
        let records = in_time(client.list(ListImagesRequest { filters }), None).await?.images;
        let since = |labels: &HashMap<String, String>| labels.get(OWN)?.parse().ok();
        Ok(records
            .into_iter()
            .map(|record| (record.name, since(&record.labels).unwrap_or_default()))
            .collect())
    }

    /// Sets or removes both labels of a record together.
    pub(super) async fn set_pin(
        &self,
        name: &str,
        since_unix_ms: Option<i64>,
    ) -> Result<(), RuntimeError> {
        let labels = since_unix_ms.map(|since| {
            let own = (OWN.to_owned(), since.to_string());
            HashMap::from([(PINNED.0.to_owned(), PINNED.1.to_owned()), own])
        });
        let paths = [PINNED.0, OWN].map(|label| format!("labels.{label}")).to_vec();
        let request = UpdateImageRequest {
            image: Some(Image {
                name: name.to_owned(),
                labels: labels.unwrap_or_default(),
                target: Some(Descriptor {}),
            }),
            update_mask: Some(FieldMask { paths }),
        };
        let mut client = self.0.clone();
        let update = async {
            match client.update(request).await {
                Err(status) if status.code() == Code::NotFound => {
                    Ok(Response::new(UpdateImageResponse::default()))
                }
                answer => answer,
            }
        };
        in_time(update, None).await.map(drop)
    }
}

/// What the runtime holds, from its images and containers and the records that are `own`.
pub(super) fn held(
    images: Vec<api::Image>,
    containers: &[api::Container],
    mut own: HashMap<String, i64>,
) -> Vec<HeldImage> {
    let used = |container: &'_ api::Container| {
        let named = container.image.as_ref().map(|image| image.image.clone());
        [container.image_id.clone(), container.image_ref.clone(), named.unwrap_or_default()]
    };
    let used: HashSet<String> = containers.iter().flat_map(used).collect();
    let mut held: Vec<HeldImage> = images
        .into_iter()
        .map(|image| {
            let pin = match (own.remove(&image.id), image.pinned) {
                (Some(since_unix_ms), in_effect) => Pin::Own { since_unix_ms, in_effect },
                (None, true) => Pin::Foreign,
                (None, false) => Pin::None,
            };
            let names: Vec<String> =
                image.repo_tags.into_iter().chain(image.repo_digests).collect();
            let in_use = used.contains(&image.id) || names.iter().any(|name| used.contains(name));
            HeldImage { id: image.id, names, size_bytes: image.size, in_use, pin }
        })
        .collect();
    // Records of images that containerd no longer shows.
    held.extend(own.into_iter().map(|(id, since_unix_ms)| HeldImage {
        id,
        names: Vec::new(),
        size_bytes: 0,
        in_use: false,
        pin: Pin::Own { since_unix_ms, in_effect: false },
    }));
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_and_use_are_found_by_the_id_of_the_image() {
        let image = |id: &str, pinned| api::Image {
            id: id.into(),
            repo_tags: vec![format!("r.test/{id}:v1")],
            repo_digests: vec![format!("r.test/{id}@sha256:00")],
            size: 7,
            pinned,
        };
        let images =
            ["own", "theirs", "free", "lost"].map(|id| image(id, id == "own" || id == "theirs"));
        let containers = [
            api::Container { image_ref: "own".into(), ..api::Container::default() },
            api::Container {
                image: Some(api::ImageSpec {
                    image: "r.test/free:v1".into(),
                    ..api::ImageSpec::default()
                }),
                ..api::Container::default()
            },
        ];
        let own = [("own", 5), ("lost", 6), ("gone", 7)];
        let own = own.map(|(id, since)| (id.to_owned(), since)).into();
        let held = held(images.to_vec(), &containers, own);
        let found: Vec<_> = held
            .iter()
            .map(|image| (image.id.as_str(), image.names.len(), image.in_use, image.pin))
            .collect();
        let own = |since_unix_ms, in_effect| Pin::Own { since_unix_ms, in_effect };
        assert_eq!(
            found,
            [
                ("own", 2, true, own(5, true)),
                ("theirs", 2, false, Pin::Foreign),
                ("free", 2, true, Pin::None),
                ("lost", 2, false, own(6, false)),
                ("gone", 0, false, own(7, false)),
            ]
        );
    }
}
