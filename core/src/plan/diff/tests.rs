//! Tests of `plan/diff.rs`.

#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::knative::ROUTING_STATE_MODIFIED;
use crate::api::{EXPIRES_AT_ANNOTATION, KnativeImage, Reason, Revision, WARM_KEY};
use crate::demand::Cluster;
use crate::demand::consumers::{Demands, demands};
use crate::plan::placements;
use crate::policy::Bounds;
use crate::sample::{
    at, because, by_digest, digest, holding, kept, knative_image, labelled, node, reference,
    resolve, revision, route, tainted, warm,
};

mod clusters;
mod limits;

/// A cluster in plain vectors.
#[derive(Clone, Debug, Default)]
struct World {
    warms: Vec<Arc<CachedImageWarm>>,
    revisions: Vec<Arc<Revision>>,
    images: Vec<Arc<KnativeImage>>,
    nodes: Vec<Node>,
    runtime_classes: RuntimeClasses,
    cluster: Cluster,
    terminating: BTreeSet<String>,
    unsynced: bool,
    policy: Policy,
}

impl World {
    fn new(nodes: &[&str], revisions: &[&Revision], warms: &[ImageWarm]) -> Self {
        World {
            warms: warms.iter().map(kept).collect(),
            revisions: revisions.iter().map(|one| Arc::new((*one).clone())).collect(),
            nodes: nodes.iter().map(|name| node(name)).collect(),
            ..World::default()
        }
    }

    fn demands(&self) -> Demands {
        demands(&self.revisions, &self.images, &self.cluster, &self.policy)
    }

    fn plan(&self, now: i64) -> Plan {
        let nodes: Vec<_> =
            self.nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
        let demanded = self.demands();
        let observed = Observed {
            image_warms: &ImageWarmIndex::new(&self.warms),
            elsewhere: 0,
            demands: &demanded.consumers,
            every_revision: &placements(demanded.consumers.iter()),
            nodes: &nodes,
            runtime_classes: &self.runtime_classes,
            terminating: &self.terminating,
            may_delete: !self.unsynced,
        };
        diff(&observed, &self.policy, GracePeriods::default(), at(now))
    }

    /// What the API server would have after this plan.
    fn apply(&mut self, plan: &Plan, now: i64) {
        for creation in &plan.create {
            let mut object = creation.object.clone();
            object.metadata.creation_timestamp = Some(Time(at(now)));
            self.warms.push(kept(&object));
        }
        for deletion in &plan.delete {
            self.warms.retain(|warm| warm.name != deletion.warm.name);
        }
    }
}

/// `image on node`, with the image's last part and digests cut to one digit.
fn brief(warm: &CachedImageWarm) -> String {
    let image = warm.image.rsplit('/').next().unwrap_or_default();
    let image = match image.split_once("@sha256:") {
        Some((name, digits)) => format!("{name}@{}", &digits[..1]),
        None => image.to_owned(),
    };
    format!("{image} on {}", warm.node_name)
}

fn created(plan: &Plan) -> Vec<String> {
    plan.create.iter().map(|one| brief(&kept(&one.object))).collect()
}

fn deleted(plan: &Plan) -> Vec<String> {
    plan.delete.iter().map(|one| format!("{}: {:?}", brief(&one.warm), one.cause)).collect()
}

fn recheck(plan: &Plan) -> Option<Timestamp> {
    plan.rechecks.values().copied().min()
}

fn idle(plan: &Plan) -> bool {
    plan.create.is_empty() && plan.delete.is_empty()
}

/// The same order, made by hand in another spelling; its name sorts before ours.
fn by_hand(mut warm: ImageWarm) -> ImageWarm {
    warm.metadata.name = warm.metadata.name.map(|name| format!("a-{name}"));
    warm.metadata.labels = None;
    warm.spec.image = warm.spec.image.replace("docker.io/library/", "");
    warm
}

