//! How a fan-out and other accounts slow each other down in an API server that has few seats:
//! with the FlowSchema and priority level of `deploy/`, beside the same without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use imagewarm_core::api::ImageWarm;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;
use xtask::cluster::{CONTROLLER_ACCOUNT, NAMESPACE, manifests};
use xtask::wait::wait_for;

use crate::Scale;
use crate::api_server::{metrics, sum};
use crate::report::{Limit, Report, Series, percentile};
use crate::stage::{DEADLINE, Stage, milliseconds, seconds};

/// A tenth of the seats that an API server has by default: two cores are busy with that many
/// requests in flight. A list's seats depend on the number of stored objects, counted every ten
/// seconds. By default they depend on their size, which an API server with an etcd before 3.4.31
/// learns only by chance: a list then takes one seat, or the maximum.
const FEW_SEATS: [&str; 4] = [
    "--max-requests-inflight=40",
    "--max-mutating-requests-inflight=20",
    "--etcd-count-metric-poll-period=10s",
    "--feature-gates=SizeBasedListCostEstimate=false",
];
/// Objects that the API server has counted.
const COUNTED: &str = "apiserver_resource_objects";
/// Accounts that flood the API server, and the requests that each of them has in flight.
const CROWD: usize = 10;
const LISTS: usize = 2;
/// ImageWarms that each of their requests reads: enough for the maximum of seats of a list.
const STOCK: usize = 1_000;
/// A fan-out that is not done by then counts as done: in favour of the baseline.
const FAN_OUT_TIMEOUT: Duration = Duration::from_secs(60);
/// Beside small requests, in each round, one after another: one alone has too few of them beside it.
const FAN_OUTS: usize = 3;
/// The API server decides anew every ten seconds how many seats are lent and to whom.
const LENT: Duration = Duration::from_secs(12);
/// The namespace of the other accounts.
const ELSEWHERE: &str = "elsewhere";
/// Every object is read and decoded, and none is in the answer: the API server has all of the cost.
const EXPENSIVE: &str = "/apis/caching.knative.dev/v1alpha1/namespaces/elsewhere/imagewarms\
                         ?labelSelector=example.com%2Fnone%3Dsuch";
const SMALL: &str = "/api/v1/namespaces/elsewhere/configmaps/small";

/// Rows: seconds of a fan-out while others flood the API server, and the flood's answered lists
/// meanwhile; milliseconds of another account's small requests during fan-outs; rejections.
pub async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let (stage, _controller) = Stage::with_api_server(&FEW_SEATS).await?;
    let (nodes, rounds) = (500, scale.pick(2, 5));
    let names: Vec<String> = (0..nodes).map(|at| format!("plain-{at:05}")).collect();
    stage.plain_nodes(names).await?;
    let others = others(&stage, STOCK).await?;
    let mut turns = Turns { stage: &stage, shipped: true, refused: 0 };

    let (mut p50, mut p99, mut calm) = (Series::default(), Series::default(), Series::default());
    let account = others.first().context("no other account")?;
    // The first open connections and do not count.
    let beside = async |name: &str| {
        let (mut times, began) = (Vec::new(), Instant::now());
        for number in 0..FAN_OUTS {
            let namespace = format!("beside-{name}-{number}");
            times.extend(small(&stage, account, &namespace, nodes).await?);
        }
        anyhow::Ok((times, seconds(began, Instant::now()) / FAN_OUTS as f64))
    };
    beside("nothing").await?;
    for round in 0..rounds {
        let (ours, without) = turns.both(round, &beside).await?;
        for (series, share) in [(&mut p50, 0.5), (&mut p99, 0.99)] {
            let of = |times: &[f64]| percentile(times, share).context("no request was made");
            series.round(of(&ours.0)?, of(&without.0)?);
        }
        calm.round(ours.1, without.1);
    }
    let name = "small requests of another account during a fan-out";
    report.add(format!("{name}, p50"), "ms", p50, Limit::RatioOrAdded(1.1, 5.0));
    report.add(format!("{name}, p99"), "ms", p99, Limit::RatioOrAdded(1.1, 5.0));
    report.add("such a fan-out, of three images", "s", calm, Limit::None);

    counted(&stage).await?;
    let flood = Flood::start(&others);
    tokio::time::sleep(LENT).await;
    let (mut times, mut lists) = (Series::default(), Series::default());
    let flooded = async |name: &str| {
        let namespace = format!("flooded-{name}");
        let (seconds, lists) = flooded(&stage, &flood, &namespace, nodes).await?;
        anyhow::Ok((seconds, lists / seconds))
    };
    for round in 0..rounds {
        let (ours, without) = turns.both(round, &flooded).await?;
        times.round(ours.0, without.0);
        lists.round(ours.1, without.1);
    }
    drop(flood);
    let name =
        format!("fan-out to {nodes} nodes while {CROWD} other accounts flood the API server");
    report.add(name, "s", times, Limit::Ratio(1.0));
    report.add("lists that the flood got meanwhile", "lists/s", lists, Limit::None);
    let name = "answers 429 to the controller in its own flow";
    report.add(name, "answers", Series::one(turns.refused as f64), Limit::Most(0.0));
    Ok(())
}

