//! What the chart renders: with its defaults the manifests of `deploy/`, with each file of `presets/`
//! the overlay of that name, object for object.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use clap::{CommandFactory, Parser};
use imagewarm::cli::Cli;
use serde_json::{Value, json};
use xtask::cluster::NAMESPACE;

use super::{CHART, template};
use crate::world::World;

crate::tests![
    each_object_is_the_one_that_kustomize_renders,
    any_namespace_is_as_good,
    the_api_server_takes_what_is_rendered,
    the_programs_take_their_defaults_as_settings,
    bad_values_are_refused_by_their_name,
    monitoring_finds_the_pods_and_has_the_alerts,
    plugins_elsewhere_than_in_clouds_are_mounted,
    the_chart_has_no_faults_that_helm_knows_of,
];

const OVERLAYS: [&str; 11] = [
    "aks",
    "cert-manager",
    FIXED_PATHS,
    "eks",
    "gke",
    "gke-quota",
    "host-network",
    "microk8s",
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
fn differences(path: &str, wanted: &Value, found: &Value, told: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            for key in keys {
                differences(&format!("{path}/{key}"), &wanted[key], &found[key], told);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (wanted, found)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}/{index}"), wanted, found, told);
            }
        }
        _ if wanted == found => {}
        _ => told.push(format!("{path}: kustomize {wanted}, chart {found}")),
    }
}

fn compare(overlay: &str, kustomized: Vec<Value>, charted: Vec<Value>) -> Result<()> {
    let charted: Result<Vec<Value>> = charted.into_iter().map(without_additions).collect();
    let (mut wanted, mut found) = (by_name(kustomized)?, by_name(charted?)?);
    ensure!(wanted.len() > 25, "{overlay}: only {} objects", wanted.len());
    let mut told = vec![];
    let names: BTreeSet<_> = wanted.keys().chain(found.keys()).cloned().collect();
    for name in names {
        let (kind, _, object) = &name;
        match (wanted.get_mut(&name), found.get_mut(&name)) {
            (Some(wanted), Some(found)) => {
                [&mut *wanted, &mut *found].into_iter().for_each(with_single_breaks);
                differences(&format!("{kind} {object}"), wanted, found, &mut told);
            }
            (Some(_), None) => told.push(format!("{kind} {object}: not in the chart")),
            _ => told.push(format!("{kind} {object}: in the chart only")),
        }
    }
    ensure!(told.is_empty(), "{overlay}:\n{}", told.join("\n"));
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
        compare(
            overlay,
            kustomized(world, overlay).await?,
            charted(world, NAMESPACE, overlay).await?,
        )?;
    }
    Ok(())
}