/// The same, being deleted.
fn leaving(mut warm: ImageWarm) -> ImageWarm {
    warm.metadata.deletion_timestamp = warm.metadata.creation_timestamp.clone();
    warm
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_young_revision_is_left_to_the_fan_out() {
    let world = World::new(&["a"], &[&revision("r", 100, &["app:v1"])], &[]);
    let plan = world.plan(102);
    assert!(idle(&plan));
    assert_eq!(recheck(&plan), Some(at(103)));
    let plan = world.plan(103);
    assert_eq!(created(&plan), ["app:v1 on a"]);
    assert_eq!(plan.create[0].repair, Repair::Missing);
    assert_eq!(recheck(&plan), None);
}

#[test]
fn a_complete_young_revision_needs_no_second_plan() {
    let demanded = revision("r", 100, &["app:v1"]);
    let world = World::new(&["a"], &[&demanded], &[warm(&demanded, "app:v1", "a", 100)]);
    assert_eq!(recheck(&world.plan(101)), None);
}

#[test]
fn a_new_node_gets_what_revisions_want_by_digest_where_it_is_known() {
    let by_tag = revision("r-1", 100, &["app:v1"]);
    let mut by_digest = revision("r-2", 100, &["side:v1"]);
    resolve(&mut by_digest, '1');
    let warms = [
        holding(warm(&by_tag, "app:v1", "a", 100), '9'),
        holding(warm(&by_digest, "side:v1", "a", 100), '1'),
    ];
    let world = World::new(&["a", "b"], &[&by_tag, &by_digest], &warms);
    let mut made = created(&world.plan(200));
    made.sort();
    assert_eq!(made, ["app:v1 on b", "side@1 on b"]);
    assert!(world.plan(200).create.iter().all(|one| one.repair == Repair::Missing));
}

#[test]
fn digests_and_tags() {
    let mut demanded = revision("r", 100, &["app:v1"]);
    resolve(&mut demanded, '1');
    let tag = || warm(&demanded, "app:v1", "a", 100);
    let by_digest = warm(&demanded, &format!("app@{}", digest('1')), "a", 100);
    let moved = vec!["app@1 on a".to_owned()];
    let cases = [
        ("holds the digest", vec![holding(tag(), '1')], vec![]),
        ("not begun", vec![tag()], vec![]),
        ("queued", vec![because(tag(), Reason::Queued)], vec![]),
        ("pulling", vec![because(tag(), Reason::Pulling)], vec![]),
        ("pulling anew", vec![because(holding(tag(), '2'), Reason::Pulling)], vec![]),
        ("cannot log in", vec![because(tag(), Reason::Unauthorized)], vec![]),
        // The warmer of the node goes on with the digest.
        ("tag gone", vec![because(tag(), Reason::NotFound)], vec![]),
        ("tag moved", vec![holding(tag(), '2')], moved.clone()),
        ("pulled, digest unknown", vec![because(tag(), Reason::Pulled)], moved.clone()),
        ("digest alone", vec![by_digest.clone()], vec![]),
        ("digest on its way out", vec![leaving(by_digest.clone())], moved.clone()),
        ("tag on its way out", vec![leaving(holding(tag(), '1'))], moved.clone()),
        ("one of two holds it", vec![by_hand(holding(tag(), '2')), holding(tag(), '1')], vec![]),
        (
            "none of two holds it",
            vec![by_hand(holding(tag(), '2')), holding(tag(), '3')],
            moved.clone(),
        ),
        ("nothing", vec![], moved.clone()),
    ];
    for (name, warms, expected) in cases {
        let plan = World::new(&["a"], &[&demanded], &warms).plan(200);
        assert_eq!(created(&plan), expected, "{name}");
        assert_eq!(deleted(&plan), NOTHING, "{name}");
    }
}

#[test]
fn nodes_that_cannot_run_it_get_nothing_and_lose_nothing() {
    let demanded = revision("r", 100, &["app:v1"]);
    let mut world = World::new(&[], &[&demanded], &[warm(&demanded, "app:v1", "b", 100)]);
    world.nodes = vec![
        tainted(node("a"), "k", "NoSchedule"),
        tainted(node("b"), "k", "NoExecute"),
        labelled(node("c"), "kubernetes.io/os", "windows"),
    ];
    assert!(idle(&world.plan(1000)));
}

#[test]
fn a_runtime_class_decides_too() {
    let mut demanded = revision("r", 100, &["app:v1"]);
    demanded.spec.runtime_class_name = Some("sandboxed".into());
    let plain = revision("plain", 100, &["other:v1"]);
    let mut world = World::new(&["a"], &[&demanded, &plain], &[]);
    world.nodes.push(labelled(node("b"), "sandbox", "yes"));
    let everywhere = ["other:v1 on a", "other:v1 on b"];
    assert_eq!(created(&world.plan(1000)), everywhere);
    let class = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "sandboxed"}, "handler": "h",
        "scheduling": {"nodeSelector": {"sandbox": "yes"}},
    }));
    world.runtime_classes = RuntimeClasses::new(&[class.unwrap()]);
    let mut all = created(&world.plan(1000));
    all.retain(|one| !everywhere.contains(&one.as_str()));
    assert_eq!(all, ["app:v1 on b"]);
}

