//! The overlays, as kubectl renders them and the API server takes them.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use xtask::cluster::NAMESPACE;

use crate::world::{World, eventually};

crate::tests![
    kubectl_renders_the_overlays,
    openshift_needs_no_fixed_ids_and_no_privileges,
    the_api_server_takes_the_objects_for_openshift,
    the_quota_lets_critical_pods_into_the_namespace,
];

const WARMER: &str = "imagewarmer";
const CONTROLLER: &str = "imagecontroller";

async fn render(world: &World, overlay: &str) -> Result<Vec<Value>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/overlays");
    let output = world.commands.kubectl(&["kustomize", &format!("{folder}/{overlay}")]).await?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&output)?;
    for kind in ["CustomResourceDefinition", "DaemonSet", "Deployment", "NetworkPolicy"] {
        ensure!(objects.iter().any(|one| one["kind"] == kind), "{overlay}: no {kind}");
    }
    Ok(objects)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let is_it = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    objects.iter().find(is_it).with_context(|| format!("no {kind} {name}"))
}

async fn kubectl_renders_the_overlays(world: &World) -> Result<()> {
    let objects = render(world, "cert-manager").await?;
    let injected =
        |one: &&Value| one["metadata"]["annotations"]["cert-manager.io/inject-ca-from"].is_string();
    ensure!(objects.iter().filter(injected).count() == 2, "both configurations are injected into");
    let objects = render(world, "namespaced-secrets").await?;
    let role = find(&objects, "ClusterRole", "imagewarm-controller")?;
    let rules = role["rules"].to_string();
    ensure!(rules.contains("tokenreviews") && !rules.contains("secrets"), "{rules}");
    let objects = render(world, "microk8s").await?;
    let volumes = &find(&objects, "DaemonSet", WARMER)?["spec"]["template"]["spec"]["volumes"];
    let folder = &volumes[0]["hostPath"]["path"];
    ensure!(folder == "/var/snap/microk8s/common/run", "{folder}");
    let objects = render(world, "monitoring").await?;
    find(&objects, "PodMonitor", CONTROLLER)?;
    find(&objects, "PodMonitor", WARMER)?;
    find(&objects, "PrometheusRule", "imagewarm")?;
    let objects = render(world, "host-network").await?;
    let pod = &find(&objects, "DaemonSet", WARMER)?["spec"]["template"]["spec"];
    ensure!(pod["hostNetwork"] == true && pod["dnsPolicy"] == "ClusterFirstWithHostNet", "{pod}");
    let (container, port) = (&pod["containers"][0], json!(18080));
    ensure!(container["ports"][0]["containerPort"] == port, "{container}");
    ensure!(container["args"].to_string().contains("--health-listen=[::]:18080"), "{container}");
    let policy = find(&objects, "NetworkPolicy", CONTROLLER)?.to_string();
    ensure!(policy.contains("0.0.0.0/0"), "warmers on the nodes' network are no Pods: {policy}");
    Ok(())
}

