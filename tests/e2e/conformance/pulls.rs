//! Pulls that work out.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ConditionStatus, Reason};
use serde_json::json;
use xtask::cluster::Fault;
use xtask::images::{TestImage, architecture};

use super::{RuntimeKind, Stage, cases};
use crate::world::containers;

pub const CASES: super::Cases = cases![Together:
    large_image_with_progress,
    public_tag,
    digest,
    any_spelling_is_one_image,
    multi_architecture_index,
    index_without_our_platform,
    image_of_another_platform,
    image_of_a_32_bit_platform,
    removed_behind_our_back,
    cancel_mid_pull,
];

async fn public_tag(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push("tag").await?;
    // By a Revision that may run on this node alone.
    let mut spec = containers(&[&app.tag]);
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": stage.node});
    spec["tolerations"] = json!([{"key": "conformance", "operator": "Exists"}]);
    namespace.revision("hello-00001", spec).await?;
    let warm = namespace.all_ready(1).await?.remove(0);
    ensure!(warm.reason() == Some(Reason::Pulled), "{warm:?}");
    let name = warm.metadata.name.as_deref().context("no name")?;
    let warm = stage.arrives(&namespace, name, &app.digest).await?;
    let size = warm.status.and_then(|status| status.size_bytes).unwrap_or_default();
    ensure!(size > 200_000, "{size} bytes");
    Ok(())
}

async fn digest(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push("digest").await?;
    stage.warm(&namespace, "app", &app.by_digest()).await?;
    let warm = stage.arrives(&namespace, "app", &app.digest).await?;
    ensure!(warm.reason() == Some(Reason::Pulled), "{warm:?}");
    Ok(())
}

async fn any_spelling_is_one_image(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("spelling").await?;
    let (tag, digest) = (&app.image.tag, &app.image.digest);
    stage.warm(&namespace, "first", tag).await?;
    stage.arrives(&namespace, "first", digest).await?;
    let begun = app.layers_begun();
    let both = format!("{tag}@{digest}");
    for (name, image) in [("tag", tag), ("digest", &app.image.by_digest()), ("both", &both)] {
        stage.warm(&namespace, name, image).await?;
        stage.reaches(&namespace, name, Reason::AlreadyPresent).await?;
    }
    ensure!(app.layers_begun() == begun, "layers were downloaded again");
    Ok(())
}

async fn multi_architecture_index(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let registry = stage.world.registries.open();
    let platforms = [("linux", "s390x"), ("linux", architecture()), ("windows", "amd64")];
    let image = TestImage::new(&[30_000]).platforms(&platforms);
    let repository = format!("conformance/{}-index", stage.runtime.name());
    let digest = registry.push(&image, &repository, "v1").await?;
    stage.warm(&namespace, "app", &registry.image(&repository, "v1")).await?;
    let warm = stage.reaches(&namespace, "app", Reason::Pulled).await?;
    let index = format!("{}/{repository}@{digest}", registry.address);
    ensure!(stage.held(&index).await? == Some(digest.clone()), "the index is not held");
    let reported = warm.status.and_then(|status| status.digest);
    // CRI-O gives the index and the manifest chosen from it alike, in the order of their hashes.
    let either = stage.runtime == RuntimeKind::Crio && reported.is_some();
    ensure!(either || reported == Some(digest), "reported was {reported:?}");
    Ok(())
}

async fn index_without_our_platform(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let repository = format!("conformance/{}-platform", stage.runtime.name());
    let image = stage.world.registries.push_for_other_platform(&repository, "v1").await?.tag;
    stage.warm(&namespace, "app", &image).await?;
    stage.reaches(&namespace, "app", Reason::PlatformMismatch).await?;
    ensure!(stage.held(&image).await.unwrap_or_default().is_none(), "it is there");
    Ok(())
}

async fn image_of_another_platform(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let registry = stage.world.registries.open();
    // Without an index nothing shows it before it is there.
    let image = TestImage::new(&[30_000]).only_for(("linux", "s390x"));
    let repository = format!("conformance/{}-foreign", stage.runtime.name());
    registry.push(&image, &repository, "v1").await?;
    stage.warm(&namespace, "app", &registry.image(&repository, "v1")).await?;
    stage.reaches(&namespace, "app", Reason::PlatformMismatch).await?;
    Ok(())
}

