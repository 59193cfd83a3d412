//! The node gate: nodes that come with its taint, and the right to remove it.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use xtask::cluster::Fault;

use crate::world::{World, containers, eventually};

crate::tests![
    only_the_gates_taint_can_be_removed,
    the_overlays_key_stands_in_one_place,
    a_node_is_held_until_it_is_warm_by_whoever_leads,
    failures_for_good_and_nodes_without_revisions_hold_nothing,
    the_deadline_releases_whatever_is_missing,
    a_pause_releases,
    the_documented_command_releases_all,
];

const OVERLAY: &str = "node-gate";
const OBJECTS: &str = "imagewarm-node-gate";
const TAINT: &str = "caching.knative.dev/warming";
const OTHER: &str = "example.dev/other";
const GATE: [&str; 2] = ["--node-gate-taint", TAINT];

/// Installs what the overlay adds to the base, and waits until the API server has noticed.
async fn install(world: &World) -> Result<()> {
    ensure!(!may(world, "patch", "nodes").await?, "the base grants the right already");
    let folder = format!("{}/overlays/{OVERLAY}", env!("CARGO_MANIFEST_DIR"));
    let rendered = world.commands.kubectl(&["kustomize", &folder]).await?;
    world.installation.add(serde_saphyr::from_multiple(&rendered)?, OBJECTS).await?;
    eventually("the right is granted", async || {
        Ok(may(world, "patch", "nodes").await?.then_some(()))
    })
    .await?;
    let client = world.controllers.client().await?;
    let cordon = json!([{"op": "add", "path": "/spec/unschedulable", "value": true}]);
    eventually("the policy is in force", async || {
        Ok(patch(&client, world.nodes.names()[0], &cordon, true).await?.err().map(drop))
    })
    .await
}

/// Starts controllers with the gate, and these flags.
async fn restart(world: &World, flags: &[&str]) -> Result<()> {
    install(world).await?;
    world.controllers.restart_with(&[&GATE, flags].concat()).await?;
    world.controllers.until_all_connected().await
}

async fn may(world: &World, verb: &str, resource: &str) -> Result<bool> {
    world.account_may_with("imagecontroller", verb, "", resource, "node-1").await
}

/// The denial of the policy, if it is one; any other failure is an error.
async fn patch(
    client: &Client,
    node: &str,
    operations: &Value,
    dry_run: bool,
) -> Result<Result<(), String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let operations = Patch::Json::<()>(serde_json::from_value(operations.clone())?);
    let parameters = PatchParams { dry_run, ..PatchParams::default() };
    match nodes.patch(node, &parameters, &operations).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.message.contains(OBJECTS) => {
            Ok(Err(status.message.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

async fn only_the_gates_taint_can_be_removed(world: &World) -> Result<()> {
    install(world).await?;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(world.client());
    let checked = eventually("the policy's expressions are checked", async || {
        let status = policies.get(OBJECTS).await?.status;
        Ok(status.filter(|status| status.observed_generation.is_some()))
    })
    .await?;
    let warnings = checked.type_checking.and_then(|checked| checked.expression_warnings);
    ensure!(warnings.is_none(), "{warnings:?}");
    let node = world.nodes.join_tainted("policy", &[OTHER, TAINT, "example.dev/third"]).await?;
    world.nodes.label(&node, "example.dev/label", "v").await?;
    let client = world.controllers.client().await?;
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    let replace = |path: &str, value: Value| json!({"op": "replace", "path": path, "value": value});
    let remove = |path: &str| json!({"op": "remove", "path": path});
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let release = remove("/spec/taints/1");
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "u"}]);
    let denied = [
        ("another taint removed", json!([remove("/spec/taints/0")])),
        ("another taint too", json!([remove("/spec/taints/1"), remove("/spec/taints/0")])),
        ("all taints removed", json!([remove("/spec/taints")])),
        ("a taint added", json!([add("/spec/taints/-", taint("example.dev/new"))])),
        ("a taint in its place", json!([replace("/spec/taints/1", taint("example.dev/new"))])),
        ("its effect changed", json!([replace("/spec/taints/1/effect", json!("NoExecute"))])),
        (
            "another effect changed",
            json!([release, replace("/spec/taints/0/effect", json!("NoExecute"))]),
        ),
        (
            "the order changed",
            json!([
                release,
                {"op": "move", "from": "/spec/taints/0", "path": "/spec/taints/1"},
            ]),
        ),
    ];
    // Together with what is allowed.
    let also_denied = [
        ("cordoned", add("/spec/unschedulable", json!(true))),
        ("a provider", add("/spec/providerID", json!("other://machine"))),
        ("a label", add("/metadata/labels/pool", json!("other"))),
        ("a label less", remove("/metadata/labels/example.dev~1label")),
        ("an annotation", add("/metadata/annotations", json!({"a": "b"}))),
        ("a finalizer", add("/metadata/finalizers", json!(["example.dev/held"]))),
        ("an owner", add("/metadata/ownerReferences", owner)),
    ];
    let also_denied = also_denied.map(|(what, operation)| (what, json!([release, operation])));
    for (what, operations) in denied.into_iter().chain(also_denied) {
        let denial = patch(&client, &node, &operations, false).await.with_context(|| what)?;
        ensure!(denial.is_err(), "{what} was allowed");
    }
    // The gate itself is never set.
    let untainted = world.nodes.names()[0];
    let set = json!([add("/spec/taints", json!([taint(TAINT)]))]);
    ensure!(patch(&client, untainted, &set, false).await?.is_err(), "the taint was set");
    for (verb, resource) in [
        ("update", "nodes"),
        ("create", "nodes"),
        ("delete", "nodes"),
        ("deletecollection", "nodes"),
        ("patch", "nodes/status"),
        ("update", "nodes/status"),
        ("patch", "nodes/proxy"),
    ] {
        ensure!(!may(world, verb, resource).await?, "it may {verb} {resource}");
    }
    // The program distinguishes this from a denial by the name that is missing.
    let outdated = json!([{"op": "test", "path": "/spec/taints/0/key", "value": TAINT},
        remove("/spec/taints/0")]);
    match patch(&client, &node, &outdated, false).await {
        Ok(result) => bail!("taken in spite of its test: {result:?}"),
        Err(error) => match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                let name = status.details.as_ref().map(|details| details.name.as_str());
                ensure!(status.code == 422 && name.unwrap_or_default().is_empty(), "{status:?}");
            }
            other => bail!("{other:?}"),
        },
    }
    let before = world.nodes.taints(&node).await?;
    ensure!(before == [OTHER, TAINT, "example.dev/third"], "{before:?}");
    patch(&client, &node, &json!([release]), false).await?.map_err(anyhow::Error::msg)?;
    let after = world.nodes.taints(&node).await?;
    ensure!(after == [OTHER, "example.dev/third"], "{after:?}");
    Ok(())
}

