//! What the node's assignments want, for pins.

use super::Queue;
use super::entry::Entry;
use crate::runtime::pins::WantedImage;

impl Queue {
    /// The images of all assignments, whether the node holds them or not.
    pub fn wanted(&self) -> Vec<WantedImage> {
        let mut wanted: Vec<WantedImage> = self.entries.values().map(Entry::wanted).collect();
        wanted.sort_unstable();
        wanted
    }
}

impl Entry {
    fn wanted(&self) -> WantedImage {
        WantedImage {
            // Pods use the digest as soon as it is known.
            names: self.resolved.iter().chain([&self.image]).cloned().collect(),
            priority: self.assign.priority,
            is_warm: self.last.as_ref().is_some_and(|last| last.present),
        }
    }
}
