//! Private images, on a registry with TLS whose authority is private too: each form of credential
//! that the kubelet knows, and whose credentials count.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use imagewarm_core::api::Reason;
use serde_json::{Value, json};
use xtask::cluster::USER;

use super::{Stage, cases};

pub const CASES: super::Cases = cases![Together:
    private_by_user_and_password_over_tls,
    private_by_auth,
    private_by_dockercfg,
    private_by_the_second_of_two_secrets,
    private_by_path,
    two_namespaces_one_image,
    two_namespaces_one_digest,
    no_credentials,
    wrong_credentials,
];

const WRONG: &str = "canary-not-the-password";

fn registry(stage: &Stage<'_>) -> Result<(String, String)> {
    let registry = stage.world.registries.private()?;
    Ok((registry.address.clone(), registry.password.clone().unwrap_or_default()))
}

fn entry(password: &str) -> Value {
    json!({"username": USER, "password": password})
}

async fn pulled_with(stage: &Stage<'_>, case: &str, secrets: &[Value]) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_private(case).await?;
    let mut names = vec![];
    for (at, secret) in secrets.iter().enumerate() {
        let name = format!("secret-{at}");
        namespace.secret(&name, secret).await?;
        names.push(name);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    stage.warm_with(&namespace, "app", &app.tag, &names).await?;
    let warm = stage.arrives(&namespace, "app", &app.digest).await?;
    ensure!(warm.reason() == Some(Reason::Pulled), "{warm:?}");
    Ok(())
}

async fn private_by_user_and_password_over_tls(stage: &Stage<'_>) -> Result<()> {
    let (host, password) = registry(stage)?;
    pulled_with(stage, "password", &[json!({"auths": {host: entry(&password)}})]).await
}

async fn private_by_auth(stage: &Stage<'_>) -> Result<()> {
    let (host, password) = registry(stage)?;
    let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
    let host = format!("https://{host}/v1/");
    pulled_with(stage, "auth", &[json!({"auths": {host: {"auth": auth}}})]).await
}

async fn private_by_dockercfg(stage: &Stage<'_>) -> Result<()> {
    let (host, password) = registry(stage)?;
    pulled_with(stage, "dockercfg", &[json!({host: entry(&password)})]).await
}

async fn private_by_the_second_of_two_secrets(stage: &Stage<'_>) -> Result<()> {
    let (host, password) = registry(stage)?;
    let first = json!({"auths": {&host: entry(WRONG), "other.test": entry(WRONG)}});
    pulled_with(stage, "second", &[first, json!({"auths": {host: entry(&password)}})]).await
}

async fn private_by_path(stage: &Stage<'_>) -> Result<()> {
    let (host, password) = registry(stage)?;
    let scoped = format!("{host}/conformance");
    let elsewhere = format!("{host}/elsewhere");
    let auths = json!({host: entry(WRONG), scoped: entry(&password), elsewhere: entry(WRONG)});
    pulled_with(stage, "path", &[json!({"auths": auths})]).await
}

async fn two_namespaces_one_image(stage: &Stage<'_>) -> Result<()> {
    let app = stage.push_private("shared").await?;
    let namespaces = [stage.namespace().await?, stage.namespace().await?, stage.namespace().await?];
    for (namespace, password) in namespaces.iter().zip([None, None, Some(WRONG)]) {
        namespace.pull_secret("regcred", password).await?;
    }
    for namespace in &namespaces {
        stage.warm_with(namespace, "app", &app.tag, &["regcred"]).await?;
    }
    for namespace in &namespaces[..2] {
        stage.arrives(namespace, "app", &app.digest).await?;
    }
    // That the image is there is no right to it.
    stage.reaches(&namespaces[2], "app", Reason::Unauthorized).await?;
    let log = stage.world.registries.private()?.log();
    let repository = app.tag.split_once('/').map_or("", |(_, rest)| rest);
    let repository = repository.trim_end_matches(":v1");
    let layer = |line: &&str| {
        let sent = line.split("\" 200 ").nth(1).and_then(|rest| rest.split(' ').next());
        line.contains(&format!("\"GET /v2/{repository}/blobs/"))
            && sent.and_then(|size| size.parse().ok()).is_some_and(|size: u64| size > 100_000)
    };
    let downloads: Vec<_> = log.lines().filter(layer).collect();
    ensure!(downloads.len() == 1, "downloads of the layer: {downloads:#?}");
    Ok(())
}

/// A digest is not asked for where it is; but whose it is is.
async fn two_namespaces_one_digest(stage: &Stage<'_>) -> Result<()> {
    let app = stage.push_private("rights").await?;
    let [first, second, third] =
        [stage.namespace().await?, stage.namespace().await?, stage.namespace().await?];
    for (namespace, password) in [(&first, None), (&second, None), (&third, Some(WRONG))] {
        namespace.pull_secret("regcred", password).await?;
    }
    stage.warm_with(&first, "app", &app.by_digest(), &["regcred"]).await?;
    stage.arrives(&first, "app", &app.digest).await?;
    for namespace in [&second, &third] {
        stage.warm_with(namespace, "app", &app.by_digest(), &["regcred"]).await?;
    }
    let warm = stage.arrives(&second, "app", &app.digest).await?;
    ensure!(warm.reason() == Some(Reason::AlreadyPresent), "{warm:?}");
    let refused = stage.reaches(&third, "app", Reason::Unauthorized).await?;
    let message = refused.ready().context("no condition")?.message.clone();
    ensure!(message.contains("for other namespaces"), "{message}");
    // Without any secret: anonymously, and so not.
    stage.warm(&second, "other", &app.by_digest()).await?;
    stage.arrives(&second, "other", &app.digest).await?;
    let none = stage.namespace().await?;
    stage.warm(&none, "app", &app.by_digest()).await?;
    stage.reaches(&none, "app", Reason::NoCredentials).await?;
    // It heals with the secret.
    third.correct_pull_secret("regcred").await?;
    stage.arrives(&third, "app", &app.digest).await?;
    Ok(())
}

async fn no_credentials(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_private("none").await?;
    stage.warm(&namespace, "app", &app.tag).await?;
    stage.reaches(&namespace, "app", Reason::NoCredentials).await?;
    Ok(())
}

async fn wrong_credentials(stage: &Stage<'_>) -> Result<()> {
    let namespace = stage.namespace().await?;
    let app = stage.push_private("wrong").await?;
    namespace.pull_secret("regcred", Some(WRONG)).await?;
    stage.warm_with(&namespace, "app", &app.tag, &["regcred"]).await?;
    let warm = stage.reaches(&namespace, "app", Reason::Unauthorized).await?;
    let text = json!(warm).to_string();
    ensure!(!text.contains(WRONG), "a password is in {text}");
    Ok(())
}
