#![allow(clippy::unwrap_used)]
use super::*;

const MEGABYTE: u64 = 1_000_000;
/// Bytes that one link carries in a millisecond: 30 MB/s.
const LINK: u64 = 30_000;
const IMAGE: u64 = 300 * MEGABYTE;
const STEP_MS: i64 = 50;

#[derive(Clone, Copy, PartialEq)]
enum Link {
    /// One for all nodes.
    Shared,
    /// One for each node.
    Own,
    /// One for each node, which all become slower by a quarter once others download too.
    Slower,
}

/// Nodes that pull the same image over links, beside the Pod's node.
struct Cluster {
    link: Link,
    others: usize,
    /// Whether the others show bytes.
    reports: bool,
    now: i64,
    preemption: Preemption,
}

/// What became of one Pod.
#[derive(Debug, PartialEq)]
struct Waited {
    /// Until its image was there, in milliseconds.
    pod: i64,
    /// How long other nodes did not pull meanwhile, the sum for all, in milliseconds.
    idle: i64,
}

impl Cluster {
    fn new(link: Link, others: usize) -> Self {
        Cluster { link, others, reports: true, now: 0, preemption: Preemption::default() }
    }

    /// A Pod's node pulls, and `others` nodes as far as they may.
    fn deploy(&mut self, uid: &str) -> Waited {
        let begun = self.now;
        assert!(self.preemption.pod_waits(pod(uid, "team"), self.now));
        let (mut downloaded, mut others, mut idle, mut running) = (0, 0, 0, self.others);
        while downloaded < IMAGE {
            let counts = Others { running, waiting: self.others - running, longest_ms: 0 };
            let limits = self.preemption.tick(|_, _| counts, self.now);
            running =
                limits.first().map_or(self.others, |(_, limit)| limit.others.min(self.others));
            let each = match self.link {
                Link::Shared => LINK * STEP_MS as u64 / (running as u64 + 1),
                Link::Slower if running > 0 => LINK * STEP_MS as u64 * 3 / 4,
                Link::Own | Link::Slower => LINK * STEP_MS as u64,
            };
            downloaded += each;
            others += each;
            idle += (self.others - running) as i64 * STEP_MS;
            self.now += STEP_MS;
            if self.now % 250 == 0 {
                self.preemption.progress(uid, downloaded, IMAGE, self.now);
            }
            // Reports of the others come in between, and less often.
            for other in (0..running).filter(|_| self.reports && (self.now - 150) % 500 == 0) {
                let uid = format!("other-{other}").as_str().into();
                self.preemption.other_progress("r.test", &uid, others, self.now);
            }
        }
        self.preemption.ended(uid, self.now);
        Waited { pod: self.now - begun, idle }
    }
}

fn pod(uid: &str, namespace: &str) -> WaitingPod {
    WaitingPod {
        uid: uid.into(),
        node: "node-1".into(),
        registry: "r.test".into(),
        namespace: namespace.into(),
    }
}

fn alone() -> i64 {
    (IMAGE / LINK) as i64
}

#[test]
fn on_a_shared_link_the_pod_has_it_nearly_for_itself() {
    for others in [1, 2, 29, 1_000] {
        let mut cluster = Cluster::new(Link::Shared, others);
        let first = cluster.deploy("a");
        assert!(first.pod <= alone() * 11 / 10, "{others} others: {first:?}");
        let second = cluster.deploy("b");
        assert!(second.pod <= alone() * 101 / 100, "{others} others: {second:?}");
    }
}

#[test]
fn where_each_node_has_its_link_the_others_go_on_after_a_moment() {
    for (others, longest) in [(1, 2_000), (2, 4_000), (29, 6_000)] {
        let mut cluster = Cluster::new(Link::Own, others);
        let first = cluster.deploy("a");
        assert_eq!(first.pod, alone());
        assert!(first.idle <= others as i64 * longest, "{others} others: {first:?}");
        assert_eq!(cluster.deploy("b").idle, 0, "{others} others");
        // The result is not for ever.
        cluster.now += RESULT_MS;
        assert!(cluster.deploy("c").idle > 0);
        // Many more may take what two did not.
        if others == 2 {
            cluster.others = 100;
            assert!(cluster.deploy("d").idle > 0);
        }
    }
}

#[test]
fn a_pod_that_gets_less_is_left_so_where_others_do_not_get_it() {
    let mut cluster = Cluster::new(Link::Slower, 29);
    let first = cluster.deploy("a");
    assert!(first.idle <= 29 * 6_000, "{first:?}");
    assert_eq!(cluster.deploy("b").idle, 0);
    // Where others show no bytes, what they get is not known: the Pod comes first.
    let mut cluster = Cluster { reports: false, ..Cluster::new(Link::Slower, 29) };
    cluster.deploy("a");
    let second = cluster.deploy("b");
    assert_eq!(second, Waited { pod: alone(), idle: 29 * alone() });
}

