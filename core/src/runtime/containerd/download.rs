//! How far the download of one image is, from what the content store shows while it is pulled. The
//! store does not show which pull an ingest belongs to: the manifest of the image's repository whose
//! layers are on their way is taken for the image's, and nothing is known while it may be several.

use std::collections::{HashMap, HashSet};

use super::{Blob, Ingest, Manifest};
use crate::image::{Digest, Reference};
use crate::runtime::PullProgress;

/// Limit of the manifests that are read for one pull.
const MOST_MANIFESTS: usize = 32;

/// The state of one image's download.
#[derive(Debug)]
pub struct Download {
    image: Reference,
    /// Ingests that have not moved since before the pull: remains of earlier ones.
    resting: HashMap<Digest, u64>,
    /// The other ones, with the bytes that are there.
    running: HashMap<Digest, u64>,
    /// Those that were read; None for what is no manifest.
    manifests: HashMap<Digest, Option<Manifest>>,
    chosen: Option<Digest>,
    stored: HashSet<Digest>,
    last: PullProgress,
}

impl Download {
    /// The download of `image`, which begins beside these ingests.
    pub fn new(image: &Reference, before: Vec<Ingest>) -> Self {
        Download {
            image: image.clone(),
            resting: before.into_iter().map(|ingest| (ingest.digest, ingest.offset)).collect(),
            running: HashMap::new(),
            manifests: HashMap::new(),
            chosen: None,
            stored: HashSet::new(),
            last: PullProgress::default(),
        }
    }

    /// The image.
    pub fn image(&self) -> &Reference {
        &self.image
    }

    /// The ingests that there are now.
    pub fn ingests(&mut self, all: Vec<Ingest>) {
        self.running.clear();
        for Ingest { digest, offset } in all {
            if self.resting.get(&digest) != Some(&offset) {
                self.resting.remove(&digest);
                self.running.insert(digest, offset);
            }
        }
    }

    /// Whether the repository's blobs are to be listed: layers are on their way that may be the
    /// image's.
    pub fn needs_blobs(&self) -> bool {
        let chosen = self.chosen();
        let is_known = |digest| chosen.is_some_and(|manifest| manifest.has(digest));
        self.manifests.len() < MOST_MANIFESTS && !self.running.keys().all(is_known)
    }

    /// The manifests among the repository's blobs that are to be read next.
    pub fn unread(&self, blobs: &[Blob]) -> Vec<Digest> {
        let of_repository = || blobs.iter().filter(|blob| blob.is_of(&self.image));
        let named = self.image.digest();
        let named = named.map(|named| (named, of_repository().find(|blob| blob.digest == *named)));
        let is_meant = |digest: &Digest| match named {
            None => true,
            Some((named, blob)) => {
                *digest == *named || blob.is_some_and(|blob| blob.is_index_of(digest))
            }
        };
        of_repository()
            .filter(|blob| blob.is_manifest() && is_meant(&blob.digest))
            .filter(|blob| !self.manifests.contains_key(&blob.digest))
            .filter(|blob| blob.may_have(|digest| self.running.contains_key(digest)))
            .map(|blob| blob.digest.clone())
            .take(MOST_MANIFESTS.saturating_sub(self.manifests.len()))
            .collect()
    }

    /// What was read under this digest; None if it is no manifest.
    pub fn read(&mut self, digest: Digest, manifest: Option<Manifest>) {
        self.manifests.insert(digest, manifest);
    }

    /// Decides which manifest is the image's, and returns its layers of which it is not known that
    /// the store has them.
    pub fn missing(&mut self) -> Vec<Digest> {
        self.choose();
        let layers = self.chosen().into_iter().flat_map(Manifest::layers).map(|(digest, _)| digest);
        let missing = layers
            .filter(|digest| !self.stored.contains(*digest) && !self.running.contains_key(*digest));
        missing.cloned().collect()
    }

    /// The store has these.
    pub fn stored(&mut self, layers: impl IntoIterator<Item = Digest>) {
        self.stored.extend(layers);
    }

    /// How far the download is, if that has changed. It never goes back.
    pub fn progress(&mut self) -> Option<PullProgress> {
        let manifest = self.chosen()?;
        let there = |(digest, size): (&Digest, u64)| match self.stored.contains(digest) {
            true => size,
            false => self.running.get(digest).map_or(0, |offset| size.min(*offset)),
        };
        let total_bytes = manifest.total();
        let downloaded = manifest.layers().map(there).fold(0, u64::saturating_add);
        let downloaded_bytes = downloaded.max(self.last.downloaded_bytes).min(total_bytes);
        let next = PullProgress { downloaded_bytes, total_bytes };
        (next != self.last).then(|| {
            self.last = next;
            next
        })
    }

