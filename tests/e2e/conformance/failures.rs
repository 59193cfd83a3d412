//! Failures that a real registry, or none, brings about: each by its name, with the runtime's message.

use anyhow::{Result, ensure};
use imagewarm_core::api::Reason;
use xtask::cluster::Fault;

use super::{Stage, cases};

pub const CASES: super::Cases = cases![Together:
    missing_tag,
    missing_repository,
    missing_digest,
    connection_refused,
    unknown_host,
    unknown_authority,
    old_manifest_format,
];

async fn fails(stage: &Stage<'_>, image: &str, reason: Reason, words: &[&str]) -> Result<()> {
    let namespace = stage.namespace().await?;
    stage.warm(&namespace, "app", image).await?;
    let warm = stage.reaches(&namespace, "app", reason).await?;
    let message = warm.ready().map(|ready| ready.message.to_lowercase()).unwrap_or_default();
    ensure!(words.iter().any(|word| message.contains(word)), "{message}");
    Ok(())
}

async fn missing_tag(stage: &Stage<'_>) -> Result<()> {
    let app = stage.push("missing").await?;
    let image = app.tag.replace(":v1", ":v2");
    fails(stage, &image, Reason::NotFound, &["not found", "manifest unknown"]).await
}

async fn missing_repository(stage: &Stage<'_>) -> Result<()> {
    let image = format!("{}/never/pushed:v1", stage.world.registries.open().address);
    fails(stage, &image, Reason::NotFound, &["not found", "unknown"]).await
}

async fn missing_digest(stage: &Stage<'_>) -> Result<()> {
    let mut app = stage.push("no-digest").await?;
    app.digest = format!("sha256:{}", "0".repeat(64));
    fails(stage, &app.by_digest(), Reason::NotFound, &["not found", "manifest unknown"]).await
}

async fn connection_refused(stage: &Stage<'_>) -> Result<()> {
    let image = format!("{}/app:v1", stage.world.registries.unused_address()?);
    fails(stage, &image, Reason::RegistryUnreachable, &["connection refused"]).await
}

async fn unknown_host(stage: &Stage<'_>) -> Result<()> {
    let image = "registry.invalid:5000/app:v1";
    fails(stage, image, Reason::RegistryUnreachable, &["no such host"]).await
}

async fn unknown_authority(stage: &Stage<'_>) -> Result<()> {
    let image = stage.untrusted_registry().await?.image("app", "v1");
    let words = ["certificate signed by unknown authority"];
    fails(stage, &image, Reason::RegistryUnreachable, &words).await
}

async fn old_manifest_format(stage: &Stage<'_>) -> Result<()> {
    let behind = stage.push_behind_proxy("old-format").await?;
    behind.spoil(Fault::OldFormat);
    let messages = ["no longer supported", "signature", "parse manifest"];
    fails(stage, &behind.image.tag, Reason::InvalidImage, &messages).await
}
