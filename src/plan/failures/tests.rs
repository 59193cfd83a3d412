//! Tests of `plan/failures.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::plan::sample::{because, digest, holding, resolve, revision, route, warm};

#[test]
fn one_for_each_revision_and_reason() {
    let asked = revision("r-1", 0, &["app:v1", "side:v1"]);
    let mut reserve = revision("r-0", 0, &["app:v1"]);
    route(&mut reserve, "reserve");
    let order = |image: &str, node: &str, reason| {
        let mut warm = because(warm(&asked, image, node, 0), reason);
        warm.status.as_mut().unwrap().conditions[0].message = format!("{image} on {node}");
        Arc::new(warm)
    };
    let warms = [
        order("app:v1", "b", Reason::Unauthorized),
        order("app:v1", "a", Reason::Unauthorized),
        order("app:v1", "c", Reason::Pulled),
        order("side:v1", "a", Reason::NotFound),
        order("side:v1", "b", Reason::Removed),
        order("side:v1", "c", Reason::Pulling),
    ];
    let revisions = [Arc::new(asked.clone()), Arc::new(reserve)];
    let found = failures(&warms, &revisions, &Policy::default());
    let notes: Vec<_> = found.iter().map(Failure::note).collect();
    assert_eq!(
        notes,
        ["Unauthorized on 2 of 3 nodes: app:v1 on a", "NotFound on 1 of 3 nodes: side:v1 on a",]
    );
    assert!(found.iter().all(|failure| failure.undecided));
    let healthy = [order("app:v1", "a", Reason::Pulled)];
    assert!(failures(&healthy, &revisions, &Policy::default()).is_empty());
}

#[test]
fn a_tag_that_is_gone_is_no_failure_where_the_digest_is_ordered() {
    let mut asked = revision("r-1", 0, &["app:v1"]);
    resolve(&mut asked, '1');
    let by_digest = format!("app@{}", digest('1'));
    let tag = |node| Arc::new(because(warm(&asked, "app:v1", node, 0), Reason::NotFound));
    let order = |node| warm(&asked, &by_digest, node, 0);
    let told = |warms: &[Arc<ImageWarm>]| {
        let found = failures(warms, &[Arc::new(asked.clone())], &Policy::default());
        found.iter().map(Failure::note).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(told(&[tag("a"), Arc::new(holding(order("a"), '1'))]), none);
    assert_eq!(told(&[tag("a"), Arc::new(order("a"))]), none, "still on its way");
    let failed = Arc::new(because(order("a"), Reason::Unauthorized));
    assert_eq!(told(&[tag("a"), failed]), ["Unauthorized on 1 of 1 nodes"]);
    let held = Arc::new(holding(order("a"), '1'));
    assert_eq!(told(&[tag("a"), held, tag("b")]), ["NotFound on 1 of 2 nodes"]);
}

#[test]
fn any_spelling_counts_and_what_is_being_deleted_does_not() {
    let asked = revision("r-1", 0, &["app:v1"]);
    let mut by_hand = because(warm(&asked, "app:v1", "a", 0), Reason::NotFound);
    by_hand.spec.image = "index.docker.io/library/app:v1".into();
    let told = |warm: &ImageWarm| {
        failures(&[Arc::new(warm.clone())], &[Arc::new(asked.clone())], &Policy::default()).len()
    };
    assert_eq!(told(&by_hand), 1);
    by_hand.metadata.deletion_timestamp = by_hand.metadata.creation_timestamp.clone();
    assert_eq!(told(&by_hand), 0);
}
