//! What others on the node would notice: its runtime or its warmer goes away, before or in the
//! middle of a pull; its registry has had enough.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ConditionStatus, Reason};
use xtask::cluster::Fault;

use super::faults::{stalled_layer, too_many_requests};
use super::{Stage, cases};

pub const CASES: super::Cases = cases![Alone:
    too_many_requests,
    stalled_layer,
    runtime_down,
    runtime_restarted_mid_pull,
    warmer_killed_mid_pull,
];

async fn runtime_down(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let (before, during) = (stage.push("up").await?, stage.push("down").await?);
    stage.order(&namespace, "before", &before.tag).await?;
    let ready = stage.arrives(&namespace, "before", &before.digest).await?;
    stage.world.stop_runtime(&stage.node).await?;
    stage.order(&namespace, "during", &during.tag).await?;
    let told = stage.reaches(&namespace, "during", Reason::RuntimeUnavailable).await;
    stage.world.start_runtime(&stage.node).await?;
    told?;
    stage.arrives(&namespace, "during", &during.digest).await?;
    // A runtime that does not answer has lost nothing.
    let after = stage.arrives(&namespace, "before", &before.digest).await?;
    ensure!(after.metadata.resource_version == ready.metadata.resource_version, "{after:?}");
    Ok(())
}

async fn runtime_restarted_mid_pull(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("restart").await?;
    app.spoil(Fault::Hold);
    stage.order(&namespace, "app", &app.image.tag).await?;
    app.is_held().await?;
    stage.world.kill_runtime(&stage.node)?;
    let given_up = app.is_given_up().await;
    app.heal();
    stage.world.start_runtime(&stage.node).await?;
    given_up?;
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}

async fn warmer_killed_mid_pull(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("killed").await?;
    app.spoil(Fault::Hold);
    stage.order(&namespace, "app", &app.image.tag).await?;
    app.is_held().await?;
    stage.world.kill_warmer(&stage.node)?;
    let half = stage.until(&namespace, "app", |_| true).await;
    stage.start_warmer(&[]).await?;
    let half = half?;
    ensure!(half.ready().is_none_or(|ready| ready.status != ConditionStatus::True), "{half:?}");
    app.heal();
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}
