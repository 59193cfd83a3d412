//! Names of `ImageWarm` objects. The name decides which object it is, so it depends on image and
//! node alone: whoever creates it, and how often, it is the same object.

use sha2::{Digest, Sha256};

use super::Reference;

/// Characters of the hash: 5 bits each.
const HASH_LENGTH: usize = 20;
/// Longest readable parts. With three hyphens and the hash the name stays below 253 characters.
const APP_MAX: usize = 60;
const VERSION_MAX: usize = 40;
const NODE_MAX: usize = 100;
/// As many digits of a digest as people are used to.
const DIGEST_DIGITS: usize = 12;

/// Name of the `ImageWarm` of this image on this node:
/// `<last part of the image's path>-<tag or start of the digest>-<node>-<hash of image and node>`.
///
/// A DNS-1123 subdomain of at most 253 characters. The hash, of the full canonical image and the
/// full node name, keeps names apart whose readable parts were shortened or look alike.
pub fn object_name(image: &Reference, node: &str) -> String {
    let app = image.path().rsplit('/').next().unwrap_or_default();
    let version = match (image.digest(), image.tag()) {
        (Some(digest), _) => {
            let encoded = digest.split_once(':').map_or(digest, |(_, encoded)| encoded);
            encoded.get(..DIGEST_DIGITS).unwrap_or(encoded)
        }
        (None, tag) => tag.unwrap_or_default(),
    };
    let mut name = String::new();
    for (part, most) in [(app, APP_MAX), (version, VERSION_MAX), (node, NODE_MAX)] {
        let start = name.len();
        push_label(&mut name, part, most);
        if name.len() > start {
            name.push('-');
        }
    }
    push_hash(&mut name, image, node);
    name
}

/// Appends lower case letters and digits with single hyphens between them.
fn push_label(name: &mut String, part: &str, most: usize) {
    let start = name.len();
    for character in part.chars() {
        if name.len() - start >= most {
            break;
        }
        let character = character.to_ascii_lowercase();
        if character.is_ascii_lowercase() || character.is_ascii_digit() {
            name.push(character);
        } else if name.len() > start && !name.ends_with('-') {
            name.push('-');
        }
    }
    while name.len() > start && name.ends_with('-') {
        name.pop();
    }
}

fn push_hash(name: &mut String, image: &Reference, node: &str) {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = Sha256::new();
    hash.update(image.as_str());
    hash.update([0]); // part of neither, so that no two pairs read alike
    hash.update(node);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in hash.finalize().iter().take((HASH_LENGTH * 5).div_ceil(8)) {
        bits = (bits << 8) | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            let index = usize::try_from((bits >> count) & 31).unwrap_or_default();
            name.push(char::from(ALPHABET[index]));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::api::names::is_dns_subdomain;

    fn name(image: &str, node: &str) -> String {
        object_name(&Reference::parse(image).unwrap(), node)
    }

    /// Objects of these names exist in clusters: another name would be another object.
    #[test]
    fn names_stay_what_they_are() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(name("app", "node-a"), "app-latest-node-a-wicfp6yygxuztwzhp4an");
        assert_eq!(
            name("r.example:5000/team/app:V1.2__x", "ip-10-0-0-1.example.com"),
            "app-v1-2-x-ip-10-0-0-1-example-com-j7k5zfrawuld5uwmig5p"
        );
        assert_eq!(
            name(&format!("my_app@{digest}"), "n"),
            "my-app-e3b0c44298fc-n-3iu22llg3h55677m57nz"
        );
    }

    #[test]
    fn parts_are_joined_by_one_dash() {
        let named = name("app:_v1", "-node-");
        assert!(named.starts_with("app-v1-node-"), "{named}");
    }

    #[test]
    fn spellings_of_one_image_have_one_name() {
        assert_eq!(name("app", "a"), name("index.docker.io/library/app:latest", "a"));
    }

    #[test]
    fn look_alikes_have_different_names() {
        let pairs = [
            ("a/app:v1", "node"),
            ("b/app:v1", "node"),
            ("r.example/a/app:v1", "node"),
            ("a/app:V1", "node"),
            ("a/app:v1_", "node"),
            ("a/app:v1-node", "node"),
            ("a/app:v1", "node-node"),
            ("a/app:v1", "no.de"),
            ("a/app:v1", "no-de"),
        ];
        let names: HashSet<_> = pairs.iter().map(|(image, node)| name(image, node)).collect();
        assert_eq!(names.len(), pairs.len());
    }

    #[test]
    fn the_longest_names_fit() {
        let image = format!("r.example/{}:{}", "a".repeat(255), "t".repeat(128));
        let (one, other) = (name(&image, &"n".repeat(253)), name(&image, &"n".repeat(252)));
        assert!(is_dns_subdomain(&one) && one.len() > 200, "{one}");
        assert_ne!(one, other);
    }

    proptest! {
        #[test]
        fn valid_and_distinct(
            images in prop::collection::hash_set("[a-z0-9]{1,9}([._/-][a-z0-9]{1,70}){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,60})?", 1..5),
            nodes in prop::collection::hash_set("[a-z0-9]([a-z0-9.-]{0,120}[a-z0-9])?|\\PC{0,9}", 1..5),
        ) {
            let images: HashSet<_> =
                images.iter().filter_map(|text| Reference::parse(text).ok()).collect();
            let mut names = HashSet::new();
            for image in &images {
                for node in &nodes {
                    let name = object_name(image, node);
                    prop_assert!(is_dns_subdomain(&name), "{name}");
                    prop_assert!(names.insert(name));
                }
            }
        }
    }
}
