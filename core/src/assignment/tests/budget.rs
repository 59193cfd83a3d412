//! The cluster's budget for a registry, as the warmers notice it.

use super::*;

/// Nodes `n1` to `n5`, each with a stream of its number and an assignment of its name.
fn five_nodes(budget: Budget) -> Index {
    let mut index = Index::new(budget, GRACE, 0);
    for n in 1..=5 {
        let (uid, node) = (format!("u{n}"), format!("n{n}"));
        index.apply(kept(warm(&uid, &node, "registry.test/app:v1")), pull_context(1), 0);
        let runtime_reports = vec!["progress".into()];
        let hello = Hello { runtime_reports, ..hello(1, &[]) };
        index.open(n, &node.as_str().into(), &hello, 0);
    }
    described(&mut index);
    index
}

fn with_canary() -> Index {
    let canary = canary::Settings { nodes: 3, timeout_ms: 1_000 };
    five_nodes(Budget { canary, ..Budget::of_pulls(0) })
}

fn all_ask(index: &mut Index, now: i64) -> Vec<String> {
    (1..=5).for_each(|n| index.message(n, &request(&format!("u{n}")), now));
    described(index)
}

/// The other nodes try for themselves: their providers may work.
#[test]
fn a_provider_that_fails_is_the_fault_of_its_node_alone() {
    let mut index = with_canary();
    assert_eq!(all_ask(&mut index, 0), ["1 resolve u1"]);
    index.message(1, &outcome("u1", Reason::CredentialProviderFailed), 100);
    let others = (2..=5).map(|n| format!("{n} resolve u{n}"));
    let expected: Vec<_> =
        std::iter::once("status u1 CredentialProviderFailed".into()).chain(others).collect();
    assert_eq!(described(&mut index), expected);
    index.message(2, &outcome("u2", Reason::CredentialProviderFailed), 150);
    assert_eq!(described(&mut index), ["status u2 CredentialProviderFailed"]);
    assert_eq!(index.take_savings(), (0, 0));
}

#[test]
fn two_nodes_find_out_for_all_that_credentials_are_wrong() {
    let mut index = with_canary();
    assert_eq!(all_ask(&mut index, 0), ["1 resolve u1"]);
    assert_eq!(index.pulls(), (1, 4));
    index.message(1, &outcome("u1", Reason::Unauthorized), 100);
    assert_eq!(described(&mut index), ["status u1 Unauthorized", "2 resolve u2"], "the witness");
    index.message(2, &outcome("u2", Reason::Unauthorized), 150);
    let refused = (3..=5).map(|n| format!("{n} grant u{n} 0Unauthorized"));
    let expected: Vec<_> =
        std::iter::once("status u2 Unauthorized".into()).chain(refused).collect();
    assert_eq!(described(&mut index), expected);
    assert_eq!(index.take_savings(), (0, 3));
    // What they report is their status, and no news.
    index.message(4, &outcome("u4", Reason::Unauthorized), 200);
    assert_eq!(described(&mut index), ["status u4 Unauthorized"]);
    index.message(3, &request("u3"), 300);
    assert_eq!(described(&mut index), ["3 grant u3 0Unauthorized"]);
    // Once the secrets are others, one node tries at once.
    let mut paid = pull_context(1);
    paid.identities[0].secrets = vec!["another".into()];
    index.apply(kept(warm("u3", "n3", "registry.test/app:v1")), paid, 400);
    described(&mut index);
    index.message(3, &request("u3"), 400);
    assert_eq!(described(&mut index), ["3 resolve u3"]);
}

#[test]
fn the_first_byte_lets_all_others_go() {
    let mut index = with_canary();
    all_ask(&mut index, 0);
    index.message(1, &progress("u1", false), 50);
    assert!(described(&mut index).is_empty(), "a pull that runs proves nothing yet");
    let moved = Progress { uid: "u1".into(), downloaded_bytes: 1, ..Progress::default() };
    index.message(1, &FromWarmer::Progress(moved), 60);
    assert_eq!(
        described(&mut index),
        ["2 resolve u2", "3 resolve u3", "4 resolve u4", "5 resolve u5"]
    );
}

#[test]
fn a_slow_or_lost_canary_holds_nobody_up() {
    let mut index = with_canary();
    all_ask(&mut index, 0);
    index.tick(999);
    assert!(described(&mut index).is_empty());
    index.tick(1_000);
    assert_eq!(described(&mut index).len(), 4);
    let mut index = with_canary();
    all_ask(&mut index, 0);
    index.delete("u1", 10);
    assert_eq!(described(&mut index)[1..].len(), 4, "its assignment went away");
    let mut index = with_canary();
    all_ask(&mut index, 0);
    // A node that waited comes back, and asks again.
    index.close(2, 10);
    index.open(12, &"n2".into(), &hello(2, &[]), 20);
    described(&mut index);
    index.message(12, &request("u2"), 30);
    index.message(1, &outcome("u1", Reason::Pulled), 40);
    let words = described(&mut index);
    assert!(words.contains(&"12 resolve u2".to_owned()) && words.len() == 5, "{words:?}");
}

