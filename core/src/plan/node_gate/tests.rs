//! Tests of `plan/node_gate.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::api::{ImageWarm, KnativeImage, Revision};
use crate::demand::Cluster;
use crate::demand::consumers::demands;
use crate::placement::{GATE_TAINT, RuntimeClasses};
use crate::plan::{ImageWarmIndex, placements};
use crate::policy::bounds::Limit;
use crate::sample::{
    at, because, by_digest, holding, kept, knative_image, labelled, node, revision, route, tainted,
    warm,
};

const DEADLINE: Duration = Duration::from_secs(300);

/// A node that has come with the gate's taint.
fn gated(name: &str) -> Node {
    let mut node = tainted(node(name), GATE_TAINT, "NoSchedule");
    node.metadata.uid = Some(format!("uid-{name}"));
    node
}

#[derive(Default)]
struct World {
    nodes: Vec<Node>,
    revisions: Vec<Revision>,
    images: Vec<KnativeImage>,
    warms: Vec<ImageWarm>,
    terminating: BTreeSet<String>,
    over_limit: BTreeMap<String, OverLimit>,
}

impl World {
    /// A gated node `a`, and a Revision of these images.
    fn new(images: &[&str]) -> World {
        let revisions = vec![revision("r-1", 0, images)];
        World { nodes: vec![gated("a")], revisions, ..World::default() }
    }

    fn policy() -> Policy {
        Policy { gate_taint: Some(GATE_TAINT.into()), ..Policy::default() }
    }

    fn counted_by(&self, policy: &Policy) -> GatedNodes {
        let revisions: Vec<_> = self.revisions.iter().cloned().map(Arc::new).collect();
        let images: Vec<_> = self.images.iter().cloned().map(Arc::new).collect();
        let warms: Vec<_> = self.warms.iter().map(kept).collect();
        let nodes: Vec<_> = self.nodes.iter().cloned().map(Arc::new).collect();
        let demanded = demands(&revisions, &images, &Cluster::default(), policy);
        let facts: Vec<_> =
            nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
        let observed = Observed {
            image_warms: &ImageWarmIndex::new(&warms),
            elsewhere: 0,
            demands: &demanded.consumers,
            every_revision: &placements(demanded.consumers.iter()),
            nodes: &facts,
            runtime_classes: &RuntimeClasses::default(),
            terminating: &self.terminating,
            may_delete: true,
        };
        gated_nodes(&nodes, &observed, &self.over_limit, policy)
    }

    /// Of node `a`.
    fn counted(&self) -> GatedNode {
        self.counted_by(&World::policy()).remove("uid-a").unwrap()
    }

    fn decided(&self) -> Option<Release> {
        release(false, Some(&self.counted()), DEADLINE)
    }

    fn with(mut self, image: &str, reason: Reason) -> World {
        self.warms.push(because(warm(&self.revisions[0], image, "a", 0), reason));
        self
    }
}

#[test]
fn a_node_is_held_until_each_image_is_warm_or_has_failed_for_good() {
    let cases: [(&[Reason], Option<Release>); 8] = [
        (&[], None),
        (&[Reason::Pulled], None),
        (&[Reason::Pulled, Reason::WaitingForWarmer], None),
        (&[Reason::Pulled, Reason::RegistryUnreachable], None),
        (&[Reason::Pulled, Reason::DiskPressure], None),
        (&[Reason::NotFound, Reason::Pulling], None),
        (&[Reason::Pulled, Reason::AlreadyPresent], Some(Release::Warm)),
        (&[Reason::Pulled, Reason::Unauthorized], Some(Release::Failed)),
    ];
    for (reasons, expected) in cases {
        let mut world = World::new(&["app:v1", "side:v1"]);
        for (image, reason) in ["app:v1", "side:v1"].into_iter().zip(reasons) {
            world = world.with(image, *reason);
        }
        assert_eq!(world.decided(), expected, "{reasons:?}: {}", world.counted());
    }
}

