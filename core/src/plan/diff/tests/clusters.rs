//! What the settings of a cluster make of Revisions: namespaces' node selectors, RuntimeClasses that Knative
//! chooses, the queue-proxy, image volumes.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::api::DeploymentConfig;
use crate::sample::image_volume;

const QUEUE_PROXY: &str = include_str!("../../../../../tests/fixtures/cluster/queue-proxy.yaml");
const RUNTIME_CLASS: &str =
    include_str!("../../../../../tests/fixtures/cluster/runtime-class.yaml");
const IMAGE_VOLUME: &str =
    include_str!("../../../../../tests/fixtures/cluster/revision-image-volume.yaml");
const NAMESPACES: &str =
    include_str!("../../../../../tests/fixtures/cluster/namespace-selector.yaml");

/// The objects of this kind.
fn all<T: DeserializeOwned>(text: &str, kind: &str) -> Vec<T> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let of_kind = objects.into_iter().filter(|object| object["kind"] == kind);
    of_kind.map(|object| serde_json::from_value(object).unwrap()).collect()
}

/// A cluster of these objects, beside Nodes that are all Ready.
fn read(text: &str, nodes: Vec<Node>) -> World {
    let mut world = World { nodes, ..World::default() };
    for mut joined in all::<Node>(text, "Node") {
        joined.status = node("").status;
        world.nodes.push(joined);
    }
    let configs = all::<ConfigMap>(text, "ConfigMap").into_iter();
    let config = configs.map(|config| Arc::new(DeploymentConfig::new(config))).next();
    world.cluster = Cluster::new(&world.policy, config);
    for namespace in all::<Namespace>(text, "Namespace") {
        world.cluster.add(&namespace.metadata, &world.policy);
    }
    world.revisions = all(text, "Revision").into_iter().map(Arc::new).collect();
    world.images = all(text, "Image").into_iter().map(Arc::new).collect();
    world.runtime_classes = RuntimeClasses::new(&all::<RuntimeClass>(text, "RuntimeClass"));
    world
}

/// What is created; each once, in order.
fn made(world: &World) -> Vec<String> {
    let mut made = created(&world.plan(1_000));
    made.sort();
    made
}

fn in_namespace(mut revision: Revision, namespace: &str) -> Arc<Revision> {
    revision.metadata.namespace = Some(namespace.into());
    Arc::new(revision)
}

#[test]
fn images_of_volumes_are_warmed_unless_they_are_never_pulled() {
    let world = read(IMAGE_VOLUME, vec![node("a"), node("b")]);
    let expected = ["model:2026-11 on a", "model:2026-11 on b", "scorer:v3 on a", "scorer:v3 on b"];
    assert_eq!(made(&world), expected);
}

#[test]
fn a_volume_keeps_the_tag_whose_digest_its_container_gets() {
    let mut both = revision("r", 100, &["app:v1"]);
    both.spec.volumes = vec![image_volume("app:v1", None), image_volume("app:v1", None)];
    assert_eq!(created(&World::new(&["a"], &[&both], &[]).plan(1_000)), ["app:v1 on a"]);
    resolve(&mut both, '1');
    // On a node that holds the tag with that digest nothing is missing; a new node gets both.
    let holds = holding(warm(&both, "app:v1", "a", 100), '1');
    let world = World::new(&["a", "b"], &[&both], &[holds]);
    let plan = world.plan(1_000);
    assert_eq!(created(&plan), ["app@1 on b", "app:v1 on b"]);
    assert_eq!(deleted(&plan), NOTHING);
    // An Image of the same repository is never a volume's: Knative makes none.
    let mut one = revision("r", 100, &["app:v1"]);
    one.spec.volumes = vec![image_volume("app:data", None)];
    let mut world = World::new(&["a"], &[&one], &[]);
    world.images = vec![Arc::new(knative_image("cut", &by_digest("app", '1'), Some(&one)))];
    assert_eq!(made(&world), ["app:data on a", "app@1 on a"]);
}

#[test]
fn knative_chooses_the_runtime_class_by_label() {
    let sandbox = tainted(labelled(node("vm"), "sandbox", "yes"), "sandbox", "NoSchedule");
    let mut world = read(RUNTIME_CLASS, vec![node("a"), sandbox]);
    // `plain` is chosen for the other, and Pods of a RuntimeClass that does not exist are rejected.
    assert_eq!(made(&world), ["guest:1 on vm"]);
    let mut classes = all::<RuntimeClass>(RUNTIME_CLASS, "RuntimeClass");
    let plain = json!({"metadata": {"name": "plain"}, "handler": "runc"});
    classes.push(serde_json::from_value(plain).unwrap());
    world.runtime_classes = RuntimeClasses::new(&classes);
    assert_eq!(made(&world), ["guest:1 on vm", "own:1 on a"]);
    // What the Revision names itself stays.
    for revision in &mut world.revisions {
        Arc::make_mut(revision).spec.runtime_class_name = Some("plain".into());
    }
    assert_eq!(made(&world), ["guest:1 on a", "own:1 on a"]);
    world.cluster.deployment = None;
    world.revisions = all(RUNTIME_CLASS, "Revision").into_iter().map(Arc::new).collect();
    assert_eq!(made(&world), ["guest:1 on a", "own:1 on a"]);
}

