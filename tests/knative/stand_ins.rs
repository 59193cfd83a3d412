//! The stand-ins for Knative's CRDs that other tests use, beside the CRDs themselves: of the fields
//! that imagewarm reads, both accept and refuse the same.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::cluster::{Cluster, Knative, Options, manifests};

use crate::stage::{Kind, Stage, containers, eventually, try_create, try_merge_status};

crate::tests![stand_ins_accept_and_refuse_what_knatives_own_crds_do];

/// What is sent, and whether it was accepted.
type Verdicts = BTreeMap<String, bool>;

async fn stand_ins_accept_and_refuse_what_knatives_own_crds_do(_: &Stage) -> Result<()> {
    let options =
        Options { nodes: 0, tls_registry: false, knative: Knative::StandIn, deploy: false };
    let cluster = Cluster::start(options).await?;
    let client = cluster.client();
    // Accepted by all; its status is written below.
    let seen = json!({"image": "app"});
    ensure!(try_create(&client, Kind::Image, "seen", &seen, false).await?.is_ok(), "no Image");
    let stand_ins = verdicts(&cluster).await?;
    manifests::apply(&client, cluster.knative_crds()?).await?;
    eventually("Knative's own CRDs are served", async || {
        // They drop what they do not know.
        let spec = json!({"image": "app", "unknown": true});
        let made = try_create(&client, Kind::Image, "probe", &spec, true).await.ok()?.ok()?;
        made["spec"]["unknown"].is_null().then_some(())
    })
    .await?;
    let own = verdicts(&cluster).await?;
    let differing: Vec<&String> = own
        .iter()
        .filter(|(what, verdict)| stand_ins.get(*what) != Some(verdict))
        .map(|(what, _)| what)
        .collect();
    ensure!(differing.is_empty(), "judged otherwise by the stand-ins: {differing:#?}");
    let refused = own.values().filter(|accepted| !**accepted).count();
    ensure!(own.len() > 80 && refused > 40, "{refused} of {} are refused", own.len());
    Ok(())
}

async fn verdicts(cluster: &Cluster) -> Result<Verdicts> {
    let client = cluster.client();
    let mut verdicts = Verdicts::new();
    for (kind, spec) in specs() {
        let made = try_create(&client, kind, "corpus", &spec, true).await?;
        verdicts.insert(format!("{kind:?} {spec}"), made.is_ok());
    }
    for status in statuses() {
        let made = try_merge_status(&client, Kind::Image, "seen", &status).await?;
        verdicts.insert(format!("status {status}"), made.is_ok());
    }
    Ok(verdicts)
}

/// Specs of all four kinds: those that tests write, and each field with a value of each type.
fn specs() -> Vec<(Kind, Value)> {
    let mut specs = vec![];
    for pod in pods() {
        specs.push((Kind::Revision, pod.clone()));
        let template = json!({"template": {"spec": pod}});
        specs.push((Kind::Configuration, template.clone()));
        specs.push((Kind::Service, template));
    }
    let templates = values().into_iter().map(|value| json!({"template": value}));
    let names = values().into_iter().map(
        |value| json!({"template": {"metadata": {"name": value}, "spec": containers(&["app"])}}),
    );
    let notes = values().into_iter().map(|value| {
        json!({"template": {"metadata": {"annotations": {"a": value}}, "spec": containers(&["app"])}})
    });
    for spec in templates.chain(names).chain(notes).chain([json!({})]) {
        specs.push((Kind::Configuration, spec.clone()));
        specs.push((Kind::Service, spec));
    }
    for value in values() {
        for field in ["revisionName", "percent", "latestRevision", "tag"] {
            specs.push((Kind::Service, json!({"traffic": [{field: value}]})));
        }
        specs.push((Kind::Service, json!({"traffic": value})));
        for field in ["image", "serviceAccountName", "imagePullSecrets"] {
            let mut spec = json!({"image": "app"});
            spec[field] = value.clone();
            specs.push((Kind::Image, spec));
        }
        let secrets = json!({"image": "app", "imagePullSecrets": [{"name": value}]});
        specs.push((Kind::Image, secrets));
    }
    specs.push((Kind::Image, json!({})));
    specs.push((Kind::Image, json!({"image": ""})));
    specs
}

/// Specs of Pods.
fn pods() -> Vec<Value> {
    let mut pods = vec![json!({}), containers(&[]), containers(&["app", "side"]), json!("text")];
    let fields = [
        "containers",
        "initContainers",
        "imagePullSecrets",
        "serviceAccountName",
        "nodeSelector",
        "tolerations",
        "affinity",
        "runtimeClassName",
    ];
    for value in values() {
        for field in fields {
            let mut pod = containers(&["app"]);
            pod[field] = value.clone();
            pods.push(pod);
        }
        for field in ["name", "image", "imagePullPolicy"] {
            pods.push(json!({"containers": [{field: value}]}));
        }
        let mut with = |field: &str, value: Value| {
            let mut pod = containers(&["app"]);
            pod[field] = value;
            pods.push(pod);
        };
        with("initContainers", json!([{"image": value}]));
        with("imagePullSecrets", json!([{"name": value}]));
        with("nodeSelector", json!({"disk": value}));
        with("tolerations", json!([{"key": value}]));
    }
    pods
}

/// Statuses as the leader writes them, and others.
fn statuses() -> Vec<Value> {
    let ready = json!({"type": "Ready", "status": "True"});
    let mut statuses = vec![
        json!({"conditions": [ready]}),
        json!({"conditions": [{"type": "Ready"}]}),
        json!({"conditions": [{"status": "True"}]}),
        // Accepted, and fatal for whoever decodes it as a time.
        json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "now"}]}),
    ];
    for value in values() {
        for field in ["type", "status", "severity", "reason", "message", "lastTransitionTime"] {
            let mut condition = ready.clone();
            condition[field] = value.clone();
            statuses.push(json!({"conditions": [condition]}));
        }
        statuses.push(json!({"conditions": value}));
        statuses.push(json!({"annotations": {"a": value}}));
        statuses.push(json!({"observedGeneration": value}));
    }
    statuses
}

/// A value of each type.
fn values() -> Vec<Value> {
    vec![json!("text"), json!(7), json!(true), json!([]), json!([7]), json!({}), json!({"a": "b"})]
}