/// Another key in the Deployment is the policy's too.
async fn the_overlays_key_stands_in_one_place(world: &World) -> Result<()> {
    let file = format!("{}/overlays/{OVERLAY}/controller.yaml", env!("CARGO_MANIFEST_DIR"));
    let shipped = std::fs::read_to_string(file)?;
    let key = "startup-taint.cluster-autoscaler.kubernetes.io/warming";
    for key in [TAINT, key] {
        let changed = shipped.replace(&format!("value: {TAINT}"), &format!("value: {key}"));
        let rendered = world.commands.overlay_with(OVERLAY, ("controller.yaml", &changed)).await?;
        let kind = |kind: &str| {
            rendered.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == OBJECTS)
        };
        let policy = kind("ValidatingAdmissionPolicy").context("no policy")?;
        let variables = policy["spec"]["variables"].as_array().context("no variables")?;
        let expression =
            variables.iter().find(|it| it["name"] == "key").map(|it| &it["expression"]);
        ensure!(expression == Some(&json!(format!("'{key}'"))), "{expression:?}");
        let deployment = rendered.iter().find(|it| it["kind"] == "Deployment").context("none")?;
        let pod = &deployment["spec"]["template"]["spec"];
        ensure!(pod["tolerations"] == json!([{"key": key, "operator": "Exists"}]), "{pod}");
        let variables = &pod["containers"][0]["env"];
        let variables = variables.as_array().context("no variables")?;
        let is_set =
            variables.contains(&json!({"name": "IMAGEWARM_NODE_GATE_TAINT", "value": key}));
        ensure!(is_set && variables.len() > 1, "{variables:?}");
    }
    Ok(())
}

/// A Revision for the nodes of a pool.
async fn revision(world: &World, pool: &str, image: &str) -> Result<()> {
    let namespace = world.namespace(pool).await?;
    let mut spec = containers(&[image]);
    spec["nodeSelector"] = json!({"pool": pool});
    spec["tolerations"] = json!([{"key": OTHER, "operator": "Exists"}]);
    namespace.revision("hello-00001", spec).await.map(drop)
}

/// Waits until the node has no taint of the gate, and returns the others.
async fn released(world: &World, node: &str) -> Result<Vec<String>> {
    let what = format!("{node} is released");
    let released = eventually(&what, async || {
        let taints = world.nodes.taints(node).await?;
        Ok((!taints.iter().any(|key| key == TAINT)).then_some(taints))
    });
    match released.await {
        Ok(taints) => Ok(taints),
        Err(error) => {
            let (_, status) = world.commands.imagewarm(&["status", "-A", "--nodes"]).await?;
            Err(error.context(status))
        }
    }
}

