//! Plans by what has changed are the same as plans from scratch.
#![allow(clippy::unwrap_used, clippy::panic)]

use k8s_openapi::api::core::v1::{ConfigMap, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::knative::ROUTING_STATE_MODIFIED;
use crate::api::{DeploymentConfig, ImageWarm, WARM_KEY};
use crate::policy::Bounds;
use crate::sample::{
    at, because, by_digest, kept, knative_image, labelled, node, resolve, revision, route, tainted,
    warm,
};

const KNATIVE: &str = "knative-serving";
const NAMESPACES: [&str; 3] = ["a", "b", KNATIVE];

type Key = (String, String);

/// A cluster as the caches hold it.
#[derive(Default)]
struct World {
    image_warms: BTreeMap<Key, Arc<CachedImageWarm>>,
    revisions: BTreeMap<Key, Arc<Revision>>,
    images: BTreeMap<Key, Arc<KnativeImage>>,
    nodes: BTreeMap<String, Arc<Node>>,
    namespaces: BTreeMap<String, ObjectMeta>,
    connected: Arc<BTreeSet<NodeName>>,
    policy: Policy,
    now: i64,
}

fn key(metadata: &ObjectMeta) -> Key {
    (metadata.namespace.clone().unwrap(), metadata.name.clone().unwrap())
}

fn of<T>(objects: &BTreeMap<Key, Arc<T>>, scope: &Scope) -> Vec<Arc<T>> {
    let meant = objects.iter().filter(|((namespace, _), _)| scope.contains(namespace));
    meant.map(|(_, one)| one.clone()).collect()
}

impl World {
    fn new() -> World {
        let bounds = Bounds { image_warms_per_namespace: 5, image_warms: 0, ..Bounds::default() };
        let namespace =
            |name: &str| ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        World {
            namespaces: NAMESPACES.map(|name| (name.to_owned(), namespace(name))).into(),
            policy: Policy { bounds, ..Policy::default() },
            now: 1_000,
            ..World::default()
        }
    }

    fn snapshot(&self, scope: &Scope) -> Snapshot {
        let config: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "config-deployment", "namespace": KNATIVE},
            "data": {"queue-sidecar-image": "r.test/queue:v1"},
        }))
        .unwrap();
        let config = DeploymentConfig::new(config);
        let mut cluster = Cluster::new(&self.policy, Some(Arc::new(config)));
        let mut terminating = BTreeSet::new();
        for (name, metadata) in self.namespaces.iter().filter(|(name, _)| scope.contains(name)) {
            cluster.add(metadata, &self.policy);
            terminating.extend(metadata.deletion_timestamp.as_ref().map(|_| name.clone()));
        }
        let image_warms = of(&self.image_warms, scope);
        Snapshot {
            elsewhere: self.image_warms.len() - image_warms.len(),
            image_warms,
            revisions: of(&self.revisions, scope),
            images: of(&self.images, scope),
            nodes: self.nodes.values().cloned().collect(),
            runtime_classes: RuntimeClasses::default(),
            cluster,
            terminating,
            connected: self.connected.clone(),
            starts: Arc::default(),
            may_delete: true,
        }
    }

    /// One run, and another while one is due at once. Returns the namespaces, and what came of the last.
    fn run(&self, planner: &mut Planner) -> (BTreeSet<Box<str>>, Outcome) {
        let (now, mut planned) = (at(self.now), BTreeSet::new());
        let nodes: Vec<_> = self.nodes.values().cloned().collect();
        for _ in 0..3 {
            let scope = planner.scope(&nodes, &self.connected, &self.policy, now);
            let names = NAMESPACES.into_iter().filter(|name| scope.contains(name));
            planned.extend(names.map(Box::from));
            let snapshot = self.snapshot(&scope);
            let grace_periods = GracePeriods::default();
            let outcome = planner.plan(&scope, &snapshot, &self.policy, grace_periods, now);
            if outcome.recheck_at.is_none_or(|recheck| recheck > now) {
                return (planned, outcome);
            }
        }
        panic!("a run is due at once, again and again");
    }

    fn change(&mut self, event: &Event, planner: &mut Planner) {
        match event {
            Event::Revision(namespace, name, look) => {
                self.revisions.insert((namespace.to_string(), name.clone()), {
                    let mut one = look.revision(name, self.now);
                    one.metadata.namespace = Some(namespace.to_string());
                    Arc::new(one)
                });
                planner.changed(namespace);
            }
            Event::ImageWarm(namespace, image, node, reason) => {
                let of = Look { images: vec![image], ..Look::default() }.revision("r", self.now);
                let mut one = because(warm(&of, image, node, self.now), *reason);
                one.metadata.namespace = Some(namespace.to_string());
                self.image_warms.insert(key(&one.metadata), kept(&one));
                planner.changed(namespace);
            }
            Event::Image(namespace, name, image) => {
                let mut one = knative_image(name, image, None);
                one.metadata.namespace = Some(namespace.to_string());
                self.images.insert(key(&one.metadata), Arc::new(one));
                planner.changed(namespace);
            }
            Event::Gone(at) => {
                let all = self.image_warms.keys().chain(self.revisions.keys());
                let all: Vec<Key> = all.chain(self.images.keys()).cloned().collect();
                if let Some(key) = all.get(at % all.len().max(1)) {
                    self.image_warms.remove(key);
                    self.revisions.remove(key);
                    self.images.remove(key);
                    planner.changed(&key.0);
                }
            }
            Event::Node(name, kind) => {
                let mut one = match kind {
                    0 => tainted(node(name), "gpu", "NoSchedule"),
                    1 => labelled(node(name), "disk", "ssd"),
                    2 => {
                        let mut one = node(name);
                        one.status = None;
                        one
                    }
                    _ => node(name),
                };
                one.metadata.creation_timestamp = Some(Time(at(self.now)));
                match kind {
                    4 => drop(self.nodes.remove(name)),
                    _ => drop(self.nodes.insert(name.clone(), Arc::new(one))),
                }
                planner.nodes_changed();
            }
            Event::Connected(name) => {
                let mut connected = (*self.connected).clone();
                let name = NodeName::from(name.as_str());
                if !connected.remove(&name) {
                    connected.insert(name);
                }
                self.connected = Arc::new(connected);
                planner.nodes_changed();
            }
            Event::Namespace(name, is_left_out, is_terminating) => {
                let metadata = self.namespaces.get_mut(*name).unwrap();
                let label = is_left_out.then(|| (WARM_KEY.to_owned(), "false".to_owned()));
                metadata.labels = Some(label.into_iter().collect());
                metadata.deletion_timestamp = is_terminating.then(|| Time(at(self.now)));
                planner.changed(name);
            }
            Event::Time(seconds) => self.now += seconds,
        }
    }

    /// What the API server would have after these writes.
    fn apply(&mut self, outcome: &Outcome, planner: &mut Planner) {
        for creation in &outcome.create {
            let mut object: ImageWarm = creation.object.clone();
            object.metadata.creation_timestamp = Some(Time(at(self.now)));
            let key = key(&object.metadata);
            planner.changed(&key.0);
            self.image_warms.insert(key, kept(&object));
        }
        for deletion in &outcome.delete {
            let key = (deletion.warm.namespace.to_string(), deletion.warm.name.to_string());
            self.image_warms.remove(&key);
            planner.changed(&key.0);
        }
        for update in &outcome.images {
            let mut image = (*update.image).clone();
            image.status = Some(update.status.clone());
            planner.changed(image.metadata.namespace.as_deref().unwrap());
            self.images.insert(key(&image.metadata), Arc::new(image));
        }
    }
}