/// With the shipped FlowSchema and priority level, and without.
struct Turns<'a> {
    stage: &'a Stage,
    shipped: bool,
    /// Answers of 429 to the controller with the shipped objects.
    refused: usize,
}

impl Turns<'_> {
    /// Measures both, with the shipped objects first in every other round: that saves half of the
    /// changes.
    async fn both<T>(
        &mut self,
        round: usize,
        measure: impl AsyncFn(&str) -> Result<T>,
    ) -> Result<(T, T)> {
        let mut found = [None, None];
        let first = round.is_multiple_of(2);
        for shipped in [first, !first] {
            self.change(shipped).await?;
            let before = self.stage.throttled()?;
            let name = if shipped { "shipped" } else { "without" };
            found[usize::from(shipped)] = Some(measure(&format!("{name}-{round}")).await?);
            if shipped {
                self.refused += self.stage.throttled()? - before;
            }
        }
        let [without, ours] = found;
        ours.zip(without).context("one of two was not measured")
    }

    /// Applies the shipped objects, or deletes them; returns when the API server has them.
    async fn change(&mut self, shipped: bool) -> Result<()> {
        if self.shipped == shipped {
            return Ok(());
        }
        let cluster = &self.stage.cluster;
        let file = xtask::workspace().join("deploy/controller/flow.yaml");
        if shipped {
            cluster.apply_manifests(&file, Some).await?;
        } else {
            for object in manifests::read(&file)? {
                manifests::delete(&cluster.client(), &object).await?;
            }
        }
        let wanted = if shipped { "imagewarm" } else { "service-accounts" };
        let client = cluster.client_for(NAMESPACE, CONTROLLER_ACCOUNT).await?;
        wait_for(DEADLINE, "the API server to know the controller's flow", async || {
            let (schema, _) = cluster.flow_of(&client, "/version").await.ok()??;
            (schema == wanted).then_some(())
        })
        .await?;
        // Until then the seats are distributed as before.
        tokio::time::sleep(LENT).await;
        self.shipped = shipped;
        Ok(())
    }
}

