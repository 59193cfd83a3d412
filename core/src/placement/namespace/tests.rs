//! What Namespaces add.

#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::placement::{Exclusion, NodeFacts, is_eligible};
use crate::policy::Policy;
use crate::sample::{labelled, node, tainted};

fn rules(annotations: &[(&str, &str)]) -> NamespaceRules {
    let all = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    NamespaceRules::new(Some(&all.collect()), &"pool=default".parse().unwrap())
}

#[test]
fn what_a_namespace_selects() {
    let missing = |key: &str| Err(Exclusion::NodeSelector(key.into()));
    let rejected = |why: Rejection| Err(Exclusion::Rejected(why));
    // Annotations, the Pod's own node selector, the verdict on a node labelled pool=a.
    let cases = [
        ("the default", vec![], json!({}), missing("pool")),
        ("its own", vec![(NODE_SELECTOR, "pool=a")], json!({}), Ok(())),
        ("another pool", vec![(NODE_SELECTOR, "pool=b")], json!({}), missing("pool")),
        ("OpenShift's", vec![(OPENSHIFT_NODE_SELECTOR, "pool=a")], json!({}), Ok(())),
        ("an empty one is no default", vec![(OPENSHIFT_NODE_SELECTOR, "")], json!({}), Ok(())),
        (
            "OpenShift's does not count beside Kubernetes'",
            vec![(NODE_SELECTOR, ""), (OPENSHIFT_NODE_SELECTOR, "pool=b")],
            json!({}),
            Ok(()),
        ),
        (
            "the Pod's own is added",
            vec![(NODE_SELECTOR, "pool=a")],
            json!({"zone": "z"}),
            missing("zone"),
        ),
        ("the same twice", vec![(NODE_SELECTOR, "pool=a")], json!({"pool": "a"}), Ok(())),
        (
            "contradiction",
            vec![(NODE_SELECTOR, "pool=b")],
            json!({"pool": "a"}),
            rejected(Rejection::Contradiction("pool".into())),
        ),
        (
            "contradiction of the default",
            vec![],
            json!({"pool": "a"}),
            rejected(Rejection::Contradiction("pool".into())),
        ),
        (
            "malformed",
            vec![(OPENSHIFT_NODE_SELECTOR, "pool")],
            json!({}),
            rejected(Rejection::Malformed(OPENSHIFT_NODE_SELECTOR)),
        ),
        ("OpenShift's spelling", vec![(OPENSHIFT_NODE_SELECTOR, "pool==a")], json!({}), Ok(())),
        (
            "OpenShift's spelling elsewhere",
            vec![(NODE_SELECTOR, "pool==a")],
            json!({}),
            rejected(Rejection::Malformed(NODE_SELECTOR)),
        ),
        (
            "malformed tolerations",
            vec![(NODE_SELECTOR, ""), (DEFAULT_TOLERATIONS, "{}")],
            json!({}),
            rejected(Rejection::Malformed(DEFAULT_TOLERATIONS)),
        ),
    ];
    let node = labelled(node("n"), "pool", "a");
    let facts = NodeFacts::new(&node, &BTreeSet::new());
    for (name, annotations, own, expected) in cases {
        let own = PodConstraints {
            node_selector: serde_json::from_value(own).unwrap(),
            ..PodConstraints::default()
        };
        let placement = rules(&annotations).constrain(own);
        assert_eq!(is_eligible(&facts, &placement, &Policy::default()), expected, "{name}");
    }
}

#[test]
fn default_tolerations_are_added() {
    let node = tainted(node("n"), "gpu", "NoSchedule");
    let facts = NodeFacts::new(&node, &BTreeSet::new());
    let tolerated = |text: &str| {
        let rules = rules(&[(NODE_SELECTOR, ""), (DEFAULT_TOLERATIONS, text)]);
        let placement = rules.constrain(PodConstraints::default());
        is_eligible(&facts, &placement, &Policy::default()).is_ok()
    };
    assert!(tolerated(r#"[{"key": "gpu", "operator": "Exists"}]"#));
    assert!(!tolerated(r#"[{"key": "other", "operator": "Exists"}]"#));
    assert!(!tolerated("") && !tolerated("[]"));
}

#[test]
fn nothing_else_of_the_annotations_is_kept() {
    let long = format!("pool={}", "a".repeat(LONGEST));
    let all = [(NODE_SELECTOR, "pool=a"), (OPENSHIFT_NODE_SELECTOR, &long), ("note", "x")];
    let mut annotations: BTreeMap<String, String> =
        all.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    retain_read(&mut annotations);
    let kept: Vec<_> = annotations.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(kept, [(OPENSHIFT_NODE_SELECTOR, TOO_LONG), (NODE_SELECTOR, "pool=a")]);
    assert!(TOO_LONG.parse::<NodeSelector>().is_err());
    assert!(serde_json::from_str::<Vec<Toleration>>(TOO_LONG).is_err());
}
