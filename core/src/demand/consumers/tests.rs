//! Tests of `plan/demands.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::api::WARM_KEY;
use crate::sample::{at, by_digest, knative_image, resolve, revision, route};

/// How the Images resolve, each as `name: resolution`, and which images each consumer demands.
fn read(revisions: &[Revision], images: &[KnativeImage]) -> (Vec<String>, Vec<String>) {
    let revisions: Vec<_> = revisions.iter().cloned().map(Arc::new).collect();
    let images: Vec<_> = images.iter().cloned().map(Arc::new).collect();
    let read = |images: &[Arc<KnativeImage>]| {
        let demanded = demands(&revisions, images, &Cluster::default(), &Policy::default());
        let brief = |reference: &Reference| {
            let text = reference.as_str().rsplit('/').next().unwrap();
            text.split_once("@sha256:")
                .map_or(text.to_owned(), |(name, digits)| format!("{name}@{}", &digits[..1]))
        };
        let name = |by: &Consumer| by.metadata().name.clone().unwrap();
        let mut meanings: Vec<String> = Vec::new();
        for (image, meaning) in &demanded.images {
            let meaning = match meaning {
                Resolution::Wanted { consumer, image } => {
                    let one = &demanded.consumers[*consumer];
                    format!("{} of {}", brief(&one.demand.images[*image].reference), name(&one.by))
                }
                Resolution::Invalid(_) => "Invalid".to_owned(),
                other => format!("{other:?}"),
            };
            meanings.push(format!("{}: {meaning}", image.metadata.name.as_deref().unwrap()));
        }
        meanings.sort();
        let demands = demanded.consumers.iter().map(|one| {
            let images: Vec<String> = one
                .demand
                .images
                .iter()
                .map(|image| match &image.resolved {
                    Some(resolved) => format!("{}={}", brief(&image.reference), brief(resolved)),
                    None => brief(&image.reference),
                })
                .collect();
            format!("{} demands {}", name(&one.by), images.join(", "))
        });
        (meanings, demands.collect())
    };
    let found = read(&images);
    let mut turned = images.clone();
    turned.reverse();
    assert_eq!(read(&turned), found, "the order of the list matters");
    found
}

#[test]
fn an_image_of_a_revision_is_the_digest_of_its_tag() {
    let demanded = revision("r-1", 0, &["app:v1", "side:v1"]);
    let image = knative_image(
        "r-1-cache-c0",
        &by_digest("index.docker.io/library/app", '1'),
        Some(&demanded),
    );
    let (meanings, demands) = read(&[demanded], &[image]);
    assert_eq!(meanings, ["r-1-cache-c0: app:v1 of r-1"]);
    assert_eq!(demands, ["r-1 demands app:v1=app@1, side:v1"]);
}

#[test]
fn the_same_digest_in_the_revisions_status_changes_nothing() {
    let mut demanded = revision("r-1", 0, &["app:v1"]);
    resolve(&mut demanded, '1');
    let image = knative_image("i", &by_digest("app", '1'), Some(&demanded));
    let (meanings, demands) = read(&[demanded], &[image]);
    assert_eq!(meanings, ["i: app:v1 of r-1"]);
    assert_eq!(demands, ["r-1 demands app:v1=app@1"]);
}

#[test]
fn of_two_tags_of_one_repository_the_containers_name_decides() {
    let demanded = revision("r-1", 0, &["app:v1", "app:v2"]);
    let named = knative_image("r-1-cache-c1", &by_digest("app", '2'), Some(&demanded));
    let (meanings, demands) = read(std::slice::from_ref(&demanded), &[named]);
    assert_eq!(meanings, ["r-1-cache-c1: app:v2 of r-1"]);
    assert_eq!(demands, ["r-1 demands app:v1, app:v2=app@2"]);
    let cut = knative_image("r-1-cache-0123456789abcdef", &by_digest("app", '2'), Some(&demanded));
    let (meanings, demands) = read(&[demanded], &[cut]);
    assert_eq!(meanings, ["r-1-cache-0123456789abcdef: Undecided"]);
    assert_eq!(demands, ["r-1 demands app:v1, app:v2"]);
}