/// Nothing is left of the other namespace's name, and nothing else differs.
async fn any_namespace_is_as_good(world: &World) -> Result<()> {
    for overlay in OVERLAYS {
        let expected = Value::from(charted(world, NAMESPACE, overlay).await?).to_string();
        let found = Value::from(charted(world, "warming", overlay).await?).to_string();
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

fn argument_list(objects: &[Value], kind: &str) -> Result<Vec<String>> {
    let found = objects.iter().find(|object| object["kind"] == kind);
    let found = found.with_context(|| format!("no {kind}"))?;
    let arguments = &found["spec"]["template"]["spec"]["containers"][0]["args"];
    Ok(serde_json::from_value(arguments.clone())?)
}

/// Each setting with the program's own default: the schema takes it, and the program what comes out.
async fn the_programs_take_their_defaults_as_settings(world: &World) -> Result<()> {
    let schema = std::fs::read_to_string(format!("{CHART}/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema)?;
    let mut settings = json!({});
    let mut count = 0;
    for program in ["controller", "warmer"] {
        let command = Cli::command();
        let command = command.find_subcommand(program).context("no such program")?;
        let known = &schema["properties"]["settings"]["properties"][program]["properties"];
        for flag in command.get_arguments() {
            let long = flag.get_long().unwrap_or_default();
            let name = setting_name(long);
            let Some(setting) = known.get(&name) else { continue };
            let defaults = flag.get_default_values().iter().filter_map(|value| value.to_str());
            let default = defaults.collect::<Vec<_>>().join(",");
            let integer = default.parse::<i64>();
            settings[program][&name] = match (setting["type"].as_str(), integer) {
                (Some("array"), _) => default.split(',').collect(),
                (Some("object"), _) => json!({}),
                (Some("boolean"), _) => json!(default == "true"),
                (Some("string"), _) | (_, Err(_)) => json!(default),
                (_, Ok(integer)) => json!(integer),
            };
            count += 1;
        }
    }
    ensure!(count > 30, "{count} settings");
    // The program's defaults have no large number, which YAML would read as 1e+06.
    settings["controller"]["maxImageWarms"] = json!(1_000_000);
    settings["controller"]["imageRewrites"] = json!({"docker.io": "mirror.example/hub"});
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), json!({"settings": settings}).to_string())?;
    let objects =
        template(world, NAMESPACE, &[&format!("--values={}", file.path().display())]).await?;
    for kind in ["Deployment", "DaemonSet"] {
        let mut arguments = argument_list(&objects, kind)?;
        for argument in &mut arguments {
            *argument =
                argument.replace("$(POD_IP)", "10.1.2.3").replace("$(POD_NAMESPACE)", "warming");
        }
        let rewrites =
            |argument: &String| argument == "--image-rewrites=docker.io=mirror.example/hub";
        ensure!(kind == "DaemonSet" || arguments.iter().any(rewrites), "{arguments:?}");
        let words = std::iter::once("imagewarm").chain(arguments.iter().map(String::as_str));
        if let Err(error) = Cli::try_parse_from(words) {
            bail!("{kind}: {arguments:?}: {error}");
        }
    }
    Ok(())
}

/// `collect-grace` as `collectGrace`.
fn setting_name(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words.filter(|word| !word.is_empty()) {
        let (first, rest) = word.split_at(1);
        name.push_str(&first.to_uppercase());
        name.push_str(rest);
    }
    name
}

/// Values, and what the last line says of them.
const REFUSED: [(&str, &str); 17] = [
    ("controller.replicas=two", "at '/controller/replicas': got string, want integer"),
    ("controller.replicas=0", "at '/controller/replicas': minimum: got 0, want 1"),
    ("controler.replicas=2", "additional properties 'controler' not allowed"),
    ("image.tags=v1", "at '/image': additional properties 'tags' not allowed"),
    ("image.digest=sha256:12", "at '/image/digest': 'sha256:12' does not match pattern"),
    (
        "image.pullPolicy=always",
        "at '/image/pullPolicy': value must be one of '', 'Always', 'IfNotPresent', 'Never'",
    ),
    (
        "credentialProvider.preset=azure",
        "at '/credentialProvider/preset': value must be one of '', 'eks', 'gke', 'aks'",
    ),
    ("settings.controller.collectGrace=30", "at '/settings/controller/collectGrace': got number"),
    (
        "settings.warmer.keepFreeDisk=20",
        "at '/settings/warmer/keepFreeDisk': got number, want string",
    ),
    (
        "settings.controller.namespaceSelection=all",
        "at '/settings/controller/namespaceSelection': value must be one of 'opt-out', 'opt-in'",
    ),
    ("nodeGate.taint=a/b=c", "at '/nodeGate/taint': 'a/b=c' does not match pattern"),
    ("warmer.runtimeFolder=run", "at '/warmer/runtimeFolder': 'run' does not match pattern '^/"),
    ("openshift.enabled=yes", "at '/openshift/enabled': got string, want boolean"),
    ("webhook.fixedPaths.enabled=true", "webhook.fixedPaths.enabled needs certManager.enabled"),
    (
        "webhook.fixedPaths.enabled=true,certManager.enabled=true",
        "webhook.fixedPaths.defaulting must be /mutate/ and 32 random hexadecimal digits",
    ),
    (
        "credentialProvider.config=/etc/c.yaml",
        "credentialProvider.config and credentialProvider.binDir go together",
    ),
    (
        "pullSecrets.namespaces={shop}",
        "pullSecrets.namespaces has no effect with pullSecrets.allNamespaces: set that to false",
    ),
];

async fn bad_values_are_refused_by_their_name(world: &World) -> Result<()> {
    for (values, line) in REFUSED {
        let set = format!("--set={values}");
        let (code, output) = world.commands.helm(&["template", "any", CHART, &set]).await?;
        ensure!(code != 0, "{values} is taken");
        ensure!(output.contains(line), "{values}: {output}");
    }
    Ok(())
}

async fn monitoring_finds_the_pods_and_has_the_alerts(world: &World) -> Result<()> {
    let flags = [
        "--set=monitoring.podMonitor.enabled=true",
        "--set=monitoring.podMonitor.labels.release=prometheus",
        "--set=monitoring.prometheusRule.enabled=true",
    ];
    let objects = template(world, "warming", &flags).await?;
    let found = by_name(objects.clone())?;
    let find = |kind: &str, name: &str| {
        let key = (kind.to_owned(), "warming".to_owned(), name.to_owned());
        found.get(&key).with_context(|| format!("no {kind} {name}"))
    };
    for (kind, name) in [("Deployment", "imagecontroller"), ("DaemonSet", "imagewarmer")] {
        let monitor = find("PodMonitor", name)?;
        ensure!(monitor["metadata"]["labels"]["release"] == "prometheus", "{monitor}");
        let pod = &find(kind, name)?["spec"]["template"];
        for (label, value) in
            monitor["spec"]["selector"]["matchLabels"].as_object().context("any")?
        {
            ensure!(pod["metadata"]["labels"][label] == *value, "{monitor}");
        }
        let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
        let ports = pod["spec"]["containers"][0]["ports"].as_array().context("no ports")?;
        ensure!(ports.iter().any(|one| one["name"] == *port), "{monitor}");
    }
    let alerts = format!("{}/deploy/alerts/imagewarm.rules.yaml", env!("CARGO_MANIFEST_DIR"));
    let alerts: Value = serde_saphyr::from_str(&std::fs::read_to_string(alerts)?)?;
    ensure!(find("PrometheusRule", "imagewarm")?["spec"] == alerts, "other alerts");
    Ok(())
}

async fn plugins_elsewhere_than_in_clouds_are_mounted(world: &World) -> Result<()> {
    let flags = [
        "--set=credentialProvider.config=/etc/kubernetes/providers.yaml",
        "--set=credentialProvider.binDir=/opt/providers",
        "--set-json=credentialProvider.mounts=\
         [{\"name\":\"cloud\",\"path\":\"/etc/cloud.json\",\"type\":\"File\"}]",
    ];
    let objects = template(world, NAMESPACE, &flags).await?;
    let warmer =
        objects.iter().find(|object| object["kind"] == "DaemonSet").context("no warmer")?;
    let pod = &warmer["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    for (path, kind) in [
        ("/etc/kubernetes/providers.yaml", "File"),
        ("/opt/providers", "Directory"),
        ("/etc/cloud.json", "File"),
    ] {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == path).context(path)?;
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context(path)?;
        ensure!(volume["hostPath"] == json!({"path": path, "type": kind}), "{volume}");
        ensure!(mount["readOnly"] == true, "{mount}");
    }
    let env = container["env"].to_string();
    ensure!(
        env.contains("/etc/kubernetes/providers.yaml") && env.contains("/opt/providers"),
        "{env}"
    );
    ensure!(container["resources"]["limits"]["memory"] == "256Mi", "{}", container["resources"]);
    ensure!(pod["hostNetwork"].is_null(), "{pod}");
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
