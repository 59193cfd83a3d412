//! Both webhooks at one Revision: ours is called first, by name, and changes nothing for Knative's.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::stage::{Kind, Stage, containers};

crate::tests![ours_is_called_before_knatives, what_knative_refuses_as_a_service_reaches_no_node,];

async fn ours_is_called_before_knatives(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("order").await?;
    let app = stage.push("order", "v1").await?;
    namespace.service("hello", containers(&[&app.tag])).await?;
    namespace.is_ahead("hello-00001", &[&app.tag]).await?;
    let audited = stage.audited()?;
    let created = audited.iter().find(|one| one.created("revisions", &namespace.name));
    let created = created.context("no Revision was created")?;
    let expected = ["imagewarm", "webhook.serving.knative.dev"];
    ensure!(created.webhooks == expected, "called were {:?}", created.webhooks);
    ensure!(created.failed_open.is_empty(), "failed: {:?}", created.failed_open);
    // Knative's came after ours, and all of its defaults are there.
    let revision = namespace.get(Kind::Revision, "hello-00001").await?;
    ensure!(revision["spec"]["timeoutSeconds"] == 300, "{revision}");
    ensure!(revision["spec"]["containers"][0]["readinessProbe"].is_object(), "{revision}");
    Ok(())
}

async fn what_knative_refuses_as_a_service_reaches_no_node(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("invalid").await?;
    let app = stage.push("invalid", "v1").await?;
    let mut spec = containers(&[&app.tag]);
    spec["containerConcurrency"] = json!(-1);
    let refused = namespace.service("hello", spec).await.map_err(|error| format!("{error:#}"));
    let refused = refused.err().context("Knative has admitted the Service")?;
    ensure!(refused.contains("spec.template.spec.containerConcurrency"), "{refused}");
    namespace.until_empty().await
}
