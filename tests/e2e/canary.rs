//! Passwords that stand nowhere: a scenario with each form of credential, right and wrong, with every
//! runtime and the most verbose logs; then whatever there is now is searched for all credentials
//! that any test has put into a Secret. At the end of the run its runner searches once more. Left
//! out are the Secrets themselves and other people's files: the registries' own settings and
//! passwords, etcd's data and the API server's audit log.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::try_join_all;
use imagewarm_core::api::Reason;
use serde_json::{Value, json};
use xtask::cluster::USER;

use crate::conformance::{RuntimeKind, Stage};
use crate::world::{Findings, Namespace, World, containers, eventually};

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

async fn no_credential_stands_anywhere(world: &World) -> Result<()> {
    let mut stages = vec![];
    for runtime in RuntimeKind::ALL {
        stages.push(Stage::enter(world, runtime).await?);
    }
    world.controllers.restart_with(&["--log-level", "trace"]).await?;
    for stage in &stages {
        world.warmers.restart_with(&stage.node, &["--log-level", "trace"]).await?;
    }
    let right = world.registries.private()?.password.clone().context("it asks for no password")?;

    let mut outputs: Vec<String> = vec![];
    let namespaces = try_join_all(stages.iter().map(|stage| pulls(stage, &right))).await?;
    for namespace in &namespaces {
        outputs.extend(denials(namespace).await?);
        outputs.extend(commands(world, namespace).await?);
    }
    outputs.push(revision(world).await?);

    let findings = Findings::collect(world.system(), &outputs).await?;
    let seen = &findings.seen;
    println!("searched: {seen:?}");
    ensure!(seen.kinds >= 30 && seen.objects >= 200, "too few objects: {seen:?}");
    ensure!(seen.files >= 100, "too few files: {seen:?}");
    ensure!(seen.pages >= 3 * (2 + 3 + stages.len()), "too few pages: {seen:?}");
    ensure!(seen.outputs >= 4 * (2 + 4), "too few outputs: {seen:?}");
    for level in ["TRACE", "DEBUG"] {
        for process in ["controller-1", "conformance-crio-warmer"] {
            ensure!(world.logs.count(process, level) > 0, "{process} logs nothing as {level}");
        }
    }
    let words = world.system().credentials();
    for word in [&right, PASSWORD, PAIR, IDENTITY, REGISTRY, UNREACHED, NO_PAIR, NO_BASE64, OTHERS]
    {
        ensure!(words.iter().any(|known| known == word), "{word:?} is not searched for");
    }
    let found = findings.of(&words)?;
    ensure!(found.is_empty(), "credentials stand in:\n{}", found.join("\n"));
    Ok(())
}

/// Each form of credential, right and wrong; returns the namespace.
async fn pulls(stage: &Stage<'_>, right: &str) -> Result<Namespace> {
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
        namespace.secret(name, &content).await?;
        stage.warm_with(&namespace, name, &app.tag, &[name]).await?;
        stage.reaches(&namespace, name, Reason::Unauthorized).await?;
    }
    // One after the other, until one is right.
    namespace.secret("right", &auths(json!({"auth": auth(right)}))).await?;
    stage.warm_with(&namespace, "both", &app.tag, &["password", "right"]).await?;
    stage.arrives(&namespace, "both", &app.digest).await?;
    // The address, which errors quote, is sent together with the credential.
    let nobody = stage.world.registries.unused_address()?.to_string();
    namespace.secret("nobody", &json!({"auths": {&nobody: entry(UNREACHED)}})).await?;
    let image = format!("{nobody}/canary:v1");
    stage.warm_with(&namespace, "nobody", &image, &["nobody"]).await?;
    stage.reaches(&namespace, "nobody", Reason::RegistryUnreachable).await?;
    Ok(namespace)
}

/// What is answered about Secrets that cannot be used.
async fn denials(namespace: &Namespace) -> Result<Vec<String>> {
    let no_pair = BASE64_STANDARD.encode(NO_PAIR);
    let mut answers = vec![];
    for (name, auth) in [("no-pair", no_pair.as_str()), ("no-base64", NO_BASE64)] {
        let content = json!({"auths": {"registry.test": {"auth": auth}}});
        namespace.secret(name, &content).await?;
        match namespace.create_image_warm(name, "registry.test/app", "node-1", &[name]).await {
            Ok(_) => bail!("{name} was accepted"),
            Err(error) => answers.push(format!("{error:?}")),
        }
    }
    Ok(answers)
}

/// What people see who ask.
async fn commands(world: &World, namespace: &Namespace) -> Result<Vec<String>> {
    let name = namespace.name.as_str();
    let mut answers = vec![];
    for arguments in [&["status", "-n", name][..], &["status", "-n", name, "-o", "json"]] {
        let (_, output) = world.commands.imagewarm(arguments).await?;
        ensure!(output.contains("Unauthorized"), "{output}");
        answers.push(output);
    }
    answers.push(world.commands.kubectl(&["describe", "iw", "-n", name]).await?);
    answers.push(world.commands.kubectl(&["get", "iw", "-n", name, "-o", "yaml"]).await?);
    Ok(answers)
}

/// A Revision with a wrong password on the nodes of all tests, and its Event.
async fn revision(world: &World) -> Result<String> {
    let namespace = world.namespace("canary").await?;
    let app = world.registries.push_private("canary", "v1").await?;
    namespace.pull_secret("regcred", Some(PASSWORD)).await?;
    let mut spec = containers(&[&app.tag]);
    spec["imagePullSecrets"] = json!([{"name": "regcred"}]);
    namespace.revision("hello-00001", spec).await?;
    namespace.all_failed(3, Reason::Unauthorized).await?;
    eventually("there is an Event", async || {
        let events = namespace.events(Reason::Unauthorized).await?;
        Ok((!events.is_empty()).then_some(()))
    })
    .await?;
    world.commands.kubectl(&["get", "events", "-n", &namespace.name, "-o", "yaml"]).await
}
