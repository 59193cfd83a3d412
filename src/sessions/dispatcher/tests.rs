//! Tests of a real warmer against a real dispatch server, over TLS on loopback; only the runtime,
//! the token review and the API server are fakes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;

use clap::Parser;
use imagewarm_webhook_certs::{Bundle, Lifetimes, Resolver};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::caches::{Store, Synced};
use crate::kubernetes::token_review::TokenReviewer;
use crate::kubernetes::token_review::{TokenError, WarmerIdentity};
use crate::runtime::fake::{FakeRuntime, Script};
use crate::sessions::DispatchServer;
use crate::sessions::credentials::CredentialFuture;
use crate::sessions::status_writer::SinkFuture;
use crate::warmer::{Warmer, WarmerArgs, WarmerMetrics};
use imagewarm_core::api::{
    CachedImageWarm, ImageWarm, ImageWarmSpec, ImageWarmStatus, Reason, Revision,
};
use imagewarm_core::demand::PullIdentity;
use imagewarm_core::image::Reference;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The token is the node's name, and perhaps `@` and its uid; one that does not begin with `node-`
/// is rejected.
struct NamedByToken;

impl TokenReviewer for NamedByToken {
    fn review<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<WarmerIdentity, TokenError>> + Send + 'a>> {
        Box::pin(async move {
            match token {
                "" => Err(TokenError::Missing),
                token if token.starts_with("node-") => {
                    let (node, uid) = token.split_once('@').unwrap_or((token, ""));
                    let node_uid = Some(Uid::from(uid)).filter(|uid| !uid.is_empty());
                    Ok(WarmerIdentity { node: node.into(), node_uid, expires: None })
                }
                _ => Err(TokenError::WrongAudience),
            }
        })
    }
}

/// An API server of one type: stores statuses, sends watch events.
struct Cluster {
    store: Store<CachedImageWarm>,
    changes: broadcast::Sender<Change>,
    /// Every status that was written: name, reason.
    written: Mutex<Vec<(String, String)>>,
    failures: Mutex<VecDeque<ApplyError>>,
    nodes: Store<NodeObject>,
    revisions: Store<Revision>,
}

impl Cluster {
    fn new() -> Arc<Self> {
        let (changes, _) = broadcast::channel(256);
        Arc::new(Cluster {
            store: Store::default(),
            changes,
            written: Mutex::default(),
            failures: Mutex::default(),
            revisions: Store::default(),
            nodes: ["node-a", "node-b"].map(node_object).into_iter().collect(),
        })
    }

    fn apply(&self, warm: ImageWarm) {
        let warm = Arc::new(CachedImageWarm::from(warm));
        self.store.put(warm.clone());
        let _ = self.changes.send(Change::ImageWarm(warm));
    }

    fn delete(&self, name: &str) {
        let warm = self.store.take("default", name).unwrap();
        let _ = self.changes.send(Change::ImageWarmDeleted(warm));
    }

    fn assign(&self, name: &str, node: &str, image: &str) {
        let spec = ImageWarmSpec {
            image: image.into(),
            node_name: node.into(),
            ..ImageWarmSpec::default()
        };
        let mut warm = ImageWarm::new(name, spec);
        warm.metadata.uid = Some(format!("uid-{name}"));
        warm.metadata.namespace = Some("default".into());
        warm.metadata.resource_version = Some("0".into());
        self.apply(warm);
    }

    /// A Revision that is created in the next second: later than every attempt so far.
    fn create_revision(&self, name: &str, image: &str) {
        let created = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
        let revision = serde_json::from_value(serde_json::json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
            "spec": {"containers": [{"image": image}]},
        }));
        self.revisions.put(Arc::new(revision.unwrap()));
        let _ = self.changes.send(Change::Revision("default".into(), name.into()));
    }

    fn get(&self, name: &str) -> Option<Arc<CachedImageWarm>> {
        self.store.get("default", name)
    }

    async fn wait_for(&self, name: &str, reason: Reason) -> Arc<CachedImageWarm> {
        until(&format!("{name} is {reason}"), || {
            self.get(name).filter(|warm| warm.reason() == Some(reason))
        })
        .await
    }

    fn stores(&self) -> Stores {
        let synced = Synced { own: true, revisions: true, images: true, ..Synced::default() };
        Stores {
            image_warms: self.store.clone(),
            revisions: self.revisions.clone(),
            images: Store::default(),
            nodes: self.nodes.clone(),
            namespaces: Store::default(),
            runtime_classes: Store::default(),
            deployment_config: Store::default(),
            changes: self.changes.clone(),
            synced: watch::channel(synced).1,
        }
    }
}

