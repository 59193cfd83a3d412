//! Tests of the fan-out against a fake API server.

#![allow(clippy::unwrap_used)]

use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::Namespace;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::metrics::LeftToLeaderLabels;
use super::*;
use crate::admission::review::Request;
use crate::telemetry::metrics::LabelValue;
use imagewarm_core::api::WARM_KEY;
use imagewarm_core::api::knative::{Configuration, ConfigurationSpec};
use imagewarm_core::policy::Bounds;
use imagewarm_core::policy::bounds::NamespaceSelection;
use imagewarm_core::sample::{image_volume, node, revision, warm};

/// An API server that has the Configurations of some Revisions, answers every POST alike, and
/// records these.
#[derive(Clone, Default)]
struct Server {
    configurations: Arc<Mutex<BTreeMap<String, Configuration>>>,
    paths: Arc<Mutex<Vec<String>>>,
    in_flight: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Server {
    fn client(&self, status: StatusCode, cause: &'static str) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move {
                if request.method() == http::Method::GET {
                    return Ok(server.read(request.uri().path()));
                }
                server.paths.lock().unwrap().push(request.uri().path().to_owned());
                let now = server.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                server.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                server.in_flight.fetch_sub(1, Ordering::SeqCst);
                let body = if status.is_success() {
                    request.into_body().collect_bytes().await.unwrap().to_vec()
                } else {
                    let details = json!({"causes": [{"reason": cause}]});
                    let body = json!({"kind": "Status", "status": "Failure", "code": status.as_u16(),
                        "message": "no", "reason": "X", "details": details});
                    serde_json::to_vec(&body).unwrap()
                };
                let mut response = Response::new(Body::from(body));
                *response.status_mut() = status;
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn read(&self, path: &str) -> Response<Body> {
        let name = path.strip_prefix("/apis/serving.knative.dev/v1/namespaces/ns/configurations/");
        let configurations = self.configurations.lock().unwrap();
        let found = name.and_then(|name| configurations.get(name));
        let (status, body) = match found {
            Some(found) => (StatusCode::OK, serde_json::to_value(found).unwrap()),
            None => (
                StatusCode::NOT_FOUND,
                json!({"kind": "Status", "status": "Failure", "code": 404, "message": "no",
                       "reason": "NotFound"}),
            ),
        };
        let mut response = Response::new(Body::from(body.to_string().into_bytes()));
        *response.status_mut() = status;
        response
    }

    /// The Revision with a Configuration of its own, which exists.
    fn owned(&self, mut revision: Revision) -> Revision {
        let name = format!("of-{}", revision.metadata.name.as_deref().unwrap());
        let mut configuration = Configuration::new(&name, ConfigurationSpec::default());
        let owner = &mut revision.metadata.owner_references.as_mut().unwrap()[0];
        owner.name.clone_from(&name);
        configuration.metadata.uid = Some(owner.uid.clone());
        configuration.metadata.namespace = Some("ns".into());
        configuration.spec.template.spec = revision.spec.clone();
        self.configurations.lock().unwrap().insert(name, configuration);
        revision
    }

    fn posts(&self) -> usize {
        self.paths.lock().unwrap().len()
    }
}

fn namespace(label: Option<&str>) -> PartialObjectMeta<Namespace> {
    let labels = label.map_or(json!({}), |value| json!({WARM_KEY: value}));
    serde_json::from_value(json!({"metadata": {"name": "ns", "labels": labels}})).unwrap()
}

fn stores(nodes: usize, warms: Vec<ImageWarm>, label: Option<&str>) -> Stores {
    let nodes = (0..nodes).map(|n| node(&format!("n{n}"))).collect();
    Stores::fixed(warms, vec![], vec![], nodes, vec![namespace(label)])
}

/// The Revision as admission receives it.
fn admitted(revision: &Revision) -> AdmittedRevision {
    admitted_json(serde_json::to_value(revision).unwrap())
}

fn admitted_json(object: Value) -> AdmittedRevision {
    let metadata = &object["metadata"];
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u", "namespace": metadata["namespace"], "name": metadata["name"],
                    "object": object},
    });
    let body = review.to_string();
    let request = Request::parse(Some("application/json"), body.as_bytes());
    request.unwrap().admitted_revision().unwrap()
}

/// Queues the Revisions, and runs until all are fanned out.
async fn fan_out_all(
    server: &Server,
    client: Client,
    stores: Stores,
    limit: usize,
    revisions: Vec<Revision>,
) {
    let revisions = revisions.into_iter().map(|revision| server.owned(revision)).collect();
    fan_out_within(client, stores, limit, revisions, Bounds::default()).await;
}