#[test]
fn what_is_older_than_its_node_was_for_another_and_goes_at_once() {
    let demanded = revision("r", 100, &["app:v1"]);
    let before = warm(&demanded, "app:v1", "a", 100);
    let after = warm(&demanded, "app:v1", "b", 100);
    let mut world = World::new(&["a", "b"], &[&demanded], &[before.clone(), after.clone()]);
    for (node, created) in world.nodes.iter_mut().zip([101, 100]) {
        node.metadata.creation_timestamp = Some(Time(at(created)));
    }
    assert_eq!(deleted(&world.plan(101)), ["app:v1 on a: NodeReplaced"]);
    // One that a person made stays.
    world.warms = vec![kept(&by_hand(before)), kept(&after)];
    assert_eq!(deleted(&world.plan(101)), NOTHING);
}

#[test]
fn collection() {
    let demanded = revision("r", 100, &["app:v1"]);
    let other = revision("gone", 100, &["old:v1"]);
    let kept = warm(&demanded, "app:v1", "a", 100);
    let old = warm(&other, "old:v1", "a", 100);
    let lost = warm(&demanded, "app:v1", "z", 100);
    let mut ours_in_other_words = kept.clone();
    ours_in_other_words.spec.image = "index.docker.io/library/app:v1".into();
    let world = |warms: &[&ImageWarm]| {
        let warms: Vec<_> = warms.iter().map(|warm| (*warm).clone()).collect();
        World::new(&["a"], &[&demanded], &warms)
    };

    let plan = world(&[&kept, &old, &lost]).plan(130);
    assert_eq!(deleted(&plan), ["app:v1 on z: NodeGone", "old:v1 on a: NotDemanded"]);
    assert_eq!(deleted(&world(&[&kept, &by_hand(old.clone())]).plan(130)), NOTHING);
    assert_eq!(deleted(&world(&[&ours_in_other_words]).plan(130)), NOTHING);

    let early = world(&[&kept, &old]).plan(129);
    assert!(idle(&early));
    assert_eq!(recheck(&early), Some(at(130)));

    let mut unsynced = world(&[&kept, &old, &lost]);
    unsynced.unsynced = true;
    assert!(idle(&unsynced.plan(1000)));
}

