//! The entries of the content store: complete blobs with their labels, and ingests.

use std::collections::HashMap;

use super::LONGEST_MANIFEST;
use crate::image::{Digest, Reference};

/// Prefix of the label that lists the repositories of a registry from which a blob came.
const SOURCE: &str = "containerd.io/distribution.source";
/// Label of a manifest with its configuration's digest.
const CONFIGURATION: &str = "containerd.io/gc.ref.content.config";
/// Prefix of a manifest's labels with its layers' digests. Absent where containerd is configured to
/// discard layers once they are unpacked.
const LAYER: &str = "containerd.io/gc.ref.content.l.";
/// Prefix of an index' labels with its manifests' digests.
const MANIFEST: &str = "containerd.io/gc.ref.content.m.";

/// A complete blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// containerd's labels.
    pub labels: HashMap<String, String>,
}

impl Blob {
    /// Whether it came from the image's repository.
    pub(super) fn is_of(&self, image: &Reference) -> bool {
        let repositories = self.labels.get(&source(image));
        repositories.is_some_and(|all| all.split(',').any(|path| path == image.path()))
    }

    /// Whether it is a manifest of a size that is read.
    pub(super) fn is_manifest(&self) -> bool {
        let has_children = self.labels.contains_key(CONFIGURATION) || self.has(LAYER);
        has_children && self.size <= LONGEST_MANIFEST as u64
    }

    fn has(&self, prefix: &str) -> bool {
        self.labels.keys().any(|key| key.starts_with(prefix))
    }

    fn digests(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let labels = self.labels.iter().filter(move |(key, _)| key.starts_with(prefix));
        labels.map(|(_, digest)| digest.as_str())
    }

    /// Whether it is the index of this manifest.
    pub(super) fn is_index_of(&self, manifest: &Digest) -> bool {
        self.digests(MANIFEST).any(|digest| *manifest == *digest)
    }

    /// Whether, by its labels, a layer of it may be among these.
    pub(super) fn may_have(&self, is_one: impl Fn(&str) -> bool) -> bool {
        !self.has(LAYER) || self.digests(LAYER).any(is_one)
    }
}

/// A blob that is not yet complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// The digest that it will have.
    pub digest: Digest,
    /// Bytes that are there.
    pub offset: u64,
}

impl Ingest {
    /// The ingest with this name, such as `layer-sha256:…` or `layer-NAME@sha256:…`. None if it has
    /// another form: others than pulls write into the store, too.
    pub fn parse(name: &str, offset: i64) -> Option<Self> {
        let digest = name.rsplit(['-', '@']).next()?.parse().ok()?;
        Some(Ingest { digest, offset: u64::try_from(offset).ok()? })
    }
}

/// The label of blobs from the image's registry: the host without its port.
fn source(image: &Reference) -> String {
    let domain = image.domain();
    let host = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => domain.split_once(':').map_or(domain, |(host, _)| host),
    };
    format!("{SOURCE}.{host}")
}

/// containerd's filter for the blobs of the image's repository, and for a few more: dots of the name
/// fit any character.
pub fn filter_of_repository(image: &Reference) -> String {
    format!("labels.\"{}\"~=\"(^|,){}(,|$)\"", source(image), image.path())
}

/// containerd's filter for one blob.
pub fn filter_of_digest(digest: &Digest) -> String {
    format!("digest==\"{digest}\"")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn blob(labels: &[(&str, &str)]) -> Blob {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        Blob { digest, size: 10, labels: labels.collect() }
    }

    #[test]
    fn a_blob_is_of_the_repositories_in_its_label() {
        let table = [
            ("r.test:5000/team/app:v1", "r.test", "team/app", true),
            ("r.test:5000/team/app:v1", "r.test", "other,team/app,x", true),
            ("r.test/team/app:v1", "r.test", "team/app2,steam/app,team", false),
            ("r.test/team/app:v1", "r2.test", "team/app", false),
            ("busybox", "docker.io", "library/busybox", true),
            ("[fd00::1]:5000/app:v1", "fd00::1", "app", true),
        ];
        for (image, host, repositories, expected) in table {
            let blob =
                blob(&[(&format!("containerd.io/distribution.source.{host}"), repositories)]);
            let image = Reference::parse(image).unwrap();
            assert_eq!(blob.is_of(&image), expected, "{image} {repositories}");
        }
        let image = Reference::parse("r.test:5000/team/app:v1").unwrap();
        assert_eq!(
            filter_of_repository(&image),
            r#"labels."containerd.io/distribution.source.r.test"~="(^|,)team/app(,|$)""#
        );
    }

    #[test]
    fn a_manifest_is_told_by_its_children() {
        let config = ("containerd.io/gc.ref.content.config", "sha256:1");
        let layer = ("containerd.io/gc.ref.content.l.0", "sha256:2");
        let index = ("containerd.io/gc.ref.content.m.0", "sha256:3");
        for (labels, expected) in [
            (&[config, layer][..], true),
            (&[config], true),
            (&[layer], true),
            (&[index], false),
            (&[], false),
        ] {
            assert_eq!(blob(labels).is_manifest(), expected, "{labels:?}");
        }
        let large = Blob { size: LONGEST_MANIFEST as u64 + 1, ..blob(&[config]) };
        assert!(!large.is_manifest());
        assert!(blob(&[config, layer]).may_have(|digest| digest == "sha256:2"));
        assert!(!blob(&[config, layer]).may_have(|digest| digest == "sha256:1"));
        assert!(blob(&[config]).may_have(|_| false), "its layers are not known");
    }

    #[test]
    fn an_ingest_is_named_by_its_kind_and_digest() {
        let digest = format!("sha256:{}", "b".repeat(64));
        for name in [format!("layer-{digest}"), format!("layer-a-b@{digest}"), digest.clone()] {
            let ingest = Ingest::parse(&name, 7).unwrap();
            assert_eq!((&*ingest.digest, ingest.offset), (&*digest, 7), "{name}");
        }
        for (name, offset) in [("layer-sha256:00", 7), ("", 7), ("upload", 7), (&digest, -1)] {
            assert_eq!(Ingest::parse(name, offset), None, "{name}");
        }
    }
}