#[test]
fn the_queue_proxy_is_wanted_wherever_a_revision_may_run() {
    let mut world = read(QUEUE_PROXY, vec![node("a")]);
    let everywhere = [
        "queue:v1.15 on a",
        "queue:v1.15 on gpu-1",
        "queue@1 on a",
        "queue@1 on gpu-1",
        "train:1 on a",
        "train:1 on gpu-1",
    ];
    assert_eq!(made(&world), everywhere);
    let plan = world.plan(1_000);
    let of_config: Vec<_> = plan
        .create
        .iter()
        .filter(|one| one.object.spec.image.contains("platform/queue@"))
        .collect();
    assert_eq!(of_config.len(), 2);
    for one in of_config {
        let metadata = &one.object.metadata;
        assert_eq!(metadata.namespace.as_deref(), Some("knative-serving"));
        assert_eq!(one.repair, Repair::Image);
    }

    // The ConfigMap changes: the new image is created, and nobody wants the old one.
    world.apply(&plan, 100);
    let mut config = (**world.cluster.deployment.as_ref().unwrap()).clone();
    config.queue_proxy = "registry.test/platform/queue:v2".into();
    world.cluster.deployment = Some(Arc::new(config.clone()));
    let plan = world.plan(1_000);
    assert_eq!(created(&plan), ["queue:v2 on a", "queue:v2 on gpu-1"]);
    assert_eq!(deleted(&plan), ["queue@1 on a: NotDemanded", "queue@1 on gpu-1: NotDemanded"]);

    // Where both name one image there is one ImageWarm.
    config.queue_proxy = "registry.test/knative/queue:v1.15".into();
    world.cluster.deployment = Some(Arc::new(config));
    world.warms.clear();
    let once = ["queue:v1.15 on a", "queue:v1.15 on gpu-1", "train:1 on a", "train:1 on gpu-1"];
    assert_eq!(made(&world), once);
}

#[test]
fn whose_pods_need_the_queue_proxy() {
    let tainted_too = |change: fn(&mut World)| {
        let mut world = read(QUEUE_PROXY, vec![node("a")]);
        change(&mut world);
        let queue = made(&world).into_iter().filter(|one| one.starts_with("queue")).count();
        assert!([0, 2, 4].contains(&queue), "{queue}");
        queue
    };
    assert_eq!(tainted_too(|_| {}), 4);
    assert_eq!(tainted_too(|world| world.revisions.clear()), 2);
    let reserve = |world: &mut World| route(Arc::make_mut(&mut world.revisions[0]), "reserve");
    assert_eq!(tainted_too(reserve), 2);
    let opted_out = |world: &mut World| assert!(world.cluster.opted_out.insert("ml".into()));
    assert_eq!(tainted_too(opted_out), 4, "its Pods run all the same");
    let out = |world: &mut World| assert!(world.cluster.opted_out.insert("knative-serving".into()));
    assert_eq!(tainted_too(out), 0);
    let paused = |world: &mut World| world.policy.paused = true;
    assert_eq!(tainted_too(paused), 0);
    // Another Knative: that Image is one like any other.
    let elsewhere = |world: &mut World| world.policy.knative_namespace = "other".into();
    let mut world = read(QUEUE_PROXY, vec![node("a")]);
    world.cluster.deployment = None;
    assert_eq!(made(&world)[..2], ["queue:v1.15 on a", "queue:v1.15 on gpu-1"]);
    elsewhere(&mut world);
    assert_eq!(made(&world)[..2], ["queue:v1.15 on a", "train:1 on a"]);
}

#[test]
fn the_queue_proxy_of_the_config_map_is_pulled_as_that_of_the_image() {
    let mut world = read(QUEUE_PROXY, vec![node("a")]);
    let image = Arc::make_mut(&mut world.images[0]);
    image.spec.image_pull_secrets = serde_json::from_value(json!([{"name": "regcred"}])).unwrap();
    let plan = world.plan(1_000);
    let secrets: Vec<_> = plan
        .create
        .iter()
        .filter(|one| one.object.metadata.namespace.as_deref() == Some("knative-serving"))
        .map(|one| one.object.spec.image_pull_secrets[0].name.as_str())
        .collect();
    assert_eq!(secrets, ["regcred"; 4]);
}

#[test]
fn the_config_map_owns_what_it_demands() {
    let mut world = read(QUEUE_PROXY, vec![node("a")]);
    let mut config = (**world.cluster.deployment.as_ref().unwrap()).clone();
    config.metadata.uid = Some("config-uid".into());
    world.cluster.deployment = Some(Arc::new(config));
    let plan = world.plan(1_000);
    let owners: Vec<_> = plan
        .create
        .iter()
        .filter(|one| one.object.spec.image.contains("platform/queue@"))
        .map(|one| one.object.metadata.owner_references.clone().unwrap_or_default())
        .collect();
    assert_eq!(owners.len(), 2);
    for owner in owners.concat() {
        let owner = (&*owner.api_version, &*owner.kind, &*owner.name, &*owner.uid);
        assert_eq!(owner, ("v1", "ConfigMap", "config-deployment", "config-uid"));
    }
}

#[test]
fn the_node_selector_of_a_namespace_counts() {
    let nodes = ["a", "b"].map(|pool| labelled(node(&format!("pool-{pool}")), "pool", pool));
    let mut world = read(NAMESPACES, [nodes.as_slice(), &[node("c")]].concat());
    let one = |name: &str, image: &str, namespace: &str| {
        in_namespace(revision(name, 100, &[image]), namespace)
    };
    let mut contradicts = revision("r-3", 100, &["no:1"]);
    contradicts.spec.node_selector.insert("pool".into(), "b".into());
    world.revisions = vec![
        one("r-1", "a:1", "team-a"),
        one("r-2", "b:1", "team-b"),
        in_namespace(contradicts, "team-a"),
        one("r-4", "c:1", "team-c"),
    ];
    let expected = ["a:1 on pool-a", "b:1 on pool-b", "c:1 on c", "c:1 on pool-a", "c:1 on pool-b"];
    assert_eq!(made(&world), expected);
}
