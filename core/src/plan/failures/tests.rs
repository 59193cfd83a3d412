//! Tests of `plan/failures.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::api::ImageWarm;
use crate::demand::Cluster;
use crate::demand::consumers::demands;
use crate::policy::Policy;
use crate::sample::{because, digest, holding, kept, resolve, revision, route, warm};

fn failures_of(warms: &[Arc<CachedImageWarm>], revisions: &[&Revision]) -> Vec<Failure> {
    let revisions: Vec<_> = revisions.iter().map(|one| Arc::new((*one).clone())).collect();
    let demanded = demands(&revisions, &[], &Cluster::default(), &Policy::default());
    failures(&ImageWarmIndex::new(warms), &demanded.consumers)
}

#[test]
fn one_for_each_revision_and_reason() {
    let demanded = revision("r-1", 0, &["app:v1", "side:v1"]);
    let mut reserve = revision("r-0", 0, &["app:v1"]);
    route(&mut reserve, "reserve");
    let image_warm = |image: &str, node: &str, reason| {
        let mut warm = because(warm(&demanded, image, node, 0), reason);
        warm.status.as_mut().unwrap().conditions[0].message = format!("{image} on {node}");
        kept(&warm)
    };
    let warms = [
        image_warm("app:v1", "b", Reason::Unauthorized),
        image_warm("app:v1", "a", Reason::Unauthorized),
        image_warm("app:v1", "c", Reason::Pulled),
        image_warm("side:v1", "a", Reason::NotFound),
        image_warm("side:v1", "b", Reason::Removed),
        image_warm("side:v1", "c", Reason::Pulling),
    ];
    let revisions = [&demanded, &reserve];
    let found = failures_of(&warms, &revisions);
    let notes: Vec<_> = found.iter().map(Failure::note).collect();
    assert_eq!(
        notes,
        ["Unauthorized on 2 of 3 nodes: app:v1 on a", "NotFound on 1 of 3 nodes: side:v1 on a",]
    );
    assert!(found.iter().all(|failure| failure.undecided));
    let healthy = [image_warm("app:v1", "a", Reason::Pulled)];
    assert!(failures_of(&healthy, &revisions).is_empty());
}

#[test]
fn a_tag_that_is_gone_is_no_failure_where_the_digest_is_assigned() {
    let mut demanded = revision("r-1", 0, &["app:v1"]);
    resolve(&mut demanded, '1');
    let by_digest = format!("app@{}", digest('1'));
    let tag = |node| kept(&because(warm(&demanded, "app:v1", node, 0), Reason::NotFound));
    let image_warm = |node| warm(&demanded, &by_digest, node, 0);
    let notes = |warms: &[Arc<CachedImageWarm>]| {
        failures_of(warms, &[&demanded]).iter().map(Failure::note).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(notes(&[tag("a"), kept(&holding(image_warm("a"), '1'))]), none);
    assert_eq!(notes(&[tag("a"), kept(&image_warm("a"))]), none, "still on its way");
    let failed = kept(&because(image_warm("a"), Reason::Unauthorized));
    assert_eq!(notes(&[tag("a"), failed]), ["Unauthorized on 1 of 1 nodes"]);
    let held = kept(&holding(image_warm("a"), '1'));
    assert_eq!(notes(&[tag("a"), held, tag("b")]), ["NotFound on 1 of 2 nodes"]);
}

#[test]
fn any_spelling_counts_and_what_is_being_deleted_does_not() {
    let demanded = revision("r-1", 0, &["app:v1"]);
    let mut by_hand = because(warm(&demanded, "app:v1", "a", 0), Reason::NotFound);
    by_hand.spec.image = "index.docker.io/library/app:v1".into();
    let count = |warm: &ImageWarm| failures_of(&[kept(warm)], &[&demanded]).len();
    assert_eq!(count(&by_hand), 1);
    by_hand.metadata.deletion_timestamp = by_hand.metadata.creation_timestamp.clone();
    assert_eq!(count(&by_hand), 0);
}

#[test]
fn an_image_that_is_no_reference_is_a_failure_without_nodes() {
    let demanded = revision("r-1", 0, &["app:v1", "App:v1"]);
    let notes: Vec<_> = failures_of(&[], &[&demanded]).iter().map(Failure::note).collect();
    assert_eq!(notes, ["InvalidImage: repository name must be lower case: \"App\" in \"App:v1\""]);
    let mut reserve = demanded.clone();
    route(&mut reserve, "reserve");
    let mut never = demanded.clone();
    never.spec.containers[1].image_pull_policy = Some("Never".into());
    let mut opted_out = demanded;
    let opt_out = [(crate::api::WARM_KEY.to_owned(), "false".to_owned())];
    opted_out.metadata.annotations.get_or_insert_default().extend(opt_out);
    for revision in [reserve, never, opted_out] {
        assert_eq!(failures_of(&[], &[&revision]), []);
    }
}