type NodeObject = k8s_openapi::api::core::v1::Node;

fn node_object(name: &str) -> NodeObject {
    let mut node = NodeObject::default();
    node.metadata.name = Some(name.into());
    node.metadata.uid = Some(format!("uid-of-{name}"));
    node
}

impl StatusSink for Cluster {
    fn write<'a>(
        &'a self,
        warm: &'a ImageWarm,
        status: &'a ImageWarmStatus,
    ) -> SinkFuture<'a, ImageWarm> {
        Box::pin(async move {
            if let Some(error) = self.failures.lock().unwrap().pop_front() {
                return Err(error);
            }
            let name = warm.metadata.name.clone().unwrap();
            let stored = self.get(&name).ok_or(ApplyError::NotFound)?;
            if Some(&*stored.resource_version) != warm.metadata.resource_version.as_deref() {
                return Err(ApplyError::Conflict);
            }
            let mut next = warm.clone();
            next.status = Some(status.clone());
            let version: u64 = warm.metadata.resource_version.as_ref().unwrap().parse().unwrap();
            next.metadata.resource_version = Some((version + 1).to_string());
            self.written.lock().unwrap().push((name, next.reason().unwrap().to_string()));
            self.apply(next.clone());
            Ok(next)
        })
    }

    fn read<'a>(&'a self, warm: &'a ImageWarm) -> SinkFuture<'a, ImageWarm> {
        Box::pin(async move {
            let name = warm.metadata.name.as_deref().unwrap();
            let stored = self.get(name).ok_or(ApplyError::NotFound)?;
            Ok(stored.to_image_warm())
        })
    }
}

/// A wrong credential before a valid one for `private`; none for `no-secret`.
struct TwoCredentials;

impl CredentialSource for TwoCredentials {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: &'a [PullIdentity],
        image: &'a Reference,
    ) -> CredentialFuture<'a> {
        let credential = |username: &str| Credential {
            username: username.into(),
            password: "secret".into(),
            identity_token: String::new(),
            registry_token: String::new(),
        };
        Box::pin(async move {
            match image.path() {
                "no-secret" => Err(Refusal {
                    reason: Reason::SecretMissing,
                    message: "Secret `regcred` does not exist".into(),
                }),
                "private" => Ok(vec![credential("wrong"), credential("right")]),
                _ => Ok(vec![]),
            }
        })
    }
}

/// Certificates in a folder of their own.
struct Authority {
    folder: tempfile::TempDir,
    resolver: Arc<Resolver>,
}

impl Authority {
    fn new() -> Self {
        let names = ["dispatch.test".to_owned()];
        let bundle = Bundle::issue(&names, Lifetimes::default(), jiff::Timestamp::now()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), &bundle.ca_cert_pem).unwrap();
        let resolver = Arc::new(Resolver::default());
        resolver.swap(bundle.certified_key().unwrap());
        Authority { folder, resolver }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn warmer_args(&self, server: SocketAddr, node: &str) -> WarmerArgs {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: WarmerArgs,
        }
        std::fs::write(self.file(node), node).unwrap();
        let file = |name: &str| self.file(name).display().to_string();
        Line::parse_from([
            "warmer",
            "--dispatch-server",
            &format!("https://{server}"),
            "--dispatch-server-name",
            "dispatch.test",
            "--dispatch-ca-file",
            &file("ca.crt"),
            "--token-file",
            &file(node),
            "--presence-interval",
            "1s",
            // However much disk space this machine has.
            "--keep-free-disk",
            "0%",
            "--assumed-image-size",
            "0",
        ])
        .args
    }
}

