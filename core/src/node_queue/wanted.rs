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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Ended, Limits};
    use super::*;
    use crate::clock::Now;
    use crate::image::Reference;
    use crate::protocol::Assign;
    use crate::runtime::PresentImage;

    #[test]
    fn an_image_is_wanted_until_its_assignment_is_withdrawn_and_warm_once_it_is_found() {
        let limits = Limits {
            parallel_pulls: 1,
            pulls_per_registry: 1,
            presence_interval_ms: 60_000,
            assumed_bytes: 0,
        };
        let (mut queue, now) = (Queue::new(limits), Now { monotonic_ms: 0, unix_ms: 0 });
        let digest = format!("sha256:{}", "a".repeat(64));
        let assign = Assign {
            uid: "a".into(),
            image: "r.test/app:v1".into(),
            resolved_digest: digest.clone(),
            believed_present: true,
            priority: 7,
            ..Assign::default()
        };
        queue.assign(assign, now);
        let names = [format!("r.test/app@{digest}"), "r.test/app:v1".into()];
        let names = names.map(|name| Reference::parse(&name).unwrap()).to_vec();
        let wanted = |is_warm| WantedImage { names: names.clone(), priority: 7, is_warm };
        // After a restart of the warmer: the controller believes that it is there.
        assert_eq!(queue.wanted(), [wanted(false)]);
        let job = queue.next(now).unwrap();
        let held = PresentImage { digest: digest.parse().ok(), size_bytes: 1 };
        queue.ended(&job, Ended::PresenceChecked(Ok(Some(held))), now, 0.5);
        assert_eq!(queue.wanted(), [wanted(true)]);
        // A new stream that has not repeated it yet.
        queue.welcome();
        assert_eq!(queue.wanted(), [wanted(true)]);
        queue.withdraw("a");
        assert_eq!(queue.wanted(), []);
    }
}
