//! What people deploy: each way in which Knative makes a Revision, and each kind of image in it.

use anyhow::{Result, ensure};
use imagewarm_core::api::{ConditionStatus, ImageWarm, Reason};
use serde_json::json;

use crate::stage::{Kind, NODES, Stage, condition, containers, eventually};

crate::tests![
    a_service_by_tag,
    a_service_by_digest,
    a_service_with_the_secret_of_its_service_account,
    a_service_with_a_secret_of_its_own,
    a_service_with_several_containers,
    a_service_with_an_init_container,
    a_service_of_a_registry_that_knative_skips,
    a_service_whose_tag_cannot_be_resolved,
    a_service_that_names_its_revision,
    a_service_with_a_very_long_name,
    a_configuration_without_service,
    a_direct_revision_is_left_to_the_leader,
    queue_proxy_is_warmed_everywhere,
];

async fn a_service_by_tag(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("by-tag").await?;
    let app = stage.push("by-tag", "v1").await?;
    namespace.service("hello", containers(&[&app.tag])).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await?;
    // Knative has named the digest by now, and it is the tag's: nothing more is pulled.
    let images = namespace.list(Kind::Image).await?;
    ensure!(images[0]["spec"]["image"] == app.digest, "{images:?}");
    namespace.until_all_ready(&[&app.tag]).await.map(drop)
}

async fn a_service_by_digest(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("by-digest").await?;
    let app = stage.push("by-digest", "v1").await?;
    namespace.service("hello", containers(&[&app.digest])).await?;
    namespace.is_warmed("hello-00001", &[&app.digest]).await
}

async fn a_service_with_the_secret_of_its_service_account(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("account").await?;
    let app = stage.push_private("account", "v1").await?;
    namespace.pull_secret("pull").await?;
    namespace.service_account("runner", "pull").await?;
    let mut spec = containers(&[&app.tag]);
    spec["serviceAccountName"] = json!("runner");
    namespace.service("hello", spec).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await
}

async fn a_service_with_a_secret_of_its_own(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("secret").await?;
    let app = stage.push_private("secret", "v1").await?;
    namespace.pull_secret("pull").await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "pull"}]);
    namespace.service("hello", spec).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await
}

async fn a_service_with_several_containers(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("several").await?;
    let app = stage.push("several/app", "v1").await?;
    let side = stage.push("several/side", "v1").await?;
    namespace.service("hello", containers(&[&app.tag, &side.tag])).await?;
    namespace.is_warmed("hello-00001", &[&app.tag, &side.tag]).await
}

async fn a_service_with_an_init_container(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("init").await?;
    let app = stage.push("init/app", "v1").await?;
    let init = stage.push("init/init", "v1").await?;
    let mut spec = containers(&[&app.tag]);
    spec["initContainers"] = json!([{"name": "init", "image": init.tag}]);
    namespace.service("hello", spec).await?;
    namespace.is_warmed("hello-00001", &[&app.tag, &init.tag]).await
}

/// Images of these registries are only on the nodes where somebody has put them.
async fn a_service_of_a_registry_that_knative_skips(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("skipped").await?;
    namespace.service("hello", containers(&["dev.local/app:v1"])).await?;
    namespace.release("hello-00001").await?;
    let images = eventually("Knative has made its Image", async || {
        namespace.list(Kind::Image).await.ok().filter(|images| !images.is_empty())
    });
    let images = images.await?;
    ensure!(images[0]["spec"]["image"] == "", "{images:?}");
    let deployments = namespace.list(Kind::Deployment).await?;
    ensure!(deployments.len() == 1, "{deployments:?}");
    // A Service that came after it is done: this one will get no ImageWarms any more.
    let app = stage.push("skipped", "v1").await?;
    namespace.service("later", containers(&[&app.tag])).await?;
    namespace.is_ahead("later-00001", &[&app.tag]).await?;
    namespace.until_all_ready(&[&app.tag]).await.map(drop)
}

async fn a_service_whose_tag_cannot_be_resolved(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("missing").await?;
    let absent = stage.cluster.registry_plain.image("missing", "v1");
    namespace.service("hello", containers(&[&absent])).await?;
    namespace.until_warm(&[&absent], &[Reason::NotFound]).await?;
    let refused = |revision: &serde_json::Value| {
        condition(revision, "ContainerHealthy")["reason"] == "ContainerMissing"
    };
    let revision = (Kind::Revision, "hello-00001");
    namespace.until(revision, "without its image", refused).await?;
    ensure!(namespace.list(Kind::Deployment).await?.is_empty(), "Knative has made a Deployment");
    // Pushed after all: both find it, each in its own time.
    let late = stage.push("missing", "v1").await?;
    ensure!(late.tag == absent, "{} is not {absent}", late.tag);
    namespace.is_ahead("hello-00001", &[&absent]).await?;
    // Once Knative has found it, nodes do not wait for the end of their back-off.
    eventually("the tag is pulled, too", async || {
        let warms = namespace.image_warms().await.ok()?;
        let is_pulled = |one: &&ImageWarm| {
            one.spec.image == absent
                && one.reason().is_some_and(|why| why.ready() == ConditionStatus::True)
        };
        (warms.iter().filter(is_pulled).count() == NODES).then_some(())
    })
    .await
}

async fn a_service_that_names_its_revision(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("named").await?;
    let app = stage.push("named", "v1").await?;
    let template = json!({
        "metadata": {"name": "hello-blue"}, "spec": containers(&[&app.tag]),
    });
    namespace.service_of("hello", template).await?;
    namespace.is_warmed("hello-blue", &[&app.tag]).await
}

/// The names of its Revisions, Deployments and Images are cut, and end in a hash.
async fn a_service_with_a_very_long_name(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("long").await?;
    let app = stage.push("long", "v1").await?;
    let name = format!("{}{}", "a-very-long-name-".repeat(3), "of-a-service");
    ensure!(name.len() == 63, "{} characters", name.len());
    namespace.service(&name, containers(&[&app.tag])).await?;
    let revisions = eventually("the Revision is made", async || {
        namespace.list(Kind::Revision).await.ok().filter(|all| !all.is_empty())
    });
    let revisions = revisions.await?;
    let revision = revisions[0]["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(revision.len() <= 63 && !revision.starts_with(&name), "{revision}");
    namespace.is_warmed(revision, &[&app.tag]).await
}

async fn a_configuration_without_service(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("configuration").await?;
    let app = stage.push("configuration", "v1").await?;
    let spec = json!({"template": {"spec": containers(&[&app.tag])}});
    namespace.make(Kind::Configuration, "hello", spec).await?;
    namespace.is_warmed("hello-00001", &[&app.tag]).await
}

/// A review is believed only of what a Configuration names; the leader sees the Revision itself.
async fn a_direct_revision_is_left_to_the_leader(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("direct").await?;
    let app = stage.push("direct", "v1").await?;
    namespace.make(Kind::Revision, "hello", containers(&[&app.tag])).await?;
    namespace.until_made_up_for(&app).await
}

async fn queue_proxy_is_warmed_everywhere(stage: &Stage) -> Result<()> {
    let image = stage.until_queue_is_warm().await?;
    let named = image["spec"]["image"].as_str().unwrap_or_default();
    for node in stage.cluster.nodes() {
        ensure!(node.holds(named).await, "{} does not hold {named}", node.name);
    }
    Ok(())
}