/// A running replica.
struct Replica {
    address: SocketAddr,
    leader: watch::Sender<Leadership>,
    connected: watch::Receiver<Arc<BTreeSet<NodeName>>>,
    metrics: DispatchMetrics,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Replica {
    async fn start(cluster: &Arc<Cluster>, authority: &Authority, view: Leadership) -> Self {
        Self::with_limit(cluster, authority, view, 500).await
    }

    async fn with_limit(
        cluster: &Arc<Cluster>,
        authority: &Authority,
        view: Leadership,
        registry_pulls: usize,
    ) -> Self {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: DispatchArgs,
        }
        let registry_pulls = registry_pulls.into();
        let args = DispatchArgs { registry_pulls, ..Line::parse_from(["controller"]).args };
        let (leader, leader_view) = watch::channel(view);
        let parts = Parts { sink: cluster.clone(), credentials: Arc::new(TwoCredentials) };
        let metrics = DispatchMetrics::default();
        let dispatcher = Dispatcher::with_parts(
            parts,
            cluster.stores(),
            Policy::default(),
            leader_view,
            args,
            metrics.clone(),
        );
        let server = DispatchServer {
            inputs: dispatcher.inputs(),
            leader: dispatcher.leader.clone(),
            reviewer: Arc::new(NamedByToken),
            certificates: authority.resolver.clone(),
            args: dispatcher.args.clone(),
            metrics: metrics.clone(),
            proof: Duration::from_secs(1),
        };
        let connected = dispatcher.connected();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatcher.run(shutdown.clone()));
        let end = shutdown.clone();
        tasks.spawn(async move { server.serve(listener, end).await.unwrap() });
        Replica { address, leader, connected, metrics, shutdown, tasks }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let end = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(4), end).await.expect("a replica ends soon");
    }
}

fn leads() -> Leadership {
    Leadership { leading: true, leader_address: None }
}

