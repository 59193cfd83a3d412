//! A webhook configuration, a leader, and replicas that look from time to time.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const OTHER: &str = "defaulting.imagewarms.caching.knative.dev";

/// The configuration in the API server.
#[derive(Default)]
struct Object {
    paths: BTreeMap<&'static str, Option<String>>,
    annotation: Option<String>,
}

impl Object {
    /// As applied from the manifest: without paths.
    fn applied() -> Self {
        Object { paths: [(REVISIONS_WEBHOOK, None), (OTHER, None)].into(), annotation: None }
    }

    fn read(&self) -> Published {
        let webhooks = self.paths.iter().map(|(name, path)| (*name, path.as_deref()));
        Published::read(Endpoint::Mutate, webhooks, self.annotation.as_deref())
    }

    fn write(&mut self, step: Step) {
        match step {
            Step::Keep => {}
            Step::Publish(paths) => {
                for (name, path) in paths {
                    *self.paths.get_mut(name.as_str()).unwrap() = Some(path.as_str().to_owned());
                }
                self.annotation = None;
            }
            Step::Announce(paths) => {
                let paths: BTreeMap<_, _> =
                    paths.iter().map(|(name, path)| (name, path.as_str())).collect();
                self.annotation = Some(serde_json::to_string(&paths).unwrap());
            }
        }
    }

    fn all(&self) -> Vec<String> {
        self.paths.values().flatten().cloned().collect()
    }
}

/// Secrets in order: the tests know no other difference between them.
fn secrets() -> impl FnMut() -> u128 {
    let mut last = 0;
    move || {
        last += 1;
        last
    }
}

fn serves(replica: &WebhookPaths, path: &str) -> bool {
    ServedPaths::of([replica]).get(path).is_some()
}

#[test]
fn only_paths_of_the_right_form_count() {
    let good = "/mutate/0123456789abcdef0123456789abcdef";
    assert_eq!(WebhookPath::parse(Endpoint::Mutate, good).unwrap().as_str(), good);
    let path = WebhookPath::new(Endpoint::Validate, u128::MAX);
    assert_eq!(path.as_str(), format!("/validate/{}", "f".repeat(32)));
    assert_eq!(WebhookPath::parse(Endpoint::Validate, path.as_str()), Some(path.clone()));
    assert!(!format!("{path:?}").contains('f'), "{path:?}");
    let (upper, long) = (good.to_uppercase(), format!("{good}0"));
    for bad in ["", "/", "/mutate", "/mutate/", &good[1..], &upper, &long, &good[..39]] {
        assert_eq!(WebhookPath::parse(Endpoint::Mutate, bad), None, "{bad}");
    }
    assert_eq!(WebhookPath::parse(Endpoint::Validate, good), None, "another endpoint's");
}

#[test]
fn a_new_configuration_gets_a_path_for_each_webhook_at_once() {
    let (mut object, mut leader) = (Object::applied(), WebhookPaths::new(Endpoint::Mutate));
    leader.observe(object.read(), 0);
    object.write(leader.step(0, secrets()));
    assert!(object.read().is_complete());
    let paths = object.all();
    assert_ne!(paths[0], paths[1]);
    let served = ServedPaths::of([&leader]);
    let at = |name: &str| served.get(object.paths[name].as_deref().unwrap()).unwrap();
    assert_eq!(at(REVISIONS_WEBHOOK), (Endpoint::Mutate, Reviews::Revisions));
    assert_eq!(at(OTHER), (Endpoint::Mutate, Reviews::ImageWarms));
    assert_eq!(served.get("/mutate"), None);
    assert_eq!(format!("{served:?}"), "ServedPaths { paths: 2 }");
    leader.observe(object.read(), 1);
    assert_eq!(leader.step(1, secrets()), Step::Keep);
}

#[test]
fn a_path_of_two_webhooks_is_of_the_first_only() {
    let (mut object, path) = (Object::applied(), WebhookPath::new(Endpoint::Mutate, 1));
    for held in object.paths.values_mut() {
        *held = Some(path.as_str().to_owned());
    }
    let published = object.read();
    assert!(!published.is_complete());
    let mut replica = WebhookPaths::new(Endpoint::Mutate);
    replica.observe(published.clone(), 0);
    let served = ServedPaths::of([&replica]);
    let (first, second) = (OTHER, REVISIONS_WEBHOOK);
    assert_eq!(served.get(path.as_str()), Some((Endpoint::Mutate, Reviews::ImageWarms)));
    assert_eq!((&published.current[first], &published.current[second]), (&Some(path), &None));
}

