//! Tests of `plan/eligible.rs`.

#![allow(clippy::unwrap_used)]

mod affinity;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::api::Revision;
use crate::demand::revision::demand;
use crate::sample::{at, labelled, node, tainted};

fn pod(spec: Value) -> PodConstraints {
    let revision: Revision =
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
    demand(&revision, false, &Policy::default()).placement
}

fn judge(node: &Node, pod: &PodConstraints) -> Result<(), Exclusion> {
    is_eligible(&NodeFacts::new(node, &BTreeSet::new()), pod, &Policy::default())
}

fn unready(mut node: Node) -> Node {
    let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions[0].status = "Unknown".into();
    node
}

fn leaving(mut node: Node) -> Node {
    node.metadata.deletion_timestamp = Some(Time(at(1)));
    node
}

fn cordoned(mut node: Node) -> Node {
    node.spec.as_mut().unwrap().unschedulable = Some(true);
    tainted(node, UNSCHEDULABLE_TAINT, "NoSchedule")
}

#[test]
fn nodes_for_a_plain_pod() {
    let taint = |key: &str| Err(Exclusion::Taint(key.into()));
    let cases = [
        ("plain", node("a"), Ok(())),
        ("unready", unready(node("a")), Err(Exclusion::NotReady)),
        ("no status", Node { status: None, ..node("a") }, Err(Exclusion::NotReady)),
        ("cordoned", cordoned(node("a")), Err(Exclusion::Cordoned)),
        ("NoSchedule", tainted(node("a"), "k", "NoSchedule"), taint("k")),
        ("NoExecute", tainted(node("a"), "k", "NoExecute"), taint("k")),
        ("PreferNoSchedule", tainted(node("a"), "k", "PreferNoSchedule"), Ok(())),
        ("starting", tainted(node("a"), "node.kubernetes.io/not-ready", "NoExecute"), Ok(())),
        ("windows", labelled(node("a"), OS_LABEL, "windows"), Err(Exclusion::OperatingSystem)),
        ("virtual", labelled(node("a"), "type", "virtual-kubelet"), Err(Exclusion::VirtualKubelet)),
        (
            "Fargate",
            labelled(node("a"), "eks.amazonaws.com/compute-type", "fargate"),
            Err(Exclusion::VirtualKubelet),
        ),
        ("a machine of EKS", labelled(node("a"), "eks.amazonaws.com/compute-type", "ec2"), Ok(())),
        ("linux", labelled(node("a"), OS_LABEL, "linux"), Ok(())),
        ("leaving", leaving(node("a")), Err(Exclusion::Leaving)),
        ("unknown effect", tainted(node("a"), "k", "Odd"), Ok(())),
        (
            "not quite a startup taint",
            tainted(node("a"), "node.kubernetes.io/not-ready-2", "NoSchedule"),
            taint("node.kubernetes.io/not-ready-2"),
        ),
        (
            "virtual by taint",
            tainted(node("a"), "virtual-kubelet.io/provider", "NoSchedule"),
            Err(Exclusion::VirtualKubelet),
        ),
    ];
    for (name, node, expected) in cases {
        assert_eq!(judge(&node, &PodConstraints::default()), expected, "{name}");
    }
}

#[test]
fn a_connected_warmer_stands_for_ready() {
    let node = unready(node("a"));
    let facts = NodeFacts::new(&node, &BTreeSet::from(["a".into()]));
    assert_eq!(is_eligible(&facts, &PodConstraints::default(), &Policy::default()), Ok(()));
}

#[test]
fn virtual_nodes_stay_out_even_when_tolerated() {
    let all = pod(json!({"tolerations": [{"operator": "Exists"}]}));
    let node = tainted(node("a"), "virtual-kubelet.io/provider", "NoSchedule");
    assert_eq!(judge(&node, &all), Err(Exclusion::VirtualKubelet));
}

#[test]
fn startup_taints_by_their_start() {
    let policy = Policy { startup_taints: vec!["example.dev/*".into()], ..Policy::default() };
    let node = tainted(node("a"), "example.dev/agent-not-ready", "NoSchedule");
    let facts = NodeFacts::new(&node, &BTreeSet::new());
    assert_eq!(is_eligible(&facts, &PodConstraints::default(), &policy), Ok(()));
}

