#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::api::Revision;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::api::knative::KnativeImageSpec;
use crate::api::{ImageWarm, KnativeImage, MANAGED_BY_LABEL, Reason, SecretReference};
use crate::demand::Cluster;
use crate::demand::consumers::demands;
use crate::sample::{at, because, kept, resolve, revision, route, warm};

fn with_secret(mut revision: Revision, secret: &str, account: &str) -> Revision {
    if !secret.is_empty() {
        revision.spec.image_pull_secrets =
            vec![k8s_openapi::api::core::v1::LocalObjectReference { name: secret.into() }];
    }
    revision.spec.service_account_name = Some(account.into());
    revision
}

fn identity(secret: &str, account: Option<&str>) -> PullIdentity {
    let secrets = if secret.is_empty() { vec![] } else { vec![secret.to_owned()] };
    PullIdentity { secrets, service_account: account.map(Into::into) }
}

fn context_of(warm: &ImageWarm, revisions: &[&Revision]) -> PullContext {
    let revisions: Vec<_> = revisions.iter().map(|one| Arc::new((*one).clone())).collect();
    let context = context_under(warm, &revisions, &Policy::default());
    let reversed: Vec<_> = revisions.iter().rev().cloned().collect();
    assert_eq!(context, context_under(warm, &reversed, &Policy::default()), "order matters");
    context
}

fn context_under(warm: &ImageWarm, revisions: &[Arc<Revision>], policy: &Policy) -> PullContext {
    let running = Policy { paused: false, ..policy.clone() };
    pull_context(
        &kept(warm),
        &demands(revisions, &[], &Cluster::default(), &running).consumers,
        &RuntimeHandlers::default(),
        policy,
    )
}

/// `warm` with a try from `started`, ended at `finished`.
fn tried(mut warm: ImageWarm, started: i64, finished: Option<i64>) -> ImageWarm {
    warm = because(warm, Reason::Pulled);
    let status = warm.status.as_mut().unwrap();
    status.started_at = Some(Time(at(started)));
    status.finished_at = finished.map(|second| Time(at(second)));
    warm
}

#[test]
fn identities_newest_first_without_repeats() {
    let old = with_secret(revision("r-1", 100, &["app:v1"]), "one", "default");
    let new = with_secret(revision("r-2", 200, &["app:v1"]), "", "robot");
    let same = with_secret(revision("r-3", 300, &["app:v1"]), "one", "default");
    let other = with_secret(revision("r-4", 400, &["other"]), "four", "default");
    let image_warm = warm(&old, "app:v1", "a", 100);
    let context = context_of(&image_warm, &[&old, &new, &same, &other]);
    assert_eq!(context.identities, [identity("one", Some("default")), identity("", Some("robot"))]);
    assert_eq!(context.priority, 300);
}

#[test]
fn an_order_that_nobody_wants_any_more_keeps_its_own_identity() {
    let gone = with_secret(revision("r-1", 100, &["app:v1"]), "", "robot");
    let context = context_of(&warm(&gone, "app:v1", "a", 100), &[]);
    assert_eq!(context.identities, [identity("", Some("robot"))]);
    assert_eq!((context.check_for, context.priority), (None, 0));
}

#[test]
fn a_hand_made_order_uses_its_own_spec() {
    let demanded = with_secret(revision("r-1", 100, &["app:v1"]), "theirs", "default");
    let mut image_warm = warm(&demanded, "app:v1", "a", 100);
    image_warm.metadata.labels.as_mut().unwrap().remove(MANAGED_BY_LABEL);
    image_warm.spec.image_pull_secrets = vec![SecretReference { name: "mine".into() }];
    assert_eq!(context_of(&image_warm, &[]).identities, [identity("mine", None)]);
    let both = context_of(&image_warm, &[&demanded]).identities;
    assert_eq!(both, [identity("theirs", Some("default")), identity("mine", None)]);
    image_warm.spec.image = "Not An Image".into();
    assert_eq!(context_of(&image_warm, &[&demanded]).identities, [identity("mine", None)]);
}

#[test]
fn an_order_by_digest_stands_for_the_revisions_that_were_resolved_to_it() {
    let mut demanded = revision("r-1", 100, &["app:v1"]);
    resolve(&mut demanded, '1');
    let image = demanded.status.as_ref().unwrap().container_statuses[0].image_digest.clone();
    let context = context_of(&warm(&demanded, &image, "a", 100), &[&demanded]);
    assert_eq!((context.priority, context.check_for), (100, None));
}

