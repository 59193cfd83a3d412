#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const MB: u64 = 1_000_000;

fn settings(share: u8) -> PinSettings {
    PinSettings::new(share, 85, 80).unwrap()
}

fn name(of: &str) -> String {
    format!("r.test/{of}:v1")
}

fn held(id: &str, megabytes: u64, pin: Pin) -> HeldImage {
    HeldImage {
        id: id.into(),
        names: vec![name(id)],
        size_bytes: megabytes * MB,
        in_use: false,
        pin,
    }
}

fn own(since_unix_ms: i64) -> Pin {
    Pin::Own { since_unix_ms, in_effect: true }
}

fn wanted(images: &[(&str, i64)]) -> Wanted {
    let images = images.iter().map(|(id, priority)| WantedImage {
        names: vec![Reference::parse(&name(id)).unwrap()],
        priority: *priority,
        is_warm: true,
    });
    Wanted { images: images.collect(), is_complete: true }
}

/// A disk of 1,000 MB.
fn free(megabytes: u64) -> Space {
    Space {
        free_bytes: megabytes * MB,
        capacity_bytes: 1_000 * MB,
        free_inodes: 1_000,
        inodes: 1_000,
    }
}

/// The ids to pin, and those to unpin with the reason.
fn changes<'a>(plan: &PinPlan<'a>) -> (Vec<&'a str>, Vec<(&'a str, Unpin)>) {
    (
        plan.pin.iter().map(|image| image.id.as_str()).collect(),
        plan.unpin.iter().map(|(image, why)| (image.id.as_str(), *why)).collect(),
    )
}

fn decide<'a>(
    share: u8,
    images: &'a [HeldImage],
    wanted: &Wanted,
    space: Space,
) -> (Vec<&'a str>, Vec<(&'a str, Unpin)>) {
    changes(&plan(&settings(share), images, wanted, Some(space), false))
}

#[test]
fn what_is_wanted_and_warm_is_pinned_within_the_share_newest_first() {
    let images = ["a", "b", "c"].map(|id| held(id, 50, Pin::None));
    let revisions = wanted(&[("a", 1), ("b", 3), ("c", 2)]);
    // Each is taken to need 150 MB of the disk.
    for (share, pinned, without_room) in
        [(50, vec!["b", "c", "a"], 0), (44, vec!["b", "c"], 1), (15, vec!["b"], 2), (14, vec![], 3)]
    {
        let planned = plan(&settings(share), &images, &revisions, Some(free(900)), false);
        assert_eq!(changes(&planned), (pinned.clone(), vec![]), "{share}%");
        assert_eq!((planned.pinned, planned.without_room), (pinned.len(), without_room));
        assert_eq!(planned.pinned_bytes, pinned.len() as u64 * 50 * MB);
    }
}

#[test]
fn an_image_that_exceeds_the_share_leaves_it_to_others() {
    let images = [held("huge", 101, Pin::None), held("small", 10, Pin::None)];
    let decided = decide(30, &images, &wanted(&[("huge", 9), ("small", 1)]), free(900));
    assert_eq!(decided, (vec!["small"], vec![]));
}

#[test]
fn pins_end_with_the_demand_once_that_is_known() {
    let images = [held("a", 1, own(1)), held("b", 1, own(2)), held("c", 1, Pin::Foreign)];
    let only_b = wanted(&[("b", 1)]);
    let decided = decide(30, &images, &only_b, free(900));
    assert_eq!(decided, (vec![], vec![("a", Unpin::NotWanted)]));
    let unknown = Wanted { is_complete: false, ..only_b };
    assert_eq!(decide(30, &images, &unknown, free(900)), (vec![], vec![]));
    assert_eq!(decide(30, &images, &Wanted::default(), free(900)), (vec![], vec![]));
}