struct Node {
    connected: watch::Receiver<bool>,
    metrics: WarmerMetrics,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Node {
    fn start(authority: &Authority, server: SocketAddr, name: &str, runtime: &FakeRuntime) -> Self {
        let args = authority.warmer_args(server, name);
        let metrics = WarmerMetrics::default();
        let warmer =
            Warmer::with_runtime(Arc::new(runtime.clone()), &args, metrics.clone()).unwrap();
        let connected = warmer.connected();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let run = warmer.run(shutdown.clone());
        tasks.spawn(async move { run.await.unwrap() });
        Node { connected, metrics, shutdown, tasks }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = check() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(TIMEOUT, wait).await {
        Ok(found) => found,
        Err(_) => panic!("timed out: {what}"),
    }
}

#[tokio::test]
async fn an_assignment_becomes_a_pull_and_a_status() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let runtime = FakeRuntime::default()
        .with("r.test/private:v1", Script::Needs("right"))
        .with("r.test/no-secret:v1", Script::Needs("right"));
    cluster.assign("before", "node-a", "r.test/app:v1");
    cluster.assign("elsewhere", "node-b", "r.test/app:v1");
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let node = Node::start(&authority, replica.address, "node-a", &runtime);
    let before = cluster.wait_for("before", Reason::Pulled).await;
    let status = before.status.clone().unwrap();
    assert_eq!(status.digest.as_deref(), Some(crate::runtime::fake::DIGEST));
    assert!(status.took.is_some() && status.attempts == Some(1));
    assert_eq!(**replica.connected.borrow(), ["node-a".into()].into());
    assert!(*node.connected.borrow());

    cluster.assign("private", "node-a", "r.test/private:v1");
    cluster.wait_for("private", Reason::Pulled).await;
    cluster.assign("no-secret", "node-a", "r.test/no-secret:v1");
    let refused = cluster.wait_for("no-secret", Reason::SecretMissing).await;
    assert!(refused.ready().unwrap().message.contains("regcred"));
    let calls = runtime.calls().lock().unwrap().clone();
    assert_eq!(
        calls,
        [
            "r.test/app:v1 ()",
            "r.test/private:v1 (wrong)",
            "r.test/private:v1 (right)",
            "r.test/no-secret:v1 ()",
        ]
    );
    assert_eq!(cluster.get("elsewhere").unwrap().status, None);

    // The runtime loses the image: the next presence check notices, reports, and pulls it again.
    runtime.lose("r.test/app:v1");
    until("the image is lost and found", || {
        let written = cluster.written.lock().unwrap();
        let of_it: Vec<_> = written.iter().filter(|(name, _)| name == "before").collect();
        (of_it.len() >= 3).then(|| assert_eq!(of_it[1].1, "Removed"))
    })
    .await;
    cluster.wait_for("before", Reason::Pulled).await;

    // A new Revision names the same tag: the registry is checked once more.
    cluster.create_revision("rev-2", "r.test/app:v1");
    until("the tag is checked", || {
        let status = cluster.get("before")?.status.clone()?;
        (status.checked_for.as_deref() == Some("/rev-2")).then_some(())
    })
    .await;
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn a_warmer_finds_the_leader_and_follows_it() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let runtime = FakeRuntime::default().with("r.test/slow:v1", Script::Slow(30));
    let first = Replica::start(&cluster, &authority, leads()).await;
    let elsewhere = Leadership { leading: false, leader_address: Some(first.address.to_string()) };
    let second = Replica::start(&cluster, &authority, elsewhere).await;
    cluster.assign("slow", "node-a", "r.test/slow:v1");
    let node = Node::start(&authority, second.address, "node-a", &runtime);
    let connected_to = |replica: &Replica| replica.connected.borrow().contains("node-a");
    until("the leader is found", || connected_to(&first).then_some(())).await;
    assert!(!connected_to(&second));
    until("the pull runs", || (runtime.calls().lock().unwrap().len() == 1).then_some(())).await;

    // Leadership moves while the pull runs: the pull continues, and the new leader gets its
    // outcome.
    first.leader.send_replace(Leadership {
        leading: false,
        leader_address: Some(second.address.to_string()),
    });
    second.leader.send_replace(leads());
    until("the new leader is found", || connected_to(&second).then_some(())).await;
    assert!(!connected_to(&first));
    cluster.wait_for("slow", Reason::Pulled).await;
    assert_eq!(runtime.calls().lock().unwrap().len(), 1, "nothing is pulled twice");
    first.stop().await;
    second.stop().await;
    let mut connected = node.connected.clone();
    let closed = tokio::time::timeout(TIMEOUT, connected.wait_for(|connected| !connected));
    assert!(closed.await.is_ok(), "readiness follows the stream");
    node.stop().await;
}

#[tokio::test]
async fn a_warmer_waits_for_a_leader_where_none_is_known() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let runtime = FakeRuntime::default();
    for becomes_leader in [true, false] {
        let first = Replica::start(&cluster, &authority, Leadership::default()).await;
        let second = Replica::start(&cluster, &authority, leads()).await;
        let node = Node::start(&authority, first.address, "node-a", &runtime);
        let waits = || (first.metrics.waiting_for_leader.get() == 1).then_some(());
        until("the warmer waits", waits).await;
        assert_eq!(first.metrics.streams_ended(StreamEnd::NotLeading), 0);
        let leader = if becomes_leader {
            first.leader.send_replace(leads());
            &first
        } else {
            let leader_address = Some(second.address.to_string());
            first.leader.send_replace(Leadership { leading: false, leader_address });
            &second
        };
        let connected = || leader.connected.borrow().contains("node-a").then_some(());
        until("the warmer is connected", connected).await;
        // It asked no more than once where it waited.
        let asked = first.metrics.streams_ended(StreamEnd::NotLeading);
        assert_eq!(asked, u64::from(!becomes_leader));
        assert_eq!(first.metrics.waiting_for_leader.get(), 0);
        node.stop().await;
        first.stop().await;
        second.stop().await;
    }
}

