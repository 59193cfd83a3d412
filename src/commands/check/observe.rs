//! What `imagewarm check` reads. Everything is read on its own: what one read lacks is one result, not all of them.

mod objects;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use http::Request;
use http::header::DATE;
use http_body_util::BodyExt;
use imagewarm_webhook_certs::Description;
use imagewarm_webhook_certs::rotate::certificates;
use imagewarm_webhook_certs::secret::from_secret;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::api::{Api, ListParams, PostParams};
use kube::client::Body;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::clock::wall_clock;
use crate::commands::crds;
use crate::commands::listing::list;
use crate::kubernetes::live;
use crate::kubernetes::request::{RequestError, request};
use imagewarm_core::api::ImageWarm;
use imagewarm_core::api::names;
use imagewarm_core::api::server_version::is_served;
use imagewarm_core::check::{
    Admission, Certificate, ClusterBefore, Crd, Images, Installed, Observed, ObservedBefore, Read,
    ReadFailure, Right, Server, Trouble, WebhookConfiguration,
};

/// Timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(15);
/// ImageWarms that are read for what keeps nodes from pulling, in pages: the largest clusters have twenty times as
/// many, and a fault of a node is on each of its ImageWarms.
const IMAGE_WARMS_READ: usize = 5_000;
/// Longest body of the API server's version.
const VERSION_MAX: usize = 65_536;

const LEASE: &str = "imagewarm-leader";
const CA_CONFIG_MAP: &str = "imagewarm-dispatch-ca";
const CERTIFICATES: &str = "imagewarm-certs";
const CONTROLLER: &str = "imagecontroller";
const WARMER: &str = "imagewarmer";
/// Namespace of the Leases that kubelets renew.
const NODE_LEASES: &str = "kube-node-lease";

/// Reads an installation.
pub(super) async fn installation(client: &Client, namespace: &names::Namespace) -> Observed {
    let server = server(client).await;
    let installed = match &server {
        Ok(_) => Some(Box::new(installed(client, namespace).await)),
        Err(_) => None,
    };
    Observed {
        namespace: namespace.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: wall_clock(),
        server,
        installed,
    }
}

/// Reads a cluster before installation.
pub(super) async fn before(client: &Client, namespace: &names::Namespace) -> ObservedBefore {
    let server = server(client).await;
    let cluster = match &server {
        Ok(_) => {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let (lacking, found, webhooks, crd, nodes, knative) = tokio::join!(
                lacking(client, namespace),
                get(&namespaces, namespace),
                webhooks(client),
                crd(client),
                nodes(client),
                knative(client),
            );
            let namespace = map(found, |found| {
                let labels = found.metadata.labels.unwrap_or_default();
                let level = labels.get("pod-security.kubernetes.io/enforce").cloned();
                (found.metadata.deletion_timestamp.map(|at| at.0), level)
            });
            Some(Box::new(ClusterBefore { lacking, namespace, webhooks, crd, nodes, knative }))
        }
        Err(_) => None,
    };
    ObservedBefore { namespace: namespace.to_string(), server, cluster }
}

async fn installed(client: &Client, namespace: &names::Namespace) -> Installed {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (crd, lease, webhooks, published_ca, serving, admission) = tokio::join!(
        crd(client),
        get(&leases, LEASE),
        webhooks(client),
        published_ca(client, namespace),
        serving_certificate(client, namespace),
        admission(client, namespace),
    );
    let of_warmers = ListParams::default().labels("app.kubernetes.io/name=imagewarmer");
    let node_leases: Api<Lease> = Api::namespaced(client.clone(), NODE_LEASES);
    let (nodes, warmers, troubles, images, clocks, knative) = tokio::join!(
        nodes(client),
        list_all(&pods, of_warmers, objects::warmer_pod),
        troubles(client),
        images(client, namespace),
        list_all(&node_leases, ListParams::default(), objects::node_clock),
        knative(client),
    );
    let mut certificates = match &published_ca {
        Read::Found(pem) => authorities(pem),
        Read::Absent | Read::Failed(_) => Vec::new(),
    };
    certificates.extend(serving);
    Installed {
        crd,
        lease: map(lease, objects::lease),
        webhooks,
        published_ca,
        certificates,
        admission,
        nodes,
        warmers,
        troubles,
        images,
        clocks: map(clocks, |clocks| clocks.into_iter().flatten().collect()),
        knative,
    }
}

