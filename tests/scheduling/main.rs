//! Our idea of where a Pod may start, compared with the real kube-scheduler's: hundreds of random
//! Pods, each bound to one node by that node's hostname label, on nodes of random labels and taints.
//! Only fields that `plan::eligible` looks at vary. No controller of ours runs.

mod random;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use imagewarm_core::api::Revision;
use imagewarm_core::demand::revision::demand;
use imagewarm_core::placement::{
    NamespaceRules, NodeFacts, NodeSelector, RuntimeClasses, is_eligible,
};
use imagewarm_core::policy::Policy;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Knative, Options, SCHEDULER};
use xtask::wait::wait_for;

const NODES: usize = 48;
const PODS_PER_NODE: usize = 12;
/// Pairs that the scheduler itself must have decided.
const PAIRS_MIN: usize = 200;
/// How often each verdict must occur, else the agreement says little.
const EACH_MIN: usize = 50;
/// Plugins that are off unless a cluster's administrator asks for them.
const PLUGINS: &str = "--enable-admission-plugins=PodNodeSelector,PodTolerationRestriction";
const AT_ONCE: usize = 16;
const DEADLINE: Duration = Duration::from_secs(120);

/// A Pod for one node.
struct PodToDecide {
    /// Index of the node.
    target: usize,
    namespace: &'static str,
    spec: Value,
}

/// What became of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Bound to this node.
    Bound(String),
    /// The scheduler found no node.
    Unschedulable(String),
    /// Refused at admission, because of its RuntimeClass or its namespace.
    Rejected(String),
}

#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_the_scheduler() -> Result<()> {
    let mut random = seeded()?;
    let nodes: Vec<Node> = (0..NODES)
        .map(|at| serde_json::from_value(random::node(&mut random, &format!("target-{at}"))))
        .collect::<Result<_, _>>()?;
    let classes: Vec<RuntimeClass> = random::runtime_classes()
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    let namespaces = random::namespaces();
    // Half of them in the first namespace.
    let namespace = |round: usize| (round + 1).saturating_sub(PODS_PER_NODE / 2) % namespaces.len();
    let specs: Vec<PodToDecide> = (0..NODES * PODS_PER_NODE)
        .map(|at| PodToDecide {
            target: at % NODES,
            namespace: namespaces[namespace(at / NODES)].0,
            spec: random::pod_spec(&mut random, &format!("target-{}", at % NODES)),
        })
        .collect();

    let options = Options { nodes: 0, tls_registry: false, knative: Knative::None, deploy: false };
    let mut cluster = Cluster::start_with(options, &[PLUGINS]).await?;
    let client = cluster.client();
    create_nodes(&client, &nodes).await?;
    let api: Api<RuntimeClass> = Api::all(client.clone());
    for class in &classes {
        api.create(&PostParams::default(), class).await?;
    }
    for (name, annotations) in &namespaces {
        create_namespace(&client, name, annotations).await?;
    }
    // Not before: it is to know every node from the start.
    cluster.start_scheduler()?;
    let verdicts = decide(&client, &specs).await?;

    let rules = RuntimeClasses::new(&classes);
    let (mut bound, mut unschedulable, mut rejected) = (0, 0, 0);
    let mut differences = Vec::new();
    for (PodToDecide { target, namespace, spec }, verdict) in specs.iter().zip(&verdicts) {
        let annotations = namespaces.iter().find(|(name, _)| name == namespace);
        let annotations = annotations.map(|(_, all)| serde_json::from_value(all.clone()));
        let namespace_rules =
            NamespaceRules::new(annotations.transpose()?.as_ref(), &NodeSelector::default());
        let ours = our_verdict(spec, &nodes[*target], &namespace_rules, &rules)?;
        let theirs = match verdict {
            Verdict::Bound(node) => {
                ensure!(*node == nodes[*target].name_any(), "{spec} was bound to {node}");
                bound += 1;
                true
            }
            Verdict::Unschedulable(_) => {
                unschedulable += 1;
                false
            }
            Verdict::Rejected(_) => {
                rejected += 1;
                false
            }
        };
        if ours.is_ok() != theirs {
            let node = &nodes[*target];
            differences.push(format!(
                "pod {spec} in {namespace}\n  on labels {:?}, spec {:?}\n  ours {ours:?}, the scheduler's {verdict:?}",
                node.labels(),
                node.spec,
            ));
        }
    }
    println!("{bound} bound, {unschedulable} unschedulable, {rejected} rejected at admission");
    ensure!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
    ensure!(bound + unschedulable >= PAIRS_MIN, "too few pairs were decided");
    ensure!(bound >= EACH_MIN && unschedulable >= EACH_MIN, "the verdicts are too much alike");
    ensure!(rejected > 0, "no Pod was rejected for its RuntimeClass or its namespace");
    Ok(())
}