/// What a Revision is like.
#[derive(Clone, Debug, Default)]
struct Look {
    images: Vec<&'static str>,
    is_resolved: bool,
    tolerates: bool,
    in_reserve: bool,
}

impl Look {
    fn revision(&self, name: &str, now: i64) -> Revision {
        let mut one = revision(name, now - 60, &self.images);
        if self.is_resolved {
            resolve(&mut one, '1');
        }
        if self.tolerates {
            let operator = Some("Exists".to_owned());
            one.spec.tolerations = vec![Toleration { operator, ..Toleration::default() }];
        }
        if self.in_reserve {
            route(&mut one, "reserve");
            let annotations = one.metadata.annotations.get_or_insert_default();
            annotations.insert(ROUTING_STATE_MODIFIED.into(), at(now).to_string());
        }
        one
    }
}

#[derive(Clone, Debug)]
enum Event {
    Revision(&'static str, String, Look),
    ImageWarm(&'static str, &'static str, String, Reason),
    Image(&'static str, &'static str, String),
    /// The object at this place, of all.
    Gone(usize),
    Node(String, u8),
    Connected(String),
    Namespace(&'static str, bool, bool),
    /// Seconds pass.
    Time(i64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let namespace = || prop::sample::select(NAMESPACES.to_vec());
    let image = || prop::sample::select(vec!["app:v1", "app:v2", "side:v1"]);
    let node = || (0..3_u8).prop_map(|at| format!("n{at}"));
    let look = (prop::collection::vec(image(), 1..3), any::<[bool; 3]>()).prop_map(
        |(images, [is_resolved, tolerates, in_reserve])| Look {
            images,
            is_resolved,
            tolerates,
            in_reserve,
        },
    );
    let of_image = prop::sample::select(vec![
        by_digest("app", '1'),
        "r.test/queue:v1".to_owned(),
        "UP".to_owned(),
    ]);
    let name = prop::sample::select(vec!["queue-proxy", "other"]);
    let reason = prop::sample::select(Reason::ALL.to_vec());
    prop_oneof![
        4 => (namespace(), 0..3_u8, look)
            .prop_map(|(namespace, at, look)| Event::Revision(namespace, format!("r-{at}"), look)),
        3 => (namespace(), image(), node(), reason)
            .prop_map(|(namespace, image, node, reason)| {
                Event::ImageWarm(namespace, image, node, reason)
            }),
        2 => (namespace(), name, of_image)
            .prop_map(|(namespace, name, image)| Event::Image(namespace, name, image)),
        3 => any::<usize>().prop_map(Event::Gone),
        3 => (node(), 0..6_u8).prop_map(|(name, kind)| Event::Node(name, kind)),
        1 => node().prop_map(Event::Connected),
        1 => (namespace(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
            |(name, is_left_out, is_terminating)| {
                Event::Namespace(name, is_left_out, is_terminating)
            }
        ),
        2 => prop::sample::select(vec![1_i64, 29, 31, 601]).prop_map(Event::Time),
    ]
}

/// Everything that is to be done, and is known, as text.
fn texts(outcome: &Outcome) -> [Vec<String>; 4] {
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let Outcome { create, delete, images, failures, over_limit, reasons, recheck_at, .. } = outcome;
    let delete = delete
        .iter()
        .map(|one| format!("{:?} {} {}", one.cause, one.warm.namespace, one.warm.name));
    [
        sorted(create.iter().map(|one| format!("{one:?}")).collect()),
        sorted(delete.collect()),
        sorted(images.iter().map(|one| format!("{one:?}")).collect()),
        sorted(
            failures
                .iter()
                .map(|one| format!("{one:?}"))
                .chain([format!("{over_limit:?} {reasons:?} {recheck_at:?}")])
                .collect(),
        ),
    ]
}

proptest! {
    #[test]
    fn by_increments_is_as_from_scratch(
        events in prop::collection::vec((any_event(), any::<bool>()), 1..40),
    ) {
        let (mut world, mut planner) = (World::new(), Planner::default());
        for (event, is_written) in events {
            world.change(&event, &mut planner);
            let (planned, outcome) = world.run(&mut planner);
            let (_, whole) = world.run(&mut Planner::default());
            prop_assert_eq!(texts(&outcome), texts(&whole), "{:?} {:?}", event, planned);
            if is_written {
                world.apply(&outcome, &mut planner);
            }
        }
    }
}

fn settled() -> (World, Planner) {
    let (mut world, mut planner) = (World::new(), Planner::default());
    let look = Look { images: vec!["app:v1"], ..Look::default() };
    for event in [
        Event::Node("n0".into(), 5),
        Event::Revision("a", "r-0".into(), look.clone()),
        Event::Revision("b", "r-0".into(), look),
    ] {
        world.change(&event, &mut planner);
    }
    for _ in 0..2 {
        let (_, outcome) = world.run(&mut planner);
        world.apply(&outcome, &mut planner);
    }
    let (_, outcome) = world.run(&mut planner);
    assert!(outcome.create.is_empty() && outcome.delete.is_empty() && outcome.images.is_empty());
    (world, planner)
}

fn planned(world: &World, planner: &mut Planner) -> Vec<String> {
    world.run(planner).0.into_iter().map(String::from).collect()
}

#[test]
fn only_what_has_changed_is_planned() {
    let (mut world, mut planner) = settled();
    assert!(planned(&world, &mut planner).is_empty());
    planner.changed("b");
    assert_eq!(planned(&world, &mut planner), ["b"]);
    // Whatever a node says that no plan depends on.
    planner.nodes_changed();
    assert!(planned(&world, &mut planner).is_empty());
    world.change(&Event::Connected("n0".into()), &mut planner);
    assert!(planned(&world, &mut planner).is_empty(), "it is Ready without");
    world.change(&Event::Node("n1".into(), 5), &mut planner);
    assert_eq!(planned(&world, &mut planner), NAMESPACES);
    // The new node's ImageWarms are not made: their namespaces are planned again.
    assert_eq!(planned(&world, &mut planner), NAMESPACES);
    planner.all_changed();
    assert_eq!(planned(&world, &mut planner), NAMESPACES);
}

#[test]
fn a_toleration_anywhere_concerns_the_queue_proxy() {
    let (mut world, mut planner) = settled();
    world.change(&Event::Node("n1".into(), 0), &mut planner);
    let (_, outcome) = world.run(&mut planner);
    world.apply(&outcome, &mut planner);
    assert!(outcome.create.is_empty(), "nobody tolerates its taint");
    planned(&world, &mut planner);
    let look = Look { images: vec!["app:v1"], tolerates: true, ..Look::default() };
    world.change(&Event::Revision("b", "r-1".into(), look), &mut planner);
    assert_eq!(planned(&world, &mut planner), ["b", KNATIVE]);
}

#[test]
fn with_the_clusters_limit_reached_all_are_planned() {
    let (mut world, mut planner) = settled();
    world.policy.bounds.image_warms = world.image_warms.len();
    let look = Look { images: vec!["side:v1"], ..Look::default() };
    world.change(&Event::Revision("b", "r-1".into(), look), &mut planner);
    let (planned_first, outcome) = world.run(&mut planner);
    assert_eq!(planned_first.len(), 1);
    assert_eq!(outcome.over_limit["b"].missing, 1);
    // A place that another namespace leaves is taken.
    let left = world.image_warms.keys().find(|(namespace, _)| namespace == "a").unwrap().clone();
    world.image_warms.remove(&left);
    world.revisions.retain(|(namespace, _), _| namespace != "a");
    planner.changed("a");
    let (planned, outcome) = world.run(&mut planner);
    assert_eq!((planned.len(), outcome.create.len()), (3, 1));
}

#[test]
fn while_nodes_are_held_all_are_planned() {
    let (mut world, mut planner) = settled();
    world.policy.gate_taint = Some("warming".into());
    let held = tainted(node("n1"), "warming", "NoSchedule");
    world.nodes.insert("n1".into(), Arc::new(held));
    planner.nodes_changed();
    for _ in 0..2 {
        let (planned, outcome) = world.run(&mut planner);
        assert_eq!((planned.len(), outcome.gated.len()), (3, 1));
    }
    world.nodes.remove("n1");
    planner.nodes_changed();
    assert_eq!(planned(&world, &mut planner), NAMESPACES);
    assert!(planned(&world, &mut planner).is_empty());
}