#[test]
fn what_no_container_names_is_asked_for_beside_them() {
    let mut demanded = revision("r-1", 0, &["app:v1"]);
    demanded.spec.node_selector.insert("disk".into(), "ssd".into());
    let image = knative_image("i", &by_digest("other", '3'), Some(&demanded));
    let (meanings, demands) = read(std::slice::from_ref(&demanded), std::slice::from_ref(&image));
    assert_eq!(meanings, ["i: other@3 of i"]);
    assert_eq!(demands, ["r-1 demands app:v1", "i demands other@3=other@3"]);
    let both = super::demands(
        &[Arc::new(demanded.clone())],
        &[Arc::new(image.clone())],
        &Cluster::default(),
        &Policy::default(),
    );
    assert_eq!(both.consumers[1].demand.placement, both.consumers[0].demand.placement);
    assert!(both.consumers[1].is_routable());
    route(&mut demanded, "reserve");
    let both = super::demands(
        &[Arc::new(demanded)],
        &[Arc::new(image)],
        &Cluster::default(),
        &Policy::default(),
    );
    assert!(!both.consumers[1].is_routable(), "with its Revision");
}

#[test]
fn an_image_without_a_revision_stands_for_itself() {
    let (meanings, demands) = read(&[], &[knative_image("queue-proxy", "queue:v1", None)]);
    assert_eq!(meanings, ["queue-proxy: queue:v1 of queue-proxy"]);
    assert_eq!(demands, ["queue-proxy demands queue:v1"]);
}

#[test]
fn an_image_whose_revision_is_gone_goes_with_it() {
    let gone = revision("r-1", 0, &["app:v1"]);
    let image = knative_image("i", &by_digest("app", '1'), Some(&gone));
    let mut labelled = image.clone();
    labelled.metadata.owner_references = None;
    assert_eq!(read(&[], &[image]).0, ["i: Orphaned"]);
    assert_eq!(read(&[], &[labelled]).0, ["i: app@1 of i"], "nothing will delete this one");
}

#[test]
fn what_is_not_warmed() {
    let demanded = revision("r-1", 0, &["app:v1"]);
    let mut never = demanded.clone();
    never.spec.containers[0].image_pull_policy = Some("Never".into());
    let mut opts_out = demanded.clone();
    opts_out.metadata.annotations = Some([(WARM_KEY.to_owned(), "false".to_owned())].into());
    let mut itself = knative_image("i", "app:v1", None);
    itself.metadata.annotations = opts_out.metadata.annotations.clone();
    let of = |image: &str, revision: &Revision| knative_image("i", image, Some(revision));
    let digest = by_digest("app", '1');
    let cases = [
        ("empty", of("", &demanded), "Empty"),
        ("not a reference", of("Not An Image", &demanded), "Invalid"),
        ("skipped registry", of("dev.local/app:v1", &demanded), "OptedOut"),
        ("never pulled", of(&digest, &never), "OptedOut"),
        ("the Revision opts out", of(&digest, &opts_out), "OptedOut"),
        ("the Image opts out", itself, "OptedOut"),
    ];
    for (name, image, expected) in cases {
        let revision = match name {
            "never pulled" => &never,
            "the Revision opts out" => &opts_out,
            _ => &demanded,
        };
        let (meanings, demands) = read(std::slice::from_ref(revision), &[image]);
        assert_eq!(meanings, [format!("i: {expected}")], "{name}");
        assert_eq!(demands.len(), 1, "{name}");
    }
    let image = Arc::new(knative_image("i", "app:v1", None));
    let out = Cluster::without(["ns"]);
    let demanded = super::demands(&[], &[image], &out, &Policy::default());
    assert_eq!(demanded.images[0].1, Resolution::OptedOut, "the namespace opts out");
}

#[test]
fn since_when_a_revision_rests() {
    let since = |state: &str, modified: Option<&str>| {
        let mut one = revision("r-1", 100, &["app:v1"]);
        route(&mut one, state);
        one.metadata.annotations =
            modified.map(|text| [(ROUTING_STATE_MODIFIED.to_owned(), text.to_owned())].into());
        reserve_since(&one)
    };
    let time = Some("1970-01-01T00:05:00Z");
    assert_eq!(since("active", time), None);
    assert_eq!(since("pending", None), None);
    assert_eq!(since("reserve", time), Some(at(300)));
    assert_eq!(since("reserve", None), Some(at(100)));
    assert_eq!(since("reserve", Some("yesterday")), Some(at(100)));
}
