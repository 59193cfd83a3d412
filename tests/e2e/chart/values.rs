//! What values do that no overlay has, and which are refused.

use anyhow::{Context, Result, bail, ensure};
use clap::{CommandFactory, Parser};
use imagewarm::cli::Cli;
use serde_json::{Value, json};
use xtask::cluster::NAMESPACE;

use super::{CHART, template};
use crate::world::World;

crate::tests![
    the_programs_take_their_defaults_as_settings,
    bad_values_are_refused_by_their_name,
    monitoring_finds_the_pods_and_has_the_alerts,
    plugins_elsewhere_than_in_clouds_are_mounted,
    addresses_of_the_control_plane_narrow_the_policies,
    further_labels_replace_none_of_ours,
    on_openshift_warmers_may_use_the_network_that_they_are_given,
    the_test_runs_with_the_rights_of_the_check_and_leaves_nothing,
];

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
    let find = |kind: &str, name: &str| {
        let is_it = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
        objects.iter().find(is_it).with_context(|| format!("no {kind} {name}"))
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

async fn addresses_of_the_control_plane_narrow_the_policies(world: &World) -> Result<()> {
    let flags = [
        "--set=networkPolicy.apiServerCidrs={10.0.0.0/28,fd00::/64}",
        "--set=networkPolicy.apiServerPorts={6443}",
    ];
    let objects = template(world, NAMESPACE, &flags).await?;
    let is_it = |one: &&Value| {
        one["kind"] == "NetworkPolicy" && one["metadata"]["name"] == "imagecontroller"
    };
    let policy = objects.iter().find(is_it).context("no policy")?;
    let blocks = json!([{"ipBlock": {"cidr": "10.0.0.0/28"}}, {"ipBlock": {"cidr": "fd00::/64"}}]);
    let ports = json!([{"protocol": "TCP", "port": 6443}]);
    let egress = &policy["spec"]["egress"][0];
    ensure!(egress["to"] == blocks && egress["ports"] == ports, "{egress}");
    let ingress = policy["spec"]["ingress"].as_array().context("no ingress")?;
    let admission = ingress.iter().find(|rule| rule["ports"][0]["port"] == "webhook");
    ensure!(admission.is_some_and(|rule| rule["from"] == blocks), "{ingress:?}");
    ensure!(!policy.to_string().contains("0.0.0.0/0"), "{policy}");
    let without = template(world, NAMESPACE, &["--set=networkPolicy.enabled=false"]).await?;
    ensure!(!without.iter().any(|one| one["kind"] == "NetworkPolicy"), "policies are rendered");
    Ok(())
}

async fn further_labels_replace_none_of_ours(world: &World) -> Result<()> {
    let further = "{\"team\": \"shop\", \"app.kubernetes.io/part-of\": \"shop\"}";
    let names = ["commonLabels", "controller.podLabels", "warmer.podLabels"];
    let flags = names.map(|name| format!("--set-json={name}={further}"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for object in template(world, NAMESPACE, &flags).await? {
        let of_pods = &object["spec"]["template"]["metadata"]["labels"];
        for labels in [&object["metadata"]["labels"], of_pods] {
            if !labels.is_null() {
                ensure!(labels["team"] == "shop", "{object}");
                ensure!(labels["app.kubernetes.io/part-of"] == "imagewarm", "{object}");
            }
        }
    }
    Ok(())
}

async fn on_openshift_warmers_may_use_the_network_that_they_are_given(world: &World) -> Result<()> {
    for (flag, allowed) in [("warmer.hostNetwork=true", true), ("warmer.hostNetwork=false", false)]
    {
        let flags = ["--set=openshift.enabled=true", &format!("--set={flag}")];
        let objects = template(world, NAMESPACE, &flags).await?;
        let find = |kind: &str| {
            objects.iter().find(|one| one["kind"] == kind).with_context(|| format!("no {kind}"))
        };
        let constraints = find("SecurityContextConstraints")?;
        ensure!(constraints["allowHostNetwork"] == allowed, "{constraints}");
        ensure!(constraints["allowHostPorts"] == allowed, "{constraints}");
        let pod = &find("DaemonSet")?["spec"]["template"]["spec"];
        ensure!((pod["hostNetwork"] == true) == allowed, "{pod}");
    }
    Ok(())
}

async fn the_test_runs_with_the_rights_of_the_check_and_leaves_nothing(
    world: &World,
) -> Result<()> {
    let test = ["template", "any", CHART, "-n", "warming", "-s", "templates/tests/check.yaml"];
    let output = world.commands.helm_well(&test).await?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&output)?;
    let mut kinds = vec![];
    for object in objects.iter().filter(|object| !object.is_null()) {
        let annotations = &object["metadata"]["annotations"];
        ensure!(annotations["helm.sh/hook"] == "test", "{object} is installed");
        let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap_or_default();
        ensure!(policy.contains("hook-succeeded"), "{object} stays");
        let kind = object["kind"].as_str().unwrap_or_default();
        kinds.push(kind);
        if let Some(role) = kind.strip_suffix("Binding") {
            ensure!(object["roleRef"]["kind"] == role, "{object}");
            ensure!(object["roleRef"]["name"] == "imagewarm-check", "{object}");
            let subject = json!({"kind": "ServiceAccount", "name": "imagewarm-check", "namespace": "warming"});
            ensure!(object["subjects"] == json!([subject]), "{object}");
        }
        if kind == "Pod" {
            ensure!(object["spec"]["serviceAccountName"] == "imagewarm-check", "{object}");
            let arguments = &object["spec"]["containers"][0]["args"];
            ensure!(*arguments == json!(["check", "--namespace=warming"]), "{arguments}");
        }
    }
    kinds.sort_unstable();
    ensure!(kinds == ["ClusterRoleBinding", "Pod", "RoleBinding", "ServiceAccount"], "{kinds:?}");
    Ok(())
}