/// A node of everything: labels, and one taint.
fn target() -> Node {
    let labels = [
        ("zone", "z1"),
        ("cores", "16"),
        ("empty", ""),
        ("example.dev/disk", "ssd"),
        ("kubernetes.io/arch", "arm64"),
        ("odd key!", "v"),
        ("huge", "9223372036854775808"),
    ];
    labels.into_iter().fold(node("a"), |node, (key, value)| labelled(node, key, value))
}

#[test]
fn tolerations() {
    // The toleration of the one taint that the node has: k=x:NoSchedule.
    let cases = [
        ("key exists", json!({"key": "k", "operator": "Exists"}), true),
        ("key exists, any effect", json!({"key": "k", "operator": "Exists", "effect": ""}), true),
        ("anything", json!({"operator": "Exists"}), true),
        ("anything of this effect", json!({"operator": "Exists", "effect": "NoSchedule"}), true),
        ("anything of another effect", json!({"operator": "Exists", "effect": "NoExecute"}), false),
        (
            "anything of the soft effect",
            json!({"operator": "Exists", "effect": "PreferNoSchedule"}),
            false,
        ),
        (
            "key exists, value ignored",
            json!({"key": "k", "operator": "Exists", "value": "y"}),
            true,
        ),
        ("equal by default", json!({"key": "k", "value": "x"}), true),
        ("equal by an empty operator", json!({"key": "k", "operator": "", "value": "x"}), true),
        ("equal", json!({"key": "k", "operator": "Equal", "value": "x"}), true),
        (
            "equal, same effect",
            json!({"key": "k", "operator": "Equal", "value": "x", "effect": "NoSchedule"}),
            true,
        ),
        (
            "equal, another effect",
            json!({"key": "k", "operator": "Equal", "value": "x", "effect": "NoExecute"}),
            false,
        ),
        ("another value", json!({"key": "k", "operator": "Equal", "value": "y"}), false),
        ("no value", json!({"key": "k", "operator": "Equal"}), false),
        ("another key", json!({"key": "other", "operator": "Exists"}), false),
        ("another key, same value", json!({"key": "other", "value": "x"}), false),
        (
            "everything empty but the operator",
            json!({"key": "", "operator": "Exists", "effect": ""}),
            true,
        ),
        ("empty key, same value", json!({"key": "", "operator": "Equal", "value": "x"}), true),
        ("empty key, another value", json!({"operator": "Equal", "value": "y"}), false),
        ("empty key, no value", json!({}), false),
        ("unknown operator", json!({"key": "k", "operator": "Odd", "value": "x"}), false),
        ("operator in another case", json!({"key": "k", "operator": "exists"}), false),
        ("numeric operator", json!({"key": "k", "operator": "Gt", "value": "1"}), false),
        (
            "for a while is as good as for ever",
            json!({"key": "k", "operator": "Exists", "tolerationSeconds": 0}),
            true,
        ),
    ];
    let node = tainted(node("a"), "k", "NoSchedule");
    for (name, toleration, fits) in cases {
        let pod = pod(json!({"tolerations": [toleration]}));
        assert_eq!(judge(&node, &pod).is_ok(), fits, "{name}");
    }
}

#[test]
fn every_taint_needs_its_toleration() {
    let node = tainted(tainted(node("a"), "one", "NoSchedule"), "two", "NoExecute");
    let (one, two) =
        (json!({"key": "one", "operator": "Exists"}), json!({"key": "two", "operator": "Exists"}));
    let taint = |key: &str| Err(Exclusion::Taint(key.into()));
    let cases = [
        ("none", json!([]), taint("one")),
        ("the first", json!([one]), taint("two")),
        ("the second", json!([two]), taint("one")),
        ("both", json!([two, one]), Ok(())),
        ("both at once", json!([{"operator": "Exists"}]), Ok(())),
        ("one effect", json!([{"operator": "Exists", "effect": "NoSchedule"}]), taint("two")),
    ];
    for (name, tolerations, expected) in cases {
        assert_eq!(judge(&node, &pod(json!({"tolerations": tolerations}))), expected, "{name}");
    }
}