#[test]
fn of_a_tag_and_its_digest_on_a_node_the_digest_stays() {
    let mut demanded = revision("r", 100, &["app:v1"]);
    resolve(&mut demanded, '1');
    let by_tag = |node| warm(&demanded, "app:v1", node, 100);
    let by_digest = warm(&demanded, &format!("app@{}", digest('1')), "a", 100);
    let plan = |by_tag: ImageWarm| {
        let warms = [by_tag, by_digest.clone()];
        World::new(&["a"], &[&demanded], &warms).plan(1000)
    };
    // The tag was pushed late, has moved, or is on the node as well.
    let missing = because(by_tag("a"), Reason::NotFound);
    for tag in [missing, holding(by_tag("a"), '2'), holding(by_tag("a"), '1')] {
        let plan = plan(tag);
        assert_eq!(deleted(&plan), ["app:v1 on a: Resolved"]);
        assert_eq!(created(&plan), NOTHING);
    }
    let once = World::new(&["a"], &[&demanded], &[by_digest]).plan(1000);
    assert!(idle(&once), "what is deleted does not come back");
    // Alone, or for a Revision that is not resolved yet, the tag stays.
    let alone = [holding(by_tag("a"), '1')];
    assert!(idle(&World::new(&["a"], &[&demanded], &alone).plan(1000)));
    let newer = revision("s", 100, &["app:v1"]);
    let warms = [by_tag("a"), warm(&demanded, &format!("app@{}", digest('1')), "a", 100)];
    let world = World::new(&["a"], &[&demanded, &newer], &warms);
    assert_eq!(deleted(&world.plan(1000)), NOTHING);
}

#[test]
fn opting_out_and_pausing() {
    let mut demanded = revision("r", 100, &["app:v1"]);
    let exists = warm(&demanded, "app:v1", "a", 100);
    let mut world = World::new(&["a", "b"], &[&demanded], std::slice::from_ref(&exists));
    world.policy.paused = true;
    assert!(idle(&world.plan(1000)));
    world.revisions.clear();
    assert!(idle(&world.plan(1000)));

    let mut world = World::new(&["a", "b"], &[&demanded], std::slice::from_ref(&exists));
    world.cluster.opted_out.insert("ns".into());
    assert_eq!(created(&world.plan(1000)), NOTHING);
    assert_eq!(deleted(&world.plan(1000)), ["app:v1 on a: NotDemanded"]);

    demanded.metadata.annotations.get_or_insert_default().insert(WARM_KEY.into(), "false".into());
    let plan = World::new(&["a", "b"], &[&demanded], &[exists]).plan(1000);
    assert_eq!(created(&plan), NOTHING);
    assert_eq!(deleted(&plan), ["app:v1 on a: NotDemanded"]);
}

#[test]
fn nothing_is_made_where_a_namespace_or_revision_is_being_deleted() {
    let mut demanded = revision("r", 100, &["app:v1"]);
    let mut world = World::new(&["a"], &[&demanded], &[]);
    world.terminating.insert("ns".into());
    assert!(idle(&world.plan(1000)));
    demanded.metadata.deletion_timestamp = Some(Time(at(150)));
    let exists = warm(&demanded, "app:v1", "a", 100);
    assert!(idle(&World::new(&["a", "b"], &[&demanded], &[exists]).plan(1000)));
}

#[test]
fn one_made_by_hand_for_a_time_goes_when_it_is_over_and_nobody_wants_it() {
    let wanting = revision("r-1", 0, &["app:v1"]);
    let for_a_time = |image: &str, until: &str| {
        let mut mine = by_hand(warm(&wanting, image, "a", 100));
        let expires = [(EXPIRES_AT_ANNOTATION.to_owned(), until.to_owned())];
        mine.metadata.annotations = Some(expires.into());
        mine
    };
    let until = at(200).to_string();
    let plan = |warms: &[ImageWarm], now: i64| World::new(&["a"], &[&wanting], warms).plan(now);
    let other = for_a_time("other:v1", &until);
    let before = plan(std::slice::from_ref(&other), 199);
    assert_eq!(deleted(&before), NOTHING);
    assert_eq!(recheck(&before), Some(at(200)));
    let after = plan(&[other], 200);
    assert_eq!(after.delete.len(), 1);
    assert_eq!(after.delete[0].cause, Cause::Expired);
    assert_eq!(deleted(&plan(&[for_a_time("app:v1", &until)], 10_000)), NOTHING, "it is wanted");
    assert_eq!(deleted(&plan(&[for_a_time("other:v1", "soon")], 10_000)), NOTHING, "no time");
    let managed = warm(&wanting, "app:v1", "a", 100);
    assert_eq!(deleted(&plan(&[managed], 10_000)), NOTHING);
}

