//! Private images: whose credentials are found, and what is reported when they are wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use imagewarm_core::api::{ImageWarm, Reason};
use serde_json::json;

use crate::world::{World, containers, eventually};

crate::tests![
    a_pull_secret_of_the_revision,
    the_pull_secret_of_the_service_account,
    a_wrong_password_is_unauthorized,
    without_credentials_nothing_is_said_of_pods,
    a_missing_secret_is_named,
    a_new_deploy_tries_a_corrected_secret_at_once,
    a_corrected_secret_heals_by_itself,
    an_image_warm_made_by_hand_uses_its_own_secrets,
];

/// Less than a node waits after two attempts that need a user, by far.
const AT_ONCE: Duration = Duration::from_secs(20);

async fn a_pull_secret_of_the_revision(world: &World) -> Result<()> {
    let namespace = world.namespace("private").await?;
    let app = world.registries.push_private("explicit", "v1").await?;
    namespace.pull_secret("regcred", None).await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    namespace.revision("hello-00001", spec).await?;
    namespace.all_ready(3).await?;
    for node in world.nodes.names() {
        ensure!(world.nodes.digest(node, &app.tag).await? == Some(app.digest.clone()), "{node}");
    }
    Ok(())
}

async fn the_pull_secret_of_the_service_account(world: &World) -> Result<()> {
    let namespace = world.namespace("private-sa").await?;
    let app = world.registries.push_private("by-account", "v1").await?;
    namespace.pull_secret("account-cred", None).await?;
    namespace.service_account("runner", &["account-cred"]).await?;
    let mut spec = containers(&[&app.tag]);
    spec["serviceAccountName"] = json!("runner");
    namespace.revision("hello-00001", spec).await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn a_wrong_password_is_unauthorized(world: &World) -> Result<()> {
    let namespace = world.namespace("private-wrong").await?;
    let app = world.registries.push_private("wrong", "v1").await?;
    namespace.pull_secret("regcred", Some("canary-not-the-password")).await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    namespace.revision("hello-00001", spec).await?;
    let warms = namespace.all_failed(3, Reason::Unauthorized).await?;
    let text = serde_json::to_string(&warms)?;
    ensure!(!text.contains("canary-not-the-password"), "a password stands in a status: {text}");
    // One Event for the Revision and reason, not one for each node.
    let events = eventually("there is an Event", async || {
        let events = namespace.events(Reason::Unauthorized).await?;
        Ok((!events.is_empty()).then_some(events))
    })
    .await?;
    ensure!(events.len() == 1, "{events:?}");
    ensure!(events[0].involved_object.name.as_deref() == Some("hello-00001"), "{events:?}");
    Ok(())
}

/// On the nodes of a cloud the kubelet may have credentials: what is said is what imagewarm lacks.
async fn without_credentials_nothing_is_said_of_pods(world: &World) -> Result<()> {
    let namespace = world.namespace("private-none").await?;
    let app = world.registries.push_private("none", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    let warms = namespace.all_failed(3, Reason::NoCredentials).await?;
    let events = eventually("there is an Event", async || {
        let events = namespace.events(Reason::NoCredentials).await?;
        Ok((!events.is_empty()).then_some(events))
    })
    .await?;
    let notes = events.iter().map(|event| event.message.clone().unwrap_or_default());
    let messages = warms.iter().filter_map(|warm| warm.ready()).map(|ready| ready.message.clone());
    for text in notes.chain(messages) {
        for part in ["kubelet may have credentials", "--image-credential-provider-config"] {
            ensure!(text.contains(part), "no {part:?} in {text}");
        }
        ensure!(!text.contains("Pod"), "{text}");
    }
    Ok(())
}

async fn a_missing_secret_is_named(world: &World) -> Result<()> {
    let namespace = world.namespace("private-missing").await?;
    let app = world.registries.push_private("missing", "v1").await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "not-there"}]);
    namespace.revision("hello-00001", spec).await?;
    let warms = namespace.all_failed(3, Reason::SecretMissing).await?;
    let message = &warms[0].ready().map(|ready| ready.message.clone()).unwrap_or_default();
    ensure!(message.contains("not-there"), "the message does not name the Secret: {message}");
    Ok(())
}

async fn a_new_deploy_tries_a_corrected_secret_at_once(world: &World) -> Result<()> {
    let namespace = world.namespace("private-heal").await?;
    let app = world.registries.push_private("heal", "v1").await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "late"}]);
    namespace.revision("hello-00001", spec.clone()).await?;
    namespace.all_failed(3, Reason::SecretMissing).await?;
    eventually("two attempts have failed on each node", async || {
        let attempts = |warm: &ImageWarm| warm.status.as_ref().and_then(|status| status.attempts);
        let warms = namespace.image_warms().await?;
        Ok(warms.iter().all(|warm| attempts(warm) >= Some(2)).then_some(()))
    })
    .await?;
    namespace.pull_secret("late", None).await?;
    // The next deploy is what a user does; it tries again at once. By itself each node would do so
    // after half a minute at least.
    let began = Instant::now();
    namespace.revision("hello-00002", spec).await?;
    namespace.all_ready(3).await?;
    ensure!(began.elapsed() < AT_ONCE, "only after {:?}", began.elapsed());
    Ok(())
}

async fn a_corrected_secret_heals_by_itself(world: &World) -> Result<()> {
    let namespace = world.namespace("private-correct").await?;
    let app = world.registries.push_private("correct", "v1").await?;
    namespace.pull_secret("regcred", Some("canary-mistyped")).await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    namespace.revision("hello-00001", spec).await?;
    namespace.all_failed(3, Reason::Unauthorized).await?;
    namespace.correct_pull_secret("regcred").await?;
    namespace.all_ready(3).await?;
    Ok(())
}

async fn an_image_warm_made_by_hand_uses_its_own_secrets(world: &World) -> Result<()> {
    let namespace = world.namespace("private-hand").await?;
    let app = world.registries.push_private("by-hand", "v1").await?;
    let node = world.nodes.names()[0];
    namespace.pull_secret("mine", None).await?;
    namespace.create_image_warm("by-hand", &app.tag, node, &["mine"]).await?;
    namespace.all_ready(1).await?;
    Ok(())
}
