//! What holds for any cluster.

use proptest::prelude::*;

use super::*;
use crate::placement::is_eligible;

fn any_revision() -> impl Strategy<Value = Revision> {
    let images = prop::collection::vec(
        prop::sample::select(vec!["app:v1", "app:v2", "side", "dev.local/x", "UP"]),
        1..4,
    );
    let digest = prop::option::of(prop::sample::select(vec!['1', '2']));
    let state = prop::sample::select(vec!["active", "pending", "reserve"]);
    (0..6_u8, 0..300_i64, images, digest, state, any::<bool>()).prop_map(
        |(name, created, images, digest, state, selects)| {
            let mut one = revision(&format!("r-{name}"), created, &images);
            route(&mut one, state);
            if selects {
                one.spec.node_selector.insert("disk".into(), "ssd".into());
            }
            if let Some(letter) = digest {
                one.spec.containers.retain(|c| c.image != "UP");
                resolve(&mut one, letter);
            }
            one
        },
    )
}

fn any_warm() -> impl Strategy<Value = ImageWarm> {
    let image = prop::sample::select(vec![
        "app:v1".to_owned(),
        "app:v2".to_owned(),
        "side".to_owned(),
        format!("app@{}", digest('1')),
        "gone:v1".to_owned(),
    ]);
    let reason = prop::option::of(prop::sample::select(Reason::ALL.to_vec()));
    let letter = prop::option::of(prop::sample::select(vec!['1', '2', '3']));
    let kind = prop::sample::select(vec!["ours", "ours", "by hand", "leaving"]);
    (image, 0..5_u8, 0..300_i64, reason, letter, kind).prop_map(
        |(image, node, created, reason, letter, kind)| {
            let maker = revision("maker", created, &[&image]);
            let mut one = warm(&maker, &image, &format!("n{node}"), created);
            if let Some(letter) = letter {
                one = holding(one, letter);
            }
            if let Some(reason) = reason {
                one = because(one, reason);
            }
            match kind {
                "by hand" => by_hand(one),
                "leaving" => leaving(one),
                _ => one,
            }
        },
    )
}

fn any_image() -> impl Strategy<Value = KnativeImage> {
    let image = prop::sample::select(vec![
        by_digest("app", '1'),
        by_digest("app", '2'),
        by_digest("queue", '1'),
        "queue:v1".to_owned(),
        String::new(),
        "UP".to_owned(),
    ]);
    (0..4_u8, image, prop::option::of(0..6_u8), 0..300_i64).prop_map(
        |(name, image, owner, created)| {
            let owner = owner.map(|owner| revision(&format!("r-{owner}"), 0, &[]));
            let mut one = knative_image(&format!("i-{name}"), &image, owner.as_ref());
            one.metadata.creation_timestamp = Some(Time(at(created)));
            one
        },
    )
}

fn any_world() -> impl Strategy<Value = World> {
    let nodes = prop::collection::btree_map(0..5_u8, 0..4_u8, 0..5);
    (
        prop::collection::vec(any_revision(), 0..6),
        prop::collection::vec(any_warm(), 0..12),
        prop::collection::vec(any_image(), 0..4),
        nodes,
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(mut revisions, mut warms, mut images, nodes, unsynced, out)| {
            images.sort_by_key(|one| one.metadata.name.clone());
            images.dedup_by_key(|one| one.metadata.name.clone());
            revisions.sort_by_key(|one| one.metadata.name.clone());
            revisions.dedup_by_key(|one| one.metadata.name.clone());
            warms.sort_by_key(|one| one.metadata.name.clone());
            warms.dedup_by_key(|one| one.metadata.name.clone());
            let node = |(name, kind): (u8, u8)| {
                let node = node(&format!("n{name}"));
                match kind {
                    0 => tainted(node, "k", "NoSchedule"),
                    1 => labelled(node, "disk", "ssd"),
                    _ => node,
                }
            };
            World {
                warms: warms.iter().map(kept).collect(),
                revisions: revisions.into_iter().map(Arc::new).collect(),
                images: images.into_iter().map(Arc::new).collect(),
                nodes: nodes.into_iter().map(node).collect(),
                cluster: Cluster::without(out.then_some("ns")),
                unsynced,
                ..World::default()
            }
        })
}

proptest! {
    #[test]
    fn applied_to_its_own_output_it_does_nothing(world in any_world(), now in 0..600_i64) {
        let mut world = world;
        let plan = world.plan(now);
        world.apply(&plan, now);
        // Where an ImageWarm by digest now is, the one by tag goes.
        let again = world.plan(now);
        prop_assert_eq!(created(&again), NOTHING);
        prop_assert!(again.delete.iter().all(|one| one.cause == Cause::Resolved));
        world.apply(&again, now);
        let again = world.plan(now);
        prop_assert!(idle(&again), "{:?} {:?}", created(&again), deleted(&again));
    }

    #[test]
    fn the_order_of_lists_does_not_matter(world in any_world(), now in 0..600_i64) {
        let mut turned = world.clone();
        turned.warms.reverse();
        turned.revisions.reverse();
        turned.images.reverse();
        turned.nodes.reverse();
        let (one, other) = (world.plan(now), turned.plan(now));
        prop_assert_eq!(one.create, other.create);
        prop_assert_eq!(one.delete, other.delete);
        prop_assert_eq!(one.rechecks, other.rechecks);
    }

    #[test]
    fn in_the_end_every_wanted_image_is_ordered_and_nothing_else(world in any_world()) {
        let mut world = world;
        world.unsynced = false;
        let plan = world.plan(10_000);
        prop_assert_eq!(recheck(&plan), None);
        world.apply(&plan, 10_000);
        world.warms.retain(|warm| !warm.is_terminating());

        let facts: Vec<_> =
            world.nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
        let demanded = world.demands();
        for one in demanded.consumers.iter().filter(|one| one.is_routable()) {
            let demand = &one.demand;
            let fits = |node: &&NodeFacts<'_>| is_eligible(node, &demand.placement, &world.policy).is_ok();
            for (wanted, node) in demand.images.iter().flat_map(|image| {
                facts.iter().filter(fits).map(move |node| (image, node.name))
            }) {
                let ordered = world.warms.iter().any(|warm| {
                    &*warm.node_name == node && wanted.is(&reference(&warm.image))
                });
                prop_assert!(ordered, "{:?} on {node} for {:?}", wanted, one.by);
            }
        }
        for warm in world.warms.iter().filter(|warm| warm.is_managed()) {
            let image = reference(&warm.image);
            let wanted = demanded.consumers.iter().any(|one| {
                one.is_routable() && one.demand.images.iter().any(|one| one.is(&image))
            });
            prop_assert!(wanted, "{}", brief(warm));
            prop_assert!(facts.iter().any(|node| node.name == &*warm.node_name), "{}", brief(warm));
        }
        let names: BTreeSet<_> = world.warms.iter().map(|warm| &warm.name).collect();
        prop_assert_eq!(names.len(), world.warms.len());
    }
}