#[test]
fn a_node_without_reports_is_alone_for_a_while_and_a_stalled_one_for_less() {
    let mut preemption = Preemption::default();
    let counts = Others { waiting: 2, ..Others::default() };
    assert!(preemption.pod_waits(pod("a", "team"), 0));
    assert!(!preemption.pod_waits(pod("a", "team"), 1), "the same Pod");
    let limits = preemption.tick(|_, _| counts, UNMEASURED_MS);
    assert_eq!(limits.first().unwrap().1.others, 0);
    assert!(preemption.tick(|_, _| counts, UNMEASURED_MS + 1).is_empty());
    assert!(preemption.pod_waits(pod("b", "team"), 40_000));
    preemption.progress("b", 1, 9, 40_100);
    preemption.progress("b", 1, 9, 43_000);
    assert!(!preemption.tick(|_, _| counts, 43_100).is_empty());
    assert!(preemption.tick(|_, _| counts, 43_101).is_empty());
    assert!(!preemption.is_waited_for("b"));
}

#[test]
fn a_pod_whose_bytes_are_all_there_takes_nothing_more() {
    let mut preemption = Preemption::default();
    assert!(preemption.pod_waits(pod("a", "team"), 0));
    preemption.progress("a", 5, 9, 100);
    assert!(preemption.is_waited_for("a"));
    preemption.progress("a", 9, 9, 200);
    assert!(!preemption.is_waited_for("a"));
    assert!(preemption.tick(|_, _| Others::default(), 300).is_empty());
}

#[test]
fn one_namespace_does_not_hold_up_the_others_for_ever() {
    let mut preemption = Preemption::default();
    let counts = Others { waiting: 1, ..Others::default() };
    let (mut now, mut limited) = (0, 0);
    // Pods that never end, one after the other, each of which shows bytes once a second.
    for number in 0.. {
        let uid = format!("u{number}");
        if !preemption.pod_waits(pod(&uid, "greedy"), now) {
            break;
        }
        for second in 1..=60 {
            now += 1_000;
            preemption.progress(&uid, second, u64::MAX, now);
            limited += i64::from(!preemption.tick(|_, _| counts, now).is_empty()) * 1_000;
        }
        preemption.ended(&uid, now);
    }
    assert!(limited <= NAMESPACE_SHARE_MS + 60_000, "{limited}");
    assert!(preemption.pod_waits(pod("other", "modest"), now), "others have their own share");
    preemption.ended("other", now);
    now += NAMESPACE_PERIOD_MS;
    assert!(preemption.pod_waits(pod("later", "greedy"), now));
}

#[test]
fn where_pods_always_wait_it_is_measured_again() {
    let mut cluster = Cluster::new(Link::Shared, 2);
    cluster.deploy("a");
    // Later each node has its own link, and one Pod or another always waits.
    cluster.link = Link::Own;
    let until = cluster.now + RESULT_MS;
    let (mut uid, mut downloaded) = (0, 0);
    let mut limits = vec![];
    while cluster.now < until + 10_000 {
        if downloaded % (20 * MEGABYTE) == 0 {
            let next = pod(&format!("p{uid}"), &format!("team-{}", uid % 3));
            assert!(cluster.preemption.pod_waits(next, cluster.now));
            cluster.preemption.ended(&format!("p{}", uid - 1), cluster.now);
            uid += 1;
        }
        downloaded += MEGABYTE;
        let uid = format!("p{}", uid - 1);
        cluster.preemption.progress(&uid, downloaded, u64::MAX, cluster.now);
        let counts = Others { running: 2, ..Others::default() };
        limits = cluster.preemption.tick(|_, _| counts, cluster.now);
        cluster.now += 250;
    }
    assert!(limits.is_empty(), "{limits:?}");
}

#[test]
fn pulls_that_have_run_for_long_are_not_suspended_to_find_something_out() {
    let running = |longest_ms| Others { running: 2, waiting: 0, longest_ms };
    let mut preemption = Preemption::default();
    assert!(preemption.pod_waits(pod("a", "team"), 0));
    assert!(preemption.tick(|_, _| running(YOUNG_MS + 1), 0).is_empty());
    assert!(preemption.tick(|_, _| running(0), 100).is_empty(), "nor those that follow");
    preemption.ended("a", 200);
    assert!(preemption.pod_waits(pod("b", "team"), 300));
    assert!(!preemption.tick(|_, _| running(YOUNG_MS), 300).is_empty());
    // What is known to take from the Pod is suspended nevertheless.
    let mut cluster = Cluster::new(Link::Shared, 2);
    cluster.deploy("a");
    assert!(cluster.preemption.pod_waits(pod("b", "team"), cluster.now));
    let limits = cluster.preemption.tick(|_, _| running(YOUNG_MS + 1), cluster.now);
    assert_eq!(limits.first().unwrap().1.others, 0);
}

#[test]
fn without_others_nothing_is_learned_of_them() {
    let mut preemption = Preemption::default();
    assert!(preemption.pod_waits(pod("a", "team"), 0));
    for second in 1..=60 {
        preemption.progress("a", second * MEGABYTE, IMAGE, second as i64 * 1_000);
        preemption.tick(|_, _| Others::default(), second as i64 * 1_000);
    }
    assert!(preemption.known.is_empty());
    // They come later, and are limited at once.
    let counts = Others { waiting: 3, ..Others::default() };
    assert_eq!(preemption.tick(|_, _| counts, 60_100).first().unwrap().1.others, 1);
}
