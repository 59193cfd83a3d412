//! Carries the script out on the development cluster, and looks at everything in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use futures::future::try_join_all;
use imagewarm_core::api::knative::Configuration;
use imagewarm_core::api::{ImageWarm, KnativeImage, Revision};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use xtask::cluster::{ApiProxy, ApiServer, Cluster, Imagewarm, Knative, NAMESPACE, Options, USER};
use xtask::images::TestImage;
use xtask::process::Signal;

use crate::fake_nodes::{Catalog, FakeNode, connected};
use crate::oracle::{self, Observed, TAINT};
use crate::script::{Action, NAMESPACES, NodeChange, PRIVATE, PUBLIC, Pick, SECRET, SecretIs};

const BINARY: &str = env!("CARGO_BIN_EXE_imagewarm");
const CONTROLLER_FLAGS: [&str; 8] = [
    "--collect-grace",
    "3s",
    "--waiting-after",
    "3s",
    "--reserve-delay",
    "2s",
    "--log-level",
    "info,imagewarm=debug",
];
const WARMER_FLAGS: [&str; 2] = ["--presence-interval", "5s"];
/// By how many seconds the wall clock of each is off.
const CONTROLLER_CLOCKS: [i64; 2] = [3600, -3600];
const WARMER_CLOCKS: [i64; 3] = [-3600, 0, 3600];
/// What each call to a slow API server takes longer.
const LATENCY: Duration = Duration::from_millis(500);
const LEASE: &str = "imagewarm-leader";
const READY: Duration = Duration::from_secs(60);

/// The cluster and what was done to it.
pub struct World {
    pub cluster: Cluster,
    proxy: ApiProxy,
    api_server: Option<ApiServer>,
    controllers: BTreeMap<usize, Arc<Imagewarm>>,
    warmers: BTreeMap<usize, Arc<Imagewarm>>,
    fake: BTreeMap<usize, FakeNode>,
    catalog: Arc<Catalog>,
    /// By pick, as a user writes it.
    names: BTreeMap<Pick, String>,
    secrets: BTreeMap<String, SecretIs>,
    by_hand: BTreeSet<(String, String, String, String)>,
}

impl World {
    /// Starts everything, with so many fake nodes beside three real ones.
    pub async fn start(fake_nodes: usize) -> Result<World> {
        let options =
            Options { nodes: 3, tls_registry: true, knative: Knative::StandIn, deploy: true };
        let cluster = Cluster::start(options).await?;
        let proxy = cluster.api_proxy().await?;
        let (catalog, names) = fill_registries(&cluster).await?;
        let mut world = World {
            cluster,
            proxy,
            api_server: None,
            controllers: BTreeMap::new(),
            warmers: BTreeMap::new(),
            fake: BTreeMap::new(),
            catalog: Arc::new(catalog),
            names,
            secrets: NAMESPACES.iter().map(|name| (name.to_string(), SecretIs::Absent)).collect(),
            by_hand: BTreeSet::new(),
        };
        world.start_api_server().await?;
        for controller in 0..2 {
            world.start_controller(controller).await?;
        }
        for controller in world.controllers.values() {
            wait_ready(controller).await?;
        }
        let namespaces: Api<Namespace> = Api::all(world.cluster.client());
        for name in NAMESPACES {
            let body = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            namespaces.create(&PostParams::default(), &body).await?;
        }
        for node in 1..=3 {
            world.start_warmer(node).await?;
        }
        let start = |node: usize| {
            let (cluster, catalog) = (&world.cluster, &world.catalog);
            async move { anyhow::Ok((node, fake_node(cluster, catalog, node).await?)) }
        };
        let started = try_join_all((0..fake_nodes).map(start)).await?;
        world.fake = started.into_iter().collect();
        Ok(world)
    }

