//! ResourceQuotas.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use xtask::process::Process;

use super::Namespace;
use crate::world::eventually;

/// What a quota counts.
const COUNT: &str = "count/imagewarms.caching.knative.dev";

impl Namespace {
    /// Limits the number of ImageWarms, and waits until the quota's controller has counted them.
    pub async fn limit_image_warms(
        &self,
        quota: &str,
        limit: usize,
        controller: &Process,
    ) -> Result<()> {
        let limit = limit.to_string();
        let body = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": quota},
            "spec": {"hard": {COUNT: limit}},
        });
        let quotas = self.api::<ResourceQuota>();
        let params = PatchParams::apply("operator").force();
        quotas.patch(quota, &params, &Patch::Apply(body)).await?;
        let counted = async || {
            let status = quotas.get(quota).await?.status.unwrap_or_default();
            let hard = status.hard.unwrap_or_default().remove(COUNT);
            Ok((hard.is_some_and(|hard| hard.0 == limit) && status.used.is_some()).then_some(()))
        };
        eventually("the quota is counted", counted).await.with_context(|| controller.log_tail())
    }
}
