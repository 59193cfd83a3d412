//! Tests of `throttle/registry.rs`.

use super::*;

fn one_at_a_time() -> RegistryBudgets {
    RegistryBudgets::new(Limits { pulls: 1, per_second: 0 })
}

/// A pull on a node of its own, of namespace `ns`.
fn pull(uid: &str, registry: &str) -> Pull {
    Pull {
        uid: uid.into(),
        node: format!("node-{uid}").into(),
        registry: registry.into(),
        account: account("ns"),
        priority: 0,
    }
}

fn account(namespace: &str) -> Account {
    Account { namespace: namespace.into(), identities: 1 }
}

fn of(namespace: &str, uid: &str) -> Pull {
    Pull { account: account(namespace), ..pull(uid, "one") }
}

fn line<'a>(budgets: &'a RegistryBudgets, namespace: &str) -> &'a Line {
    &budgets.registries["one"].lines[&account(namespace)]
}

#[test]
fn the_limit_is_for_each_registry_and_the_newest_revision_goes_first() {
    let mut budgets = one_at_a_time();
    let urgent = |uid, priority| Pull { priority, ..pull(uid, "one") };
    assert!(budgets.request(urgent("a", 1), 0));
    assert!(budgets.request(urgent("a", 1), 0), "asked again");
    assert!(budgets.request(pull("b", "two"), 0), "another registry");
    assert!(!budgets.request(urgent("c", 1), 0));
    assert!(!budgets.request(urgent("d", 5), 0));
    assert!(!budgets.request(urgent("e", 5), 0));
    assert_eq!(budgets.counts(), (2, 3));
    assert_eq!(budgets.end("a", 0), ["d"]);
    assert_eq!(budgets.end("d", 0), ["e"]);
    assert_eq!(budgets.end("unknown", 0), Vec::<Uid>::new());
    assert_eq!(budgets.end("c", 0), Vec::<Uid>::new(), "gave up waiting");
    assert_eq!(budgets.end("e", 0), Vec::<Uid>::new());
    assert_eq!(budgets.end("b", 0), Vec::<Uid>::new());
    assert!(budgets.tick(60_000).is_empty());
    assert!(budgets.registries.is_empty() && budgets.places.is_empty());
}

#[test]
fn running_pulls_count_even_beyond_the_limit() {
    let mut budgets = one_at_a_time();
    budgets.hold(pull("a", "one"), 0);
    budgets.hold(pull("b", "one"), 0);
    assert!(!budgets.request(pull("c", "one"), 0));
    assert!(budgets.end("a", 0).is_empty());
    assert_eq!(budgets.end("b", 0), ["c"]);
}

#[test]
fn so_many_begin_in_a_second() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 0, per_second: 2 });
    let granted = ["a", "b", "c", "d", "e"].map(|uid| budgets.request(pull(uid, "one"), 5_000));
    assert_eq!(granted, [true, true, false, false, false]);
    assert!(budgets.end("a", 5_100).is_empty(), "a place is not a new second");
    assert!(budgets.tick(5_999).is_empty());
    assert_eq!(budgets.tick(6_000), ["c", "d"]);
    assert!(budgets.request(pull("f", "two"), 6_000), "another registry");
    assert_eq!(budgets.tick(7_500), ["e"]);
    // Many are spread over the second.
    let mut budgets = RegistryBudgets::new(Limits { pulls: 0, per_second: 50 });
    let granted: Vec<bool> =
        (0..20).map(|at| budgets.request(pull(&format!("{at:02}"), "one"), 0)).collect();
    let later = [99, 100, 250].map(|now| budgets.tick(now).len());
    assert_eq!((granted.iter().filter(|granted| **granted).count(), later), (5, [0, 5, 5]));
    // As many as were asked for, also where they do not divide evenly.
    for per_second in [1, 9, 10, 11, 19, 50, 99, 1_234] {
        let mut budgets = RegistryBudgets::new(Limits { pulls: 0, per_second });
        for at in 0..3 * per_second {
            budgets.request(pull(&at.to_string(), "one"), 1_000_000);
        }
        let first = budgets.registries["one"].in_flight;
        let begun = |budgets: &mut RegistryBudgets, from: i64| -> usize {
            (from..from + 1_000).step_by(10).map(|now| budgets.tick(now).len()).sum()
        };
        assert_eq!(first + begun(&mut budgets, 1_000_000), per_second);
        assert_eq!(begun(&mut budgets, 1_001_000), per_second);
    }
}