async fn a_node_is_held_until_it_is_warm_by_whoever_leads(world: &World) -> Result<()> {
    restart(world, &[]).await?;
    let pushed = world.registries.push("gated", "v1").await?;
    let proxied = world.registries.behind_proxy("gate", "gated");
    let image = proxied.image("v1");
    proxied.spoil(Fault::Hold);
    revision(world, "gated", &image).await?;
    let node = world.nodes.join_tainted("gated", &[OTHER, TAINT]).await?;
    proxied.until_held().await?;
    world.leader_has_caught_up().await?;
    ensure!(world.nodes.taints(&node).await? == [OTHER, TAINT], "released too early");
    let held = async || {
        let sum = world.controllers.metric_sum("imagewarm_nodes_held", "").await?;
        Ok((sum == 1.0).then_some(()))
    };
    eventually("one node is counted as held", held).await?;
    let (_, status) = world.commands.imagewarm(&["status", "-A", "--nodes"]).await?;
    let line = status.lines().find(|line| line.contains(&node)).context(status.clone())?;
    ensure!(line.contains("s, waits for ") && line.contains(&image), "{line}");

    world.controllers.kill_leader().await?;
    world.controllers.leader_address().await?;
    ensure!(world.nodes.taints(&node).await? == [OTHER, TAINT], "released though not warm");
    proxied.heal();
    ensure!(released(world, &node).await? == [OTHER], "another taint is gone");
    ensure!(world.nodes.digest(&node, &image).await? == Some(pushed.digest), "it is not warm");
    let (kind, note) = world.nodes.event(&node, "Warm").await?;
    ensure!(kind == "Normal" && note.contains("images are warm"), "{kind} {note}");
    let described = world.commands.kubectl(&["describe", "node", &node]).await?;
    ensure!(described.contains(&note), "{described}");
    let count = world.controllers.metric_sum("imagewarm_nodes_released_total", "\"Warm\"").await?;
    ensure!(count == 1.0, "{count} nodes are counted as released");
    Ok(())
}

async fn failures_for_good_and_nodes_without_revisions_hold_nothing(world: &World) -> Result<()> {
    restart(world, &[]).await?;
    let missing = format!("{}/gate/nothing:v1", world.registries.open().address);
    revision(world, "failing", &missing).await?;
    // The other taint keeps off what other tests may have left.
    let failing = world.nodes.join_tainted("failing", &[OTHER, TAINT]).await?;
    ensure!(released(world, &failing).await? == [OTHER]);
    let (kind, note) = world.nodes.event(&failing, "Failed").await?;
    ensure!(kind == "Warning" && note.contains("1 failed"), "{kind} {note}");

    let idle = world.nodes.join_tainted("idle", &["example.dev/dedicated", TAINT]).await?;
    ensure!(released(world, &idle).await? == ["example.dev/dedicated"]);
    let (kind, _) = world.nodes.event(&idle, "NothingWanted").await?;
    ensure!(kind == "Normal", "{kind}");
    Ok(())
}

async fn the_deadline_releases_whatever_is_missing(world: &World) -> Result<()> {
    restart(world, &["--node-gate-deadline", "1s"]).await?;
    world.registries.push("late", "v1").await?;
    let proxied = world.registries.behind_proxy("gate", "late");
    proxied.spoil(Fault::Hold);
    revision(world, "late", &proxied.image("v1")).await?;
    let node = world.nodes.join_tainted("late", &[TAINT]).await?;
    released(world, &node).await?;
    proxied.until_held().await?;
    let (kind, note) = world.nodes.event(&node, "DeadlineExceeded").await?;
    ensure!(kind == "Warning" && note.contains("deadline exceeded"), "{kind} {note}");
    Ok(())
}

async fn a_pause_releases(world: &World) -> Result<()> {
    restart(world, &["--paused", "true"]).await?;
    let node = world.nodes.join_tainted("paused", &[TAINT]).await?;
    released(world, &node).await?;
    world.nodes.event(&node, "Paused").await?;
    Ok(())
}

/// With no controller left, an administrator removes the taint from all nodes, also from such that
/// have none.
async fn the_documented_command_releases_all(world: &World) -> Result<()> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nodes.md"))?;
    let command = page.lines().find_map(|line| line.trim().strip_prefix("kubectl taint nodes "));
    let arguments = command.context("the page has no such command")?;
    let mut all = vec![];
    for pool in ["left-1", "left-2"] {
        all.push(world.nodes.join_tainted(pool, &[OTHER, TAINT]).await?);
    }
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let run = world.commands.kubectl(&[&["taint", "nodes"], &arguments[..]].concat()).await;
    ensure!(run.is_err_and(|error| error.to_string().contains("not found")), "all have the taint");
    for node in all {
        ensure!(world.nodes.taints(&node).await? == [OTHER], "{node}");
    }
    Ok(())
}
