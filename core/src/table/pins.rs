//! Settings with which CRI-O and cri-dockerd pin images by name.

use std::collections::BTreeSet;

use crate::api::CachedImageWarm;
use crate::image::{Digest, Reference};

/// The images that some ImageWarms ask for, by the names under which nodes hold them: as they are asked for, and by
/// the digest that a tag was found to stand for, which Pods of Knative use.
pub fn wanted_names(warms: &[CachedImageWarm]) -> BTreeSet<Reference> {
    let live = warms.iter().filter(|warm| !warm.is_terminating());
    let names = live.flat_map(|warm| {
        let image = Reference::parse(&warm.image).ok();
        let digest = warm.digest().and_then(|digest| digest.parse::<Digest>().ok());
        let by_digest =
            image.as_ref().zip(digest).map(|(image, digest)| image.with_digest(&digest));
        image.into_iter().chain(by_digest)
    });
    names.collect()
}

/// A file for `/etc/crio/crio.conf.d`. `scope` is what was listed: `in namespace shop`.
pub fn render_crio(names: &BTreeSet<Reference>, scope: &str) -> String {
    let mut text = format!(
        "# Images that are wanted {scope}; `imagewarm pins crio` writes this file. On each node it belongs to\n\
         # /etc/crio/crio.conf.d/99-imagewarm.conf; then: systemctl reload crio\n\
         # Of several files with pinned_images the last one counts: add your own names here.\n\
         [crio.image]\n\
         pinned_images = [\n"
    );
    for name in names {
        text += &format!("  \"{name}\",\n");
    }
    text + "]\n"
}

/// Flags of cri-dockerd, one in each line.
pub fn render_cri_dockerd(names: &BTreeSet<Reference>) -> String {
    names.iter().map(|name| format!("--pinned-images={}\n", docker_name(name))).collect()
}

/// As Docker shows it: without what it adds to names of Docker Hub.
fn docker_name(name: &Reference) -> &str {
    let text = name.as_str();
    let short = text.strip_prefix("docker.io/").unwrap_or(text);
    short.strip_prefix("library/").filter(|_| short != text).unwrap_or(short)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::ImageWarm;

    fn warm(image: &str, digest: Option<&str>) -> CachedImageWarm {
        let mut warm = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"image": image, "nodeName": "node-1"},
        });
        if let Some(digest) = digest {
            warm["status"] = json!({"digest": digest});
        }
        CachedImageWarm::from(serde_json::from_value::<ImageWarm>(warm).unwrap())
    }

    #[test]
    fn images_are_named_as_each_runtime_names_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let gone = CachedImageWarm {
            deletion_timestamp: Some(Timestamp::UNIX_EPOCH),
            ..warm("r.test/gone:v1", None)
        };
        let names = wanted_names(&[
            warm("r.test/team/app:v1", Some(&digest)),
            warm("r.test/team/app:v1", None),
            warm("busybox", None),
            warm("user/app:v2", None),
            warm("r.test/library/app:v3", None),
            warm("Not An Image", None),
            gone,
        ]);
        insta::assert_snapshot!(render_crio(&names, "in namespace shop"), @r#"
        # Images that are wanted in namespace shop; `imagewarm pins crio` writes this file. On each node it belongs to
        # /etc/crio/crio.conf.d/99-imagewarm.conf; then: systemctl reload crio
        # Of several files with pinned_images the last one counts: add your own names here.
        [crio.image]
        pinned_images = [
          "docker.io/library/busybox:latest",
          "docker.io/user/app:v2",
          "r.test/library/app:v3",
          "r.test/team/app:v1",
          "r.test/team/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ]
        "#);
        insta::assert_snapshot!(render_cri_dockerd(&names), @"
        --pinned-images=busybox:latest
        --pinned-images=user/app:v2
        --pinned-images=r.test/library/app:v3
        --pinned-images=r.test/team/app:v1
        --pinned-images=r.test/team/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        ");
    }

    #[test]
    fn without_images_the_file_is_still_one() {
        let text = render_crio(&BTreeSet::new(), "in any namespace");
        assert!(text.ends_with("[crio.image]\npinned_images = [\n]\n"), "{text}");
        assert_eq!(render_cri_dockerd(&BTreeSet::new()), "");
    }
}