#[test]
fn places_go_round_by_namespace_and_one_namespace_never_has_them_all() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 8, per_second: 0 });
    // Five hundred slow pulls of one namespace, all newer than what the others have.
    for at in 0..500 {
        let urgent = Pull { priority: 9, ..of("slow", &format!("s{at:03}")) };
        assert_eq!(budgets.request(urgent, 0), at < 7);
    }
    assert!(budgets.request(of("quick", "q"), 1), "it finds a place at once");
    assert!(!budgets.request(of("other", "o1"), 2));
    assert!(!budgets.request(of("other", "o2"), 2));
    assert!(!budgets.request(of("third", "t"), 3));
    assert_eq!(budgets.end("q", 4), ["o1"], "the first of those that have none");
    assert_eq!(budgets.end("s000", 5), ["t"], "not a second one of the same");
    assert_eq!(budgets.end("s001", 6), ["o2"], "one against five");
    assert_eq!(
        budgets.end("o1", 7),
        Vec::<Uid>::new().into_iter().chain(["s007".into()]).collect::<Vec<Uid>>()
    );
    let shares = [1, 2, 3, 4, 8, 16, 500].map(namespace_share);
    assert_eq!(shares, [1, 2, 2, 3, 7, 14, 437]);
    assert_eq!(namespace_share(usize::MAX), usize::MAX);
}

#[test]
fn one_node_never_has_all_places() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 4, per_second: 0 });
    let greedy = |namespace: &str, uid: &str| Pull { node: "greedy".into(), ..of(namespace, uid) };
    assert!(budgets.request(greedy("a", "1"), 0));
    assert!(budgets.request(greedy("b", "2"), 0));
    assert!(!budgets.request(greedy("c", "3"), 0));
    assert!(!budgets.request(greedy("a", "4"), 0));
    assert!(budgets.request(of("a", "5"), 0) && budgets.request(of("b", "6"), 0));
    assert!(!budgets.request(of("c", "7"), 0));
    assert_eq!(budgets.end("5", 1), ["7"], "the node before it has its share");
    assert_eq!(budgets.end("1", 1), ["4"], "its next one");
    let held = &budgets.registries["one"];
    assert_eq!((held.in_flight, held.by_node["greedy"]), (4, 2));
}

#[test]
fn a_permit_ends_without_progress_and_in_any_case() {
    let mut budgets = one_at_a_time();
    budgets.request(pull("a", "one"), 0);
    budgets.request(pull("b", "one"), 0);
    assert!(budgets.tick(IDLE_PERMIT_MS - EXPIRY_INTERVAL_MS).is_empty());
    assert_eq!(budgets.tick(IDLE_PERMIT_MS), ["b"]);
    assert!(!budgets.is_in_flight("a"));
    let mut now = IDLE_PERMIT_MS;
    while budgets.is_in_flight("b") {
        budgets.progress("b", now);
        now += 60_000;
        budgets.tick(now);
    }
    assert_eq!(now - IDLE_PERMIT_MS, LONGEST_PERMIT_MS);
}