async fn openshift_needs_no_fixed_ids_and_no_privileges(world: &World) -> Result<()> {
    let objects = render(world, "openshift").await?;
    let namespace = find(&objects, "Namespace", NAMESPACE)?;
    ensure!(
        namespace["metadata"]["annotations"]["openshift.io/node-selector"] == "",
        "{namespace}"
    );
    let pod = |kind, name| anyhow::Ok(&find(&objects, kind, name)?["spec"]["template"]["spec"]);
    let context = &pod("Deployment", CONTROLLER)?["securityContext"];
    let expected = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    ensure!(*context == expected, "{context}");

    // The constraints allow just what the warmer's Pod says of itself.
    let constraints = find(&objects, "SecurityContextConstraints", WARMER)?;
    let warmer = pod("DaemonSet", WARMER)?;
    let (context, container) = (&warmer["securityContext"], &warmer["containers"][0]);
    let account = format!("system:serviceaccount:{NAMESPACE}:{WARMER}");
    ensure!(constraints["users"] == json!([account]) && constraints["groups"] == json!([]));
    ensure!(constraints["runAsUser"] == json!({"type": "MustRunAs", "uid": context["runAsUser"]}));
    let options = &constraints["seLinuxContext"]["seLinuxOptions"];
    ensure!(*options == context["seLinuxOptions"] && options["type"] == "spc_t", "{options}");
    let own = &container["securityContext"];
    ensure!(constraints["readOnlyRootFilesystem"] == own["readOnlyRootFilesystem"]);
    ensure!(constraints["allowPrivilegeEscalation"] == own["allowPrivilegeEscalation"]);
    ensure!(constraints["requiredDropCapabilities"] == own["capabilities"]["drop"]);
    let volumes = warmer["volumes"].as_array().context("no volumes")?.iter();
    let kinds =
        volumes.filter_map(|volume| volume.as_object()?.keys().find(|key| *key != "name").cloned());
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    ensure!(constraints["volumes"] == json!(kinds), "{kinds:?}");
    let allowed = constraints.as_object().context("no object")?.iter();
    let allowed: Vec<_> =
        allowed.filter(|(key, value)| key.starts_with("allow") && **value == true).collect();
    ensure!(allowed.len() == 1 && allowed[0].0 == "allowHostDirVolumePlugin", "{allowed:?}");

    for name in [CONTROLLER, WARMER] {
        let policy = find(&objects, "NetworkPolicy", name)?;
        let egress = policy["spec"]["egress"].as_array().context("no egress")?;
        let dns = egress.iter().filter(|rule| rule["ports"].to_string().contains(":53,"));
        let dns: Vec<_> = dns.map(|rule| rule["ports"].to_string()).collect();
        ensure!(dns.len() == 1 && dns[0].matches("5353").count() == 2, "{name}: {dns:?}");
    }
    Ok(())
}

/// All but the constraints, whose kind only OpenShift has.
async fn the_api_server_takes_the_objects_for_openshift(world: &World) -> Result<()> {
    let mut objects = render(world, "openshift").await?;
    objects.retain(|one| one["kind"] != "SecurityContextConstraints");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&file, list.to_string())?;
    let file = file.display().to_string();
    let dry_run = ["--server-side", "--force-conflicts", "--dry-run=server", "-f", &file];
    let output = world.commands.kubectl(&[&["apply"], &dry_run[..]].concat()).await?;
    let taken = output.lines().filter(|line| line.contains("server dry run")).count();
    ensure!(taken == objects.len(), "{taken} of {}:\n{output}", objects.len());
    Ok(())
}

/// As GKE has it: no Pod of these classes in a namespace without a quota for them.
const ADMISSION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources:
    - resource: pods
      matchScopes:
      - scopeName: PriorityClass
        operator: In
        values: [system-cluster-critical, system-node-critical]
";

async fn the_quota_lets_critical_pods_into_the_namespace(world: &World) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("admission.yaml");
    std::fs::write(&file, ADMISSION)?;
    let flag = format!("--admission-control-config-file={}", file.display());
    let server = world.cluster().start_another_api_server(&[&flag]).await?;
    let controller = world.cluster().start_quota_controller()?;
    let objects = render(world, "gke-quota").await?;
    let quota = find(&objects, "ResourceQuota", "critical-pods")?;
    ensure!(quota["metadata"]["namespace"] == NAMESPACE, "{quota}");
    let namespace = world.namespace("critical").await?;
    for account in [CONTROLLER, WARMER] {
        namespace.service_account(account, &[]).await?;
    }
    let pods: Api<Pod> = Api::namespaced(server.client(), &namespace.name);
    let create = async |kind: &str, name: &str| -> Result<Option<String>> {
        let spec = find(&objects, kind, name)?["spec"]["template"]["spec"].clone();
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        match pods.create(&dry_run, &pod).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
            Err(error) => Err(error.into()),
        }
    };
    let both = [("Deployment", CONTROLLER), ("DaemonSet", WARMER)];
    for (kind, name) in both {
        let refused = create(kind, name).await?.with_context(|| format!("{name} was created"))?;
        ensure!(refused.contains("insufficient quota to match these scopes"), "{refused}");
    }
    let mut quota = quota.clone();
    quota["metadata"]["namespace"] = json!(namespace.name);
    let quotas: Api<ResourceQuota> = namespace.api();
    quotas.create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
    for (kind, name) in both {
        let created = async || Ok(create(kind, name).await?.is_none().then_some(()));
        let created = eventually(&format!("{name} is created"), created).await;
        created.with_context(|| controller.log_tail())?;
    }
    Ok(())
}
