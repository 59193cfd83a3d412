//! What one namespace or one Revision may cause.

use super::*;
use crate::policy::bounds::{Limit, NamespaceSelection, OverLimit};

fn limited(image_warms_per_namespace: usize) -> Policy {
    let bounds = Bounds { image_warms_per_namespace, ..Bounds::default() };
    Policy { bounds, ..Policy::default() }
}

#[test]
fn the_newest_revision_takes_the_last_places_and_nothing_that_exists_goes() {
    let (old, new) = (revision("r-1", 0, &["app:v1"]), revision("r-2", 5, &["app:v2"]));
    let exists = warm(&old, "app:v1", "a", 0);
    let mut world = World::new(&["a", "b"], &[&old, &new], &[exists]);
    world.policy = limited(3);
    let plan = world.plan(100);
    assert_eq!(created(&plan), ["app:v2 on a", "app:v2 on b"]);
    let over = OverLimit { missing: 1, limit: Limit::Namespace(3) };
    assert_eq!(plan.over_limit, BTreeMap::from([("ns".to_owned(), over)]));
    // Settled after one step, though something stays missing.
    world.apply(&plan, 100);
    let next = world.plan(200);
    assert!(idle(&next), "{next:?}");
    assert_eq!(next.over_limit, plan.over_limit);
    // A lower limit deletes nothing, a higher one brings the rest.
    world.policy = limited(1);
    assert!(idle(&world.plan(300)));
    world.policy = limited(9);
    assert_eq!(created(&world.plan(400)), ["app:v1 on b"]);
    // So does room that others left.
    world.policy = limited(3);
    world.revisions.retain(|one| one.metadata.name.as_deref() == Some("r-1"));
    let plan = world.plan(500);
    assert_eq!(deleted(&plan), ["app:v2 on a: NotDemanded", "app:v2 on b: NotDemanded"]);
    world.apply(&plan, 500);
    assert_eq!(created(&world.plan(600)), ["app:v1 on b"]);
}

#[test]
fn hand_made_orders_count_and_other_namespaces_do_not() {
    let demanded = revision("r-1", 0, &["app:v1", "side:v1"]);
    let mut elsewhere = warm(&demanded, "other:v1", "a", 0);
    elsewhere.metadata.namespace = Some("elsewhere".into());
    let by_hand = by_hand(warm(&demanded, "mine:v1", "a", 0));
    let mut world = World::new(&["a"], &[&demanded], &[by_hand, elsewhere]);
    world.unsynced = true; // nothing is deleted here
    world.policy = limited(2);
    assert_eq!(created(&world.plan(100)), ["app:v1 on a"]);
}

#[test]
fn of_a_revision_with_many_images_the_first_are_warmed() {
    let demanded = revision("r-1", 0, &["a:v1", "b:v1", "a:v1", "c:v1"]);
    let mut world = World::new(&["n"], &[&demanded], &[]);
    world.policy.bounds.images_per_revision = 2;
    // Knative's Image of the third asks for nothing by itself.
    let image = knative_image("i", &by_digest("c", '1'), Some(&demanded));
    world.images = vec![Arc::new(image)];
    let plan = world.plan(100);
    assert_eq!(created(&plan), ["a:v1 on n", "b:v1 on n"]);
    world.apply(&plan, 100);
    assert!(idle(&world.plan(200)));
}

#[test]
fn where_namespaces_opt_in_others_are_left_alone() {
    let opt_in = Bounds { namespaces: NamespaceSelection::OptIn, ..Bounds::default() };
    let demanded = revision("r-1", 0, &["app:v1"]);
    let mut world = World::new(&["a"], &[&demanded], &[]);
    world.policy.bounds = opt_in;
    assert!(!opt_in.selects(None), "so the namespace is among those left alone");
    world.cluster.opted_out.insert("ns".into());
    assert!(idle(&world.plan(100)));
}