async fn fan_out_within(
    client: Client,
    stores: Stores,
    limit: usize,
    revisions: Vec<Revision>,
    bounds: Bounds,
) {
    let args =
        FanOutArgs { fan_out_queue: 10, fan_out_concurrency: limit, ..FanOutArgs::default() };
    let metrics = FanOutMetrics::register(&mut Registry::default());
    let (fan_out, queue) = queue(&args, &metrics);
    let policy = Arc::new(Policy { bounds, ..Policy::default() });
    let worker = FanOutWorker { client, stores, policy, metrics };
    for revision in revisions {
        assert!(fan_out.offer(admitted(&revision)));
    }
    let shutdown = CancellationToken::new();
    shutdown.cancel(); // queued Revisions are completed all the same
    tokio::time::timeout(Duration::from_secs(20), worker.run(args, queue, shutdown)).await.unwrap();
}

#[tokio::test]
async fn creates_every_object_within_the_limit() {
    let server = Server::default();
    let client = server.client(StatusCode::CREATED, "");
    let revisions = vec![revision("r-1", 0, &["a", "b"]), revision("r-2", 0, &["c"])];
    fan_out_all(&server, client, stores(10, vec![], None), 4, revisions).await;
    assert_eq!(server.posts(), 30);
    let most = server.most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most}");
    let path = server.paths.lock().unwrap()[0].clone();
    assert_eq!(path, "/apis/caching.knative.dev/v1alpha1/namespaces/ns/imagewarms");
}

#[tokio::test]
async fn limits_are_respected() {
    let two_images = Bounds { images_per_revision: 2, ..Bounds::default() };
    let seven = Bounds { image_warms_per_namespace: 7, ..Bounds::default() };
    let opt_in = Bounds { namespaces: NamespaceSelection::OptIn, ..Bounds::default() };
    for (bounds, label, expected) in
        [(two_images, None, 20), (seven, None, 7), (opt_in, None, 0), (opt_in, Some("true"), 30)]
    {
        let server = Server::default();
        let client = server.client(StatusCode::CREATED, "");
        let demanding = server.owned(revision("r-1", 0, &["a", "b", "c"]));
        fan_out_within(client, stores(10, vec![], label), 4, vec![demanding], bounds).await;
        assert_eq!(server.posts(), expected, "{bounds:?} {label:?}");
    }
}

#[tokio::test]
async fn a_runtime_class_restricts_the_nodes() {
    let class = serde_json::from_value(json!({
        "metadata": {"name": "one"}, "handler": "h",
        "scheduling": {"nodeSelector": {"kubernetes.io/hostname": "n1"}},
    }));
    let stores = stores(3, vec![], None).with_runtime_classes(vec![class.unwrap()]);
    for (name, expected) in [("one", 1), ("none", 0)] {
        let server = Server::default();
        let client = server.client(StatusCode::CREATED, "");
        let mut demanding = revision("r-1", 0, &["a"]);
        demanding.spec.runtime_class_name = Some(name.into());
        fan_out_all(&server, client, stores.clone(), 4, vec![demanding]).await;
        assert_eq!(server.posts(), expected, "{name}");
    }
}

#[tokio::test]
async fn knatives_choice_of_a_runtime_class_restricts_the_nodes() {
    let class = json!({
        "metadata": {"name": "one"}, "handler": "h",
        "scheduling": {"nodeSelector": {"kubernetes.io/hostname": "n1"}},
    });
    let config = json!({
        "metadata": {"name": "config-deployment", "namespace": "knative-serving"},
        "data": {"runtime-class-name": "one: {selector: {trust: low}}"},
    });
    let stores = stores(3, vec![], None)
        .with_runtime_classes(vec![serde_json::from_value(class).unwrap()])
        .with_deployment_config(serde_json::from_value(config).unwrap());
    // The label counts where the Configuration's template has it, whatever the review says.
    for (in_template, in_review, expected) in [(true, true, 1), (true, false, 1), (false, true, 3)]
    {
        let server = Server::default();
        let client = server.client(StatusCode::CREATED, "");
        let mut demanding = server.owned(revision("r-1", 0, &["a"]));
        if in_template {
            let mut configurations = server.configurations.lock().unwrap();
            let template = &mut configurations.get_mut("of-r-1").unwrap().spec.template;
            template.metadata.labels.insert("trust".into(), "low".into());
        }
        if in_review {
            demanding.metadata.labels.get_or_insert_default().insert("trust".into(), "low".into());
        }
        fan_out_within(client, stores.clone(), 4, vec![demanding], Bounds::default()).await;
        assert_eq!(server.posts(), expected, "{in_template} {in_review}");
    }
}

