//! Returns once the leader has reconciled, so that whatever it would have done about earlier things,
//! it has done.

use std::time::{Duration, Instant};

use anyhow::Result;
use imagewarm_core::api::ImageWarm;
use kube::ResourceExt;

use super::{World, containers, eventually};

impl World {
    /// Returns once the leader has repaired something that was made just now.
    pub async fn leader_has_caught_up(&self) -> Result<()> {
        let namespace = self.namespace("probe").await?;
        let app = self.registries.push("probe", &namespace.name).await?;
        namespace.revision("probe-00001", containers(&[&app.tag])).await?;
        let nodes = self.nodes.names().len();
        eventually("there are ImageWarms for the probe", async || {
            Ok((namespace.image_warms().await?.len() >= nodes).then_some(()))
        })
        .await?;
        // Repair, not only the webhook's fan-out: what is deleted by hand is made again.
        let victim = namespace.image_warms().await?.remove(0);
        namespace.delete_image_warm(&victim).await?;
        let warms = namespace.api::<ImageWarm>();
        eventually("the leader repairs", async || {
            let again = warms.get_opt(&victim.name_any()).await?;
            Ok(again.filter(|again| again.metadata.uid != victim.metadata.uid).map(drop))
        })
        .await?;
        namespace.delete_configuration("probe").await
    }

    /// Returns once the leader has run without Knative: an ImageWarm made by hand is served, and the
    /// grace period of the garbage collection is over twice.
    pub async fn leader_has_caught_up_without_knative(&self) -> Result<()> {
        let namespace = self.namespace("probe").await?;
        for round in 0..2 {
            let app = self.registries.push("probe", &format!("{}-{round}", namespace.name)).await?;
            let node = self.nodes.names()[0];
            let made = namespace.create_image_warm("probe", &app.tag, node, &[]).await?;
            let began = Instant::now();
            namespace.all_ready(1).await?;
            eventually("the grace period is over", async || {
                Ok((began.elapsed() > Duration::from_secs(4)).then_some(()))
            })
            .await?;
            namespace.delete_image_warm(&made).await?;
        }
        Ok(())
    }
}
