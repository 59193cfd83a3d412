//! The image as an OCI layout: for each platform one layer with the program and the licences, a configuration
//! and a manifest, and one index of all platforms.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::archive::{Files, gzip};
use crate::checksums::sha256;
use crate::program::Program;
use crate::source::{DESCRIPTION, Source, VERSION};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The user that the controller runs as. The warmer's DaemonSet sets runAsUser 0, since root owns the runtime's
/// socket.
const USER: &str = "65532:65532";

/// The blobs of a layout by their digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Returns the descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = sha256(&content);
        let size = content.len();
        self.0.insert(digest.clone(), content);
        json!({"mediaType": media_type, "size": size, "digest": format!("sha256:{digest}")})
    }
}

/// The files of the layout, for these programs with the folder `licenses` of each.
pub(crate) fn layout(programs: &[(&Program, &Files)], source: &Source) -> Result<Files> {
    let mut blobs = Blobs::default();
    let labels = labels(source)?;
    let mut manifests = Vec::new();
    for (program, licenses) in programs {
        manifests.push(manifest(&mut blobs, (program, licenses), &labels, source)?);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": manifests,
        "annotations": labels,
    });
    let mut index = blobs.add(INDEX, index.to_string().into_bytes());
    index["annotations"] = json!({"org.opencontainers.image.ref.name": VERSION});
    let mut files = Files::default();
    files.add("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let top = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});
    files.add("index.json", top.to_string());
    for (digest, content) in blobs.0 {
        files.add(format!("blobs/sha256/{digest}"), content);
    }
    Ok(files)
}

fn manifest(
    blobs: &mut Blobs,
    (program, licenses): (&Program, &Files),
    labels: &Value,
    source: &Source,
) -> Result<Value> {
    let mut content = Files::default();
    content.add_program("imagewarm", program.content.as_slice());
    content.add_below("licenses", licenses.clone());
    let layer = content.tar(source.epoch)?;
    let platform = json!({"os": "linux", "architecture": program.platform.architecture()});
    let time = source.time()?;
    let configuration = json!({
        "created": time,
        "os": platform["os"],
        "architecture": platform["architecture"],
        "config": {"User": USER, "Entrypoint": ["/imagewarm"], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        "history": [{"created": time, "created_by": "cargo xtask dist"}],
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blobs.add(CONFIGURATION, configuration.to_string().into_bytes()),
        "layers": [blobs.add(LAYER, gzip(&layer)?)],
        "annotations": labels,
    });
    let mut descriptor = blobs.add(MANIFEST, manifest.to_string().into_bytes());
    descriptor["platform"] = platform;
    Ok(descriptor)
}

/// What OCI has names for.
fn labels(source: &Source) -> Result<Value> {
    let mut labels = json!({
        "org.opencontainers.image.title": "imagewarm",
        "org.opencontainers.image.description": DESCRIPTION,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.created": source.time()?,
    });
    if !source.revision.is_empty() {
        labels["org.opencontainers.image.revision"] = json!(source.revision);
    }
    if let Some(repository) = &source.repository {
        labels["org.opencontainers.image.source"] = json!(repository);
    }
    Ok(labels)
}
