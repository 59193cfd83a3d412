//! What was warmed is kept from the kubelet's garbage collection: pinned in containerd 2 by the warmer, with CRI-O by
//! its own settings, which a command prints. With a real kubelet: `tests/kubelet/pins.rs`.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};

use crate::world::{Pushed, World, eventually};

crate::tests![
    what_is_wanted_is_pinned_and_nothing_of_others_is_unpinned,
    containerd_1_6_ignores_pins_and_the_warmer_says_so,
    crio_pins_what_the_command_prints,
];

/// Thresholds that the disk of no developer's machine reaches.
const FLAGS: [&str; 8] = [
    "--pin-share",
    "30%",
    "--image-gc-high-threshold",
    "99%",
    "--image-gc-low-threshold",
    "98%",
    "--presence-interval",
    "1s",
];
const PINNED: &str = "io.cri-containerd.pinned";

async fn until_pinned(world: &World, node: &str, image: &Pushed, pinned: bool) -> Result<()> {
    let what = format!("{} on {node} to be pinned: {pinned}", image.tag);
    eventually(&what, async || {
        let found = world.nodes.is_pinned(node, &image.tag).await?;
        Ok((found == Some(pinned)).then_some(()))
    })
    .await
}

async fn what_is_wanted_is_pinned_and_nothing_of_others_is_unpinned(world: &World) -> Result<()> {
    let namespace = world.namespace("pins").await?;
    let push = async |name: &str| world.registries.push(name, "v1").await;
    let (app, next, theirs) =
        (push("pin-app").await?, push("pin-next").await?, push("pin-theirs").await?);
    let node = world.nodes.join_with_containerd_2("pins", &FLAGS).await?;
    // An administrator has pinned an image that is wanted later, too: by its ID, as the next pull would replace
    // the labels of the tag.
    world.nodes.cri_pull(&node, &theirs.tag).await?;
    world.nodes.label_image(&node, &theirs.tag, true, (PINNED, "pinned")).await?;
    until_pinned(world, &node, &theirs, true).await?;

    let mut warms: Vec<ImageWarm> = Vec::new();
    for (name, image) in [("app", &app), ("next", &next), ("theirs", &theirs)] {
        warms.push(namespace.create_image_warm(name, &image.tag, &node, &[]).await?);
    }
    namespace.all_ready(3).await?;
    until_pinned(world, &node, &app, true).await?;
    until_pinned(world, &node, &next, true).await?;

    // A kubelet pulls it again: containerd replaces the labels of the tag, not those of the ID.
    world.nodes.cri_pull(&node, &app.tag).await?;
    ensure!(world.nodes.is_pinned(&node, &app.tag).await? == Some(true), "the pull unpinned it");
    // Whoever takes the label away, it is set again.
    world.nodes.label_image(&node, &app.tag, true, (PINNED, "")).await?;
    until_pinned(world, &node, &app, true).await?;

    // Unpinned, and kept, once nobody wants it.
    namespace.delete_image_warm(&warms[2]).await?;
    namespace.delete_image_warm(&warms[0]).await?;
    until_pinned(world, &node, &app, false).await?;
    // What the warmer decided for that image is decided for this one by now.
    namespace.delete_image_warm(&warms[1]).await?;
    until_pinned(world, &node, &next, false).await?;
    ensure!(world.nodes.is_pinned(&node, &theirs.tag).await? == Some(true), "their pin is gone");

    // Switched off, the pins of the run before go.
    namespace.create_image_warm("again", &app.tag, &node, &[]).await?;
    until_pinned(world, &node, &app, true).await?;
    world.warmers.restart_with(&node, &["--pin-share", "0%"]).await?;
    until_pinned(world, &node, &app, false).await?;
    ensure!(world.nodes.is_pinned(&node, &theirs.tag).await? == Some(true), "their pin is gone");
    Ok(())
}

async fn containerd_1_6_ignores_pins_and_the_warmer_says_so(world: &World) -> Result<()> {
    let namespace = world.namespace("no-pins").await?;
    let app = world.registries.push("no-pins", "v1").await?;
    let node = world.nodes.join_with_containerd("no-pins").await?;
    world.warmers.restart_with(&node, &FLAGS).await?;
    namespace.create_image_warm("app", &app.tag, &node, &[]).await?;
    namespace.reaches("app", Reason::Pulled).await?;
    world.nodes.label_image(&node, &app.tag, false, (PINNED, "pinned")).await?;
    world.nodes.label_image(&node, &app.tag, true, (PINNED, "pinned")).await?;
    // With this containerd reads its records again.
    world.nodes.cri_pull(&node, &app.tag).await?;
    eventually("the warmer to say that it cannot pin", async || {
        let lines = world.logs.count(&format!("{node}-warmer"), "images are not pinned: ");
        Ok((lines == 1).then_some(()))
    })
    .await?;
    ensure!(world.nodes.is_pinned(&node, &app.tag).await? == Some(false), "1.6 honours the label");
    Ok(())
}

async fn crio_pins_what_the_command_prints(world: &World) -> Result<()> {
    let namespace = world.namespace("crio-pins").await?;
    let push = async |name: &str| world.registries.push(name, "v1").await;
    let (tag, digest, other) =
        (push("crio-tag").await?, push("crio-digest").await?, push("crio-other").await?);
    let node = world.nodes.join_with_crio("crio-pins").await?;
    namespace.create_image_warm("tag", &tag.tag, &node, &[]).await?;
    namespace.create_image_warm("digest", &digest.by_digest(), &node, &[]).await?;
    namespace.all_ready(2).await?;
    for image in [&digest.tag, &other.tag] {
        world.nodes.cri_pull(&node, image).await?;
    }
    let (code, printed) =
        world.commands.imagewarm(&["pins", "crio", "-n", &namespace.name, "--node", &node]).await?;
    ensure!(code == 0, "{printed}");
    until_pinned(world, &node, &tag, false).await?;
    world.nodes.reload_crio_with(&node, "99-imagewarm.conf", &printed)?;
    for image in [&tag, &digest] {
        until_pinned(world, &node, image, true).await?;
    }
    ensure!(world.nodes.is_pinned(&node, &other.tag).await? == Some(false), "{printed}");
    let (code, flags) =
        world.commands.imagewarm(&["pins", "cri-dockerd", "-n", &namespace.name]).await?;
    ensure!(code == 0 && flags.contains(&format!("--pinned-images={}\n", tag.tag)), "{flags}");
    Ok(())
}
