//! Failures that registries and networks have in life, made by the proxy in front of the real
//! registry. Each ends well once the fault is over.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::{ConditionStatus, ImageWarm, Reason};
use xtask::cluster::Fault;

use super::{RuntimeKind, Stage, cases};

pub const CASES: super::Cases = cases![Together:
    forbidden,
    server_error,
    truncated_layer,
    wrong_digest,
];

/// The fault has this reason, and nothing is reported to be there.
async fn fails(stage: &Stage<'_>, case: &str, fault: Fault, reason: Reason) -> Result<ImageWarm> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy(case).await?;
    app.spoil(fault);
    stage.warm(&namespace, "app", &app.image.tag).await?;
    let warm = stage.reaches(&namespace, "app", reason).await?;
    let ready = warm.ready().context("no condition")?;
    ensure!(ready.status == ConditionStatus::False && !ready.message.is_empty(), "{ready:?}");
    ensure!(stage.held(&app.image.tag).await?.is_none(), "half an image is held");
    if !reason.requires_user_action() {
        app.heal();
        stage.arrives(&namespace, "app", &app.image.digest).await?;
    }
    Ok(warm)
}

async fn forbidden(stage: &Stage<'_>) -> Result<()> {
    fails(stage, "forbidden", Fault::Status(403, ""), Reason::NoCredentials).await.map(drop)
}

/// The node then leaves the whole registry alone for a while, and so holds other pulls up.
pub async fn too_many_requests(stage: &Stage<'_>) -> Result<()> {
    let fault = Fault::Status(429, "Retry-After: 1\r\n");
    fails(stage, "too-many", fault, Reason::RateLimited).await.map(drop)
}

async fn server_error(stage: &Stage<'_>) -> Result<()> {
    let fault = Fault::Status(503, "");
    fails(stage, "error", fault, Reason::RegistryUnreachable).await.map(drop)
}

async fn truncated_layer(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("truncated").await?;
    app.spoil(Fault::Truncate);
    stage.warm(&namespace, "app", &app.image.tag).await?;
    // The runtime may ask for the rest by itself, or report that it broke off.
    app.until_cut_off_again().await?;
    let warm = stage.until(&namespace, "app", |_| true).await?;
    let reasons = [None, Some(Reason::Pulling), Some(Reason::RegistryUnreachable)];
    ensure!(reasons.contains(&warm.reason()), "{warm:?}");
    ensure!(stage.held(&app.image.tag).await?.is_none(), "half an image is held");
    app.heal();
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}

async fn wrong_digest(stage: &Stage<'_>) -> Result<()> {
    fails(stage, "wrong-digest", Fault::Spoil, Reason::InvalidImage).await.map(drop)
}

/// A layer that stops in its middle: the runtime gives up by itself, or the warmer does.
pub async fn stalled_layer(stage: &Stage<'_>) -> Result<()> {
    let impatient = match stage.runtime {
        RuntimeKind::Docker => &["--pull-idle-timeout", "3s"][..],
        // 2.2 has a timeout of its own, but a small layer that stops does not trip it.
        RuntimeKind::Containerd16 | RuntimeKind::Containerd22 => &["--pull-deadline", "3s"],
        RuntimeKind::Crio => &[],
    };
    stage.world.warmers.restart_with(&stage.node, impatient).await?;
    fails(stage, "stalled", Fault::Hold, Reason::TimedOut).await.map(drop)
}