async fn image_of_a_32_bit_platform(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let registry = stage.world.registries.open();
    let platform = if architecture() == "arm64" { "arm" } else { "386" };
    let image = TestImage::new(&[30_000]).only_for(("linux", platform));
    let repository = format!("conformance/{}-32-bit", stage.runtime.name());
    let digest = registry.push(&image, &repository, "v1").await?;
    stage.warm(&namespace, "app", &registry.image(&repository, "v1")).await?;
    stage.arrives(&namespace, "app", &digest).await?;
    Ok(())
}

async fn large_image_with_progress(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let large = stage.large_behind_proxy().await?;
    large.spoil(Fault::Hold);
    stage.warm(&namespace, "large", &large.image.tag).await?;
    large.until_held().await?;
    // CRI-O shows no bytes.
    let shows_bytes = stage.runtime != RuntimeKind::Crio;
    let halfway = stage.until(&namespace, "large", |warm| {
        let status = warm.status.as_ref();
        let progress = status.and_then(|status| status.progress.as_ref());
        let started = status.is_some_and(|status| status.started_at.is_some());
        let moved = progress.is_some_and(|progress| progress.downloaded_bytes > 0);
        warm.reason() == Some(Reason::Pulling) && started && (moved || !shows_bytes)
    });
    let halfway = halfway.await?;
    let progress = halfway.status.and_then(|status| status.progress);
    if shows_bytes {
        let progress = progress.context("no progress")?;
        let (downloaded, total) = (progress.downloaded_bytes, progress.total_bytes);
        ensure!(downloaded < total && total <= 510_000_000, "{downloaded} of {total}");
    } else {
        let bytes = progress.map_or(0, |progress| progress.downloaded_bytes + progress.total_bytes);
        ensure!(bytes == 0, "{bytes} bytes were made up");
    }
    large.heal();
    let warm = stage.arrives(&namespace, "large", &large.image.digest).await?;
    let status = warm.status.context("no status")?;
    ensure!(status.size_bytes.is_some_and(|size| size >= 500_000_000), "{:?}", status.size_bytes);
    ensure!(status.took.is_some(), "it is not reported how long it took");
    Ok(())
}

async fn removed_behind_our_back(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("removed").await?;
    stage.warm(&namespace, "app", &app.image.tag).await?;
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    app.spoil(Fault::Status(503, ""));
    stage.world.nodes.remove_image(&stage.node, &app.image.tag).await?;
    ensure!(stage.held(&app.image.tag).await?.is_none(), "it is still there");
    let lost = stage.until(&namespace, "app", |warm| {
        warm.ready().is_some_and(|ready| ready.status == ConditionStatus::False)
    });
    let lost = lost.await?;
    // Told at once; or, when the next pull was tried meanwhile, how that went.
    let reasons = [Some(Reason::Removed), Some(Reason::Pulling), Some(Reason::RegistryUnreachable)];
    ensure!(reasons.contains(&lost.reason()), "{lost:?}");
    app.heal();
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}

async fn cancel_mid_pull(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("cancel").await?;
    app.spoil(Fault::Hold);
    let warm = stage.warm(&namespace, "app", &app.image.tag).await?;
    app.until_held().await?;
    namespace.delete_image_warm(&warm).await?;
    if stage.runtime != RuntimeKind::Docker {
        // dockerd lets go of a connection only when the next byte comes.
        app.until_given_up().await?;
    }
    app.heal();
    // What is pulled afterwards is there before, if anything of this ever is.
    let next = stage.push_behind_proxy("cancel-next").await?;
    stage.warm(&namespace, "next", &next.image.tag).await?;
    stage.arrives(&namespace, "next", &next.image.digest).await?;
    ensure!(stage.held(&app.image.tag).await?.is_none(), "it was pulled to the end");
    // Nothing of the old ImageWarm is reported for a new one.
    stage.warm(&namespace, "app", &app.image.tag).await?;
    let warm = stage.arrives(&namespace, "app", &app.image.digest).await?;
    ensure!(warm.reason() == Some(Reason::Pulled), "{warm:?}");
    Ok(())
}