/// The version and the clock of the API server.
async fn server(client: &Client) -> Result<Server, String> {
    let ask = async {
        let get = Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
        let answer = client.send(get).await?;
        let (head, body) = answer.into_parts();
        let body = http_body_util::Limited::new(body, VERSION_MAX).collect().await;
        Ok((head, body.map(|body| body.to_bytes())))
    };
    let (head, body) = request(TIMEOUT, ask).await.map_err(|error| error.to_string())?;
    if !head.status.is_success() {
        return Err(format!("GET /version answers {}", head.status));
    }
    let body = body.map_err(|error| format!("GET /version: {error}"))?;
    let info: Info =
        serde_json::from_slice(&body).map_err(|error| format!("GET /version: {error}"))?;
    let date = head.headers.get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    Ok(Server { is_served: is_served(&info.major, &info.minor), version: info.git_version, date })
}

async fn crd(client: &Client) -> Crd {
    let expected = Box::new(crds::crd());
    let name = expected.metadata.name.clone().unwrap_or_default();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    Crd { stored: map(get(&api, &name).await, Box::new), expected }
}

/// Those of both kinds that have webhooks of ours.
async fn webhooks(client: &Client) -> Read<Vec<WebhookConfiguration>> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let (mutating, validating) = tokio::join!(
        list_all(&mutating, ListParams::default(), objects::mutating),
        list_all(&validating, ListParams::default(), objects::validating),
    );
    match (mutating, validating) {
        (Read::Found(mutating), Read::Found(validating)) => {
            Read::Found(mutating.into_iter().chain(validating).flatten().collect())
        }
        (Read::Found(_), other) | (other, _) => {
            map(other, |found| found.into_iter().flatten().collect())
        }
    }
}

async fn published_ca(client: &Client, namespace: &str) -> Read<String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    map(get(&api, CA_CONFIG_MAP).await, |found| {
        found.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default()
    })
}

/// The CAs of a PEM text.
fn authorities(pem: &str) -> Vec<Certificate> {
    let description = |pem| match Description::of_pem(pem) {
        Some(one) => Ok((one.not_before, one.not_after)),
        None => Err("the certificate cannot be read".to_owned()),
    };
    let of = |pem| Certificate { name: "the CA", validity: description(pem), renew_at: None };
    certificates(pem).into_iter().map(of).collect()
}

/// The serving certificate, for users who may read the Secret: private keys are beside it.
async fn serving_certificate(client: &Client, namespace: &str) -> Option<Certificate> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let Read::Found(secret) = get(&api, CERTIFICATES).await else { return None };
    let name = "the serving certificate";
    let checked = from_secret(&secret).and_then(|state| state.bundle.check(&[], wall_clock()));
    Some(match checked {
        Ok(valid) => Certificate {
            name,
            validity: Ok((valid.not_before, valid.not_after)),
            renew_at: Some(valid.renew_at),
        },
        Err(fault) => Certificate { name, validity: Err(fault.to_string()), renew_at: None },
    })
}