#[tokio::test]
async fn the_node_selector_of_the_namespace_restricts_the_nodes() {
    for (selector, expected) in [("kubernetes.io/hostname=n1", 1), ("", 3), ("malformed", 0)] {
        let server = Server::default();
        let client = server.client(StatusCode::CREATED, "");
        let annotations = json!({"openshift.io/node-selector": selector});
        let namespace = json!({"metadata": {"name": "ns", "annotations": annotations}});
        let nodes = (0..3).map(|n| node(&format!("n{n}"))).collect();
        let namespace = serde_json::from_value(namespace).unwrap();
        let stores = Stores::fixed(vec![], vec![], vec![], nodes, vec![namespace]);
        fan_out_all(&server, client, stores, 4, vec![revision("r-1", 0, &["a"])]).await;
        assert_eq!(server.posts(), expected, "{selector:?}");
    }
}

#[tokio::test]
async fn images_of_volumes_are_fanned_out_as_the_template_has_them() {
    for (forged, expected) in [(false, 6), (true, 0)] {
        let server = Server::default();
        let client = server.client(StatusCode::CREATED, "");
        let mut demanding = revision("r-1", 0, &["a"]);
        demanding.spec.volumes =
            vec![image_volume("model", None), image_volume("no", Some("Never"))];
        let mut demanding = server.owned(demanding);
        if forged {
            demanding.spec.volumes.push(image_volume("other", None));
        }
        let stores = stores(3, vec![], None);
        fan_out_within(client, stores, 4, vec![demanding], Bounds::default()).await;
        assert_eq!(server.posts(), expected, "forged: {forged}");
    }
}

#[tokio::test]
async fn existing_objects_are_not_sent_and_a_conflict_is_no_failure() {
    let server = Server::default();
    let demanding = revision("r-1", 0, &["a"]);
    let exists = warm(&demanding, "a", "n0", 0);
    let client = server.client(StatusCode::CONFLICT, "");
    fan_out_all(&server, client, stores(3, vec![exists], None), 4, vec![demanding]).await;
    assert_eq!(server.posts(), 2);
}

#[tokio::test]
async fn a_terminating_namespace_stops_the_fan_out() {
    let server = Server::default();
    let client = server.client(StatusCode::FORBIDDEN, "NamespaceTerminating");
    let demanding = revision("r-1", 0, &["a"]);
    fan_out_all(&server, client, stores(100, vec![], None), 2, vec![demanding]).await;
    assert!(server.posts() <= 4, "{}", server.posts());
}

#[tokio::test]
async fn an_opted_out_namespace_gets_nothing() {
    let server = Server::default();
    let client = server.client(StatusCode::CREATED, "");
    let demanding = revision("r-1", 0, &["a"]);
    fan_out_all(&server, client, stores(3, vec![], Some("false")), 2, vec![demanding]).await;
    assert_eq!(server.posts(), 0);
}

#[test]
fn a_full_queue_drops_without_waiting() {
    let args = FanOutArgs { fan_out_queue: 1, ..FanOutArgs::default() };
    let metrics = FanOutMetrics::register(&mut Registry::default());
    let (fan_out, _queue) = queue(&args, &metrics);
    assert!(fan_out.offer(admitted(&revision("r-1", 0, &["a"]))));
    assert!(!fan_out.offer(admitted(&revision("r-2", 0, &["a"]))));
    assert_eq!(metrics.queued.get(), 1);
}

#[tokio::test]
async fn queued_bytes_are_bounded_and_freed_when_received() {
    let args = FanOutArgs { fan_out_queue: 1_000, ..FanOutArgs::default() };
    let metrics = FanOutMetrics::register(&mut Registry::default());
    let (fan_out, mut queue) = queue(&args, &metrics);
    let of_size = |bytes: usize| {
        let mut large = revision("r-1", 0, &["a"]);
        let filler = BTreeMap::from([("filler".to_owned(), "x".repeat(bytes))]);
        large.metadata.annotations = Some(filler);
        admitted(&large)
    };
    assert!(!fan_out.offer(of_size(2 << 20)), "no API server stores it");
    let large = of_size(1 << 20);
    let taken = (0..100).filter(|_| fan_out.offer(large.clone())).count();
    assert_eq!(taken, BYTES_WAITING / (1 << 20) - 1);
    assert!(fan_out.offer(admitted(&revision("r-2", 0, &["a"]))), "a small one still fits");

    let first = queue.receiver.recv().await.unwrap();
    queue.bytes.fetch_sub(first.size(), Ordering::Relaxed);
    assert!(fan_out.offer(large));
}

