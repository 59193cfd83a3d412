//! What a Revision demands.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::sample::{digest, resolve, revision};

fn read(text: &str) -> Revision {
    serde_saphyr::from_str(text).unwrap()
}

fn images_of(revision: &Revision) -> Vec<(String, Option<String>)> {
    let text = |image: &Reference| image.as_str().to_owned();
    let images = demand(revision, false, &Policy::default()).images;
    images.iter().map(|i| (text(&i.reference), i.resolved.as_ref().map(text))).collect()
}

fn spec(spec: Value) -> Revision {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "r", "namespace": "ns"}, "spec": spec,
    }))
    .unwrap()
}

#[test]
fn real_revisions() {
    let app = "127.0.0.1:22020/demo/app";
    let multi =
        read(include_str!("../../../../tests/fixtures/knative/revision.multi-container.yaml"));
    let found = images_of(&multi);
    let tags: Vec<_> = found.iter().map(|(tag, _)| tag.rsplit('/').next().unwrap()).collect();
    assert_eq!(tags, ["app:v1", "side:v1", "init:v1"]);
    assert!(found.iter().all(|(_, resolved)| resolved.as_ref().is_some_and(|r| r.contains('@'))));

    let direct =
        read(include_str!("../../../../tests/fixtures/knative/revision.direct-undefaulted.yaml"));
    let found = images_of(&direct);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, format!("{app}:v1"));

    let review: Value = serde_json::from_str(include_str!(
        "../../../../tests/fixtures/knative/admission-review.revision-create.mutating.json"
    ))
    .unwrap();
    let seen: Revision = serde_json::from_value(review["request"]["object"].clone()).unwrap();
    assert_eq!(images_of(&seen), [(format!("{app}:v1"), None)]);
}

#[test]
fn each_image_once_in_every_spelling() {
    let found =
        images_of(&revision("r", 0, &["app", "docker.io/library/app:latest", "b:1", "app"]));
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/app:latest", "docker.io/library/b:1"]);
}

#[test]
fn what_is_left_out() {
    let found = images_of(&spec(json!({"containers": [
        {"image": ""}, {"image": "lower/UPPER"}, {"image": "dev.local/app"}, {"image": "ko.local/x:1"},
        {"image": "never", "imagePullPolicy": "Never"}, {"image": "kept", "imagePullPolicy": "Always"},
    ]})));
    assert_eq!(found, [("docker.io/library/kept:latest".to_owned(), None)]);
}

#[test]
fn digests_by_name_and_without_names_by_position() {
    let resolved = |letter| format!("index.docker.io/library/a@{}", digest(letter));
    let mut named =
        spec(json!({"containers": [{"name": "x", "image": "a:1"}, {"name": "y", "image": "b:1"}]}));
    named.status = serde_json::from_value(json!({"containerStatuses": [
        {"name": "y", "imageDigest": ""}, {"name": "x", "imageDigest": resolved('1')},
    ]}))
    .unwrap();
    let found = images_of(&named);
    assert_eq!(found[0].1, Some(format!("docker.io/library/a@{}", digest('1'))));
    assert_eq!(found[1].1, None);

    let mut unnamed =
        spec(json!({"containers": [{"image": "a:1"}], "initContainers": [{"image": "i"}]}));
    unnamed.status = serde_json::from_value(json!({
        "containerStatuses": [{"imageDigest": resolved('2')}],
        "initContainerStatuses": [{"imageDigest": "a:not-a-digest"}],
    }))
    .unwrap();
    let found = images_of(&unnamed);
    assert_eq!(found[0].1, Some(format!("docker.io/library/a@{}", digest('2'))));
    assert_eq!(found[1].1, None);
}

#[test]
fn a_digest_is_its_own_resolution() {
    let image = format!("r.example/app:v1@{}", digest('3'));
    let found = images_of(&revision("r", 0, &[&image]));
    let canonical = format!("r.example/app@{}", digest('3'));
    assert_eq!(found, [(canonical.clone(), Some(canonical))]);
}

#[test]
fn opting_out() {
    let mut demanded = revision("r", 0, &["a"]);
    resolve(&mut demanded, '1');
    let empty = |revision: &Revision, namespace, policy: &Policy| {
        demand(revision, namespace, policy).images.is_empty()
    };
    assert!(!empty(&demanded, false, &Policy::default()));
    assert!(empty(&demanded, true, &Policy::default()));
    assert!(empty(&demanded, false, &Policy { paused: true, ..Policy::default() }));
    for (value, out) in [("false", true), ("true", false), ("", false)] {
        let annotations = demanded.metadata.annotations.get_or_insert_default();
        annotations.insert(WARM_KEY.into(), value.into());
        assert_eq!(empty(&demanded, false, &Policy::default()), out, "{value}");
    }
}

#[test]
fn identities() {
    let identity = |value| demand(&spec(value), false, &Policy::default()).identity;
    let none = identity(json!({"containers": []}));
    assert_eq!((none.secrets.len(), none.service_account.as_deref()), (0, Some("default")));
    let odd = identity(json!({
        "serviceAccountName": "robot",
        "imagePullSecrets": [{"name": "a"}, {"name": "Upper"}, {"name": ""}, {}, {"name": "a"}, {"name": "b.c"}],
    }));
    assert_eq!(odd.secrets, ["a", "Upper", "", "", "a", "b.c"], "as written");
    assert_eq!(odd.service_account.as_deref(), Some("robot"));
}

#[test]
fn secrets_are_taken_as_far_as_an_image_warm_can_name_them() {
    let taken = |names: &[&str]| -> Vec<String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        valid_secrets(&names).into_iter().map(|secret| secret.name).collect()
    };
    assert_eq!(taken(&["a", "Upper", "", "a", "b.c"]), ["a", "b.c"]);
    let many: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(taken(&many), many[..16]);
    // All names together have 1,024 characters at most; a shorter one may still fit.
    let long: Vec<String> = (0..5).map(|number| format!("{number}{}", "x".repeat(249))).collect();
    let mut names: Vec<&str> = long.iter().map(String::as_str).collect();
    names.push("last");
    assert_eq!(taken(&names), [&names[..4], &names[5..]].concat());
}
