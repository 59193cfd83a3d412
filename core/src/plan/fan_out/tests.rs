//! Tests of `plan/fan_out.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::demand::revision::demand;
use crate::sample::{node, revision, route, tainted};

#[test]
fn one_for_each_image_and_eligible_node() {
    let nodes = [node("a"), tainted(node("b"), "k", "NoSchedule"), node("c")];
    let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
    let demanded = revision("r-00001", 0, &["app:v1", "side:v1"]);
    let policy = Policy::default();
    let made = fan_out(&demanded, &demand(&demanded, false, &policy), &facts, &policy);
    let pairs: Vec<_> =
        made.iter().map(|w| (w.spec.image.as_str(), w.spec.node_name.as_str())).collect();
    let (app, side) = ("docker.io/library/app:v1", "docker.io/library/side:v1");
    assert_eq!(pairs, [(app, "a"), (app, "c"), (side, "a"), (side, "c")]);
    let names: BTreeSet<_> = made.iter().map(|warm| warm.metadata.name.clone()).collect();
    assert_eq!(names.len(), 4);
    assert!(made.iter().all(ImageWarm::is_managed));
}

#[test]
fn nothing_for_a_revision_that_may_not_get_traffic() {
    let nodes = [node("a")];
    let facts: Vec<_> = nodes.iter().map(|node| NodeFacts::new(node, &BTreeSet::new())).collect();
    let policy = Policy::default();
    let mut demanded = revision("r-00001", 0, &["app:v1"]);
    for (state, made) in [("active", 1), ("pending", 1), ("reserve", 0)] {
        route(&mut demanded, state);
        let found = fan_out(&demanded, &demand(&demanded, false, &policy), &facts, &policy);
        assert_eq!(found.len(), made, "{state}");
    }
}

#[test]
fn secrets_that_cannot_be_stored_do_not_open_those_of_the_service_account() {
    let order = |names: &[&str]| {
        let mut demanded = revision("r", 0, &["app:v1"]);
        let secret =
            |name: &&str| k8s_openapi::api::core::v1::LocalObjectReference { name: (*name).into() };
        demanded.spec.image_pull_secrets = names.iter().map(secret).collect();
        let demand = demand(&demanded, false, &Policy::default());
        image_warm(&Origin::of_revision(&demanded), &demand, &demand.images[0].reference, "a")
    };
    let cases: [(&[&str], &[&str], bool); 4] = [
        (&[], &[], true),
        (&["a", "Upper", "a", "", "b.c"], &["a", "b.c"], true),
        (&["Upper"], &[], false),
        (&[""], &[], false),
    ];
    for (named, stored, account) in cases {
        let order = order(named);
        let secrets: Vec<_> = order.spec.image_pull_secrets.iter().map(|s| &s.name).collect();
        assert_eq!(secrets, stored, "{named:?}");
        let annotations = order.metadata.annotations.unwrap();
        assert_eq!(annotations.contains_key(SERVICE_ACCOUNT_ANNOTATION), account, "{named:?}");
    }
    let many: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(order(&many).spec.image_pull_secrets.len(), 16);
}

#[test]
fn the_object_is_complete() {
    let review: serde_json::Value = serde_json::from_str(include_str!(
        "../../../../tests/fixtures/knative/admission-review.revision-create.mutating.json"
    ))
    .unwrap();
    let mut seen: Revision = serde_json::from_value(review["request"]["object"].clone()).unwrap();
    seen.spec.image_pull_secrets =
        vec![k8s_openapi::api::core::v1::LocalObjectReference { name: "regcred".into() }];
    let demand = demand(&seen, false, &Policy::default());
    let warm =
        image_warm(&Origin::of_revision(&seen), &demand, &demand.images[0].reference, "node-a");
    insta::assert_snapshot!(serde_json::to_string_pretty(&warm).unwrap());
}

#[test]
fn without_owner_or_name_nothing_is_invented() {
    let mut demanded = revision("r", 0, &["app"]);
    demanded.metadata.owner_references = None;
    demanded.metadata.name = None;
    demanded.metadata.generate_name = Some("r-".into());
    let demand = demand(&demanded, false, &Policy::default());
    let warm =
        image_warm(&Origin::of_revision(&demanded), &demand, &demand.images[0].reference, "a");
    assert_eq!(warm.metadata.owner_references, None);
    let annotations = warm.metadata.annotations.unwrap();
    assert!(!annotations.contains_key(CREATED_FOR_ANNOTATION));
}