#[test]
fn a_registry_that_had_enough_of_two_nodes_is_left_alone_by_all() {
    let mut index = five_nodes(Budget::of_pulls(2));
    assert_eq!(all_ask(&mut index, 0), ["1 resolve u1", "2 resolve u2"]);
    let limited = |uid: &str| {
        FromWarmer::Outcome(protocol::Outcome {
            uid: uid.into(),
            reason: Reason::RateLimited.as_str().into(),
            message: "toomanyrequests: retry after 20 seconds".into(),
            ..protocol::Outcome::default()
        })
    };
    index.message(1, &limited("u1"), 1_000);
    assert_eq!(described(&mut index), ["status u1 RateLimited", "3 resolve u3"], "one node's word");
    index.message(2, &limited("u2"), 1_000);
    assert_eq!(described(&mut index), ["status u2 RateLimited"]);
    index.message(3, &outcome("u3", Reason::Pulled), 1_500);
    assert_eq!(described(&mut index), ["status u3 Pulled"], "its place stays empty");
    index.tick(20_999);
    assert!(described(&mut index).is_empty());
    index.tick(21_000);
    assert_eq!(described(&mut index).len(), 2, "it bore one, and that went well");
    assert_eq!(index.take_savings(), (1, 0));
}

#[test]
fn so_many_pulls_begin_in_a_second() {
    let budget = Budget::of_pulls(0);
    let mut index = five_nodes(Budget {
        registry: RegistryLimits { per_second: 2.into(), ..budget.registry },
        ..budget
    });
    assert_eq!(all_ask(&mut index, 0), ["1 resolve u1", "2 resolve u2"]);
    index.tick(1_000);
    assert_eq!(described(&mut index), ["3 resolve u3", "4 resolve u4"]);
    index.tick(2_000);
    assert_eq!(described(&mut index), ["5 resolve u5"]);
}

#[test]
fn an_outage_is_over_for_all_nodes_soon_after_the_registry_returns() {
    let mut index = five_nodes(Budget::of_pulls(0));
    let fail = |index: &mut Index, n: u64, now: i64| {
        index.message(n, &request(&format!("u{n}")), now);
        index.message(n, &outcome(&format!("u{n}"), Reason::RegistryUnreachable), now);
    };
    (1..=5).for_each(|n| fail(&mut index, n, 0));
    described(&mut index);
    // It lasts for ten minutes. Of a registry that is known, one node tries every five seconds.
    index.outages.note(&"before".into(), "registry.test", Some(Reason::Pulled), 0);
    for second in 1..=600 {
        index.tick(second * 1_000);
        let sent = described(&mut index);
        assert_eq!(sent.len(), usize::from(second % 5 == 0), "{second}: {sent:?}");
        if let Some(retry) = sent.first() {
            let n = retry.split(' ').next().unwrap().parse().unwrap();
            fail(&mut index, n, second * 1_000);
            described(&mut index);
        }
    }
    assert_eq!(index.take_retries(), 120);
    // Then one is served, and so are all.
    index.message(3, &request("u3"), 601_000);
    index.message(3, &outcome("u3", Reason::Pulled), 602_000);
    let mut sent = described(&mut index);
    sent.sort();
    let healed = ["1 retry u1", "2 retry u2", "3 resolve u3", "4 retry u4", "5 retry u5"];
    assert_eq!(sent[..5], healed);
    assert_eq!(sent[5..], ["status u3 Pulled"]);
    // What a presence check finds says nothing of the registry.
    fail(&mut index, 1, 700_000);
    described(&mut index);
    index.message(2, &outcome("u2", Reason::AlreadyPresent), 700_001);
    assert_eq!(described(&mut index), ["status u2 AlreadyPresent"]);
    // Nor does a pull that failed while the node holds an image of the tag.
    index.message(2, &request("u2"), 710_000);
    let FromWarmer::Outcome(held) = outcome("u2", Reason::AlreadyPresent) else { unreachable!() };
    let unchecked_reason = Reason::RegistryUnreachable.as_str().into();
    let unchecked = protocol::Outcome { unchecked_reason, ..held };
    index.message(2, &FromWarmer::Outcome(unchecked), 710_001);
    assert_eq!(described(&mut index), ["2 resolve u2", "status u2 AlreadyPresent"]);
}
