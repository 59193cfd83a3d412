//! The layers of an image's manifest. A registry wrote it: sizes and counts are bounded.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::Digest;

/// Limit of a manifest in bytes; also the limit that registries and runtimes have.
pub const LONGEST_MANIFEST: usize = 4 << 20;
/// Limit of the layers of a manifest.
pub const MOST_LAYERS: usize = 1_000;

/// Layers with their sizes in bytes. One that is named twice is downloaded once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    layers: BTreeMap<Digest, u64>,
}

#[derive(Deserialize)]
struct Written {
    layers: Vec<WrittenLayer>,
}

#[derive(Deserialize)]
struct WrittenLayer {
    digest: String,
    size: u64,
}

impl Manifest {
    /// Reads a manifest in the format of OCI or of Docker (schema 2). None for anything else, and
    /// for what exceeds the limits.
    pub fn parse(json: &[u8]) -> Option<Self> {
        if json.len() > LONGEST_MANIFEST {
            return None;
        }
        let written: Written = serde_json::from_slice(json).ok()?;
        if written.layers.len() > MOST_LAYERS {
            return None;
        }
        let layers = written.layers.into_iter();
        let layers = layers.map(|layer| Some((layer.digest.parse().ok()?, layer.size)));
        Some(Manifest { layers: layers.collect::<Option<_>>()? })
    }

    /// The layers with their sizes.
    pub fn layers(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.layers.iter().map(|(digest, size)| (digest, *size))
    }

    /// Whether it names this layer.
    pub fn has(&self, digest: &Digest) -> bool {
        self.layers.contains_key(digest)
    }

    /// Bytes of all layers.
    pub fn total(&self) -> u64 {
        self.layers.values().copied().fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn digest(character: char) -> String {
        format!("sha256:{}", character.to_string().repeat(64))
    }

    fn parse(layers: Value) -> Option<Manifest> {
        let manifest = json!({"schemaVersion": 2, "config": {"size": 7}, "layers": layers});
        Manifest::parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn the_layers_are_summed_each_once() {
        let layers = json!([
            {"mediaType": "x", "digest": digest('a'), "size": 5},
            {"digest": digest('b'), "size": 7},
            {"digest": digest('a'), "size": 5},
        ]);
        let manifest = parse(layers).unwrap();
        assert_eq!((manifest.total(), manifest.layers().count()), (12, 2));
        assert!(manifest.has(&digest('b').parse().unwrap()));
        assert_eq!(parse(json!([])).unwrap().total(), 0);
    }

    #[test]
    fn what_a_registry_makes_up_is_refused_or_bounded() {
        let layer = |size: Value| json!([{"digest": digest('a'), "size": size}]);
        for size in [json!(-1), json!(1.5), json!("5"), Value::Null, json!(1e30)] {
            assert_eq!(parse(layer(size.clone())), None, "{size}");
        }
        for digest in ["", "sha256:", "sha256:zz", "../../etc/passwd"] {
            assert_eq!(parse(json!([{"digest": digest, "size": 1}])), None, "{digest}");
        }
        for json in [&b""[..], b"{}", b"[]", b"{\"layers\": 1}", b"\xff\xfe", b"{\"manifests\":[]}"]
        {
            assert_eq!(Manifest::parse(json), None);
        }
        let huge = json!([
            {"digest": digest('a'), "size": u64::MAX},
            {"digest": digest('b'), "size": u64::MAX},
        ]);
        assert_eq!(parse(huge).unwrap().total(), u64::MAX);
        let many = |count| {
            let layer = |number| json!({"digest": format!("sha256:{number:064x}"), "size": 1});
            parse((0..count).map(layer).collect())
        };
        assert_eq!(many(MOST_LAYERS).unwrap().total(), MOST_LAYERS as u64);
        assert_eq!(many(MOST_LAYERS + 1), None);
        let padded = [br#"{"layers": []"#, &vec![b' '; LONGEST_MANIFEST][..], b"}"].concat();
        assert_eq!(Manifest::parse(&padded), None);
    }
}
