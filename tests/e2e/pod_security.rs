//! The shipped Pods against the API server's own PodSecurity admission: the controller keeps to the
//! strictest level, the warmer breaks it only where it has to.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::world::World;

crate::tests![
    the_controller_is_restricted,
    the_warmer_breaks_what_it_has_to,
    the_warmers_of_clouds_are_admitted,
];

const CONTROLLER: &str = include_str!("../../deploy/controller/deployment.yaml");
const WARMER: &str = include_str!("../../deploy/warmer/daemonset.yaml");
const NAMESPACE: &str = include_str!("../../deploy/namespace.yaml");

/// What the API server answers to the Pod of a manifest in a namespace of this level; nothing when it
/// takes it. Nothing is stored.
async fn refusal(world: &World, level: &str, manifest: &str) -> Result<Option<String>> {
    let namespace = world.namespace(&format!("pods-{level}")).await?;
    let key = "pod-security.kubernetes.io/enforce";
    namespace.label(key, level).await?;
    let template: Value = serde_saphyr::from_str(manifest)?;
    let mut spec = template["spec"]["template"]["spec"].clone();
    let account = spec["serviceAccountName"].as_str().context("no account")?.to_owned();
    namespace.service_account(&account, &[]).await?;
    // A class of priority for system Pods is for another plugin to judge.
    spec.as_object_mut().context("no Pod")?.remove("priorityClassName");
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "pod"}, "spec": spec}))?;
    let pods: Api<Pod> = namespace.api();
    match pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

async fn the_controller_is_restricted(world: &World) -> Result<()> {
    let refused = refusal(world, "restricted", CONTROLLER).await?;
    ensure!(refused.is_none(), "{refused:?}");
    // The plugin is at work: what it ought to refuse, it does.
    let careless = CONTROLLER.replace("runAsNonRoot: true", "runAsNonRoot: false");
    ensure!(careless != CONTROLLER, "the manifest has nothing about root");
    let refused = refusal(world, "restricted", &careless).await?.context("root was let in")?;
    ensure!(refused.contains("runAsNonRoot != true"), "{refused}");
    Ok(())
}

/// As the overlays render them: the API server takes their Pods, and what else they change.
async fn the_warmers_of_clouds_are_admitted(world: &World) -> Result<()> {
    for (cloud, has_host_network) in [("eks", true), ("gke", true), ("aks", false)] {
        let folder = format!("{}/overlays/{cloud}", env!("CARGO_MANIFEST_DIR"));
        let rendered = world.commands.kubectl(&["kustomize", &folder]).await?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
        let warmer = objects.iter().find(|one| one["kind"] == "DaemonSet");
        let warmer = warmer.context("no DaemonSet is rendered")?;
        let pod = &warmer["spec"]["template"]["spec"];
        ensure!((pod["hostNetwork"] == true) == has_host_network, "{cloud}: {pod}");
        let probe = pod["containers"][0]["args"].to_string();
        let port = pod["containers"][0]["ports"][0]["containerPort"].to_string();
        ensure!(probe.contains(&format!("--health-listen=[::]:{port}")), "{cloud}: {probe}");
        let refused = refusal(world, "privileged", &warmer.to_string()).await?;
        ensure!(refused.is_none(), "{cloud}: {refused:?}");
        let changed = ["DaemonSet", "NetworkPolicy"];
        let mut changed: Vec<Value> = objects
            .iter()
            .filter(|one| changed.iter().any(|kind| one["kind"] == **kind))
            .cloned()
            .collect();
        // New ones: of those that are there another field manager owns the ports that an overlay replaces.
        for object in &mut changed {
            let name = &mut object["metadata"]["name"];
            *name = format!("{}-{cloud}", name.as_str().context("no name")?).into();
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": changed});
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), list.to_string())?;
        let path = file.path().display().to_string();
        let arguments = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f"];
        let output = world.commands.kubectl(&[&arguments[..], &[&path]].concat()).await?;
        ensure!(output.lines().count() == changed.len(), "{cloud}: {output}");
    }
    Ok(())
}

async fn the_warmer_breaks_what_it_has_to(world: &World) -> Result<()> {
    for (level, expected) in [
        ("privileged", &[][..]),
        ("baseline", &["hostPath volumes"]),
        ("restricted", &["restricted volume types", "runAsNonRoot != true", "runAsUser=0"]),
    ] {
        let refused = refusal(world, level, WARMER).await?;
        let (_, broken) = refused
            .as_deref()
            .and_then(|message| message.split_once(":latest\": "))
            .unwrap_or_default();
        // `rule (where), rule (where)`
        let broken: Vec<&str> =
            broken.split("), ").filter_map(|one| Some(one.split_once(" (")?.0)).collect();
        ensure!(broken == expected, "{level}: {refused:?}");
    }
    let namespace: Value = serde_saphyr::from_str(NAMESPACE)?;
    let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    ensure!(enforced == "privileged", "the warmer could not run in its namespace: {enforced}");
    Ok(())
}
