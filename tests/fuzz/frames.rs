//! What a warmer says on its stream: whatever it is, nothing of another node changes.

use std::collections::HashMap;
use std::sync::Arc;

use imagewarm_core::api::{ImageWarm, ImageWarmSpec};
use imagewarm_core::assignment::{Budget, Effect, Index};
use imagewarm_core::demand::pull_context::PullContext;
use imagewarm_core::protocol::{FromController, FromWarmer, Hello};
use prost::Message as _;

use crate::mutation::Corpus;

const OURS: u64 = 1;
const THEIRS: u64 = 2;

/// Node `a`, whose warmer speaks, and node `b`; each has two orders.
fn index() -> Index {
    let mut index = Index::new(Budget::of_pulls(500), 8_000, 0);
    for (node, session) in [("a", OURS), ("b", THEIRS)] {
        for image in ["r.test/app:v1", "r.test/side:v1"] {
            let name = format!("{node}-{}", image.len());
            let spec = ImageWarmSpec {
                image: image.into(),
                node_name: node.into(),
                ..ImageWarmSpec::default()
            };
            let mut warm = ImageWarm::new(&name, spec);
            warm.metadata.namespace = Some("default".into());
            warm.metadata.uid = Some(format!("uid-{name}"));
            index.apply(Arc::new(warm.into()), PullContext::default(), 0);
        }
        let hello = Hello { protocol_version: 1, epoch: 1, ..Hello::default() };
        index.open(session, &node.into(), &hello, 0);
    }
    index.take_effects();
    index
}

/// The input as frames: a byte of length, and so many bytes.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first()?;
        let (frame, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        Some(frame)
    })
}

#[test]
fn nothing_that_a_warmer_says_changes_another_node() {
    Corpus::read("frames").check(|bytes| {
        let mut index = index();
        let mut effects = 0;
        let mut heard = 0;
        for frame in frames(bytes) {
            // A controller of another version may say anything as well.
            if let Ok(message) = FromController::decode(frame) {
                let again = FromController::decode(message.encode_to_vec().as_slice());
                assert_eq!(again.as_ref(), Ok(&message));
            }
            let Ok(FromWarmer { message: Some(message) }) = FromWarmer::decode(frame) else {
                continue;
            };
            heard += 1;
            index.message(OURS, &message, heard);
            for effect in index.take_effects() {
                effects += 1;
                match effect {
                    Effect::Send(session, _) | Effect::Close(session, _) => {
                        assert_eq!(session, OURS, "{message:?}");
                    }
                    Effect::Resolve(job) | Effect::RecheckCredentials(job, _) => {
                        assert_eq!(job.session, OURS, "{message:?}");
                        assert!(job.uid.starts_with("uid-a-"), "{message:?}");
                    }
                    Effect::Status(uid, warm, _) => {
                        assert!(uid.starts_with("uid-a-"), "{message:?}");
                        assert_eq!(&*warm.node_name, "a");
                    }
                }
            }
        }
        // However long it goes on, a message costs a few steps and no memory.
        assert!(effects <= 8 * heard, "{effects} effects of {heard} messages");
        assert_eq!(index.assignments(), 4);
        let held: HashMap<_, _> = ["a", "b"].map(|node| (node, index.assignments_of(node))).into();
        assert_eq!(held, HashMap::from([("a", 2), ("b", 2)]));
    });
}