#[tokio::test]
async fn a_replica_that_leads_again_restores_its_assignments() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let runtime = FakeRuntime::default().with("r.test/stuck:v1", Script::Stuck);
    let replica = Replica::start(&cluster, &authority, leads()).await;
    cluster.assign("app", "node-a", "r.test/app:v1");
    cluster.assign("stuck", "node-a", "r.test/stuck:v1");
    let node = Node::start(&authority, replica.address, "node-a", &runtime);
    cluster.wait_for("app", Reason::Pulled).await;
    replica.leader.send_replace(Leadership::default());
    until("the stream is closed", || replica.connected.borrow().is_empty().then_some(())).await;
    cluster.delete("stuck");
    cluster.assign("new", "node-a", "r.test/new:v1");
    replica.leader.send_replace(leads());
    cluster.wait_for("new", Reason::Pulled).await;
    let written = cluster.written.lock().unwrap().clone();
    let of_app: Vec<_> = written.iter().filter(|(name, _)| name == "app").collect();
    assert_eq!(of_app.len(), 1, "a lost stream changes no status: {written:?}");
    assert_eq!(runtime.calls().lock().unwrap().len(), 3);
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn an_assignment_deleted_while_it_waits_blocks_no_other() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let runtime = FakeRuntime::default().with("r.test/stuck:v1", Script::Stuck);
    let replica = Replica::with_limit(&cluster, &authority, leads(), 1).await;
    cluster.assign("stuck", "node-a", "r.test/stuck:v1");
    let node = Node::start(&authority, replica.address, "node-a", &runtime);
    until("a pull runs", || (runtime.calls().lock().unwrap().len() == 1).then_some(())).await;
    cluster.assign("first", "node-a", "r.test/app:v1");
    let waiting = || (replica.metrics.pulls_waiting.get() == 1).then_some(());
    until("the first waits for its permit", waiting).await;
    cluster.assign("second", "node-a", "r.test/app:v1");
    let assigned = || (node.metrics.assignments.get() == 3).then_some(());
    until("the second waits on the node for the first", assigned).await;
    assert_eq!(replica.metrics.pulls_waiting.get(), 1);
    cluster.delete("first");
    cluster.delete("stuck");
    cluster.wait_for("second", Reason::Pulled).await;
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn the_last_statuses_are_written_when_leadership_ends_at_shutdown() {
    for _ in 0..4 {
        let (cluster, authority) = (Cluster::new(), Authority::new());
        cluster.failures.lock().unwrap().push_back(ApplyError::Retryable("busy".into()));
        cluster.assign("app", "node-a", "r.test/app:v1");
        let replica = Replica::start(&cluster, &authority, leads()).await;
        let node = Node::start(&authority, replica.address, "node-a", &FakeRuntime::default());
        let failed = || cluster.failures.lock().unwrap().is_empty().then_some(());
        until("a write failed", failed).await;
        replica.shutdown.cancel();
        replica.leader.send_replace(Leadership::default());
        replica.stop().await;
        assert_eq!(cluster.get("app").unwrap().reason(), Some(Reason::Pulled));
        node.stop().await;
    }
}

