//! The image of a release: pushed from its OCI layout, warmed as any other, and run by the kubelet, with what the
//! controller's Deployment asks of a container.

use std::fs;

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use imagewarm_release::dist::Release;
use imagewarm_release::program::Program;
use imagewarm_release::source::Source;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use xtask::cluster::{Cluster, KubeletNode};
use xtask::wait::wait_for;

use crate::program::link;
use crate::{DEADLINE, NAMESPACE, create_revision};

/// Pushes it, has it warmed, and runs it in a Pod.
pub(super) async fn runs(cluster: &Cluster, node: &KubeletNode) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_owned();
    // Linking and compressing take seconds.
    tokio::task::spawn_blocking(move || {
        let programs = vec![Program::read(&link(&path)?)?];
        let source = Source { revision: String::new(), epoch: 0, repository: None };
        Release { programs, source, compiler: "1.95.0".to_owned() }.assemble()?.write(&path)
    })
    .await??;
    let registry = &cluster.registry_plain;
    let pushed = registry.push_layout(&folder.path().join("image"), "release", "v1").await?;
    let image = registry.image("release", "v1");
    create_revision(&cluster.client(), "release", &image).await?;
    let warms: Api<ImageWarm> = Api::namespaced(cluster.client(), NAMESPACE);
    let digest = wait_for(DEADLINE, "the release's image to be warm", async || {
        let list = warms.list(&ListParams::default()).await.ok()?;
        let warm = list.items.into_iter().find(|warm| warm.spec.image == image)?;
        (warm.reason() == Some(Reason::Pulled)).then_some(warm.status?.digest?)
    })
    .await?;
    ensure!(digest == pushed, "{digest} is warm, {pushed} was pushed");
    ensure!(node.holds(&image).await, "containerd does not hold {image}");

    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "release"},
        "spec": {
            "nodeName": node.name,
            "restartPolicy": "Never",
            "containers": [{
                "name": "main",
                "image": image,
                "args": ["reference", "nginx"],
                "securityContext": {
                    // Refused by the kubelet unless the image names a user by number.
                    "runAsNonRoot": true,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))?;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
    pods.create(&PostParams::default(), &pod).await?;
    let ended = wait_for(DEADLINE, "the Pod of the release to end", async || {
        let pod = pods.get("release").await.ok()?;
        let phase = pod.status.as_ref()?.phase.as_deref()?;
        ["Succeeded", "Failed"].contains(&phase).then_some(pod)
    })
    .await?;
    let log = log_of(cluster, node, &ended)?;
    let phase = ended.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Succeeded"), "{phase:?}: {log}");
    ensure!(log.contains("docker.io/library/nginx"), "{log}");
    Ok(())
}

/// What the kubelet keeps of the container's output.
fn log_of(cluster: &Cluster, node: &KubeletNode, pod: &Pod) -> Result<String> {
    let uid = pod.metadata.uid.as_deref().context("no uid")?;
    let folder = cluster.folder().join(&node.name).join("pod-logs");
    let file = folder.join(format!("{NAMESPACE}_release_{uid}/main/0.log"));
    fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
}
