//! Tests of `plan/rollup.rs`.

#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Node;

use super::*;
use crate::api::knative::ROUTING_STATE_MODIFIED;
use crate::api::{ImageWarm, Revision};
use crate::demand::Cluster;
use crate::demand::consumers::demands;
use crate::plan::placements;
use crate::policy::Bounds;
use crate::report::image_starts::WARM_STARTS;
use crate::report::image_starts::tests::{add, counted};
use crate::sample::{
    at, because, by_digest, holding, kept, knative_image, node, resolve, revision, route, warm,
};

struct World {
    revisions: Vec<Revision>,
    images: Vec<KnativeImage>,
    warms: Vec<ImageWarm>,
    nodes: Vec<Node>,
    starts: AllImageStarts,
}

impl World {
    fn updates(&self, now: i64) -> Vec<ImageUpdate> {
        self.updates_within(Bounds::default(), &BTreeMap::new(), now)
    }

    fn updates_within(
        &self,
        bounds: Bounds,
        full: &BTreeMap<String, OverLimit>,
        now: i64,
    ) -> Vec<ImageUpdate> {
        let revisions: Vec<_> = self.revisions.iter().cloned().map(Arc::new).collect();
        let images: Vec<_> = self.images.iter().cloned().map(Arc::new).collect();
        let warms: Vec<_> = self.warms.iter().map(kept).collect();
        let (policy, none) = (Policy { bounds, ..Policy::default() }, BTreeSet::new());
        let demanded = demands(&revisions, &images, &Cluster::default(), &policy);
        let facts: Vec<_> =
            self.nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
        let image_warms = ImageWarmIndex::new(&warms);
        let runtime_classes = &RuntimeClasses::default();
        let observed = Nodes {
            image_warms: &image_warms,
            nodes: &facts,
            runtime_classes,
            every_revision: &placements(demanded.consumers.iter()),
            terminating: &none,
            full,
            starts: &self.starts,
        };
        rollup(&observed, &demanded, &policy, GracePeriods::default(), at(now))
    }

    /// `status reason: message` of the one Image, and its counts.
    fn result(&self) -> (String, String) {
        self.result_within(Bounds::default(), &BTreeMap::new())
    }

    fn result_within(
        &self,
        bounds: Bounds,
        full: &BTreeMap<String, OverLimit>,
    ) -> (String, String) {
        let updates = self.updates_within(bounds, full, 1000);
        let status = &updates[0].status;
        let ready = &status.conditions[0];
        let counts = [NODES, NODES_READY, NODES_FAILED]
            .map(|key| status.annotations.get(key).cloned().unwrap_or("-".into()));
        let observed_result = format!("{:?} {}: {}", ready.status, ready.reason, ready.message);
        (observed_result, counts.join("/"))
    }
}

#[test]
fn that_pods_are_rejected_is_shown() {
    let mut rejected = world(|_| vec![]);
    rejected.revisions[0].spec.runtime_class_name = Some("vm".into());
    let (result, counts) = rejected.result();
    let reason = "RuntimeClass vm is missing or contradicts the node selector";
    let message = format!("0 of 0 nodes: Pods are rejected: {reason}");
    assert_eq!(result, format!("Unknown NoEligibleNode: {message}"));
    assert_eq!(counts, "0/0/0");
}

/// A Revision of `app:v1` whose Image resolves it to digest 1, on nodes a, b, c, d, e.
fn world(warms: impl Fn(&Revision) -> Vec<ImageWarm>) -> World {
    let demanded = revision("r-1", 0, &["app:v1"]);
    World {
        images: vec![knative_image("i", &by_digest("app", '1'), Some(&demanded))],
        warms: warms(&demanded),
        revisions: vec![demanded],
        nodes: ["a", "b", "c", "d", "e"].map(node).to_vec(),
        starts: AllImageStarts::default(),
    }
}

fn observed_result(warms: impl Fn(&Revision) -> Vec<ImageWarm>) -> (String, String) {
    world(warms).result()
}

fn expected(text: &str, counts: &str) -> (String, String) {
    (text.into(), counts.into())
}

#[test]
fn on_the_way() {
    assert_eq!(
        observed_result(|_| vec![]),
        expected("Unknown Queued: 0 of 5 nodes hold the image", "5/0/0")
    );
    let mixed = |demanded: &Revision| {
        vec![
            holding(warm(demanded, "app:v1", "a", 0), '1'),
            because(warm(demanded, "app:v1", "b", 0), Reason::Pulling),
            because(warm(demanded, "app:v1", "c", 0), Reason::Removed),
            warm(demanded, "app:v1", "d", 0),
        ]
    };
    assert_eq!(
        observed_result(mixed),
        expected("Unknown Pulling: 1 of 5 nodes hold the image", "5/1/0")
    );
}

