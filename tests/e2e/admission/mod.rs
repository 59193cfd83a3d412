//! What the API server answers to people who write ImageWarms: through both webhooks, and by the
//! CRD's own rules.

mod references;

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::ImageWarm;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::world::{World, containers, eventually, image_warm};
use references::{MALFORMED, SUFFIXES, WELL_FORMED};

crate::tests![
    malformed_images_are_denied_with_their_fault,
    malformed_nodes_and_secrets_are_denied_with_their_fields,
    values_of_other_types_are_denied_with_their_fields,
    well_formed_images_are_accepted,
    every_problem_is_named_at_once,
    white_space_and_repeated_secrets_are_removed,
    secrets_must_exist_and_be_pull_secrets,
    an_unknown_node_is_a_warning,
    an_update_is_judged_by_what_it_changes,
    image_and_node_cannot_be_changed,
    the_crds_own_rules_refuse_nonsense_without_a_webhook,
    our_own_writes_are_not_sent_to_us,
];

async fn malformed_images_are_denied_with_their_fault(world: &World) -> Result<()> {
    let namespace = world.namespace("malformed").await?;
    for (image, fault) in MALFORMED {
        let verdict = namespace.dry_run(&image_warm(image, "node-1", &[])).await?;
        let denial = verdict.denial_by_webhook().with_context(|| format!("{image:?}"))?;
        ensure!(denial.contains("spec.image: "), "{image:?}: no field in: {denial}");
        ensure!(denial.contains(fault), "{image:?}: no {fault:?} in: {denial}");
        ensure!(!denial.contains("spec.nodeName"), "{image:?}: not only the image: {denial}");
    }
    Ok(())
}

async fn malformed_nodes_and_secrets_are_denied_with_their_fields(world: &World) -> Result<()> {
    let namespace = world.namespace("malformed").await?;
    namespace.pull_secret("good", None).await?;
    let nodes =
        ["Node", "node_a", "-node", "node-", "node..a", ".node", "node a", "nöde", "node/a", "a:b"];
    let secrets = ["Secret", "a_b", "-a", "a-", "a..b", "a b", "ä", "a/b", "a:b", "."];
    let mut cases = vec![];
    for node in nodes {
        for image in ["app", "app:v1", "registry.example.com/app", "team/app"] {
            cases.push((image_warm(image, node, &[]), "spec.nodeName"));
        }
    }
    for bad in secrets {
        cases.push((image_warm("app", "node-1", &[bad]), "spec.imagePullSecrets[0]"));
        for good in 1..8 {
            let mut names = vec!["good"; good];
            names.push(bad);
            // Repeats of a good name are removed first, so the bad one moves to the front.
            cases.push((image_warm("app", "node-1", &names), "spec.imagePullSecrets[1]"));
        }
    }
    for (case, field) in cases {
        let denial = namespace.dry_run(&case).await?.denial;
        let denial = denial.with_context(|| format!("accepted: {case}"))?;
        ensure!(denial.contains(field), "no {field} in the denial of {case}: {denial}");
        ensure!(!denial.contains("spec.image:"), "not only {field} of {case}: {denial}");
    }
    Ok(())
}

async fn values_of_other_types_are_denied_with_their_fields(world: &World) -> Result<()> {
    let namespace = world.namespace("malformed").await?;
    for field in ["image", "nodeName"] {
        for value in [json!(null), json!(""), json!(7), json!(["a"]), json!({"a": 1})] {
            let mut case = image_warm("app", "node-1", &[]);
            case["spec"][field] = value;
            let denial = namespace.dry_run(&case).await?.denial;
            let denial = denial.with_context(|| format!("accepted: {case}"))?;
            let path = format!("spec.{field}");
            ensure!(denial.contains(&path), "no {path} in the denial of {case}: {denial}");
        }
    }
    Ok(())
}

