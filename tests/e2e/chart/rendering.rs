//! What the chart renders: with its defaults the manifests of `deploy/`, with each file of `presets/`
//! the overlay of that name, object for object.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::cluster::NAMESPACE;

use super::{CHART, template};
use crate::world::World;

crate::tests![
    each_object_is_the_one_that_kustomize_renders,
    any_namespace_is_as_good,
    the_api_server_takes_what_is_rendered,
    the_chart_has_no_faults_that_helm_knows_of,
];

const OVERLAYS: [&str; 12] = [
    "aks",
    "cert-manager",
    FIXED_PATHS,
    "eks",
    "gke",
    "gke-quota",
    "host-network",
    "microk8s",
    "monitoring",
    NAMESPACED,
    "node-gate",
    "openshift",
];
const FIXED_PATHS: &str = "cert-manager-fixed-paths";
const NAMESPACED: &str = "namespaced-secrets";
const PATHS: [(&str, &str); 3] = [
    ("revisions", "/mutate/00112233445566778899aabbccddee01"),
    ("defaulting", "/mutate/00112233445566778899aabbccddee02"),
    ("validation", "/validate/00112233445566778899aabbccddee03"),
];

/// The flags with which the chart is to render an overlay.
fn flags(overlay: &str) -> Vec<String> {
    let mut flags = vec![format!("--values={CHART}/presets/{overlay}.yaml")];
    match overlay {
        FIXED_PATHS => flags.extend(
            PATHS
                .iter()
                .map(|(webhook, path)| format!("--set=webhook.fixedPaths.{webhook}={path}")),
        ),
        NAMESPACED => flags.push("--set=pullSecrets.namespaces={shop}".to_owned()),
        _ => {}
    }
    flags
}

async fn charted(world: &World, namespace: &str, overlay: &str) -> Result<Vec<Value>> {
    let flags = flags(overlay);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.push("--set=namespace.create=true");
    template(world, namespace, &flags).await.with_context(|| overlay.to_owned())
}

async fn kustomized(world: &World, overlay: &str) -> Result<Vec<Value>> {
    let root = env!("CARGO_MANIFEST_DIR");
    if overlay == FIXED_PATHS {
        let file: String = PATHS.iter().map(|(name, path)| format!("{name}={path}\n")).collect();
        return world.commands.overlay_with(overlay, ("webhook-paths.env", &file)).await;
    }
    let folder = format!("{root}/overlays/{overlay}");
    let rendered = world.commands.kubectl(&["kustomize", &folder]).await?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    if overlay == NAMESPACED {
        // Applied for each namespace, beside the overlay.
        let file = std::fs::read_to_string(format!("{folder}/pull-secrets.yaml"))?;
        let mut rights: Vec<Value> = serde_saphyr::from_multiple(&file)?;
        for object in &mut rights {
            object["metadata"]["namespace"] = json!("shop");
        }
        objects.extend(rights);
    }
    Ok(objects)
}

type Objects = BTreeMap<(String, String, String), Value>;

/// By kind, namespace and name.
fn by_name(objects: Vec<Value>) -> Result<Objects> {
    let mut named = BTreeMap::new();
    for object in objects {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let key = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        ensure!(named.insert(key.clone(), object).is_none(), "{key:?} is rendered twice");
    }
    Ok(named)
}

/// Takes away what the chart may add, and no more.
fn without_additions(mut object: Value) -> Result<Value> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let metadata = &mut object["metadata"];
    let labels = metadata["labels"].as_object_mut().context("no labels")?;
    for label in ["helm.sh/chart", "app.kubernetes.io/managed-by"] {
        ensure!(labels.remove(label).is_some(), "{kind} lacks the label {label}");
    }
    if ["CustomResourceDefinition", "Namespace"].contains(&kind.as_str()) {
        let annotations = metadata["annotations"].as_object_mut().context("no annotations")?;
        let policy = annotations.remove("helm.sh/resource-policy");
        ensure!(policy == Some(json!("keep")), "{kind} would be deleted: {policy:?}");
        if annotations.is_empty() {
            metadata.as_object_mut().context("no object")?.remove("annotations");
        }
    }
    Ok(object)
}

/// kustomize doubles line breaks within folded text, which here is CEL.
fn with_single_breaks(value: &mut Value) {
    match value {
        Value::String(text) => {
            while text.contains("\n\n") {
                *text = text.replace("\n\n", "\n");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(with_single_breaks),
        Value::Object(fields) => fields.values_mut().for_each(with_single_breaks),
        _ => {}
    }
}

/// The paths at which two objects differ, with both values.
fn differences(path: &str, wanted: &Value, found: &Value, differing: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            for key in keys {
                differences(&format!("{path}/{key}"), &wanted[key], &found[key], differing);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (wanted, found)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}/{index}"), wanted, found, differing);
            }
        }
        _ if wanted == found => {}
        _ => differing.push(format!("{path}: kustomize {wanted}, chart {found}")),
    }
}