#[test]
fn what_exceeds_a_limit_is_reported() {
    let bounds = Bounds { image_warms_per_namespace: 2, ..Bounds::default() };
    let full =
        BTreeMap::from([("ns".to_owned(), OverLimit { missing: 3, limit: Limit::Namespace(2) })]);
    let two = |demanded: &Revision| {
        vec![
            holding(warm(demanded, "app:v1", "a", 0), '1'),
            because(warm(demanded, "app:v1", "b", 0), Reason::Pulling),
        ]
    };
    let text = "Unknown LimitReached: 1 of 5 nodes hold the image; none is assigned to 3, since the \
                namespace may have no more than 2 ImageWarms (--max-image-warms-per-namespace)";
    assert_eq!(world(two).result_within(bounds, &full), expected(text, "5/1/0"));
    // Failures are worse, and an Image without anything missing is as ever.
    let failed =
        |demanded: &Revision| vec![because(warm(demanded, "app:v1", "a", 0), Reason::NotFound)];
    let observed_result = world(failed).result_within(bounds, &full).0;
    assert!(observed_result.starts_with("False NotFound"), "{observed_result}");
    let all = |demanded: &Revision| {
        ["a", "b", "c", "d", "e"]
            .map(|node| holding(warm(demanded, "app:v1", node, 0), '1'))
            .to_vec()
    };
    assert_eq!(world(all).result_within(bounds, &full), expected("True : ", "5/5/0"));

    let mut many = world(|_| vec![]);
    let demanded = revision("r-1", 0, &["other:v1", "app:v1"]);
    many.images = vec![knative_image("i", &by_digest("app", '1'), Some(&demanded))];
    many.revisions = vec![demanded];
    let bounds = Bounds { images_per_revision: 1, ..Bounds::default() };
    let text = "Unknown LimitReached: of one Revision no more than 1 images are warmed \
                (--max-images-per-revision)";
    assert_eq!(many.result_within(bounds, &BTreeMap::new()), expected(text, "-/-/-"));
}

#[test]
fn a_tag_counts_only_with_the_digest() {
    let moved = |demanded: &Revision| {
        ["a", "b", "c", "d", "e"]
            .map(|node| holding(warm(demanded, "app:v1", node, 0), '2'))
            .to_vec()
    };
    assert_eq!(
        observed_result(moved),
        expected("Unknown Queued: 0 of 5 nodes hold the image", "5/0/0")
    );
    let both = |demanded: &Revision| {
        let exact = |node| holding(warm(demanded, &by_digest("app", '1'), node, 0), '1');
        moved(demanded).into_iter().chain(["a", "b", "c", "d", "e"].map(exact)).collect()
    };
    assert_eq!(observed_result(both), expected("True : ", "5/5/0"));
}

#[test]
fn a_node_without_a_warmer_is_named_unless_it_holds_the_image() {
    let waiting = |demanded: &Revision| {
        vec![
            holding(warm(demanded, "app:v1", "a", 0), '1'),
            because(warm(demanded, "app:v1", "b", 0), Reason::WaitingForWarmer),
        ]
    };
    let mut world = world(waiting);
    world.nodes.truncate(2);
    let text = "Unknown WaitingForWarmer: 1 of 2 nodes hold the image; no warmer is connected on b";
    assert_eq!(world.result(), expected(text, "2/1/0"));
}

#[test]
fn the_worst_reason_decides_and_names_its_nodes() {
    let failed = |demanded: &Revision| {
        let image_warm = |node, reason, message: &str| {
            let mut one = because(warm(demanded, "app:v1", node, 0), reason);
            one.status.as_mut().unwrap().conditions[0].message = message.into();
            one
        };
        vec![
            image_warm("a", Reason::RegistryUnreachable, "refused"),
            image_warm("b", Reason::RegistryUnreachable, "refused"),
            image_warm("c", Reason::Unauthorized, "no basic auth credentials"),
            image_warm("d", Reason::Pulling, ""),
        ]
    };
    let text = "False Unauthorized: 0 of 5 nodes hold the image; Unauthorized on c: no basic auth \
                credentials";
    assert_eq!(observed_result(failed), expected(text, "5/0/3"));
    let all = |demanded: &Revision| {
        ["a", "b", "c", "d", "e"]
            .map(|node| because(warm(demanded, "app:v1", node, 0), Reason::DiskPressure))
            .to_vec()
    };
    let text =
        "False DiskPressure: 0 of 5 nodes hold the image; DiskPressure on a, b, c and 2 more";
    assert_eq!(observed_result(all), expected(text, "5/0/5"));
}

