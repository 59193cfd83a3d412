//! Tests of `plan/failures.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::plan::sample::{because, revision, route, warm};

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