    /// Does it. What the cluster refuses just now (a webhook without any controller) is no fault.
    pub async fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::CreateRevision { namespace, name, images, pool } => {
                let images: Vec<&String> = images.iter().map(|pick| &self.names[pick]).collect();
                let containers: Vec<_> = images
                    .iter()
                    .enumerate()
                    .map(|(at, image)| json!({"name": format!("c{at}"), "image": image}))
                    .collect();
                let mut body = json!({
                    "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                    "metadata": {
                        "name": name, "labels": {"serving.knative.dev/routingState": "active"},
                    },
                    "spec": {"containers": containers, "imagePullSecrets": [{"name": SECRET}]},
                });
                if let Some(pool) = pool {
                    body["spec"]["nodeSelector"] = json!({"pool": pool.to_string()});
                }
                let owner = self.configuration(*namespace, name, &body["spec"]).await?;
                body["metadata"]["ownerReferences"] = json!([owner]);
                self.create::<Revision>(*namespace, body).await
            }
            Action::DeleteRevision { namespace, name } => {
                self.delete::<Revision>(*namespace, name).await
            }
            Action::Route { namespace, name, active } => {
                let state = if *active { "active" } else { "reserve" };
                let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let body = json!({"metadata": {
                    "labels": {"serving.knative.dev/routingState": state},
                    "annotations": {"serving.knative.dev/routingStateModified": now},
                }});
                self.patch::<Revision>(*namespace, name, body).await
            }
            Action::CreateImage { namespace, name, image, revision } => {
                self.create_image(*namespace, name, *image, revision.as_deref()).await
            }
            Action::ChangeImage { namespace, name, image } => {
                let body = json!({"spec": {"image": self.names[image]}});
                self.patch::<KnativeImage>(*namespace, name, body).await
            }
            Action::DeleteImage { namespace, name } => {
                self.delete::<KnativeImage>(*namespace, name).await
            }
            Action::SetSecret { namespace, to } => {
                self.set_secret(NAMESPACES[*namespace], *to).await
            }
            Action::HandMade { namespace, name, image, node } => {
                self.make_by_hand(NAMESPACES[*namespace], name, *image, *node).await
            }
            Action::DeleteImageWarm { namespace, at } => self.delete_one(*namespace, *at).await,
            Action::AddNode(node) => {
                let started = fake_node(&self.cluster, &self.catalog, *node).await?;
                self.fake.insert(*node, started);
                Ok(())
            }
            Action::DeleteNode(node) => {
                if let Some(node) = self.fake.remove(node) {
                    let nodes: Api<Node> = Api::all(self.cluster.client());
                    nodes.delete(&node.name, &Default::default()).await?;
                }
                Ok(())
            }
            Action::ChangeNode(node, change) => self.change_node(*node, *change).await,
            Action::StopWarmer(node) => {
                if let Some(node) = self.fake.get_mut(node) {
                    node.kill_warmer();
                }
                Ok(())
            }
            Action::StartWarmer(node) => {
                self.fake.get_mut(node).map_or(Ok(()), FakeNode::start_warmer)
            }
            Action::LoseImages(node) => {
                if let Some(node) = self.fake.get(node) {
                    node.runtime.lose();
                }
                Ok(())
            }
            Action::KillController(at) => {
                self.controllers.remove(at).context("no such controller")?.kill();
                Ok(())
            }
            Action::StartController(at) => self.start_controller(*at).await,
            Action::FreezeController(at) => {
                self.controllers.get(at).context("no such controller")?.signal(Signal::Stop);
                Ok(())
            }
            Action::ThawController(at) => {
                self.controllers.get(at).context("no such controller")?.signal(Signal::Continue);
                Ok(())
            }
            Action::StealLease => self.steal_lease().await,
            Action::DeleteLease => {
                unless_gone(self.leases().delete(LEASE, &Default::default()).await)
            }
            Action::KillRealWarmer(node) => {
                self.warmers.remove(node).context("no such warmer")?.kill();
                Ok(())
            }
            Action::StartRealWarmer(node) => self.start_warmer(*node).await,
            Action::StopDocker(node) => self.cluster.node(*node)?.stop_runtime().await,
            Action::StartDocker(node) => self.cluster.node(*node)?.start_runtime().await,
            Action::CutConnections => {
                self.proxy.cut_connections();
                Ok(())
            }
            Action::SlowApiServer => {
                self.proxy.set_latency(LATENCY);
                Ok(())
            }
            Action::QuickApiServer => {
                self.proxy.set_latency(Duration::ZERO);
                Ok(())
            }
            Action::StopApiServer => {
                self.proxy.send_to(self.cluster.server_url())?;
                self.api_server = None;
                Ok(())
            }
            Action::StartApiServer => self.start_api_server().await,
            Action::CompactEtcd => self.cluster.compact_etcd().await,
            Action::RemoveWebhooks => self.remove_webhooks().await,
            Action::RestoreWebhooks => self.cluster.apply_deploy().await,
        }
    }

    /// The second API server, which the controllers use from their next connections on.
    async fn start_api_server(&mut self) -> Result<()> {
        let started = self.cluster.start_another_api_server(&[]).await?;
        self.proxy.send_to(started.url())?;
        self.api_server = Some(started);
        Ok(())
    }

    async fn start_controller(&mut self, at: usize) -> Result<()> {
        let name = format!("controller-{at}");
        let binary = self.cluster.with_wall_clock(BINARY.as_ref(), CONTROLLER_CLOCKS[at])?;
        let started = self
            .cluster
            .start_controller_through(&self.proxy, &binary, &name, &CONTROLLER_FLAGS)
            .await?;
        self.controllers.insert(at, started);
        Ok(())
    }

    async fn start_warmer(&mut self, number: usize) -> Result<()> {
        let node = self.cluster.node(number)?;
        let binary = self.cluster.with_wall_clock(BINARY.as_ref(), WARMER_CLOCKS[number - 1])?;
        let started = self.cluster.start_warmer(&binary, &node, &WARMER_FLAGS).await?;
        self.warmers.insert(number, started);
        Ok(())
    }

    fn api<K>(&self, namespace: usize) -> Api<DynamicObject>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let kind = ApiResource::erase::<K>(&());
        Api::namespaced_with(self.cluster.client(), NAMESPACES[namespace], &kind)
    }

    async fn create<K: kube::Resource<DynamicType = ()>>(
        &self,
        namespace: usize,
        body: Value,
    ) -> Result<()> {
        let object = serde_json::from_value(body)?;
        self.api::<K>(namespace).create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn delete<K: kube::Resource<DynamicType = ()>>(
        &self,
        namespace: usize,
        name: &str,
    ) -> Result<()> {
        unless_gone(self.api::<K>(namespace).delete(name, &Default::default()).await)
    }

    async fn patch<K: kube::Resource<DynamicType = ()>>(
        &self,
        namespace: usize,
        name: &str,
        body: Value,
    ) -> Result<()> {
        let (params, patch) = (PatchParams::default(), Patch::Merge(body));
        unless_gone(self.api::<K>(namespace).patch(name, &params, &patch).await)
    }

    /// The Configuration with this template, and the reference of its Revision to it.
    async fn configuration(&self, namespace: usize, name: &str, spec: &Value) -> Result<Value> {
        let body = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
            "metadata": {"name": name}, "spec": {"template": {"spec": spec}},
        });
        let api = self.api::<Configuration>(namespace);
        let params = PatchParams::apply("monkey").force();
        let made = api.patch(name, &params, &Patch::Apply(body)).await?;
        Ok(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": name,
            "uid": made.metadata.uid, "controller": true, "blockOwnerDeletion": true,
        }))
    }

    async fn create_image(
        &self,
        namespace: usize,
        name: &str,
        image: Pick,
        revision: Option<&str>,
    ) -> Result<()> {
        let mut body = json!({
            "apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image",
            "metadata": {"name": name},
            "spec": {"image": self.names[&image], "imagePullSecrets": [{"name": SECRET}]},
        });
        if let Some(revision) = revision {
            let owner = self.api::<Revision>(namespace).get(revision).await?;
            body["metadata"]["labels"] = json!({"serving.knative.dev/revision": revision});
            body["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "name": revision,
                "uid": owner.metadata.uid, "controller": true, "blockOwnerDeletion": true,
            }]);
        }
        self.create::<KnativeImage>(namespace, body).await
    }

    async fn set_secret(&mut self, namespace: &str, to: SecretIs) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client(), namespace);
        unless_gone(secrets.delete(SECRET, &Default::default()).await)?;
        let registry = self.cluster.registry_tls.as_ref().context("no private registry")?;
        let password = match to {
            SecretIs::Absent => None,
            SecretIs::Wrong => Some("not-the-password"),
            SecretIs::Right => registry.password.as_deref(),
        };
        if let Some(password) = password {
            let config = json!({"auths": {
                &registry.address: {"username": USER, "password": password},
            }});
            let data = base64::engine::general_purpose::STANDARD.encode(config.to_string());
            let body = json!({
                "metadata": {"name": SECRET}, "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": data},
            });
            secrets.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        }
        self.secrets.insert(namespace.to_owned(), to);
        Ok(())
    }

    async fn make_by_hand(
        &mut self,
        namespace: &str,
        name: &str,
        image: Pick,
        node: usize,
    ) -> Result<()> {
        let Some(node) = self.fake.get(&node).map(|node| node.name.clone()) else { return Ok(()) };
        let image = self.names[&image].clone();
        let mut spec = json!({"image": image, "nodeName": node});
        if self.secrets[namespace] != SecretIs::Absent {
            spec["imagePullSecrets"] = json!([{"name": SECRET}]);
        }
        let body = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": name}, "spec": spec,
        });
        let warms: Api<ImageWarm> = Api::namespaced(self.cluster.client(), namespace);
        // Without a controller, or with a Secret that is just being replaced, it is refused.
        if let Ok(made) = warms.create(&PostParams::default(), &serde_json::from_value(body)?).await
        {
            let key = (namespace.to_owned(), name.to_owned(), made.spec.image, node);
            self.by_hand.insert(key);
        }
        Ok(())
    }

    /// One of those that were not made by hand.
    async fn delete_one(&self, namespace: usize, at: usize) -> Result<()> {
        let warms: Api<ImageWarm> = Api::namespaced(self.cluster.client(), NAMESPACES[namespace]);
        let mut all = warms.list(&Default::default()).await?.items;
        all.retain(ImageWarm::is_managed);
        match all.len() {
            0 => Ok(()),
            count => {
                let name = all[at % count].name_any();
                unless_gone(warms.delete(&name, &Default::default()).await)
            }
        }
    }

    async fn change_node(&self, node: usize, change: NodeChange) -> Result<()> {
        let Some(node) = self.fake.get(&node) else { return Ok(()) };
        let body = match change {
            NodeChange::Cordon(cordoned) => json!({"spec": {"unschedulable": cordoned}}),
            NodeChange::Taint(true) => {
                json!({"spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]}})
            }
            NodeChange::Taint(false) => json!({"spec": {"taints": null}}),
            NodeChange::Pool(pool) => json!({"metadata": {"labels": {"pool": pool.to_string()}}}),
        };
        let nodes: Api<Node> = Api::all(self.cluster.client());
        let (params, patch) = (PatchParams::default(), Patch::Merge(body));
        unless_gone(nodes.patch(&node.name, &params, &patch).await)
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.cluster.client(), NAMESPACE)
    }

    /// Somebody who never renews it holds the Lease.
    async fn steal_lease(&self) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
        let body = json!({"spec": {"holderIdentity": "stranger", "renewTime": now}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(body));
        unless_gone(self.leases().patch(LEASE, &params, &patch).await)
    }

    async fn remove_webhooks(&self) -> Result<()> {
        use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.cluster.client());
        unless_gone(configurations.delete("imagewarm", &Default::default()).await)
    }

    /// Starts warmers again that found no runtime when they began, as the kubelet would. Any other
    /// end of a process that nobody killed is a fault.
    async fn revive_warmers(&mut self) -> Result<()> {
        for (at, controller) in &self.controllers {
            if let Some(status) = controller.exit_status() {
                bail!("controller-{at} ended with {status}:\n{}", controller.log_tail());
            }
        }
        let ended = |(node, warmer): (&usize, &Arc<Imagewarm>)| {
            warmer.exit_status().map(|status| (*node, status, warmer.log_tail()))
        };
        let ended: Vec<_> = self.warmers.iter().filter_map(ended).collect();
        for (node, status, log) in ended {
            if !log.lines().last().is_some_and(|last| last.contains("no runtime socket")) {
                bail!("the warmer of node-{node} ended with {status}:\n{log}");
            }
            println!("node-{node}: the warmer found no runtime, and is started again");
            self.start_warmer(node).await?;
        }
        Ok(())
    }

    /// Waits until everything is as the oracle says.
    pub async fn converges(&mut self, within: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            self.revive_warmers().await?;
            let problems = self.problems().await?;
            if problems.is_empty() {
                println!("converged within {:.1} s", began.elapsed().as_secs_f64());
                return Ok(());
            }
            if began.elapsed() > within {
                bail!("{} problems after {within:?}:\n{}", problems.len(), by_kind(&problems));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn problems(&self) -> Result<Vec<String>> {
        let mut warms = Vec::new();
        let (mut revisions, mut images) = (Vec::new(), Vec::new());
        for namespace in NAMESPACES {
            let client = || self.cluster.client();
            warms.extend(
                Api::namespaced(client(), namespace).list(&Default::default()).await?.items,
            );
            let api: Api<Revision> = Api::namespaced(client(), namespace);
            revisions.extend(api.list(&Default::default()).await?.items);
            let api: Api<KnativeImage> = Api::namespaced(client(), namespace);
            images.extend(api.list(&Default::default()).await?.items);
        }
        let nodes: Api<Node> = Api::all(self.cluster.client());
        let nodes = nodes.list(&Default::default()).await?.items;
        let mut connected = connected(&self.fake);
        let mut held = BTreeSet::new();
        for number in 1..=3 {
            connected.insert(self.cluster.node(number)?.name.clone());
        }
        let asked: BTreeSet<(String, String)> = warms
            .iter()
            .map(|warm: &ImageWarm| (warm.spec.node_name.clone(), warm.spec.image.clone()))
            .collect();
        for (node, image) in asked {
            let holds = match self.fake.values().find(|fake| fake.name == node) {
                Some(fake) => fake.runtime.holds(&image),
                None => match self.cluster.nodes().into_iter().find(|real| real.name == node) {
                    Some(real) => real.inspect(&image).await.is_some(),
                    None => false,
                },
            };
            if holds {
                held.insert((node, image));
            }
        }
        Ok(oracle::problems(&Observed {
            revisions,
            images,
            warms,
            nodes,
            secrets: &self.secrets,
            connected,
            held,
            losers: self
                .fake
                .values()
                .filter(|fake| fake.runtime.lost() > 1)
                .map(|fake| fake.name.clone())
                .collect(),
            catalog: &self.catalog,
            by_hand: &self.by_hand,
        }))
    }
}

/// How many there are of each kind, with one example: most are the same on many nodes.
fn by_kind(problems: &[String]) -> String {
    let mut kinds: BTreeMap<String, (usize, &String)> = BTreeMap::new();
    for problem in problems {
        let plain: String =
            problem.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        kinds.entry(plain).or_insert((0, problem)).0 += 1;
    }
    let mut lines: Vec<_> = kinds.into_values().collect();
    lines.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let line = |(count, example): (usize, &String)| format!("{count} × {example}");
    lines.into_iter().take(30).map(line).collect::<Vec<_>>().join("\n")
}

fn unless_gone<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

async fn wait_ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", READY).await
}