#[test]
fn without_a_share_or_a_view_of_the_disk_nothing_is_pinned() {
    let images = [held("a", 1, own(1)), held("b", 1, Pin::None), held("c", 1, Pin::Foreign)];
    let all = wanted(&[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(decide(0, &images, &all, free(900)), (vec![], vec![("a", Unpin::Off)]));
    let unseen = plan(&settings(30), &images, &all, None, false);
    assert_eq!(changes(&unseen), (vec![], vec![("a", Unpin::SpaceUnknown)]));
}

#[test]
fn pins_of_others_are_left_alone() {
    let images = [held("a", 1, Pin::Foreign)];
    for share in [0, 30] {
        for wanted in [wanted(&[]), wanted(&[("a", 1)])] {
            assert_eq!(decide(share, &images, &wanted, free(10)), (vec![], vec![]));
        }
    }
}

#[test]
fn a_pin_that_lost_its_effect_is_set_again() {
    let lost = Pin::Own { since_unix_ms: 1, in_effect: false };
    let images = [held("a", 1, lost)];
    assert_eq!(decide(30, &images, &wanted(&[("a", 1)]), free(900)), (vec!["a"], vec![]));
    assert_eq!(
        decide(30, &images, &wanted(&[]), free(900)),
        (vec![], vec![("a", Unpin::NotWanted)])
    );
}

#[test]
fn only_an_image_that_was_found_warm_is_pinned() {
    let mut wanted = wanted(&[("a", 1)]);
    wanted.images[0].is_warm = false;
    assert_eq!(decide(30, &[held("a", 1, Pin::None)], &wanted, free(900)), (vec![], vec![]));
    // After a restart of the warmer, which has not checked yet.
    assert_eq!(decide(30, &[held("a", 1, own(1))], &wanted, free(900)), (vec![], vec![]));
}

#[test]
fn of_two_names_the_first_that_is_held_counts() {
    let images = [held("old", 1, own(1)), held("new", 1, Pin::None)];
    let names = ["new", "old"].map(|id| Reference::parse(&name(id)).unwrap());
    let image = WantedImage { names: names.to_vec(), priority: 1, is_warm: true };
    let wanted = Wanted { images: vec![image], is_complete: true };
    let decided = decide(30, &images, &wanted, free(900));
    assert_eq!(decided, (vec!["new"], vec![("old", Unpin::NotWanted)]));
    assert_eq!(decide(30, &images[..1], &wanted, free(900)), (vec![], vec![]));
}

/// 85% used, so the kubelet frees 50 MB.
#[test]
fn on_a_full_disk_the_oldest_pins_go_where_the_rest_does_not_suffice() {
    let pinned = [held("a", 30, own(1)), held("b", 30, own(2)), held("c", 30, own(3))];
    let everything = wanted(&[("a", 1), ("b", 1), ("c", 1)]);
    let go = |rest: &[HeldImage], space: Space| {
        let images = [&pinned[..], rest].concat();
        let planned = plan(&settings(30), &images, &everything, Some(space), false);
        let (pin, unpin) = changes(&planned);
        assert_eq!(pin, Vec::<&str>::new());
        assert!(unpin.iter().all(|(_, why)| *why == Unpin::DiskFull), "{unpin:?}");
        unpin.into_iter().map(|(id, _)| id.to_owned()).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(go(&[], free(160)), none, "84% is below the threshold");
    assert_eq!(go(&[], free(159)), ["a", "b"], "84.1% is 85%, as the kubelet rounds it");
    assert_eq!(go(&[], free(150)), ["a", "b"]);
    assert_eq!(go(&[], free(90)), ["a", "b", "c"]);
    let rest = |megabytes| [held("rest", megabytes, Pin::None)];
    assert_eq!(go(&rest(50), free(150)), none);
    assert_eq!(go(&rest(49), free(150)), ["a"]);
    assert_eq!(go(&[HeldImage { in_use: true, ..rest(50)[0].clone() }], free(150)), ["a", "b"]);
    assert_eq!(go(&[held("theirs", 50, Pin::Foreign)], free(150)), ["a", "b"]);
    let few_inodes = Space { free_inodes: 49, ..free(900) };
    assert_eq!(go(&rest(500), few_inodes), ["a", "b", "c"]);
}

#[test]
fn what_a_newer_revision_uses_stays_longer() {
    let images = [held("a", 90, own(1)), held("b", 90, own(2))];
    let decided = decide(60, &images, &wanted(&[("a", 7), ("b", 6)]), free(130));
    assert_eq!(decided.1, [("b", Unpin::DiskFull)]);
}

#[test]
fn an_image_in_use_keeps_its_pin() {
    let images = [HeldImage { in_use: true, ..held("a", 30, own(1)) }, held("b", 30, own(2))];
    let decided = decide(30, &images, &wanted(&[("a", 1), ("b", 1)]), free(10));
    assert_eq!(decided.1, [("b", Unpin::DiskFull)]);
}

#[test]
fn once_the_kubelet_has_failed_to_free_enough_the_rest_no_longer_counts() {
    let images = [held("a", 60, own(1)), held("b", 60, own(2)), held("rest", 500, Pin::None)];
    let both = wanted(&[("a", 1), ("b", 1)]);
    let planned = |overdue| plan(&settings(60), &images, &both, Some(free(150)), overdue);
    assert_eq!(changes(&planned(false)).1, []);
    assert_eq!(changes(&planned(true)).1, [("a", Unpin::DiskFull)]);
}

#[test]
fn between_the_thresholds_pins_stay_and_none_is_added() {
    let images = [held("a", 1, own(1)), held("b", 1, Pin::None)];
    let both = wanted(&[("a", 1), ("b", 9)]);
    assert_eq!(decide(30, &images, &both, free(201)), (vec![], vec![]));
    assert_eq!(decide(30, &images, &both, free(210)), (vec!["b"], vec![]));
    assert_eq!(decide(30, &images, &both, free(200)), (vec![], vec![]));
}

#[test]
fn a_disk_is_full_as_soon_as_the_kubelet_counts_so() {
    let settings = settings(30);
    assert_eq!(settings.full_below_free(), 16);
    assert!(settings.is_full(free(159)) && !settings.is_full(free(160)));
    let unknown = Space { capacity_bytes: 0, ..free(0) };
    assert!(!settings.is_full(unknown));
}

#[test]
fn thresholds_are_in_order() {
    assert!(PinSettings::new(30, 85, 84).is_ok());
    let error = PinSettings::new(30, 85, 85).unwrap_err().to_string();
    assert!(error.starts_with("--image-gc-low-threshold 85% is not below"), "{error}");
}

#[test]
fn containerd_2_honours_pins() {
    let honours = |name: &str, version: &str| {
        let (name, version) = (name.into(), version.into());
        honours_pins(&RuntimeVersion { name, version, os: "".into(), architecture: "".into() })
    };
    for version in ["2.0.0", "2.2.3", "2.1.4-k3s1", "10.0"] {
        assert!(honours("containerd", version), "{version}");
    }
    for version in ["1.6.20~ds1", "1.7.27", "", "x"] {
        assert!(!honours("containerd", version), "{version}");
    }
    assert!(!honours("cri-o", "2.0.0") && !honours("docker", "29.0.1"));
}

prop_compose! {
    fn any_image()(
        size in 0..400_u64,
        in_use in any::<bool>(),
        pin in prop_oneof![
            Just(Pin::None), Just(Pin::Foreign),
            (0..5_i64, any::<bool>())
                .prop_map(|(since_unix_ms, in_effect)| Pin::Own { since_unix_ms, in_effect }),
        ],
    ) -> (u64, bool, Pin) {
        (size, in_use, pin)
    }
}

fn any_images() -> impl Strategy<Value = Vec<HeldImage>> {
    let images = prop::collection::vec(any_image(), 0..8);
    images.prop_map(|images| {
        let images = images.into_iter().enumerate();
        let image = |(at, (size, in_use, pin))| HeldImage {
            in_use,
            ..held(&format!("image{at}"), size, pin)
        };
        images.map(image).collect()
    })
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let images = prop::collection::vec((0..8_usize, 0..4_i64, any::<bool>()), 0..8);
    (images, any::<bool>()).prop_map(|(images, is_complete)| {
        let images = images.into_iter().map(|(at, priority, is_warm)| WantedImage {
            names: vec![Reference::parse(&name(&format!("image{at}"))).unwrap()],
            priority,
            is_warm,
        });
        Wanted { images: images.collect(), is_complete }
    })
}

/// What is held once the plan is carried out.
fn applied(held: &[HeldImage], plan: &PinPlan<'_>) -> Vec<HeldImage> {
    let change = |image: &HeldImage| {
        let pin = match image.pin {
            _ if plan.unpin.iter().any(|(unpinned, _)| unpinned.id == image.id) => Pin::None,
            _ if !plan.pin.iter().any(|pinned| pinned.id == image.id) => image.pin,
            Pin::Own { since_unix_ms, .. } => Pin::Own { since_unix_ms, in_effect: true },
            Pin::None | Pin::Foreign => own(9),
        };
        HeldImage { pin, ..image.clone() }
    };
    held.iter().map(change).collect()
}

proptest! {
    #[test]
    fn pins_stay_within_their_share_and_leave_the_kubelet_enough(
        images in any_images(), wanted in any_wanted(), share in 1..99_u8, free_mb in 0..1_000_u64,
        is_overdue in any::<bool>(),
    ) {
        let (settings, space) = (settings(share), free(free_mb));
        let planned = plan(&settings, &images, &wanted, Some(space), is_overdue);
        let after = applied(&images, &planned);
        let own: Vec<_> = after.iter().filter(|image| image.is_own()).collect();
        prop_assert_eq!(own.len(), planned.pinned);
        let size: u64 = own.iter().map(|image| image.size_bytes).sum();
        prop_assert_eq!(size, planned.pinned_bytes);
        prop_assert!(u128::from(size) * 3 * 100 <= u128::from(share) * u128::from(space.capacity_bytes));
        for (before, after) in images.iter().zip(&after) {
            prop_assert_eq!(before.pin == Pin::Foreign, after.pin == Pin::Foreign);
        }
        // Enough is free to be collected, or all that could be.
        if settings.is_full(space) {
            let collectable: u64 = after
                .iter()
                .filter(|image| image.pin == Pin::None)
                .map(HeldImage::collectable)
                .sum();
            let needed = settings.collection_goal(space);
            prop_assert!(collectable >= needed || own.iter().all(|image| image.in_use));
            prop_assert!(planned.pin.iter().all(|image| image.is_own()));
        }
    }

    #[test]
    fn a_plan_that_is_carried_out_is_final(
        images in any_images(), wanted in any_wanted(), share in 0..99_u8, free_mb in 0..1_000_u64,
    ) {
        let planned = plan(&settings(share), &images, &wanted, Some(free(free_mb)), false);
        let after = applied(&images, &planned);
        let again = plan(&settings(share), &after, &wanted, Some(free(free_mb)), false);
        prop_assert_eq!(changes(&again), (vec![], vec![]));
    }

    #[test]
    fn the_order_of_what_is_observed_does_not_matter(
        images in any_images(), wanted in any_wanted(), free_mb in 0..1_000_u64,
    ) {
        let mut reversed = images.clone();
        reversed.reverse();
        let mut also_wanted = wanted.clone();
        also_wanted.images.reverse();
        let ids = |plan: PinPlan<'_>| applied(&images, &plan);
        let one = ids(plan(&settings(40), &images, &wanted, Some(free(free_mb)), false));
        let other = ids(plan(&settings(40), &reversed, &also_wanted, Some(free(free_mb)), false));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn no_older_pin_outlives_a_newer_one_on_a_full_disk(
        images in any_images(), priority in 0..4_i64, free_mb in 0..150_u64,
    ) {
        let all: Vec<_> = (0..images.len()).map(|at| format!("image{at}")).collect();
        let all: Vec<_> = all.iter().map(|id| (id.as_str(), priority)).collect();
        let planned = plan(&settings(98), &images, &wanted(&all), Some(free(free_mb)), false);
        let since = |image: &HeldImage| match image.pin {
            Pin::Own { since_unix_ms, .. } => Some(since_unix_ms),
            Pin::None | Pin::Foreign => None,
        };
        let full = planned.unpin.iter().filter(|(_, why)| *why == Unpin::DiskFull);
        let newest = full.filter_map(|(image, _)| since(image)).max();
        let unpinned = |image: &HeldImage| planned.unpin.iter().any(|(gone, _)| gone.id == image.id);
        let kept = images.iter().filter(|image| !image.in_use && !unpinned(image));
        let oldest = kept.filter_map(since).min();
        prop_assert!(newest.is_none() || oldest.is_none() || newest <= oldest);
    }
}