#[test]
fn each_reason_is_warm_failed_or_pending() {
    for reason in Reason::ALL {
        let world = World::new(&["app:v1"]).with("app:v1", *reason);
        let expected = match reason {
            Reason::Pulled | Reason::AlreadyPresent => Some(Release::Warm),
            reason if reason.requires_user_action() => Some(Release::Failed),
            _ => None,
        };
        assert_eq!(world.decided(), expected, "{reason}");
    }
}

#[test]
fn only_what_active_revisions_want_there_counts() {
    let nothing = Some(Release::NothingWanted);
    let mut world = World::new(&["app:v1"]);
    route(&mut world.revisions[0], "reserve");
    assert_eq!(world.decided(), nothing, "in reserve");

    let mut world = World::new(&["app:v1"]);
    world.revisions[0].metadata.deletion_timestamp =
        world.revisions[0].metadata.creation_timestamp.clone();
    assert_eq!(world.decided(), nothing, "terminating");

    let mut world = World::new(&["app:v1"]);
    world.terminating.insert("ns".into());
    assert_eq!(world.decided(), nothing, "its namespace is terminating");

    let mut world = World::new(&["app:v1"]);
    let selector = [("pool".to_owned(), "other".to_owned())];
    world.revisions[0].spec.node_selector = selector.into_iter().collect();
    assert_eq!(world.decided(), nothing, "on other nodes");
    world.nodes = vec![labelled(gated("a"), "pool", "other")];
    assert_eq!(world.decided(), None, "there");

    // What somebody installs beside Knative holds no node; the queue-proxy does.
    let mut world = World::new(&[]);
    world.images = vec![knative_image("by-hand", "tool:v1", None)];
    assert_eq!(world.decided(), nothing, "an Image of no Revision");
    world.images[0].metadata.name = Some("queue-proxy".into());
    world.images[0].metadata.namespace = Some("knative-serving".into());
    assert_eq!(world.decided(), None, "the queue-proxy");
}

#[test]
fn an_image_by_digest_is_waited_for_where_its_tag_has_moved() {
    let mut world = World::new(&["app:v1"]);
    let resolved = knative_image("i", &by_digest("app", '2'), Some(&world.revisions[0]));
    world.images = vec![resolved];
    world.warms = vec![holding(warm(&world.revisions[0], "app:v1", "a", 0), '1')];
    assert_eq!(world.decided(), None);
    world.warms = vec![holding(warm(&world.revisions[0], "app:v1", "a", 0), '2')];
    assert_eq!(world.decided(), Some(Release::Warm));
}

#[test]
fn images_of_one_name_count_once_in_a_namespace() {
    let mut world = World::new(&["app:v1"]).with("app:v1", Reason::Pulled);
    world.revisions.push(revision("r-2", 0, &["app:v1"]));
    assert_eq!(world.counted().warm, 1);
}

#[test]
fn what_is_beyond_a_limit_is_not_waited_for() {
    let mut world = World::new(&["app:v1", "side:v1"]).with("app:v1", Reason::Pulled);
    assert_eq!(world.decided(), None);
    let limit = Limit::Namespace(1);
    world.over_limit.insert("ns".into(), OverLimit { missing: 1, limit });
    assert_eq!(world.decided(), Some(Release::Failed));
    let world = world.with("side:v1", Reason::Pulling);
    assert_eq!(world.decided(), None, "what exists is pulled");
}