async fn fake_node(cluster: &Cluster, catalog: &Arc<Catalog>, node: usize) -> Result<FakeNode> {
    let pool = if node.is_multiple_of(2) { 'a' } else { 'b' };
    // From quick to slow.
    let pull_takes = Duration::from_millis(20 * (node as u64 % 50));
    FakeNode::start(cluster, &format!("fake-{node:03}"), pool, catalog, pull_takes).await
}

/// Pushes what the script names to the real registries, and tells the runtimes that ask none.
async fn fill_registries(cluster: &Cluster) -> Result<(Catalog, BTreeMap<Pick, String>)> {
    let mut catalog = Catalog::default();
    let mut names = BTreeMap::new();
    let plain = &cluster.registry_plain;
    for repository in 0..PUBLIC {
        for tag in 1..=2 {
            let image = TestImage::new(&[20_000]);
            let name = format!("app-{repository}");
            let digest = plain.push(&image, &name, &format!("v{tag}")).await?;
            let by_tag = plain.image(&name, &format!("v{tag}"));
            let by_digest = format!("{}/{name}@{digest}", plain.address);
            for text in [&by_tag, &by_digest] {
                catalog.images.insert(text.clone(), (digest.clone(), None));
            }
            names.insert(Pick::Public(repository, tag), by_tag);
            names.insert(Pick::PublicDigest(repository, tag), by_digest);
        }
    }
    let private = cluster.registry_tls.as_ref().context("no private registry")?;
    for repository in 0..PRIVATE {
        let name = format!("secret-{repository}");
        let digest = private.push(&TestImage::new(&[20_000]), &name, "v1").await?;
        let image = private.image(&name, "v1");
        catalog.images.insert(image.clone(), (digest, private.password.clone()));
        names.insert(Pick::Private(repository), image);
    }
    names.insert(Pick::Missing, plain.image("missing", "v1"));
    names.insert(Pick::Empty, String::new());
    Ok((catalog, names))
}