fn compare(overlay: &str, kustomized: Vec<Value>, charted: Vec<Value>) -> Result<()> {
    let charted: Result<Vec<Value>> = charted.into_iter().map(without_additions).collect();
    let (mut wanted, mut found) = (by_name(kustomized)?, by_name(charted?)?);
    ensure!(wanted.len() > 25, "{overlay}: only {} objects", wanted.len());
    let mut differing = vec![];
    let names: BTreeSet<_> = wanted.keys().chain(found.keys()).cloned().collect();
    for name in names {
        let (kind, _, object) = &name;
        match (wanted.get_mut(&name), found.get_mut(&name)) {
            (Some(wanted), Some(found)) => {
                [&mut *wanted, &mut *found].into_iter().for_each(with_single_breaks);
                differences(&format!("{kind} {object}"), wanted, found, &mut differing);
            }
            (Some(_), None) => differing.push(format!("{kind} {object}: not in the chart")),
            _ => differing.push(format!("{kind} {object}: in the chart only")),
        }
    }
    ensure!(differing.is_empty(), "{overlay}:\n{}", differing.join("\n"));
    Ok(())
}

async fn each_object_is_the_one_that_kustomize_renders(world: &World) -> Result<()> {
    let deploy = format!("{}/deploy", env!("CARGO_MANIFEST_DIR"));
    let base = world.commands.kubectl(&["kustomize", &deploy]).await?;
    let base: Vec<Value> = serde_saphyr::from_multiple(&base)?;
    // Helm stores the release in the namespace, which is there before.
    let (namespaces, others): (Vec<Value>, Vec<Value>) =
        base.clone().into_iter().partition(|object| object["kind"] == "Namespace");
    ensure!(namespaces.len() == 1);
    compare("defaults", others, template(world, NAMESPACE, &[]).await?)?;
    let created = template(world, NAMESPACE, &["--set=namespace.create=true"]).await?;
    compare("namespace.create", base, created)?;
    for overlay in OVERLAYS {
        let both = tokio::try_join!(kustomized(world, overlay), charted(world, NAMESPACE, overlay));
        let (kustomized, charted) = both?;
        compare(overlay, kustomized, charted)?;
    }
    Ok(())
}

/// Nothing is left of the other namespace's name, and nothing else differs.
async fn any_namespace_is_as_good(world: &World) -> Result<()> {
    for overlay in OVERLAYS {
        let both = tokio::try_join!(
            charted(world, NAMESPACE, overlay),
            charted(world, "warming", overlay)
        );
        let (expected, found) = both?;
        let (expected, found) = (Value::from(expected).to_string(), Value::from(found).to_string());
        ensure!(found.contains("system:serviceaccount:warming:imagecontroller"));
        ensure!(found == expected.replace(NAMESPACE, "warming"), "{overlay} in another namespace");
    }
    Ok(())
}

/// All kinds but those of other programs, which the API server does not serve.
async fn the_api_server_takes_what_is_rendered(world: &World) -> Result<()> {
    const FOREIGN: [&str; 4] =
        ["cert-manager.io", "security.openshift.io", "monitoring.coreos.com", ""];
    let mut objects = template(world, NAMESPACE, &[]).await?;
    for overlay in OVERLAYS {
        objects.extend(charted(world, NAMESPACE, overlay).await?);
    }
    // What `helm test` creates.
    let test = ["template", "any", CHART, "-n", NAMESPACE, "-s", "templates/tests/check.yaml"];
    let test: Vec<Value> = serde_saphyr::from_multiple(&world.commands.helm_well(&test).await?)?;
    ensure!(test.iter().any(|object| object["kind"] == "Pod"), "no Pod: {test:?}");
    objects.extend(test);
    let namespace = world.namespace("shop").await?;
    let mut seen = BTreeSet::new();
    objects.retain_mut(|object| {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("core", |(group, _)| group);
        let is_foreign = FOREIGN.contains(&group);
        if object["metadata"]["namespace"] == "shop" {
            object["metadata"]["namespace"] = json!(namespace.name);
        }
        !is_foreign && seen.insert(object.to_string())
    });
    for (number, object) in objects.iter_mut().enumerate() {
        // New ones: of the one that is there, another field manager owns the port that some replace.
        if object["kind"] == "DaemonSet" {
            object["metadata"]["name"] = json!(format!("imagewarmer-{number}"));
        }
        // A dry run creates no account for the Pod that comes after it.
        if object["kind"] == "Pod" {
            object["spec"]["serviceAccountName"] = json!("imagecontroller");
        }
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&file, list.to_string())?;
    let file = file.display().to_string();
    let dry_run = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", &file];
    let output = world.commands.kubectl(&dry_run).await?;
    let taken = output.lines().filter(|line| line.contains("server dry run")).count();
    ensure!(taken == objects.len() && taken > 50, "{taken} of {}:\n{output}", objects.len());
    Ok(())
}

async fn the_chart_has_no_faults_that_helm_knows_of(world: &World) -> Result<()> {
    world.commands.helm_well(&["lint", "--strict", CHART]).await?;
    for overlay in OVERLAYS {
        let flags = flags(overlay);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        world.commands.helm_well(&[&["lint", "--strict", CHART], &flags[..]].concat()).await?;
    }
    Ok(())
}