#[tokio::test]
async fn a_warmer_is_rejected_before_its_node_exists() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    cluster.assign("nowhere", "node-z", "r.test/app:v1");
    cluster.assign("app", "node-a", "r.test/app:v1");
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let runtime = FakeRuntime::default();
    let nowhere = Node::start(&authority, replica.address, "node-z", &runtime);
    let node = Node::start(&authority, replica.address, "node-a", &FakeRuntime::default());
    cluster.wait_for("app", Reason::Pulled).await;
    cluster.assign("again", "node-a", "r.test/again:v1");
    cluster.wait_for("again", Reason::Pulled).await;
    assert!(!*nowhere.connected.borrow() && runtime.calls().lock().unwrap().is_empty());
    assert_eq!(**replica.connected.borrow(), ["node-a".into()].into());
    // Its Node appears, and its warmer reconnects.
    cluster.nodes.put(Arc::new(node_object("node-z")));
    cluster.wait_for("nowhere", Reason::Pulled).await;
    nowhere.stop().await;
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn a_node_that_leaves_or_is_replaced_loses_its_stream() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    cluster.assign("stuck", "node-b", "r.test/stuck:v1");
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let runtime = FakeRuntime::default().with("r.test/stuck:v1", Script::Stuck);
    let node = Node::start(&authority, replica.address, "node-b", &runtime);
    let is_connected = |replica: &Replica| replica.connected.borrow().contains("node-b");
    cluster.wait_for("stuck", Reason::Pulling).await;

    let mut replaced = node_object("node-b");
    replaced.metadata.uid = Some("another".into());
    cluster.nodes.put(Arc::new(replaced));
    let _ = cluster.changes.send(Change::Node("node-b".into()));
    until("the stream has ended", || (!is_connected(&replica)).then_some(())).await;
    // It is itself again: an unchanged Node ends nothing.
    cluster.nodes.put(Arc::new(node_object("node-b")));
    let _ = cluster.changes.send(Change::Node("node-b".into()));
    until("it is connected again", || is_connected(&replica).then_some(())).await;

    cluster.nodes.take("", "node-b").unwrap();
    let _ = cluster.changes.send(Change::Node("node-b".into()));
    until("the stream has ended", || (!is_connected(&replica)).then_some(())).await;
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn a_token_of_a_node_that_was_made_anew_is_rejected() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    cluster.assign("app", "node-a", "r.test/app:v1");
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let runtime = FakeRuntime::default();
    let node = Node::start(&authority, replica.address, "node-a@uid-of-another", &runtime);
    let rejected_twice = || (node.metrics.stream_failures.get() >= 2).then_some(());
    until("the warmer was rejected, and again", rejected_twice).await;
    assert!(!*node.connected.borrow() && runtime.calls().lock().unwrap().is_empty());
    // Its Pod is made anew, too.
    std::fs::write(authority.file("node-a@uid-of-another"), "node-a@uid-of-node-a").unwrap();
    cluster.wait_for("app", Reason::Pulled).await;
    node.stop().await;
    replica.stop().await;
}

/// The connection of a warmer outlives the time that others have to authenticate.
#[tokio::test]
async fn an_authenticated_connection_stays_and_a_silent_one_is_closed() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let node = Node::start(&authority, replica.address, "node-a", &FakeRuntime::default());
    until("the warmer is connected", || (*node.connected.borrow()).then_some(())).await;
    // It comes later, so the warmer's time is over when it is closed.
    let mut silent = tokio::net::TcpStream::connect(replica.address).await.unwrap();
    let mut byte = [0];
    let closed = tokio::io::AsyncReadExt::read(&mut silent, &mut byte);
    let closed = tokio::time::timeout(TIMEOUT, closed).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    cluster.assign("app", "node-a", "r.test/app:v1");
    cluster.wait_for("app", Reason::Pulled).await;
    assert_eq!(node.metrics.stream_failures.get(), 0, "over its first stream");
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn strangers_are_rejected() {
    let (cluster, authority) = (Cluster::new(), Authority::new());
    cluster.assign("app", "node-a", "r.test/app:v1");
    let replica = Replica::start(&cluster, &authority, leads()).await;
    let runtime = FakeRuntime::default();
    let stranger = Node::start(&authority, replica.address, "stranger", &runtime);
    let other_ca = Authority::new();
    let mistrustful = Node::start(&other_ca, replica.address, "node-a", &runtime);
    for (name, node) in [("stranger", &stranger), ("mistrustful", &mistrustful)] {
        let failed_twice = || (node.metrics.stream_failures.get() >= 2).then_some(());
        until(&format!("{name} was rejected, and again"), failed_twice).await;
    }
    assert!(!*stranger.connected.borrow() && !*mistrustful.connected.borrow());
    assert!(replica.connected.borrow().is_empty());
    // The token file is read again at each attempt.
    std::fs::write(authority.file("stranger"), "node-a\n").unwrap();
    cluster.wait_for("app", Reason::Pulled).await;
    stranger.stop().await;
    mistrustful.stop().await;
    replica.stop().await;
}