/// Accounts that may read the ImageWarms of a namespace with so many in it.
async fn others(stage: &Stage, stock: usize) -> Result<Vec<Client>> {
    let client = stage.cluster.client();
    let elsewhere = stage.namespace(ELSEWHERE).await?;
    let nodes: Vec<String> = (0..stock).map(|at| format!("no-node-{at:05}")).collect();
    let image = "registry.example.com/team/stock:v1";
    elsewhere.raw_creates(&stage.as_controller().await?, image, &nodes).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), ELSEWHERE);
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), ELSEWHERE);
    let maps: Api<ConfigMap> = Api::namespaced(client, ELSEWHERE);
    let map = serde_json::from_value(json!({"metadata": {"name": "small"}}))?;
    maps.create(&PostParams::default(), &map).await?;
    let group = "rbac.authorization.k8s.io";
    for role in ["imagewarm-view", "view"] {
        let subject = format!("system:serviceaccounts:{ELSEWHERE}");
        let binding = json!({
            "metadata": {"name": role},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": subject}],
        });
        bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    }
    let mut clients = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let name = format!("other-{number:02}");
        let account = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        accounts.create(&PostParams::default(), &account).await?;
        clients.push(stage.cluster.client_for(ELSEWHERE, &name).await?);
    }
    Ok(clients)
}

/// Waits until the API server has counted all ImageWarms: before, it estimates the flood's lists as
/// small, and runs all of them at once.
async fn counted(stage: &Stage) -> Result<()> {
    let client = stage.cluster.client();
    let warms: Api<ImageWarm> = Api::all(client.clone());
    let stored = warms.list_metadata(&Default::default()).await?.items.len() as f64;
    wait_for(DEADLINE, "the API server to count its ImageWarms", async || {
        let metrics = metrics(&client).await.ok()?;
        (sum(&metrics, COUNTED, "imagewarms") >= stored).then_some(())
    })
    .await
}

/// Lists continuously. Stops when dropped.
struct Flood {
    answers: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Flood {
    fn start(accounts: &[Client]) -> Flood {
        let (answers, mut tasks) = (Arc::<AtomicU64>::default(), JoinSet::new());
        for account in accounts.iter().flat_map(|account| std::iter::repeat_n(account, LISTS)) {
            let (account, answers) = (account.clone(), answers.clone());
            tasks.spawn(async move {
                loop {
                    if get(&account, EXPENSIVE).await.is_ok() {
                        answers.fetch_add(1, Ordering::Relaxed);
                    } else {
                        // More answers of 429 than the client retries.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
        Flood { answers, _tasks: tasks }
    }

    fn answers(&self) -> f64 {
        self.answers.load(Ordering::Relaxed) as f64
    }
}

async fn get(client: &Client, path: &str) -> Result<()> {
    client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    Ok(())
}

/// Seconds from a Revision to its last ImageWarm, at most [`FAN_OUT_TIMEOUT`], and the flood's
/// answered lists meanwhile.
async fn flooded(
    stage: &Stage,
    flood: &Flood,
    namespace: &str,
    nodes: usize,
) -> Result<(f64, f64)> {
    let revisions = stage.namespace(namespace).await?;
    let mut appearing = stage.watch(namespace).await?;
    let (began, answers) = (Instant::now(), flood.answers());
    revisions.create("app-00001", &["registry.example.com/team/app:v1"]).await?;
    let last = match tokio::time::timeout(FAN_OUT_TIMEOUT, appearing.count(nodes)).await {
        Ok(last) => last?,
        Err(_) => Instant::now(),
    };
    Ok((seconds(began, last), flood.answers() - answers))
}

/// The milliseconds that each small request took, one after another, while a Revision with three
/// images was fanned out.
async fn small(stage: &Stage, account: &Client, namespace: &str, nodes: usize) -> Result<Vec<f64>> {
    let revisions = stage.namespace(namespace).await?;
    let mut appearing = stage.watch(namespace).await?;
    let images = ["app", "sidecar", "init"].map(|it| format!("registry.example.com/team/{it}:v1"));
    let fan_out = async {
        revisions.create("app-00001", &images.each_ref().map(String::as_str)).await?;
        appearing.count(images.len() * nodes).await
    };
    let mut times = Vec::new();
    let ask = async {
        loop {
            let began = Instant::now();
            if let Err(error) = get(account, SMALL).await {
                return error;
            }
            times.push(milliseconds(began, Instant::now()));
        }
    };
    tokio::select! {
        done = fan_out => done.map(drop)?,
        error = ask => return Err(error.context("a small request")),
    }
    Ok(times)
}