#[test]
fn checks() {
    let first = revision("r-1", 100, &["app:v1"]);
    let second = revision("r-2", 200, &["app:v1"]);
    let third = revision("r-3", 300, &["app:v1"]);
    let mut resolved = third.clone();
    resolve(&mut resolved, '1');
    let mut reserve = third.clone();
    route(&mut reserve, "reserve");

    let image_warm = || warm(&first, "app:v1", "a", 100);
    let pulled = || tried(image_warm(), 101, Some(110));
    let mut checked = tried(image_warm(), 199, Some(210));
    checked.status.as_mut().unwrap().checked_for = Some("conf-uid/r-2".into());

    let token = |name: &str| Some(format!("conf-uid/{name}"));
    let cases = [
        ("no demand", pulled(), vec![], None),
        ("the first pull is the check", pulled(), vec![&first], None),
        ("no pull yet", image_warm(), vec![&first, &second], None),
        ("first pull runs", tried(image_warm(), 101, None), vec![&first, &second], None),
        ("first pull was before", pulled(), vec![&first, &second], token("r-2")),
        ("only the newest", pulled(), vec![&first, &second, &third], token("r-3")),
        (
            "pulled in the same second",
            tried(image_warm(), 200, Some(201)),
            vec![&second],
            token("r-2"),
        ),
        // By the clock of its node, which is not that of the API server.
        ("pulled later", tried(image_warm(), 999, Some(1_000)), vec![&second], token("r-2")),
        ("checked", checked.clone(), vec![&first, &second], None),
        ("checked, and a newer one", checked, vec![&first, &second, &third], token("r-3")),
        ("digest known", pulled(), vec![&first, &resolved], None),
        ("digest known of the newest only", pulled(), vec![&second, &resolved], token("r-2")),
        ("not routable", pulled(), vec![&first, &reserve], None),
    ];
    for (name, image_warm, revisions, expected) in cases {
        assert_eq!(context_of(&image_warm, &revisions).check_for, expected, "{name}");
    }
    let paused = Policy { paused: true, ..Policy::default() };
    let context = context_under(&pulled(), &[Arc::new(second)], &paused);
    assert_eq!((context.check_for, context.priority), (None, 200));
}

#[test]
fn a_resolved_tag_is_known_to_exist() {
    let (old, mut new) = (revision("r-1", 100, &["app:v1"]), revision("r-2", 200, &["app:v1"]));
    let by_tag = warm(&old, "app:v1", "node-1", 100);
    assert_eq!(context_of(&by_tag, &[&old, &new]).resolved, None);
    resolve(&mut new, 'a');
    let digest = Some(crate::sample::digest('a'));
    assert_eq!(context_of(&by_tag, &[&old, &new]).resolved, digest);
    // A newer one may have been resolved to another, and one in reserve has no Pods.
    let newer = revision("r-3", 300, &["app:v1"]);
    assert_eq!(context_of(&by_tag, &[&old, &new, &newer]).resolved, None);
    let mut reserve = newer;
    route(&mut reserve, "reserve");
    assert_eq!(context_of(&by_tag, &[&old, &new, &reserve]).resolved, digest);
    assert_eq!(context_of(&warm(&old, "app:v2", "node-1", 100), &[&old, &new]).resolved, None);
}

#[test]
fn the_handlers_are_those_of_all_pods_that_use_the_image() {
    let classes: Vec<RuntimeClass> = [("sandboxed", "kata"), ("plain", "runc")]
        .map(|(name, handler)| RuntimeClass {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            handler: handler.into(),
            ..RuntimeClass::default()
        })
        .into();
    let of_class = |name: &str, image: &str, class: Option<&str>| {
        let mut revision = revision(name, 100, &[image]);
        revision.spec.runtime_class_name = class.map(Into::into);
        Arc::new(revision)
    };
    let handlers = RuntimeHandlers {
        classes: RuntimeClasses::new(&classes),
        of_every_revision: ["kata".to_owned()].into(),
    };
    let found = |image: &str, revisions: &[Arc<Revision>], images: &[Arc<KnativeImage>]| {
        let (cluster, policy) = (Cluster::default(), Policy::default());
        let demanded = demands(revisions, images, &cluster, &policy).consumers;
        let warm = kept(&warm(&revision("r", 100, &[]), image, "a", 100));
        let handlers = pull_context(&warm, &demanded, &handlers, &policy).runtime_handlers;
        handlers.into_iter().collect::<Vec<_>>()
    };
    let plain = of_class("a", "app:v1", None);
    let sandboxed = of_class("b", "app:v1", Some("sandboxed"));
    assert_eq!(found("app:v1", &[], &[]), [""; 0]);
    assert_eq!(found("app:v1", std::slice::from_ref(&plain), &[]), [""; 0]);
    assert_eq!(found("app:v1", std::slice::from_ref(&sandboxed), &[]), ["kata"]);
    assert_eq!(found("app:v1", &[plain, sandboxed.clone()], &[]), ["", "kata"]);
    assert_eq!(found("app:v1", &[of_class("c", "app:v1", Some("plain"))], &[]), ["runc"]);
    assert_eq!(found("app:v1", &[of_class("c", "app:v1", Some("missing"))], &[]), [""; 0]);
    assert_eq!(found("other:v1", std::slice::from_ref(&sandboxed), &[]), [""; 0]);
    // The queue-proxy is in the Pods of all Revisions.
    let mut queue = KnativeImage::new("queue-proxy", KnativeImageSpec::default());
    queue.metadata.namespace = Some(Policy::default().knative_namespace);
    queue.spec.image = "queue:v1".into();
    assert_eq!(found("queue:v1", &[], &[Arc::new(queue)]), ["", "kata"]);
}
