//! The node's own credentials: a plugin of the test answers for the registry with TLS and password. Each
//! provider is for images of a path of its own, so that the node's other cases have none.

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use imagewarm_core::api::Reason;

use super::plugins::MISSING;
use super::{Stage, cases};

pub const CASES: super::Cases = cases![Together:
    a_provider_that_hangs,
    the_nodes_credentials_need_no_pull_secret,
    a_provider_that_crashes,
    a_provider_that_answers_something_else,
    a_provider_without_a_program,
    an_image_that_no_provider_matches,
];

async fn the_nodes_credentials_need_no_pull_secret(stage: &Stage<'_>) -> Result<()> {
    let namespaces = [stage.namespace().await?, stage.namespace().await?];
    let names = ["identity-a", "identity-b", "identity-c", "identity-d"];
    let apps = try_join_all(names.map(|name| stage.push_private(name))).await?;
    for namespace in &namespaces {
        for (name, app) in names.iter().zip(&apps) {
            stage.warm(namespace, name, &app.tag).await?;
        }
    }
    for namespace in &namespaces {
        for (name, app) in names.iter().zip(&apps) {
            stage.arrives(namespace, name, &app.digest).await?;
        }
    }
    let plugins = stage.plugins()?;
    ensure!(plugins.lines("calls") == 1, "{} calls", plugins.lines("calls"));
    // A wrong pull secret comes first, and is no obstacle.
    namespaces[0].pull_secret("regcred", Some("canary-not-the-password")).await?;
    let app = stage.push_private("identity-e").await?;
    stage.warm_with(&namespaces[0], "app", &app.tag, &["regcred"]).await?;
    stage.arrives(&namespaces[0], "app", &app.digest).await?;
    ensure!(plugins.lines("calls") == 1, "{} calls", plugins.lines("calls"));
    Ok(())
}

/// Two images at once: both have the reason, from one call or the failure that is remembered.
async fn fails(stage: &Stage<'_>, provider: &str, part: &str) -> Result<()> {
    let namespace = stage.namespace().await?;
    for name in ["a", "b"] {
        let app = stage.push_private(&format!("{provider}-{name}")).await?;
        stage.warm(&namespace, name, &app.tag).await?;
    }
    for name in ["a", "b"] {
        // A plugin that hangs has a minute, which is as long as this waits.
        let mut reached = stage.reaches(&namespace, name, Reason::CredentialProviderFailed).await;
        if reached.is_err() {
            reached = stage.reaches(&namespace, name, Reason::CredentialProviderFailed).await;
        }
        let warm = reached?;
        let message = warm.ready().context("no condition")?.message.clone();
        let expected = format!("credential provider {provider} failed: {part}; without it: ");
        if !message.starts_with(&expected) {
            bail!("no {expected:?} in {message}");
        }
    }
    Ok(())
}

async fn a_provider_that_hangs(stage: &Stage<'_>) -> Result<()> {
    fails(stage, "hang", "it did not answer within 60 s").await?;
    let calls = stage.plugins()?.lines("hangs");
    ensure!((1..=2).contains(&calls), "{calls} calls for two images");
    Ok(())
}

async fn a_provider_that_crashes(stage: &Stage<'_>) -> Result<()> {
    fails(stage, "crash", "it ended with exit code 7").await
}

async fn a_provider_that_answers_something_else(stage: &Stage<'_>) -> Result<()> {
    fails(stage, "garbage", "its answer is malformed: it is not JSON").await
}

async fn a_provider_without_a_program(stage: &Stage<'_>) -> Result<()> {
    let part = "there is no such program in --image-credential-provider-bin-dir";
    fails(stage, MISSING, part).await
}

async fn an_image_that_no_provider_matches(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_private("unmatched").await?;
    stage.warm(&namespace, "app", &app.tag).await?;
    let warm = stage.reaches(&namespace, "app", Reason::NoCredentials).await?;
    let message = warm.ready().context("no condition")?.message.clone();
    ensure!(message.contains("no credential provider of the warmer matches it"), "{message}");
    Ok(())
}