    fn chosen(&self) -> Option<&Manifest> {
        self.manifests.get(self.chosen.as_ref()?)?.as_ref()
    }

    /// While layers of several manifests are on their way, none is chosen anew. A manifest that is
    /// smaller than what has been reported is not this image's.
    fn choose(&mut self) {
        let is_moving =
            |manifest: &Manifest| self.running.keys().any(|digest| manifest.has(digest));
        let mut moving = self
            .manifests
            .iter()
            .filter(|(_, manifest)| manifest.as_ref().is_some_and(is_moving))
            .map(|(digest, manifest)| (digest, manifest.as_ref().map_or(0, Manifest::total)));
        if let (Some((digest, total)), None) = (moving.next(), moving.next())
            && total >= self.last.downloaded_bytes
        {
            self.chosen = Some(digest.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn digest(character: char) -> Digest {
        format!("sha256:{}", character.to_string().repeat(64)).parse().unwrap()
    }

    fn ingest(character: char, offset: u64) -> Ingest {
        Ingest { digest: digest(character), offset }
    }

    /// A manifest that names these layers with their sizes, and its blob.
    fn manifest(character: char, layers: &[(char, u64)]) -> (Blob, Manifest) {
        let json = layers
            .iter()
            .map(|(layer, size)| json!({"digest": digest(*layer).to_string(), "size": size}));
        let json = json!({"layers": json.collect::<Vec<_>>()}).to_string();
        let mut labels = HashMap::from([
            ("containerd.io/distribution.source.r.test".to_owned(), "app".to_owned()),
            ("containerd.io/gc.ref.content.config".to_owned(), "sha256:0".to_owned()),
        ]);
        for (number, (layer, _)) in layers.iter().enumerate() {
            let key = format!("containerd.io/gc.ref.content.l.{number}");
            labels.insert(key, digest(*layer).to_string());
        }
        let blob = Blob { digest: digest(character), size: json.len() as u64, labels };
        (blob, Manifest::parse(json.as_bytes()).unwrap())
    }

    fn download(image: &str, before: &[Ingest]) -> Download {
        Download::new(&Reference::parse(image).unwrap(), before.to_vec())
    }

    /// One poll of a store with these ingests, manifests and complete layers.
    fn poll(
        download: &mut Download,
        ingests: &[Ingest],
        manifests: &[(Blob, Manifest)],
        stored: &[char],
    ) -> Option<(u64, u64)> {
        download.ingests(ingests.to_vec());
        if download.needs_blobs() {
            let blobs: Vec<Blob> = manifests.iter().map(|(blob, _)| blob.clone()).collect();
            for unread in download.unread(&blobs) {
                let found = manifests.iter().find(|(blob, _)| blob.digest == unread);
                download.read(unread, found.map(|(_, manifest)| manifest.clone()));
            }
        }
        let missing = download.missing();
        let stored = stored.iter().map(|layer| digest(*layer));
        download.stored(stored.filter(|layer| missing.contains(layer)));
        let progress = download.progress()?;
        Some((progress.downloaded_bytes, progress.total_bytes))
    }

    #[test]
    fn stored_layers_and_running_ingests_are_counted() {
        let image = [manifest('1', &[('a', 10), ('b', 20), ('c', 30)])];
        let mut pull = download("r.test/app:v1", &[]);
        assert_eq!(poll(&mut pull, &[], &[], &[]), None, "the manifest is not there yet");
        assert_eq!(poll(&mut pull, &[], &image, &['a']), None, "nothing runs");
        let running = [ingest('b', 5), ingest('f', 1_000)];
        assert_eq!(poll(&mut pull, &running, &image, &['a']), Some((15, 60)));
        assert_eq!(poll(&mut pull, &running, &image, &['a']), None, "unchanged");
        assert_eq!(poll(&mut pull, &[ingest('c', 1)], &image, &['a', 'b']), Some((31, 60)));
        // Gone, and not stored: it broke off.
        assert_eq!(poll(&mut pull, &[], &image, &['a', 'b']), None, "it never goes back");
        let more = [ingest('c', 1_000)];
        assert_eq!(poll(&mut pull, &more, &image, &['a', 'b']), Some((60, 60)), "nor beyond");
        assert_eq!(poll(&mut pull, &[], &image, &['a', 'b', 'c']), None);
    }

    #[test]
    fn what_an_earlier_pull_left_behind_is_no_progress() {
        let image = [manifest('1', &[('a', 10), ('b', 20)])];
        let mut pull = download("r.test/app:v1", &[ingest('a', 7), ingest('b', 9)]);
        assert_eq!(poll(&mut pull, &[ingest('a', 7), ingest('b', 9)], &image, &[]), None);
        // Continued, and begun anew.
        assert_eq!(poll(&mut pull, &[ingest('a', 8), ingest('b', 9)], &image, &[]), Some((8, 30)));
        assert_eq!(poll(&mut pull, &[ingest('a', 8), ingest('b', 1)], &image, &[]), Some((9, 30)));
        assert_eq!(poll(&mut pull, &[ingest('a', 8), ingest('b', 9)], &image, &[]), Some((17, 30)));
    }

    #[test]
    fn while_it_may_be_either_of_two_images_nothing_is_known() {
        let (first, second) =
            (manifest('1', &[('a', 10), ('b', 20)]), manifest('2', &[('a', 10), ('c', 40)]));
        let both = [first, second];
        let mut pull = download("r.test/app:v1", &[]);
        assert_eq!(poll(&mut pull, &[ingest('a', 5)], &both, &[]), None, "a layer of both");
        assert_eq!(poll(&mut pull, &[ingest('b', 5), ingest('c', 5)], &both, &['a']), None);
        assert_eq!(poll(&mut pull, &[ingest('c', 6)], &both, &['a', 'b']), Some((16, 50)));
        // Another pull begins: it stays with the one.
        let all = [ingest('b', 5), ingest('c', 7)];
        assert_eq!(poll(&mut pull, &all, &both, &['a']), Some((17, 50)));
    }

    #[test]
    fn an_image_taken_for_another_is_corrected_unless_bytes_went_back() {
        let (small, large) = (manifest('1', &[('a', 10)]), manifest('2', &[('c', 40)]));
        let mut pull = download("r.test/app:v2", &[]);
        assert_eq!(
            poll(&mut pull, &[ingest('a', 5)], std::slice::from_ref(&small), &[]),
            Some((5, 10))
        );
        let both = [small, large];
        assert_eq!(poll(&mut pull, &[ingest('c', 2)], &both, &['a']), Some((5, 40)));
        assert_eq!(poll(&mut pull, &[ingest('c', 30)], &both, &['a']), Some((30, 40)));
        assert_eq!(poll(&mut pull, &[ingest('a', 2)], &both, &[]), None);
    }

    #[test]
    fn a_digest_is_its_manifest_or_one_of_its_index() {
        let (first, second) = (manifest('1', &[('a', 10)]), manifest('2', &[('b', 20)]));
        let labels = HashMap::from([
            ("containerd.io/distribution.source.r.test".to_owned(), "app".to_owned()),
            ("containerd.io/gc.ref.content.m.0".to_owned(), digest('2').to_string()),
        ]);
        let index = (Blob { digest: digest('3'), size: 9, labels }, Manifest::default());
        let store = [first, second, index];
        let running = [ingest('a', 1), ingest('b', 2)];
        for (named, expected) in
            [('1', Some((1, 10))), ('2', Some((2, 20))), ('3', Some((2, 20))), ('4', None)]
        {
            let mut pull = download(&format!("r.test/app@{}", digest(named)), &[]);
            assert_eq!(poll(&mut pull, &running, &store, &[]), expected, "{named}");
        }
        for other in ["r.test/app2:v1", "other.test/app:v1"] {
            assert_eq!(
                poll(&mut download(other, &[]), &running, &store[..1], &[]),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn only_manifests_that_may_be_the_images_are_read_and_not_many() {
        let mut pull = download("r.test/app:v1", &[]);
        pull.ingests(vec![ingest('a', 1)]);
        let (mut blob, _) = manifest('1', &[('b', 1)]);
        assert!(pull.unread(&[blob.clone()]).is_empty(), "no layer of it is on its way");
        // Where the layers are not among the labels.
        blob.labels.retain(|key, _| !key.contains("content.l."));
        let many: Vec<Blob> = (0..100)
            .map(|number| {
                let digest = format!("sha256:{number:064x}").parse().unwrap();
                Blob { digest, ..blob.clone() }
            })
            .collect();
        let unread = pull.unread(&many);
        assert_eq!(unread.len(), MOST_MANIFESTS);
        unread.into_iter().for_each(|digest| pull.read(digest, None));
        assert!(!pull.needs_blobs() && pull.unread(&many).is_empty());
        assert_eq!((pull.missing(), pull.progress()), (Vec::new(), None));
    }
}
