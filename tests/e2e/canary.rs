//! Passwords that stand nowhere: a scenario with each form of credential, right and wrong, with every
//! runtime and the most verbose logs; then whatever it left is searched for them. Left out are the
//! Secrets themselves and other people's files: the registries' own settings and passwords, etcd's
//! data and the API server's audit log.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::try_join_all;
use imagewarm_core::api::Reason;
use serde_json::{Value, json};
use xtask::cluster::USER;

use crate::conformance::{RuntimeKind, Stage};
use crate::world::{Findings, World, containers};

crate::tests![no_credential_stands_anywhere];

// What base64, percent-encoding and JSON write otherwise is in them.
const PASSWORD: &str = "canary/pass+word ~%?41";
const PAIR: &str = "canary>auth=pair&?~/42";
const IDENTITY: &str = "canary.identity+token/43=";
const REGISTRY: &str = "canary.registry+token/44=";
const UNREACHED: &str = "canary-never/sent+45";
const NO_PAIR: &str = "canary without a colon 46";
/// As it stands in a Secret: no base64.
const NO_BASE64: &str = "canary-%%-no-base64-47";
const OTHERS: &str = "canary-of-another-registry/48";
/// The other tests' passwords, whose traces are there as well.
const EARLIER: [&str; 3] = ["canary-not-the-password", "canary-mistyped", "canary-opaque"];

async fn no_credential_stands_anywhere(world: &World) -> Result<()> {
    let mut stages = vec![];
    for runtime in RuntimeKind::ALL {
        stages.push(Stage::enter(world, runtime).await?);
    }
    let nodes: Vec<_> = stages.iter().map(|stage| stage.node.clone()).collect();
    let searched = async {
        world.log_everything(&nodes).await?;
        search(world, &stages).await
    };
    let searched = searched.await;
    world.log_as_before(&nodes).await?;
    searched
}

async fn search(world: &World, stages: &[Stage<'_>]) -> Result<()> {
    let registry = world.cluster.registry_tls.as_ref().context("no private registry")?;
    let right = registry.password.clone().context("it asks for no password")?;
    let mut words = vec![PASSWORD, PAIR, IDENTITY, REGISTRY, UNREACHED, NO_PAIR, NO_BASE64, OTHERS];
    words.extend(EARLIER);
    words.push(&right);

    let mut said: Vec<String> = vec![];
    let spaces = try_join_all(stages.iter().map(|stage| pulls(stage, &right))).await?;
    for namespace in &spaces {
        said.extend(refusals(world, namespace).await?);
        said.extend(commands(world, namespace).await?);
    }
    said.push(revision(world).await?);

    let findings = Findings::collect(world, &said).await?;
    let seen = &findings.seen;
    println!("searched: {seen:?}");
    ensure!(seen.kinds >= 30 && seen.objects >= 200, "too few objects: {seen:?}");
    ensure!(seen.files >= 100, "too few files: {seen:?}");
    ensure!(seen.pages >= 3 * (2 + 3 + stages.len()), "too few pages: {seen:?}");
    ensure!(seen.outputs >= 4 * (2 + 4), "too few outputs: {seen:?}");
    for level in ["TRACE", "DEBUG"] {
        for process in ["controller-1", "conformance-crio-warmer"] {
            ensure!(world.logged(process, level) > 0, "{process} logs nothing as {level}");
        }
    }
    let found = findings.of(&words)?;
    ensure!(found.is_empty(), "credentials stand in:\n{}", found.join("\n"));
    Ok(())
}

/// Each form of credential, right and wrong; returns the namespace.
async fn pulls(stage: &Stage<'_>, right: &str) -> Result<String> {
    let namespace = stage.namespace().await?;
    let app = stage.push_private("canary").await?;
    let host = app.tag.split('/').next().context("an image has a registry")?;
    let auth = |password: &str| BASE64_STANDARD.encode(format!("{USER}:{password}"));
    let entry = |password: &str| json!({"username": USER, "password": password});
    let auths =
        |entry: Value| json!({"auths": {host: entry, "other.test": {"auth": auth(OTHERS)}}});
    let tokens = json!({"auth": auth(PAIR), "identitytoken": IDENTITY, "registrytoken": REGISTRY});
    for (name, content) in [
        ("password", auths(entry(PASSWORD))),
        ("auth", auths(json!({"auth": auth(PAIR)}))),
        ("tokens", auths(tokens)),
        ("dockercfg", json!({host: entry(PASSWORD)})),
    ] {
        stage.world.secret(&namespace, name, &content).await?;
        stage.order_with(&namespace, name, &app.tag, &[name]).await?;
        stage.reaches(&namespace, name, Reason::Unauthorized).await?;
    }
    // One after the other, until one is right.
    stage.world.secret(&namespace, "right", &auths(json!({"auth": auth(right)}))).await?;
    stage.order_with(&namespace, "both", &app.tag, &["password", "right"]).await?;
    stage.arrives(&namespace, "both", &app.digest).await?;
    // The address, which errors quote, is told together with the credential.
    let nobody = format!("127.0.0.1:{}", stage.world.unused_port()?);
    stage
        .world
        .secret(&namespace, "nobody", &json!({"auths": {&nobody: entry(UNREACHED)}}))
        .await?;
    let image = format!("{nobody}/canary:v1");
    stage.order_with(&namespace, "nobody", &image, &["nobody"]).await?;
    stage.reaches(&namespace, "nobody", Reason::RegistryUnreachable).await?;
    Ok(namespace)
}

/// What is said of Secrets that cannot be used.
async fn refusals(world: &World, namespace: &str) -> Result<Vec<String>> {
    let no_pair = BASE64_STANDARD.encode(NO_PAIR);
    let mut said = vec![];
    for (name, auth) in [("no-pair", no_pair.as_str()), ("no-base64", NO_BASE64)] {
        let content = json!({"auths": {"registry.test": {"auth": auth}}});
        world.secret(namespace, name, &content).await?;
        match world.hand_made(namespace, name, "registry.test/app", "node-1", &[name]).await {
            Ok(_) => bail!("{name} was accepted"),
            Err(error) => said.push(format!("{error:?}")),
        }
    }
    Ok(said)
}

/// What people see who ask.
async fn commands(world: &World, namespace: &str) -> Result<Vec<String>> {
    let mut said = vec![];
    for arguments in [&["status", "-n", namespace][..], &["status", "-n", namespace, "-o", "json"]]
    {
        let (_, output) = world.imagewarm(arguments).await?;
        ensure!(output.contains("Unauthorized"), "{output}");
        said.push(output);
    }
    said.push(world.kubectl(&["describe", "iw", "-n", namespace]).await?);
    said.push(world.kubectl(&["get", "iw", "-n", namespace, "-o", "yaml"]).await?);
    Ok(said)
}

/// A Revision with a wrong password on the nodes of all tests, and its Event.
async fn revision(world: &World) -> Result<String> {
    let namespace = world.namespace("canary").await?;
    let app = world.push_private("canary", "v1").await?;
    world.pull_secret(&namespace, "regcred", Some(PASSWORD)).await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    world.revision(&namespace, "hello-00001", spec).await?;
    world.all_failed(&namespace, 3, Reason::Unauthorized).await?;
    world
        .eventually("an Event tells of it", async || {
            let events = world.events(&namespace, Reason::Unauthorized).await?;
            Ok((!events.is_empty()).then_some(()))
        })
        .await?;
    world.kubectl(&["get", "events", "-n", &namespace, "-o", "yaml"]).await
}
