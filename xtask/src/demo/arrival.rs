//! One image on its way to one node.

use std::time::Duration;

use super::scene::SceneImage;

/// One image on its way to one node.
#[derive(Clone)]
pub(super) struct Arrival {
    pub(super) node: String,
    pub(super) image: SceneImage,
    /// When its ImageWarm was there, counted from the sending of the Revision.
    pub(super) ordered: Option<Duration>,
    /// When the node's runtime had the image.
    pub(super) present: Option<Duration>,
    pub(super) ready: bool,
    /// Reason of the Ready condition.
    pub(super) state: String,
    pub(super) message: String,
    pub(super) downloaded: u64,
    pub(super) total: u64,
    pub(super) size: Option<u64>,
    pub(super) took: Option<String>,
}