#[test]
fn a_manifest_that_is_applied_again_gets_its_last_paths_back() {
    let (mut object, mut leader) = (Object::applied(), WebhookPaths::new(Endpoint::Mutate));
    leader.observe(object.read(), 0);
    object.write(leader.step(0, secrets()));
    leader.observe(object.read(), 1);
    let before = object.all();
    object = Object::applied();
    leader.observe(object.read(), 2);
    object.write(leader.step(2, || 99));
    assert_eq!(object.all(), before);
}

/// Whatever the API server calls during rotations, every replica serves.
#[test]
fn a_rotation_never_publishes_what_a_replica_does_not_serve() {
    let mut object = Object::applied();
    let mut leader = WebhookPaths::new(Endpoint::Mutate);
    let mut others: Vec<_> = (0..3).map(|_| WebhookPaths::new(Endpoint::Mutate)).collect();
    let (mut secret, mut used) = (secrets(), std::collections::BTreeSet::new());
    const LOOK_MS: i64 = 10_000;
    for look in 0..(4 * ROTATE_AFTER_MS / LOOK_MS) {
        let now = look * LOOK_MS;
        leader.observe(object.read(), now);
        object.write(leader.step(now, &mut secret));
        used.extend(object.all());
        // Each looks at a moment of its own; the first have not looked before the first write.
        for (number, replica) in others.iter_mut().enumerate() {
            if look > 0 {
                for path in object.all() {
                    assert!(serves(replica, &path), "look {look}, replica {number}");
                }
            }
            replica.observe(object.read(), now + number as i64 * 3_000);
        }
    }
    assert_eq!(used.len(), 2 * 4, "two webhooks, and four generations in four days");
    assert!(leader.served().count() <= 6, "old paths are forgotten");
    let oldest = WebhookPath::new(Endpoint::Mutate, 1);
    assert!(!serves(&leader, oldest.as_str()) && !serves(&others[0], oldest.as_str()));
}

#[test]
fn a_path_is_served_for_a_while_after_it_was_replaced() {
    let mut replica = WebhookPaths::new(Endpoint::Mutate);
    let path = |secret| WebhookPath::new(Endpoint::Mutate, secret);
    let published = |secret| Published {
        current: [(OTHER.to_owned(), Some(path(secret)))].into(),
        next: Paths::new(),
    };
    replica.observe(published(1), 0);
    replica.observe(published(2), 1_000);
    assert!(serves(&replica, path(1).as_str()) && serves(&replica, path(2).as_str()));
    replica.observe(published(2), SERVE_FOR_MS);
    assert!(!serves(&replica, path(1).as_str()) && serves(&replica, path(2).as_str()));
}

#[test]
fn a_new_leader_waits_before_it_uses_what_another_has_announced() {
    let (mut object, mut first) = (Object::applied(), WebhookPaths::new(Endpoint::Mutate));
    let mut secret = secrets();
    first.observe(object.read(), 0);
    object.write(first.step(0, &mut secret));
    first.observe(object.read(), 1);
    object.write(first.step(ROTATE_AFTER_MS + 1, &mut secret));
    assert!(object.annotation.is_some());
    let mut second = WebhookPaths::new(Endpoint::Mutate);
    second.observe(object.read(), 50);
    assert_eq!(second.step(50 + ANNOUNCE_FOR_MS - 1, &mut secret), Step::Keep);
    let Step::Publish(paths) = second.step(50 + ANNOUNCE_FOR_MS, &mut secret) else {
        panic!("the announced paths are due")
    };
    assert_eq!(paths, object.read().next);
}

#[test]
fn an_annotation_that_makes_no_sense_is_ignored() {
    for text in ["", "[]", "{", r#"{"other.example.com": "/mutate/00"}"#, r#"{"a": 1}"#] {
        let mut object = Object::applied();
        object.annotation = Some(text.to_owned());
        assert_eq!(object.read().next, Paths::new(), "{text}");
    }
}

#[test]
fn quoted_urls_lose_their_secrets() {
    let path = |endpoint| WebhookPath::new(endpoint, 0x1234).as_str().to_owned();
    let text = format!(
        "Post \"https://h.svc:443{}?timeout=10s\": refused; {} and /mutate/ too",
        path(Endpoint::Mutate),
        path(Endpoint::Validate)
    );
    assert_eq!(
        without_secrets(&text),
        "Post \"https://h.svc:443/mutate/…?timeout=10s\": refused; /validate/… and /mutate/ too"
    );
}
