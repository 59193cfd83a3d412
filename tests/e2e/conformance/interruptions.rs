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
    stage.warm(&namespace, "before", &before.tag).await?;
    let ready = stage.arrives(&namespace, "before", &before.digest).await?;
    stage.world.nodes.stop_runtime(&stage.node).await?;
    stage.warm(&namespace, "during", &during.tag).await?;
    stage.reaches(&namespace, "during", Reason::RuntimeUnavailable).await?;
    stage.world.nodes.start_runtime(&stage.node).await?;
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
    stage.warm(&namespace, "app", &app.image.tag).await?;
    app.until_held().await?;
    stage.world.nodes.kill_runtime(&stage.node)?;
    app.until_given_up().await?;
    app.heal();
    stage.world.nodes.start_runtime(&stage.node).await?;
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}

async fn warmer_killed_mid_pull(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_behind_proxy("killed").await?;
    app.spoil(Fault::Hold);
    stage.warm(&namespace, "app", &app.image.tag).await?;
    app.until_held().await?;
    stage.world.warmers.kill(&stage.node)?;
    let half = stage.until(&namespace, "app", |_| true).await?;
    stage.world.warmers.start(&stage.node).await?;
    ensure!(half.ready().is_none_or(|ready| ready.status != ConditionStatus::True), "{half:?}");
    app.heal();
    stage.arrives(&namespace, "app", &app.image.digest).await?;
    Ok(())
}