/// Asks admission about a good and a bad ImageWarm. Neither is stored.
async fn admission(client: &Client, namespace: &str) -> Admission {
    let api: Api<ImageWarm> = Api::namespaced(client.clone(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let (good, bad) =
        (objects::probe(&[]), objects::probe(&["imagewarm-check-has-no-such-secret"]));
    let good = match request(TIMEOUT, api.create(&dry_run, &good)).await {
        Ok(stored) => Ok(stored.spec.image),
        // RBAC's refusal names no webhook and no quota.
        Err(error) if error.status_code() == Some(403) && is_of_rbac(&error) => {
            let what = format!("create ImageWarms in the namespace {namespace}");
            return Admission::Unread(ReadFailure::Forbidden { what });
        }
        Err(error) => Err(error.to_string()),
    };
    let bad =
        request(TIMEOUT, api.create(&dry_run, &bad)).await.err().map(|error| error.to_string());
    Admission::Answered { good, bad }
}

fn is_of_rbac(error: &RequestError) -> bool {
    error.to_string().contains(" cannot create resource ")
}

async fn nodes(client: &Client) -> Read<Vec<imagewarm_core::check::Node>> {
    let api: Api<Node> = Api::all(client.clone());
    list_all(&api, ListParams::default(), objects::node).await
}

/// What keeps nodes from pulling, by the first ImageWarms of all namespaces.
async fn troubles(client: &Client) -> Read<Vec<Trouble>> {
    let api: Api<ImageWarm> = Api::all(client.clone());
    let mut params = ListParams::default().limit(500);
    let (mut found, mut read) = (BTreeMap::new(), 0);
    loop {
        let page = match request(TIMEOUT, api.list(&params)).await {
            Ok(page) => page,
            Err(error) => return failed("list ImageWarms of all namespaces".into(), error),
        };
        read += page.items.len();
        for trouble in page.items.iter().filter_map(objects::trouble) {
            found.entry((trouble.node.clone(), trouble.reason)).or_insert(trouble);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) if read < IMAGE_WARMS_READ => params = params.continue_token(&token),
            _ => return Read::Found(found.into_values().collect()),
        }
    }
}

async fn images(client: &Client, namespace: &str) -> Read<Images> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let (controller, warmer) =
        tokio::join!(get(&deployments, CONTROLLER), get(&daemon_sets, WARMER));
    match (controller, warmer) {
        (Read::Found(controller), Read::Found(warmer)) => {
            Read::Found(objects::images(controller, warmer))
        }
        (Read::Failed(failure), _) | (_, Read::Failed(failure)) => Read::Failed(failure),
        _ => Read::Absent,
    }
}

async fn knative(client: &Client) -> Read<()> {
    match live::knative_is_served(client).await {
        Ok(true) => Read::Found(()),
        Ok(false) => Read::Absent,
        Err(error) => {
            let what = "list the resources of serving.knative.dev".into();
            Read::Failed(ReadFailure::Error { what, error: error.to_string() })
        }
    }
}

/// The rights of installation that the user lacks.
async fn lacking(client: &Client, namespace: &str) -> Result<Vec<Right>, ReadFailure> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut lacking = Vec::new();
    for right in Right::ALL {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("create".into()),
                    group: Some(right.group.into()),
                    resource: Some(right.resource.into()),
                    namespace: right.is_namespaced.then(|| namespace.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        match request(TIMEOUT, api.create(&PostParams::default(), &review)).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => lacking.push(right),
            Err(error) => {
                return Err(failure("review your own rights".into(), error));
            }
        }
    }
    Ok(lacking)
}

async fn get<K>(api: &Api<K>, name: &str) -> Read<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match request(TIMEOUT, api.get_opt(name)).await {
        Ok(Some(found)) => Read::Found(found),
        Ok(None) => Read::Absent,
        Err(error) => failed(format!("get {} {name}", K::kind(&())), error),
    }
}

async fn list_all<K, T>(api: &Api<K>, params: ListParams, read: impl Fn(K) -> T) -> Read<Vec<T>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut all = Vec::new();
    match list(api, params, |object| all.push(read(object))).await {
        Ok(()) => Read::Found(all),
        Err(error) => failed(format!("list {}", K::plural(&())), error),
    }
}

fn map<T, U>(read: Read<T>, with: impl FnOnce(T) -> U) -> Read<U> {
    match read {
        Read::Found(found) => Read::Found(with(found)),
        Read::Absent => Read::Absent,
        Read::Failed(failure) => Read::Failed(failure),
    }
}

fn failed<T>(what: String, error: RequestError) -> Read<T> {
    match error.status_code() {
        // The type is not served.
        Some(404) => Read::Absent,
        _ => Read::Failed(failure(what, error)),
    }
}

fn failure(what: String, error: RequestError) -> ReadFailure {
    match error.status_code() {
        Some(403) => ReadFailure::Forbidden { what },
        _ => ReadFailure::Error { what, error: error.to_string() },
    }
}

/// When the API server stored what the object's renewing writer wrote last.
fn stored_at(lease: &Lease) -> Option<Timestamp> {
    let entries = lease.metadata.managed_fields.iter().flatten();
    entries.filter_map(|entry| Some(entry.time.as_ref()?.0)).max()
}