#[test]
fn never_true_for_want_of_nodes() {
    let mut world = world(|_| vec![]);
    world.nodes.clear();
    let text = "Unknown NoEligibleNode: 0 of 0 nodes: no node can run this image now";
    assert_eq!(world.result(), expected(text, "0/0/0"));
}

#[test]
fn images_that_are_not_pulled() {
    let mut world = world(|_| vec![]);
    let mut result_for = |image: &str| {
        world.images[0].spec.image = image.into();
        world.result()
    };
    assert_eq!(
        result_for(""),
        expected(
            "Unknown NoImage: spec.image is empty: Knative resolves no digests for this registry",
            "-/-/-"
        )
    );
    assert!(result_for("Not An Image").0.starts_with("False InvalidImage: spec.image: "));
    let text =
        "Unknown OptedOut: the image, its Revision or its namespace is excluded from warming";
    assert_eq!(result_for("dev.local/app:v1"), expected(text, "-/-/-"));
}

#[test]
fn a_revision_in_reserve_after_its_delay() {
    let mut world = world(|demanded| vec![holding(warm(demanded, "app:v1", "a", 0), '1')]);
    world.nodes.truncate(1);
    route(&mut world.revisions[0], "reserve");
    let mut modified = |text: &str| {
        world.revisions[0].metadata.annotations =
            Some([(ROUTING_STATE_MODIFIED.to_owned(), text.to_owned())].into());
        world.result()
    };
    assert_eq!(modified("1970-01-01T00:15:00Z"), expected("True : ", "1/1/0"), "only just");
    let text = "Unknown NotRoutable: the Revision gets no traffic: its images are not kept warm";
    assert_eq!(modified("1970-01-01T00:05:00Z"), expected(text, "-/-/-"));
}

#[test]
fn container_starts_are_in_the_status_of_their_image() {
    let mut world = world(|demanded| vec![holding(warm(demanded, "app:v1", "a", 0), '1')]);
    world.nodes.truncate(1);
    resolve(&mut world.revisions[0], '1');
    let written = world.updates(1000).remove(0).status;
    assert_eq!(written.annotations.get(WARM_STARTS), None);
    world.images[0].status = Some(written);
    let images: Vec<_> = world.images.iter().cloned().map(Arc::new).collect();
    add(&mut world.starts, &[counted(&by_digest("app", '1'), 9, Some(40.0))], &images);
    let written = world.updates(2000).remove(0).status;
    assert_eq!(written.annotations.get(WARM_STARTS).map(String::as_str), Some("1"));
    world.images[0].status = Some(written);
    assert_eq!(world.updates(3000), [], "once");
    // A leader that has seen no start yet leaves them as they are.
    world.starts = AllImageStarts::default();
    assert_eq!(world.updates(4000), []);
}

#[test]
fn what_is_said_already_is_not_written_again() {
    let mut world = world(|demanded| vec![holding(warm(demanded, "app:v1", "a", 0), '1')]);
    world.nodes.truncate(1);
    resolve(&mut world.revisions[0], '1');
    let others = Condition {
        type_: "Audited".into(),
        severity: "Info".into(),
        last_transition_time: Some(Time(at(1))),
        ..Condition::default()
    };
    world.images[0].status = Some(KnativeImageStatus {
        conditions: vec![others.clone()],
        annotations: [("theirs".to_owned(), "x".to_owned())].into(),
        ..KnativeImageStatus::default()
    });
    let first = world.updates(1000).remove(0).status;
    assert_eq!(first.observed_generation, Some(1));
    assert_eq!(first.conditions[0], others, "what others wrote stays");
    assert_eq!(first.annotations["theirs"], "x");
    world.images[0].status = Some(first.clone());
    assert_eq!(world.updates(2000), []);

    world.images[0].metadata.generation = Some(2);
    let next = world.updates(2000).remove(0).status;
    assert_eq!(next.observed_generation, Some(2));
    assert_eq!(next.conditions, first.conditions, "no transition");

    world.warms.clear();
    let next = world.updates(3000).remove(0).status;
    assert_eq!(next.conditions[1].last_transition_time, Some(Time(at(3000))));
    world.images[0].metadata.deletion_timestamp = Some(Time(at(3000)));
    assert_eq!(world.updates(4000), []);
}