/// Whoever reaches the port can post these.
#[tokio::test]
async fn what_no_configuration_confirms_is_left_to_the_leader() {
    let server = Server::default();
    let client = server.client(StatusCode::CREATED, "");
    let genuine = server.owned(revision("r-1", 0, &["a"]));
    let metrics = FanOutMetrics::register(&mut Registry::default());
    let (stores, policy) = (stores(3, vec![], None), Arc::default());
    let worker = FanOutWorker { client, stores, policy, metrics: metrics.clone() };
    let genuine = serde_json::to_value(genuine).unwrap();
    let forged = |change: &dyn Fn(&mut Value)| {
        let mut forged = genuine.clone();
        change(&mut forged);
        admitted_json(forged)
    };
    let owner = |field: &'static str, value: &'static str| {
        forged(&move |object| object["metadata"]["ownerReferences"][0][field] = json!(value))
    };
    let cases = [
        (forged(&|object| object["metadata"]["labels"] = json!(7)), LeftToLeader::Undecodable),
        (
            forged(&|object| object["metadata"]["ownerReferences"] = json!([])),
            LeftToLeader::NoOwner,
        ),
        (owner("name", "absent"), LeftToLeader::OwnerNotFound),
        (owner("name", "../../secrets/of-r-1"), LeftToLeader::OwnerNotFound),
        (owner("uid", "guessed"), LeftToLeader::OwnerNotFound),
        (
            forged(&|object| object["metadata"]["namespace"] = json!("victim")),
            LeftToLeader::OwnerNotFound,
        ),
        (
            forged(&|object| object["spec"]["containers"][0]["image"] = json!("huge:v1")),
            LeftToLeader::OtherImages,
        ),
    ];
    for (at, (admitted, reason)) in cases.into_iter().enumerate() {
        let confirmed = worker.confirm(admitted.clone()).await;
        assert_eq!(confirmed.err(), Some(reason), "case {at}");
        worker.fan_out(admitted, &Semaphore::new(4), 4).await;
        let labels = LeftToLeaderLabels { reason: LabelValue(reason) };
        assert!(metrics.left_to_leader.get_or_create(&labels).get() > 0, "case {at}");
    }
    assert_eq!(server.posts(), 0, "nothing is written for any of them");

    // Credentials and placement are the Configuration's, whatever the review says.
    let greedy = forged(&|object| {
        object["spec"]["serviceAccountName"] = json!("admin");
        object["spec"]["imagePullSecrets"] = json!([{"name": "other"}]);
    });
    let confirmed = worker.confirm(greedy.clone()).await.unwrap();
    assert_eq!(confirmed.spec.service_account_name, None);
    assert_eq!(confirmed.spec.image_pull_secrets, []);
    worker.fan_out(greedy, &Semaphore::new(4), 4).await;
    assert_eq!(server.posts(), 3);
}

#[test]
fn the_rate_limit_of_one_namespace_does_not_affect_others() {
    let args = FanOutArgs { fan_out_per_minute: 2, ..FanOutArgs::default() };
    let metrics = FanOutMetrics::register(&mut Registry::default());
    let (fan_out, _queue) = queue(&args, &metrics);
    let offer = |n: &i32| fan_out.offer(admitted(&revision(&format!("r-{n}"), 0, &["a"])));
    let taken = (0..50).filter(offer).count();
    assert_eq!((taken, metrics.rate_limited.get()), (2, 48));
    let mut elsewhere = revision("r-1", 0, &["a"]);
    elsewhere.metadata.namespace = Some("elsewhere".into());
    assert!(fan_out.offer(admitted(&elsewhere)));
}

#[test]
fn a_small_fan_out_writes_few_at_once() {
    let table = [(0, 16, 2), (1, 16, 2), (16, 16, 2), (17, 16, 3), (1000, 16, 16), (1000, 1, 1)];
    for (count, limit, at_once) in table {
        assert_eq!(writes_at_once(count, limit), at_once, "{count} within {limit}");
    }
}
