//! For whose Pods an image is: the runtime handler of their RuntimeClass, and their namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use serde_json::{Value, json};
use xtask::cluster::Node;

use crate::world::{Namespace, World, containers, eventually};

crate::tests![
    an_image_is_unpacked_for_the_handlers_of_its_pods,
    a_handler_that_the_runtime_cannot_serve_has_a_reason,
    the_signature_policy_of_the_namespace_decides,
];

/// Two handlers of containerd with a snapshotter of their own, as for sandboxed containers.
const HANDLERS: &str = r#"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.sandboxed]
runtime_type = "io.containerd.runc.v2"
snapshotter = "native"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.other]
runtime_type = "io.containerd.runc.v2"
snapshotter = "native"
"#;
/// So that images are unpacked for them when they are pulled.
const AT_PULLS: &str = r#"
[plugins."io.containerd.cri.v1.images".runtime_platforms.sandboxed]
snapshotter = "native"

[plugins."io.containerd.cri.v1.images".runtime_platforms.other]
snapshotter = "native"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "native"
"#;

async fn is_unpacked(node: &Arc<Node>, image: &str, expected: &[&str]) -> Result<()> {
    let found = node.snapshotters(image).await?;
    ensure!(found.iter().eq(expected), "{image} is unpacked for {found:?}, not {expected:?}");
    Ok(())
}

fn on_node(node: &str, images: &[&str], class: Option<&str>) -> Value {
    let mut spec = containers(images);
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    if let Some(class) = class {
        spec["runtimeClassName"] = json!(class);
    }
    spec
}

async fn becomes(namespace: &Namespace, image: &str, reason: Reason) -> Result<ImageWarm> {
    eventually(&format!("the ImageWarm of {image} is {reason}"), async || {
        let mut warms = namespace.image_warms().await?.into_iter();
        Ok(warms.find(|warm| warm.spec.image == image && warm.reason() == Some(reason)))
    })
    .await
}

async fn an_image_is_unpacked_for_the_handlers_of_its_pods(world: &World) -> Result<()> {
    let namespace = world.namespace("handlers").await?;
    let sandboxed = world.registries.push("handlers", "sandboxed").await?;
    let plain = world.registries.push("handlers", "plain").await?;
    let node = world.nodes.join_with_handlers("handlers", &[HANDLERS, AT_PULLS]).await?;
    let (runtime, name) = (world.nodes.runtime(&node)?, node.as_str());
    world.installation.create_runtime_class_of("e2e-sandboxed", "sandboxed").await?;

    namespace.revision("plain-00001", on_node(name, &[&plain.tag], None)).await?;
    let spec = on_node(name, &[&sandboxed.tag], Some("e2e-sandboxed"));
    namespace.revision("sandboxed-00001", spec).await?;
    let before = namespace.all_ready(2).await?;
    is_unpacked(&runtime, &plain.tag, &["overlayfs"]).await?;
    is_unpacked(&runtime, &sandboxed.tag, &["native"]).await?;

    // Pods of another RuntimeClass use an image that is there: it is unpacked for these as well.
    let spec = on_node(name, &[&plain.tag], Some("e2e-sandboxed"));
    namespace.revision("both-00001", spec).await?;
    eventually("the image is unpacked for both handlers", async || {
        let found = runtime.snapshotters(&plain.tag).await?;
        Ok((found.len() == 2).then_some(()))
    })
    .await?;
    let after = namespace.all_ready(2).await?;
    let uids = |warms: &[ImageWarm]| -> BTreeSet<_> {
        warms.iter().map(|warm| warm.metadata.uid.clone()).collect()
    };
    ensure!(uids(&after) == uids(&before), "other ImageWarms: {after:?}");
    Ok(())
}

async fn a_handler_that_the_runtime_cannot_serve_has_a_reason(world: &World) -> Result<()> {
    let namespace = world.namespace("unsupported").await?;
    let unpacked = world.registries.push("unsupported", "unpacked").await?;
    let (first, second) = (
        world.registries.push("unsupported", "first").await?,
        world.registries.push("unsupported", "second").await?,
    );
    let node = world.nodes.join_with_handlers("unsupported", &[HANDLERS]).await?;
    let (runtime, name) = (world.nodes.runtime(&node)?, node.as_str());
    for (class, handler) in [("e2e-no-handler", "none"), ("e2e-not-at-pulls", "sandboxed")] {
        world.installation.create_runtime_class_of(class, handler).await?;
    }
    let refused = async |image: &str, part: &str| -> Result<()> {
        let warm = becomes(&namespace, image, Reason::RuntimeHandlerUnsupported).await?;
        let message = warm.ready().map(|ready| ready.message.clone()).unwrap_or_default();
        ensure!(message.contains(part), "no {part:?} in {message:?}");
        Ok(())
    };

    let spec = on_node(name, &[&unpacked.tag], Some("e2e-no-handler"));
    namespace.revision("none-00001", spec).await?;
    refused(&unpacked.tag, "no handler \"none\"").await?;
    ensure!(!runtime.holds(&unpacked.tag).await, "it was pulled for a handler that does not exist");

    let spec = on_node(name, &[&first.tag], Some("e2e-not-at-pulls"));
    namespace.revision("first-00001", spec).await?;
    refused(&first.tag, "snapshotter \"native\" of runtime handler \"sandboxed\"").await?;
    // Now it is known.
    let spec = on_node(name, &[&second.tag], Some("e2e-not-at-pulls"));
    namespace.revision("second-00001", spec).await?;
    refused(&second.tag, "runtime_platforms").await?;
    ensure!(!runtime.holds(&second.tag).await, "it was pulled although it serves no Pod");

    // Other Pods have theirs.
    namespace.revision("plain-00001", on_node(name, &[&unpacked.tag], None)).await?;
    becomes(&namespace, &unpacked.tag, Reason::Pulled).await?;
    is_unpacked(&runtime, &unpacked.tag, &["overlayfs"]).await
}

async fn the_signature_policy_of_the_namespace_decides(world: &World) -> Result<()> {
    let (strict, open) = (world.namespace("strict").await?, world.namespace("open").await?);
    let node = world.nodes.join_with_crio("policies").await?;
    let policy = json!({"default": [{"type": "reject"}]});
    world.nodes.runtime(&node)?.set_signature_policy(&strict.name, &policy)?;
    let app = world.registries.push("policies", "v1").await?;
    strict.create_image_warm("app", &app.tag, &node, &[]).await?;
    strict.reaches("app", Reason::SignatureRejected).await?;
    ensure!(world.nodes.digest(&node, &app.tag).await?.is_none(), "it was pulled all the same");
    open.create_image_warm("app", &app.tag, &node, &[]).await?;
    open.reaches("app", Reason::Pulled).await?;
    ensure!(world.nodes.digest(&node, &app.tag).await? == Some(app.digest));
    Ok(())
}
