//! Tests of `plan/eligible.rs`.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::api::Revision;
use crate::plan::demand::demand;
use crate::plan::sample::{labelled, node, tainted};

fn pod(spec: Value) -> PodConstraints {
    let revision: Revision =
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
    demand(&revision, false, &Policy::default()).placement
}

fn judge(node: &Node, pod: &PodConstraints) -> Result<(), Exclusion> {
    may_start(&NodeFacts::new(node, &BTreeSet::new()), pod, &Policy::default())
}

fn unready(mut node: Node) -> Node {
    let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions[0].status = "Unknown".into();
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
    let facts = NodeFacts::new(&node, &BTreeSet::from(["a".to_owned()]));
    assert_eq!(may_start(&facts, &PodConstraints::default(), &Policy::default()), Ok(()));
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
    assert_eq!(may_start(&facts, &PodConstraints::default(), &policy), Ok(()));
}

#[test]
fn tolerations() {
    let node = tainted(node("a"), "k", "NoSchedule");
    let cases = [
        (json!({"key": "k", "operator": "Exists"}), true),
        (json!({"operator": "Exists"}), true),
        (json!({"operator": "Exists", "effect": "NoExecute"}), false),
        (json!({"operator": "Exists", "effect": "NoSchedule"}), true),
        (json!({"key": "k", "value": "x"}), true),
        (json!({"key": "k", "operator": "Equal", "value": "x", "effect": "NoSchedule"}), true),
        (json!({"key": "k", "operator": "Equal", "value": "y"}), false),
        (json!({"key": "other", "operator": "Exists"}), false),
        (json!({"key": "k", "operator": "Odd", "value": "x"}), false),
    ];
    for (toleration, fits) in cases {
        let pod = pod(json!({"tolerations": [toleration.clone()]}));
        assert_eq!(judge(&node, &pod).is_ok(), fits, "{toleration}");
    }
    let cordon = pod(json!({"tolerations": [{"key": UNSCHEDULABLE_TAINT, "operator": "Exists"}]}));
    assert_eq!(judge(&cordoned(crate::plan::sample::node("b")), &cordon), Ok(()));
}

#[test]
fn node_selectors() {
    let node = labelled(node("a"), "disk", "ssd");
    assert_eq!(judge(&node, &pod(json!({"nodeSelector": {"disk": "ssd"}}))), Ok(()));
    for wanted in [json!({"disk": "hdd"}), json!({"disk": "ssd", "gpu": "yes"})] {
        assert!(judge(&node, &pod(json!({"nodeSelector": wanted}))).is_err());
    }
}

#[test]
fn required_node_affinity() {
    let node = labelled(labelled(node("a"), "zone", "z1"), "cores", "16");
    let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let field = |operator: &str, values: &[&str]| json!({"matchFields": [{"key": "metadata.name", "operator": operator, "values": values}]});
    let cases = [
        (vec![expression("zone", "In", &["z1", "z2"])], true),
        (vec![expression("zone", "In", &["z2"])], false),
        (vec![expression("zone", "NotIn", &["z2"])], true),
        (vec![expression("none", "NotIn", &["z2"])], true),
        (vec![expression("zone", "NotIn", &["z1"])], false),
        (vec![expression("zone", "Exists", &[])], true),
        (vec![expression("none", "Exists", &[])], false),
        (vec![expression("none", "DoesNotExist", &[])], true),
        (vec![expression("zone", "DoesNotExist", &[])], false),
        (vec![expression("cores", "Gt", &["8"])], true),
        (vec![expression("cores", "Gt", &["16"])], false),
        (vec![expression("cores", "Lt", &["32"])], true),
        (vec![expression("zone", "Lt", &["32"])], false),
        (vec![expression("cores", "Lt", &["32", "64"])], false),
        (vec![expression("zone", "Odd", &["z1"])], false),
        (vec![field("In", &["a"])], true),
        (vec![field("In", &["b"])], false),
        (vec![field("NotIn", &["b"])], true),
        (vec![expression("zone", "In", &["z2"]), field("In", &["a"])], true),
        (vec![json!({})], false),
        (vec![], false),
    ];
    for (terms, fits) in cases {
        let pod = pod(json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": expression("zone", "In", &["z9"])},
            ],
        }}}));
        assert_eq!(judge(&node, &pod).is_ok(), fits, "{terms:?}");
    }
}