async fn well_formed_images_are_accepted(world: &World) -> Result<()> {
    let namespace = world.namespace("good").await?;
    namespace.pull_secret("regcred", None).await?;
    for name in WELL_FORMED {
        for suffix in SUFFIXES {
            let image = format!("{name}{suffix}");
            let verdict = namespace.dry_run(&image_warm(&image, "node-1", &["regcred"])).await?;
            ensure!(verdict.is_accepted(), "{image}: {verdict:?}");
            let stored = &verdict.object["spec"]["image"];
            ensure!(*stored == image, "{image} would be stored as {stored}");
        }
    }
    Ok(())
}

async fn every_problem_is_named_at_once(world: &World) -> Result<()> {
    let namespace = world.namespace("problems").await?;
    let case = image_warm("App:v1", "node-a", &["not-there", "nor-this"]);
    let verdict = namespace.dry_run(&case).await?;
    let message = verdict.denial_by_webhook()?;
    for part in [
        "spec.image",
        "App:v1",
        "spec.imagePullSecrets[0].name",
        "not-there",
        "spec.imagePullSecrets[1].name",
        "nor-this",
    ] {
        ensure!(message.contains(part), "no {part:?} in: {message}");
    }
    Ok(())
}

async fn white_space_and_repeated_secrets_are_removed(world: &World) -> Result<()> {
    let namespace = world.namespace("defaults").await?;
    namespace.pull_secret("regcred", None).await?;
    let case = image_warm("  app:v1\n", " node-1 ", &[" regcred", "regcred", "regcred "]);
    let verdict = namespace.dry_run(&case).await?;
    ensure!(verdict.is_accepted(), "{verdict:?}");
    let spec = &verdict.object["spec"];
    ensure!(spec["image"] == "app:v1" && spec["nodeName"] == "node-1", "{spec}");
    ensure!(spec["imagePullSecrets"] == json!([{"name": "regcred"}]), "{spec}");
    Ok(())
}

async fn secrets_must_exist_and_be_pull_secrets(world: &World) -> Result<()> {
    let namespace = world.namespace("secrets").await?;
    let content = json!("canary-opaque");
    namespace.secret_of_type("opaque", "Opaque", "password", &content).await?;
    // Valid JSON, so that the API server stores it, but no pull secret by its content.
    let broken = json!({"auths": {"registry.example.com": {"auth": "canary-%%"}}});
    namespace.secret("broken", &broken).await?;
    for (name, word) in [
        ("missing", "does not exist"),
        ("opaque", "kubernetes.io/dockerconfigjson"),
        ("broken", "base64"),
    ] {
        let verdict = namespace.dry_run(&image_warm("app", "node-1", &[name])).await?;
        let message = verdict.denial_by_webhook()?;
        ensure!(message.contains("spec.imagePullSecrets[0].name"), "{message}");
        ensure!(message.contains(name) && message.contains(word), "no {word:?} in: {message}");
        ensure!(!message.contains("canary"), "a secret's content stands in: {message}");
    }
    Ok(())
}

