//! What the content store of containerd shows of a running download. Pure.

mod blob;
mod download;
mod manifest;

pub use blob::{Blob, Ingest, filter_of_digest, filter_of_repository};
pub use download::Download;
pub use manifest::{LONGEST_MANIFEST, MOST_LAYERS, Manifest};
