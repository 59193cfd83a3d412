//! What containerd shows of its images, beside the interface that all runtimes have: the content store, of a
//! running download; its configuration, of snapshotters. Pure.

mod blob;
mod download;
mod manifest;
mod snapshotters;

pub use blob::{Blob, Ingest, filter_of_digest, filter_of_repository};
pub use download::Download;
pub use manifest::{LONGEST_MANIFEST, MOST_LAYERS, Manifest};
pub use snapshotters::{Snapshotters, UnknownHandler, Unpacking};