async fn an_unknown_node_is_a_warning(world: &World) -> Result<()> {
    let namespace = world.namespace("warning").await?;
    let verdict = namespace.dry_run(&image_warm("app", "no-such-node", &[])).await?;
    ensure!(verdict.is_accepted(), "denied for a node that may still join: {verdict:?}");
    let warnings = &verdict.warnings;
    ensure!(warnings.iter().any(|w| w.contains("no-such-node")), "{warnings:?}");
    let warnings = namespace.dry_run(&image_warm("app", "node-1", &[])).await?.warnings;
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

async fn an_update_is_judged_by_what_it_changes(world: &World) -> Result<()> {
    let namespace = world.namespace("update").await?;
    let image = world.registries.push("update", "v1").await?;
    let node = world.nodes.names()[0];
    namespace.pull_secret("soon-gone", None).await?;
    namespace.create_image_warm("kept", &image.tag, node, &["soon-gone"]).await?;
    let secrets = namespace.api::<Secret>();
    secrets.delete("soon-gone", &Default::default()).await?;

    let warms = namespace.api::<ImageWarm>();
    let patch = |body: Value| {
        let warms = warms.clone();
        async move { warms.patch("kept", &PatchParams::default(), &Patch::Merge(&body)).await }
    };
    patch(json!({"metadata": {"labels": {"team": "a"}}})).await.context("a label")?;
    patch(json!({"metadata": {"finalizers": ["example.com/held"]}}))
        .await
        .context("a finalizer")?;
    let status = json!({"status": {"annotations": {"note": "x"}}});
    warms
        .patch_status("kept", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .context("a status")?;
    let refused =
        patch(json!({"spec": {"imagePullSecrets": [{"name": "soon-gone"}, {"name": "new"}]}}))
            .await;
    let message = refused.err().context("a new missing secret was accepted")?.to_string();
    ensure!(message.contains("spec.imagePullSecrets[1].name"), "{message}");
    ensure!(
        !message.contains("spec.imagePullSecrets[0].name"),
        "judged what did not change: {message}"
    );
    warms.delete("kept", &Default::default()).await?;
    patch(json!({"metadata": {"finalizers": null}})).await.context("the last finalizer")?;
    eventually("the object is gone", async || {
        Ok(warms.get_opt("kept").await?.is_none().then_some(()))
    })
    .await
}

async fn image_and_node_cannot_be_changed(world: &World) -> Result<()> {
    let namespace = world.namespace("immutable").await?;
    let image = world.registries.push("immutable", "v1").await?;
    let node = world.nodes.names()[0];
    let made = namespace.create_image_warm("fixed", &image.tag, node, &[]).await?;
    let warms = namespace.api::<ImageWarm>();
    for (field, value) in [("image", "other:v1"), ("nodeName", "other")] {
        let body = json!({"spec": {field: value}});
        let refused =
            warms.patch(&made.name_any(), &PatchParams::default(), &Patch::Merge(&body)).await;
        let message = refused.err().context("the change was accepted")?.to_string();
        ensure!(message.contains(&format!("{field} cannot be changed")), "{message}");
    }
    Ok(())
}

async fn the_crds_own_rules_refuse_nonsense_without_a_webhook(world: &World) -> Result<()> {
    let namespace = world.namespace("rules").await?;
    // The controller's own account is the one that the webhooks leave out.
    let warms: Api<ImageWarm> = Api::namespaced(world.controllers.client().await?, &namespace.name);
    let seventeen: Vec<String> = (0..17).map(|number| format!("secret-{number}")).collect();
    let seventeen: Vec<&str> = seventeen.iter().map(String::as_str).collect();
    let long = "a".repeat(1025);
    for (case, part) in [
        (image_warm("", "node-a", &[]), "spec.image"),
        (image_warm(&long, "node-a", &[]), "spec.image"),
        (image_warm("app", "", &[]), "spec.nodeName"),
        (image_warm("app", "Node_A", &[]), "must be the name of a Node"),
        (image_warm("app", &"a".repeat(254), &[]), "spec.nodeName"),
        (image_warm("app", "node-a", &["Not_A_Name"]), "must be the name of a Secret"),
        (image_warm("app", "node-a", &seventeen), "spec.imagePullSecrets"),
    ] {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let refused = warms.create(&params, &serde_json::from_value(case.clone())?).await;
        let message = refused.err().with_context(|| format!("accepted: {case}"))?.to_string();
        ensure!(message.contains(part), "no {part:?} in: {message}");
    }
    Ok(())
}

async fn our_own_writes_are_not_sent_to_us(world: &World) -> Result<()> {
    let namespace = world.namespace("own-writes").await?;
    let image = world.registries.push("own-writes", "v1").await?;
    let calls =
        async || world.controllers.metric_sum("imagewarm_webhook_requests_total", "verdict").await;
    let before = calls().await?;
    namespace.revision("hello-00001", containers(&[&image.tag])).await?;
    namespace.all_ready(3).await?;
    let made = calls().await? - before;
    ensure!(made == 1.0, "{made} webhook calls, and not one for the Revision alone");
    // What a person makes is seen by both webhooks, so the count is a real one.
    let node = world.nodes.names()[0];
    namespace.create_image_warm("by-hand", &image.tag, node, &[]).await?;
    let made = calls().await? - before;
    ensure!(made == 3.0, "{made} webhook calls for a Revision and a hand-made ImageWarm");
    Ok(())
}