#[test]
fn a_hand_made_order_counts() {
    let demanded = revision("r", 100, &["app:v1"]);
    let mine = by_hand(warm(&demanded, "app:v1", "a", 100));
    assert_eq!(mine.spec.image, "app:v1");
    assert!(idle(&World::new(&["a"], &[&demanded], &[mine]).plan(1000)));
}

#[test]
fn one_order_for_two_revisions_in_the_name_of_the_newer() {
    let (old, new) = (revision("r-1", 100, &["app:v1"]), revision("r-2", 200, &["app:v1"]));
    let plan = World::new(&["a"], &[&old, &new], &[]).plan(1000);
    assert_eq!(created(&plan), ["app:v1 on a"]);
    let annotations = plan.create[0].object.metadata.annotations.clone().unwrap();
    assert_eq!(annotations[crate::api::CREATED_FOR_ANNOTATION], "conf-uid/r-2");
    // While the newer one is left to its fan-out, the older one still wants it.
    assert_eq!(created(&World::new(&["a"], &[&old, &new], &[]).plan(201)), ["app:v1 on a"]);
}

#[test]
fn five_thousand_nodes_and_fifty_images_take_well_under_a_second() {
    let nodes: Vec<String> = (0..5000).map(|n| format!("node-{n}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let images: Vec<String> = (0..50).map(|n| format!("r.example/team/app-{n}:v1")).collect();
    let revisions: Vec<Revision> = images
        .chunks(2)
        .enumerate()
        .map(|(n, pair)| revision(&format!("r-{n}"), 100, &[pair[0].as_str(), pair[1].as_str()]))
        .collect();
    let mut world = World::new(&names, &revisions.iter().collect::<Vec<_>>(), &[]);
    world.policy.bounds.image_warms_per_namespace = 0;
    world.policy.bounds.image_warms = 0;
    let first = world.plan(200);
    assert_eq!(first.create.len(), 250_000);
    world.apply(&first, 200);
    let began = std::time::Instant::now();
    assert!(idle(&world.plan(1000)));
    let took = began.elapsed();
    println!("settled plan of 250,000 objects: {took:?}");
    // Without optimisation, on a busy machine; a release build is an order of magnitude faster.
    assert!(took < Duration::from_secs(30), "{took:?}");
}

mod properties;

/// Knative held the Revision in reserve since this second.
fn rest(revision: &mut Revision, since: i64) {
    route(revision, "reserve");
    let annotations = revision.metadata.annotations.get_or_insert_default();
    annotations.insert(ROUTING_STATE_MODIFIED.into(), at(since).to_string());
}

#[test]
fn reserve_keeps_its_images_for_a_while_only() {
    let mut one = revision("r-1", 0, &["app:v1"]);
    let image_warm = warm(&one, "app:v1", "a", 0);
    rest(&mut one, 1000);
    let world = World::new(&["a", "b"], &[&one], std::slice::from_ref(&image_warm));
    let plan = world.plan(1599);
    assert!(plan.create.is_empty());
    assert_eq!((deleted(&plan), recheck(&plan)), (vec![], Some(at(1600))));
    assert_eq!(deleted(&world.plan(1600)), ["app:v1 on a: Reserve"]);

    let other = revision("r-2", 0, &["app:v1"]);
    let world = World::new(&["a"], &[&one, &other], std::slice::from_ref(&image_warm));
    let plan = world.plan(1600);
    assert_eq!((deleted(&plan), recheck(&plan)), (vec![], None), "another still wants it");

    route(&mut one, "active");
    let world = World::new(&["a"], &[&one], &[]);
    assert_eq!(created(&world.plan(1700)), ["app:v1 on a"], "active again");
}

fn with_images(mut world: World, images: &[KnativeImage]) -> World {
    world.images = images.iter().cloned().map(Arc::new).collect();
    world
}

#[test]
fn an_image_of_a_revision_costs_nothing_where_the_tag_holds_its_digest() {
    let one = revision("r-1", 0, &["app:v1"]);
    let image = knative_image("i", &by_digest("app", '1'), Some(&one));
    let image_warm = |node| warm(&one, "app:v1", node, 0);
    let warms = [
        holding(image_warm("a"), '1'),
        because(image_warm("b"), Reason::Pulling),
        holding(image_warm("c"), '2'),
        image_warm("d"),
    ];
    let world = with_images(World::new(&["a", "b", "c", "d"], &[&one], &warms), &[image]);
    let plan = world.plan(1000);
    assert_eq!(created(&plan), ["app@1 on c"]);
    assert_eq!(plan.create[0].repair, Repair::MovedTag);
    assert!(deleted(&plan).is_empty());
}

#[test]
fn an_image_of_its_own_is_ordered_at_once_and_owns_its_orders() {
    let mut image = knative_image("queue-proxy", "queue:v1", None);
    image.metadata.creation_timestamp = Some(Time(at(1000)));
    let world = with_images(World::new(&["a", "b"], &[], &[]), &[image.clone()]);
    let plan = world.plan(1000);
    assert_eq!(created(&plan), ["queue:v1 on a", "queue:v1 on b"]);
    assert_eq!(plan.create[0].repair, Repair::Image);
    let owner = &plan.create[0].object.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Image", "queue-proxy"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(false), Some(false)));

    let mut world = world;
    world.apply(&plan, 1000);
    assert!(idle(&world.plan(2000)));
    image.spec.image = "queue:v2".into();
    let world = with_images(world, &[image]);
    let plan = world.plan(2000);
    assert_eq!(created(&plan), ["queue:v2 on a", "queue:v2 on b"]);
    assert_eq!(deleted(&plan), ["queue:v1 on a: NotDemanded", "queue:v1 on b: NotDemanded"]);
    let world = with_images(world, &[knative_image("queue-proxy", "", None)]);
    assert_eq!(deleted(&world.plan(2000)).len(), 2);
}

#[test]
fn kinds_of_repair() {
    let one = revision("r-1", 100, &["app:v1"]);
    let mut world = World::new(&["old", "young"], &[&one], &[]);
    world.nodes[0].metadata.creation_timestamp = Some(Time(at(50)));
    world.nodes[1].metadata.creation_timestamp = Some(Time(at(150)));
    let kinds: Vec<_> = world.plan(1000).create.iter().map(|one| one.repair).collect();
    assert_eq!(kinds, [Repair::Missing, Repair::NewNode]);
}

#[test]
fn a_fan_out_at_work_is_not_helped_along() {
    let demanded = revision("r-1", 100, &["app:v1", "side:v1"]);
    let plan = |newest, now| {
        let image_warms =
            [warm(&demanded, "app:v1", "a", 101), warm(&demanded, "app:v1", "b", newest)];
        World::new(&["a", "b"], &[&demanded], &image_warms).plan(now)
    };
    let missing = ["side:v1 on a", "side:v1 on b"];
    // GracePeriods with one that makes nothing ends after three seconds.
    assert_eq!(created(&plan(101, 105)), missing);
    let waits = plan(104, 105);
    assert!(idle(&waits));
    assert_eq!(recheck(&waits), Some(at(107)));
    assert_eq!(created(&plan(104, 107)), missing);
    // However long image_warms go on to appear, it ends some time.
    assert!(idle(&plan(158, 159)));
    assert_eq!(created(&plan(159, 160)), missing);
}
