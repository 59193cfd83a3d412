//! ImageWarms.

use anyhow::Result;
use imagewarm_core::api::{ImageWarm, Reason};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::Namespace;
use super::admission::image_warm;
use crate::world::eventually;

impl Namespace {
    /// Creates an ImageWarm as a person does.
    pub async fn create_image_warm(
        &self,
        name: &str,
        image: &str,
        node: &str,
        secrets: &[&str],
    ) -> Result<ImageWarm> {
        let mut body = image_warm(image, node, secrets);
        body["metadata"] = json!({"name": name});
        let warms = self.api::<ImageWarm>();
        Ok(warms.create(&PostParams::default(), &serde_json::from_value(body)?).await?)
    }

    pub async fn image_warms(&self) -> Result<Vec<ImageWarm>> {
        Ok(self.api::<ImageWarm>().list(&Default::default()).await?.items)
    }

    pub async fn delete_image_warm(&self, warm: &ImageWarm) -> Result<()> {
        self.api::<ImageWarm>().delete(&warm.name_any(), &Default::default()).await?;
        Ok(())
    }

    /// Takes the owners off all ImageWarms, so that only our own garbage collection could delete
    /// them.
    pub async fn orphan_image_warms(&self) -> Result<()> {
        let warms = self.api::<ImageWarm>();
        for warm in self.image_warms().await? {
            let body = json!({"metadata": {"ownerReferences": null}});
            warms.patch(&warm.name_any(), &PatchParams::default(), &Patch::Merge(body)).await?;
        }
        Ok(())
    }

    /// Waits until there is no ImageWarm.
    pub async fn until_empty(&self, what: &str) -> Result<()> {
        eventually(what, async || Ok(self.image_warms().await?.is_empty().then_some(()))).await
    }

    /// Waits until the ImageWarm of that name is as wanted.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ImageWarm) -> bool,
    ) -> Result<ImageWarm> {
        let warms = self.api::<ImageWarm>();
        let found = eventually(what, async || Ok(warms.get_opt(name).await?.filter(&wanted)));
        match found.await {
            Ok(warm) => Ok(warm),
            Err(error) => Err(error.context(self.what_there_is().await?)),
        }
    }

    /// Waits until the ImageWarm of that name has this reason.
    pub async fn reaches(&self, name: &str, reason: Reason) -> Result<ImageWarm> {
        let what = format!("{name} is {reason}");
        self.until(name, &what, |warm| warm.reason() == Some(reason)).await
    }

    /// Waits until exactly `count` ImageWarms exist and all are Ready.
    pub async fn all_ready(&self, count: usize) -> Result<Vec<ImageWarm>> {
        self.all_have(count, &[Reason::Pulled, Reason::AlreadyPresent]).await
    }

    /// Waits until exactly `count` ImageWarms exist and all failed for this reason.
    pub async fn all_failed(&self, count: usize, reason: Reason) -> Result<Vec<ImageWarm>> {
        self.all_have(count, &[reason]).await
    }

    async fn all_have(&self, count: usize, reasons: &[Reason]) -> Result<Vec<ImageWarm>> {
        let what = format!("{count} ImageWarms in {} are {reasons:?}", self.name);
        let reached = eventually(&what, async || {
            let warms = self.image_warms().await?;
            let has_one = |warm: &ImageWarm| warm.reason().is_some_and(|r| reasons.contains(&r));
            Ok((warms.len() == count && warms.iter().all(has_one)).then_some(warms))
        });
        match reached.await {
            Ok(warms) => Ok(warms),
            Err(error) => Err(error.context(self.what_there_is().await?)),
        }
    }

    async fn what_there_is(&self) -> Result<String> {
        let mut states = "what there is instead:".to_owned();
        for warm in self.image_warms().await? {
            let ready = warm.ready().cloned().unwrap_or_default();
            let (name, image, node) = (warm.name_any(), &warm.spec.image, &warm.spec.node_name);
            states += &format!("\n  {name}: {image} on {node}: {} {}", ready.reason, ready.message);
        }
        Ok(states)
    }
}