/// The same random numbers on every run, or those of the seed in `IMAGEWARM_TEST_SEED`.
fn seeded() -> Result<StdRng> {
    let seed = match std::env::var("IMAGEWARM_TEST_SEED") {
        Ok(seed) => seed.parse().context("IMAGEWARM_TEST_SEED must be a number")?,
        Err(_) => 1,
    };
    println!("to repeat this run: IMAGEWARM_TEST_SEED={seed}");
    Ok(StdRng::seed_from_u64(seed))
}

/// The Pod's constraints reach us in a Revision.
fn our_verdict(
    spec: &Value,
    node: &Node,
    namespace: &NamespaceRules,
    classes: &RuntimeClasses,
) -> Result<Result<(), String>> {
    let revision: Revision =
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec}))?;
    let policy = Policy { startup_taints: Vec::new(), ..Policy::default() };
    let placement = namespace.constrain(demand(&revision, false, &policy).placement);
    let placement = classes.constrain(placement);
    let verdict = is_eligible(&NodeFacts::new(node, &BTreeSet::new()), &placement, &policy);
    Ok(verdict.map_err(|exclusion| exclusion.to_string()))
}

/// Nodes with room for every Pod, as far as a kubelet would say so.
async fn create_nodes(client: &Client, nodes: &[Node]) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let create = |node: &Node| {
        let (api, node) = (api.clone(), node.clone());
        async move {
            api.create(&PostParams::default(), &node).await.context("create a node")?;
            let status = Patch::Merge(json!({"status": node.status}));
            api.patch_status(&node.name_any(), &PatchParams::default(), &status).await?;
            anyhow::Ok(())
        }
    };
    futures::stream::iter(nodes.iter().map(create)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn create_namespace(client: &Client, name: &str, annotations: &Value) -> Result<()> {
    let metadata = json!({"name": name, "annotations": annotations});
    let namespace: Namespace = serde_json::from_value(json!({"metadata": metadata}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    // Admission of Pods asks for it.
    wait_for(DEADLINE, "the namespace's default ServiceAccount", async || {
        accounts.get_opt("default").await.ok().flatten().map(drop)
    })
    .await
}

/// Creates all Pods and waits until each is bound or was found to fit nowhere.
async fn decide(client: &Client, specs: &[PodToDecide]) -> Result<Vec<Verdict>> {
    let create = |(at, one): (usize, &PodToDecide)| {
        let pods: Api<Pod> = Api::namespaced(client.clone(), one.namespace);
        let (mut spec, namespace) = (one.spec.clone(), one.namespace);
        let may_be_rejected = spec.get("runtimeClassName").is_some() || namespace != "plain";
        spec["schedulerName"] = json!(SCHEDULER);
        spec["containers"] = json!([{"name": "main", "image": "example.dev/app"}]);
        async move {
            let pod = serde_json::from_value(json!({
                "metadata": {"name": format!("pod-{at}")}, "spec": spec,
            }))?;
            match pods.create(&PostParams::default(), &pod).await {
                Ok(_) => Ok(None),
                // 500 is the answer of a plugin that cannot read an annotation.
                Err(kube::Error::Api(status))
                    if matches!(status.code, 403 | 500) && may_be_rejected =>
                {
                    Ok(Some(Verdict::Rejected(status.message)))
                }
                Err(error) => Err(error).with_context(|| format!("create a Pod of {spec}")),
            }
        }
    };
    let rejected: Vec<Option<Verdict>> =
        futures::stream::iter(specs.iter().enumerate().map(create))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
    let open = rejected.iter().filter(|verdict| verdict.is_none()).count();
    let pods: Api<Pod> = Api::all(client.clone());
    let decided = wait_for(DEADLINE, "every Pod is decided", async || {
        let list = pods.list(&ListParams::default()).await.ok()?;
        let verdicts: Option<Vec<_>> =
            list.items.iter().map(|pod| Some((pod.name_any(), verdict(pod)?))).collect();
        verdicts.filter(|verdicts| verdicts.len() == open)
    })
    .await?;
    let mut verdicts = rejected;
    for (name, verdict) in decided {
        let at: usize = name.strip_prefix("pod-").context("a foreign Pod")?.parse()?;
        verdicts[at] = Some(verdict);
    }
    match verdicts.into_iter().collect() {
        Some(verdicts) => Ok(verdicts),
        None => bail!("a Pod has got lost"),
    }
}

fn verdict(pod: &Pod) -> Option<Verdict> {
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
        return Some(Verdict::Bound(node));
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let hopeless =
        scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
    hopeless.then(|| Verdict::Unschedulable(scheduled.message.clone().unwrap_or_default()))
}