#[test]
fn a_rate_limited_account_gets_as_many_pulls_as_the_registry_serves() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 10, per_second: 0 });
    for uid in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        assert!(budgets.request(pull(uid, "one"), 0));
    }
    for uid in ["i", "j", "k", "l", "m", "n", "o"] {
        assert!(!budgets.request(pull(uid, "one"), 0));
    }
    // It sustains five, and limits three nodes.
    assert!(!budgets.back_off("a", None, 10), "one node's report");
    assert_eq!(budgets.end("a", 10), ["i"]);
    budgets.request(Pull { node: "node-a".into(), ..of("ns", "a2") }, 10);
    for uid in ["b", "c", "i"] {
        assert!(budgets.back_off(uid, None, 10));
        assert!(budgets.end(uid, 10).is_empty(), "it is left alone");
    }
    assert_eq!(line(&budgets, "ns").reduced, Some(5));
    assert!(budgets.tick(1_009).is_empty());
    assert!(budgets.tick(1_010).is_empty(), "five run");
    for (uid, next) in [("d", "j"), ("e", "k"), ("f", "l"), ("g", "m")] {
        budgets.served(uid);
        assert_eq!(budgets.end(uid, 1_500), [next]);
    }
    // After five that went well, one more.
    budgets.served("h");
    assert_eq!(budgets.end("h", 1_500), ["n", "o"]);
    (0..99).for_each(|_| budgets.served("n"));
    assert_eq!(line(&budgets, "ns").reduced, None);
}

#[test]
fn one_node_backs_nobody_off() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 8, per_second: 0 });
    for uid in ["a", "b"] {
        budgets.request(Pull { node: "same".into(), ..of("ns", uid) }, 0);
        assert!(!budgets.back_off(uid, Some(60_000), 1));
    }
    budgets.request(of("ns", "c"), 1);
    assert!(!budgets.back_off("c", None, 2 + CONFIRMATION_WINDOW_MS), "long after");
    assert!(!budgets.back_off("unknown", None, 2));
}

#[test]
fn the_exhausted_account_of_one_tenant_stops_nobody_else() {
    let mut budgets = RegistryBudgets::new(Limits { pulls: 8, per_second: 0 });
    for uid in ["a", "b"] {
        assert!(budgets.request(of("exhausted", uid), 0));
        budgets.back_off(uid, Some(60_000), 1);
        budgets.end(uid, 1);
    }
    assert!(!budgets.request(of("exhausted", "c"), 2));
    assert!(budgets.request(of("other", "d"), 2), "another namespace");
    let identities = Account { identities: 2, ..account("exhausted") };
    assert!(budgets.request(Pull { account: identities, ..of("exhausted", "e") }, 2));
    assert!(budgets.tick(60_000).is_empty());
    assert_eq!(budgets.tick(60_001), ["c"]);
}

#[test]
fn pauses_grow_until_something_is_served_and_are_as_long_as_was_asked_for() {
    let mut budgets = one_at_a_time();
    let mut now = 0;
    let mut pulls = 0;
    let mut back_off = |budgets: &mut RegistryBudgets, asked: Option<i64>, now: i64| {
        pulls += 1;
        let uid = format!("{pulls}");
        budgets.hold(pull(&uid, "one"), now);
        let limited = budgets.back_off(&uid, asked, now);
        budgets.end(&uid, now);
        limited
    };
    assert!(!back_off(&mut budgets, None, now));
    for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert!(back_off(&mut budgets, None, now));
        assert_eq!(line(&budgets, "ns").backoff_until, now + expected);
        now += expected;
    }
    assert!(budgets.request(pull("served", "one"), now));
    budgets.served("served");
    budgets.end("served", now);
    assert!(back_off(&mut budgets, Some(45_000), now));
    assert_eq!(line(&budgets, "ns").backoff_until, now + 45_000);
    let mut off = RegistryBudgets::new(Limits { pulls: 0, per_second: 0 });
    assert!(!back_off(&mut off, Some(45_000), 0) && !back_off(&mut off, Some(45_000), 0));
    assert!(off.request(pull("a", "one"), 0), "no limit is none");
}