#[test]
fn a_node_is_not_released_before_its_setup_is_complete() {
    let setups: [fn(Node) -> Node; 4] = [
        |node| tainted(node, "node.kubernetes.io/not-ready", "NoSchedule"),
        |node| tainted(node, "node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
        |node| tainted(node, "karpenter.sh/unregistered", "NoExecute"),
        |mut node| {
            node.status = None;
            node
        },
    ];
    for (at, setup) in setups.into_iter().enumerate() {
        let mut world = World::new(&["app:v1"]);
        world.nodes = vec![setup(gated("a"))];
        assert_eq!((world.counted().pending, world.decided()), (1, None), "{at}");
        let mut world = world.with("app:v1", Reason::Pulled);
        assert_eq!((world.counted().warm, world.decided()), (1, None), "{at}");
        world.revisions.clear();
        assert_eq!(world.decided(), None, "{at}: a label may be missing");
        assert_eq!(
            release(false, Some(&world.counted()), Duration::ZERO),
            Some(Release::DeadlineExceeded)
        );
    }
    // Another taint is there to stay.
    let mut world = World::new(&["app:v1"]);
    world.nodes = vec![tainted(gated("a"), "dedicated", "NoSchedule")];
    assert_eq!(world.decided(), Some(Release::NothingWanted));
}

#[test]
fn what_a_node_of_the_same_name_held_before_releases_nothing() {
    let created = |seconds| {
        let mut world = World::new(&["app:v1"]).with("app:v1", Reason::Pulled);
        world.nodes[0].metadata.creation_timestamp = Some(Time(at(seconds)));
        world.decided()
    };
    assert_eq!(created(0), Some(Release::Warm));
    assert_eq!(created(1), None);
    // One that a person made for a node to come is not replaced.
    let mut world = World::new(&["app:v1"]).with("app:v1", Reason::Pulled);
    world.warms[0].metadata.labels = None;
    world.nodes[0].metadata.creation_timestamp = Some(Time(at(1)));
    assert_eq!(world.decided(), Some(Release::Warm));
}

#[test]
fn only_nodes_with_the_taint_are_counted_and_none_without_the_gate() {
    let mut world = World::new(&["app:v1"]);
    world.nodes = vec![gated("a"), node("b"), tainted(node("c"), "other", "NoSchedule")];
    let mut no_execute = tainted(node("d"), GATE_TAINT, "NoExecute");
    no_execute.metadata.uid = Some("uid-d".into());
    world.nodes.push(no_execute);
    let uids: Vec<_> = world.counted_by(&World::policy()).into_keys().collect();
    assert_eq!(uids, ["uid-a", "uid-d"]);
    assert!(world.counted_by(&Policy::default()).is_empty());
}

#[test]
fn without_a_count_the_deadline_decides_and_a_pause_always() {
    assert_eq!(release(false, None, Duration::from_secs(1)), None);
    assert_eq!(release(false, None, Duration::ZERO), Some(Release::DeadlineExceeded));
    assert_eq!(release(true, None, DEADLINE), Some(Release::Paused));
    let warm = World::new(&["app:v1"]).with("app:v1", Reason::Pulled).counted();
    assert_eq!(release(false, Some(&warm), Duration::ZERO), Some(Release::Warm));
}

#[test]
fn what_is_waited_for_is_stated() {
    let world = World::new(&["app:v1", "side:v1", "third:v1"]);
    let world = world.with("app:v1", Reason::Pulled).with("side:v1", Reason::NotFound);
    let world = world.with("third:v1", Reason::Pulling);
    let expected =
        "1 of 3 images are warm, 1 failed, 1 pending: docker.io/library/third:v1 (Pulling)";
    assert_eq!(world.counted().to_string(), expected);
}

proptest! {
    /// Whatever the clocks are, a node waits for the deadline at most, and the earlier clock decides.
    #[test]
    fn no_clock_delays_the_deadline(seen in 0_u64..1_000, age in prop::option::of(-100_000_i64..100_000)) {
        let seen_for = Duration::from_secs(seen);
        let left = time_left(DEADLINE, seen_for, age.map(SignedDuration::from_secs));
        prop_assert!(left <= DEADLINE.saturating_sub(seen_for));
        let waited = seen.max(age.unwrap_or_default().try_into().unwrap_or(0));
        prop_assert_eq!(left, DEADLINE.saturating_sub(Duration::from_secs(waited)));
    }
}