#[test]
fn cordons() {
    let cases = [
        ("by key", json!({"key": UNSCHEDULABLE_TAINT, "operator": "Exists"}), true),
        (
            "by key and effect",
            json!({"key": UNSCHEDULABLE_TAINT, "operator": "Exists", "effect": "NoSchedule"}),
            true,
        ),
        (
            "for another effect",
            json!({"key": UNSCHEDULABLE_TAINT, "operator": "Exists", "effect": "NoExecute"}),
            false,
        ),
        ("by an empty value", json!({"key": UNSCHEDULABLE_TAINT}), true),
        ("with a value", json!({"key": UNSCHEDULABLE_TAINT, "value": "x"}), false),
        ("as everything", json!({"operator": "Exists"}), true),
        ("not at all", json!({"key": "k", "operator": "Exists"}), false),
    ];
    // The flag alone: the node controller adds the taint a moment later.
    let mut node = node("a");
    node.spec.as_mut().unwrap().unschedulable = Some(true);
    for (name, toleration, fits) in cases {
        let expected = if fits { Ok(()) } else { Err(Exclusion::Cordoned) };
        let pod = pod(json!({"tolerations": [toleration]}));
        assert_eq!(judge(&node, &pod), expected, "{name}");
    }
}

#[test]
fn node_selectors() {
    let cases = [
        ("nothing", json!({}), None),
        ("a label", json!({"zone": "z1"}), None),
        ("several labels", json!({"zone": "z1", "cores": "16"}), None),
        ("another value", json!({"zone": "z2"}), Some("zone")),
        ("one of two is missing", json!({"zone": "z1", "gpu": "yes"}), Some("gpu")),
        ("an empty value that is there", json!({"empty": ""}), None),
        ("an empty value that is not", json!({"gpu": ""}), Some("gpu")),
        ("the right architecture", json!({"kubernetes.io/arch": "arm64"}), None),
        ("the wrong one", json!({"kubernetes.io/arch": "amd64"}), Some("kubernetes.io/arch")),
        ("the right system", json!({OS_LABEL: "linux"}), None),
        ("the wrong one", json!({OS_LABEL: "windows"}), Some(OS_LABEL)),
        ("this node", json!({"kubernetes.io/hostname": "a"}), None),
        ("another node", json!({"kubernetes.io/hostname": "b"}), Some("kubernetes.io/hostname")),
        ("a key that no label may have, yet has", json!({"odd key!": "v"}), None),
        ("another case", json!({"zone": "Z1"}), Some("zone")),
    ];
    for (name, wanted, missing) in cases {
        let expected = missing.map_or(Ok(()), |key| Err(Exclusion::NodeSelector(key.into())));
        assert_eq!(judge(&target(), &pod(json!({"nodeSelector": wanted}))), expected, "{name}");
    }
}

fn requires(terms: Value) -> PodConstraints {
    pod(json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": expression("zone", "In", &["z9"])},
        ],
    }}}))
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}

#[test]
fn everything_must_hold_at_once() {
    let node = tainted(target(), "k", "NoSchedule");
    let spec = |zone: &str, cores: &str, key: &str| {
        let mut spec = json!({"nodeSelector": {"zone": zone}});
        spec["tolerations"] = json!([{"key": key, "operator": "Exists"}]);
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": [expression("cores", "Gt", &[cores])]});
        pod(spec)
    };
    let cases = [
        ("all", spec("z1", "8", "k"), Ok(())),
        ("not the selector", spec("z2", "8", "k"), Err(Exclusion::NodeSelector("zone".into()))),
        ("not the affinity", spec("z1", "32", "k"), Err(Exclusion::NodeAffinity)),
        ("not the taint", spec("z1", "8", "other"), Err(Exclusion::Taint("k".into()))),
    ];
    for (name, pod, expected) in cases {
        assert_eq!(judge(&node, &pod), expected, "{name}");
    }
}
