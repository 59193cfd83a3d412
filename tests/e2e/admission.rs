//! What the API server answers to people who write ImageWarms: through both webhooks, and by the
//! CRD's own rules.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::ImageWarm;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error, ResourceExt};
use serde_json::{Value, json};

use crate::world::World;

crate::tests![
    two_hundred_malformed_orders_are_refused_with_field_paths,
    fifty_good_orders_are_accepted,
    every_problem_is_told_at_once,
    white_space_and_repeated_secrets_are_removed,
    secrets_must_exist_and_be_pull_secrets,
    an_unknown_node_is_a_warning,
    an_update_is_judged_by_what_it_changes,
    image_and_node_cannot_be_changed,
    the_crds_own_rules_refuse_nonsense_without_a_webhook,
    our_own_writes_are_not_sent_to_us,
];

fn order(image: &str, node: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
        "metadata": {"generateName": "order-"},
        "spec": {"image": image, "nodeName": node, "imagePullSecrets": secrets},
    })
}

/// The API server's refusal, or `None` when the object was accepted.
async fn refusal(world: &World, namespace: &str, object: &Value) -> Result<Option<String>> {
    let orders: Api<ImageWarm> = Api::namespaced(world.client(), namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match orders.create(&params, &serde_json::from_value(object.clone())?).await {
        Ok(_) => Ok(None),
        Err(Error::Api(status)) => Ok(Some(status.message)),
        Err(other) => Err(other.into()),
    }
}

async fn two_hundred_malformed_orders_are_refused_with_field_paths(world: &World) -> Result<()> {
    let namespace = world.namespace("malformed").await?;
    let node = world.nodes().remove(0);
    let images = [
        "App",
        "app:",
        "app@",
        "app@sha256:abc",
        ":v1",
        "-app",
        "app-",
        "app..b",
        "app//b",
        "/app",
        "app/",
        "a b",
        "app:v 1",
        "app:-v",
        "http://app",
        "app:v1:v2",
        "app@sha256",
        "app@sha256:",
        "app@md4:0123",
        "app__",
        "app___b",
        ".app",
        "app.",
        "registry.example.com/",
        "app@@",
        "registry.example.com:port/app",
        "café",
        "app:\u{301}",
        "app\tb",
        "[::1/app",
        "app#1",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "app?x",
        "UPPER/app",
        "app:v1@sha256:zz",
        "app;v1",
        "$(IMAGE)",
        "${IMAGE}",
        "app,b",
        "app%20",
    ];
    let nodes =
        ["Node", "node_a", "-node", "node-", "node..a", ".node", "node a", "nöde", "node/a", "a:b"];
    let secrets = ["Secret", "a_b", "-a", "a-", "a..b", "a b", "ä", "a/b", "a:b", "."];
    let mut cases = vec![];
    for image in images {
        cases.push((order(image, &node, &[]), "spec.image"));
        cases
            .push((order(&format!("registry.example.com/team/{image}"), &node, &[]), "spec.image"));
    }
    for (at, bad) in nodes.iter().enumerate() {
        for image in ["app", "app:v1", "registry.example.com/app", "team/app"] {
            cases.push((
                order(&format!("{image}-{at}").replace(":v1-", ":v1."), bad, &[]),
                "spec.nodeName",
            ));
        }
    }
    for bad in secrets {
        for position in 0..8 {
            let mut names = vec!["good"; position];
            names.push(bad);
            // Repeats of a good name are removed first, so the bad one moves to the front.
            let path = format!("spec.imagePullSecrets[{}]", position.min(1));
            cases.push((order("app", &node, &names), path.leak()));
        }
    }
    // Some of the built-up images are good; only what the grammar refuses counts.
    cases.retain(|(case, path)| {
        *path != "spec.image"
            || imagewarm_core::image::Reference::parse(case["spec"]["image"].as_str().unwrap_or(""))
                .is_err()
    });
    ensure!(cases.len() >= 190, "only {} malformed cases", cases.len());
    for field in ["image", "nodeName"] {
        for value in [json!(null), json!(""), json!(7), json!(["a"]), json!({"a": 1})] {
            let mut case = order("app", &node, &[]);
            case["spec"][field] = value;
            cases.push((case, if field == "image" { "spec.image" } else { "spec.nodeName" }));
        }
    }
    ensure!(cases.len() >= 200, "only {} malformed cases", cases.len());
    world.pull_secret(&namespace, "good", None).await?;
    for (case, path) in &cases {
        let message = world.post_raw(&namespace, case).await?;
        let message = message.with_context(|| format!("accepted: {case}"))?;
        ensure!(message.contains(path), "no {path} in the refusal of {case}: {message}");
    }
    Ok(())
}

async fn fifty_good_orders_are_accepted(world: &World) -> Result<()> {
    let namespace = world.namespace("good").await?;
    let node = world.nodes().remove(0);
    world.pull_secret(&namespace, "regcred", None).await?;
    let digest = format!("sha256:{}", "ab".repeat(32));
    let names = [
        "app",
        "team/app",
        "registry.example.com/app",
        "registry.example.com:5000/team/app",
        "localhost/app",
        "127.0.0.1:5000/a/b/c",
        "[::1]:5000/app",
        "app__x",
        "a.b-c/d_e",
        "REGISTRY.example/app",
    ];
    let mut accepted = 0;
    for name in names {
        for suffix in ["", ":v1", ":V1.0_x-y", &format!("@{digest}"), &format!(":v1@{digest}")] {
            let case = order(&format!("{name}{suffix}"), &node, &["regcred"]);
            let refused = refusal(world, &namespace, &case).await?;
            ensure!(refused.is_none(), "refused: {case}: {refused:?}");
            accepted += 1;
        }
    }
    ensure!(accepted == 50);
    Ok(())
}

async fn every_problem_is_told_at_once(world: &World) -> Result<()> {
    let namespace = world.namespace("problems").await?;
    let case = order("App:v1", "node-a", &["not-there", "nor-this"]);
    let message = refusal(world, &namespace, &case).await?.context("accepted")?;
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
    world.pull_secret(&namespace, "regcred", None).await?;
    let orders: Api<ImageWarm> = Api::namespaced(world.client(), &namespace);
    let node = world.nodes().remove(0);
    let case = order("  app:v1\n", &format!(" {node} "), &[" regcred", "regcred", "regcred "]);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let stored = orders.create(&params, &serde_json::from_value(case)?).await?;
    ensure!(stored.spec.image == "app:v1" && stored.spec.node_name == node, "{:?}", stored.spec);
    let names: Vec<_> = stored.spec.image_pull_secrets.iter().map(|s| s.name.as_str()).collect();
    ensure!(names == ["regcred"], "{names:?}");
    Ok(())
}

async fn secrets_must_exist_and_be_pull_secrets(world: &World) -> Result<()> {
    let namespace = world.namespace("secrets").await?;
    let secrets: Api<Secret> = Api::namespaced(world.client(), &namespace);
    let opaque =
        json!({"metadata": {"name": "opaque"}, "stringData": {"password": "canary-opaque"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(opaque)?).await?;
    // Valid JSON, so that the API server stores it, but no pull secret by its content.
    let broken = json!({
        "metadata": {"name": "broken"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": "{\"auths\":{\"registry.example.com\":{\"auth\":\"canary-%%\"}}}"},
    });
    secrets.create(&PostParams::default(), &serde_json::from_value(broken)?).await?;
    let node = world.nodes().remove(0);
    for (name, word) in [
        ("missing", "does not exist"),
        ("opaque", "kubernetes.io/dockerconfigjson"),
        ("broken", "base64"),
    ] {
        let case = order("app", &node, &[name]);
        let message = refusal(world, &namespace, &case)
            .await?
            .with_context(|| format!("accepted: {name}"))?;
        ensure!(message.contains("spec.imagePullSecrets[0].name"), "{message}");
        ensure!(message.contains(name) && message.contains(word), "no {word:?} in: {message}");
        ensure!(!message.contains("canary"), "a secret's content stands in: {message}");
    }
    Ok(())
}

async fn an_unknown_node_is_a_warning(world: &World) -> Result<()> {
    let namespace = world.namespace("warning").await?;
    let (accepted, warnings) =
        world.post_for_warnings(&namespace, &order("app", "no-such-node", &[])).await?;
    ensure!(accepted, "an order for a node that may still join was refused");
    ensure!(warnings.iter().any(|w| w.contains("no-such-node")), "{warnings:?}");
    let node = world.nodes().remove(0);
    let (_, warnings) = world.post_for_warnings(&namespace, &order("app", &node, &[])).await?;
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

async fn an_update_is_judged_by_what_it_changes(world: &World) -> Result<()> {
    let namespace = world.namespace("update").await?;
    let image = world.push("update", "v1").await?;
    let node = world.nodes().remove(0);
    world.pull_secret(&namespace, "soon-gone", None).await?;
    world.hand_made(&namespace, "kept", &image.tag, &node, &["soon-gone"]).await?;
    let secrets: Api<Secret> = Api::namespaced(world.client(), &namespace);
    secrets.delete("soon-gone", &Default::default()).await?;

    let orders: Api<ImageWarm> = Api::namespaced(world.client(), &namespace);
    let patch = |body: Value| {
        let orders = orders.clone();
        async move { orders.patch("kept", &PatchParams::default(), &Patch::Merge(&body)).await }
    };
    patch(json!({"metadata": {"labels": {"team": "a"}}})).await.context("a label")?;
    patch(json!({"metadata": {"finalizers": ["example.com/held"]}}))
        .await
        .context("a finalizer")?;
    let status = json!({"status": {"annotations": {"note": "x"}}});
    orders
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
    orders.delete("kept", &Default::default()).await?;
    patch(json!({"metadata": {"finalizers": null}})).await.context("the last finalizer")?;
    world
        .eventually("the object is gone", async || {
            Ok(orders.get_opt("kept").await?.is_none().then_some(()))
        })
        .await
}

async fn image_and_node_cannot_be_changed(world: &World) -> Result<()> {
    let namespace = world.namespace("immutable").await?;
    let image = world.push("immutable", "v1").await?;
    let node = world.nodes().remove(0);
    let made = world.hand_made(&namespace, "fixed", &image.tag, &node, &[]).await?;
    let orders: Api<ImageWarm> = Api::namespaced(world.client(), &namespace);
    for (field, value) in [("image", "other:v1"), ("nodeName", "other")] {
        let body = json!({"spec": {field: value}});
        let refused =
            orders.patch(&made.name_any(), &PatchParams::default(), &Patch::Merge(&body)).await;
        let message = refused.err().context("the change was accepted")?.to_string();
        ensure!(message.contains(&format!("{field} cannot be changed")), "{message}");
    }
    Ok(())
}

async fn the_crds_own_rules_refuse_nonsense_without_a_webhook(world: &World) -> Result<()> {
    let namespace = world.namespace("rules").await?;
    // The controller's own account is the one that the webhooks leave out.
    let orders: Api<ImageWarm> = Api::namespaced(world.controller_client().await?, &namespace);
    let seventeen: Vec<String> = (0..17).map(|number| format!("secret-{number}")).collect();
    let seventeen: Vec<&str> = seventeen.iter().map(String::as_str).collect();
    let long = "a".repeat(1025);
    for (case, part) in [
        (order("", "node-a", &[]), "spec.image"),
        (order(&long, "node-a", &[]), "spec.image"),
        (order("app", "", &[]), "spec.nodeName"),
        (order("app", "Node_A", &[]), "must be the name of a Node"),
        (order("app", &"a".repeat(254), &[]), "spec.nodeName"),
        (order("app", "node-a", &["Not_A_Name"]), "must be the name of a Secret"),
        (order("app", "node-a", &seventeen), "spec.imagePullSecrets"),
    ] {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let refused = orders.create(&params, &serde_json::from_value(case.clone())?).await;
        let message = refused.err().with_context(|| format!("accepted: {case}"))?.to_string();
        ensure!(message.contains(part), "no {part:?} in: {message}");
    }
    Ok(())
}

async fn our_own_writes_are_not_sent_to_us(world: &World) -> Result<()> {
    let namespace = world.namespace("own-writes").await?;
    let image = world.push("own-writes", "v1").await?;
    let calls = async || world.metric_sum("imagewarm_webhook_requests_total", "verdict").await;
    let before = calls().await?;
    world.revision(&namespace, "hello-00001", crate::world::containers(&[&image.tag])).await?;
    world.all_ready(&namespace, 3).await?;
    let made = calls().await? - before;
    ensure!(made == 1.0, "{made} webhook calls, and not one for the Revision alone");
    // What a person makes is seen by both webhooks, so the count is a real one.
    let node = world.nodes().remove(0);
    world.hand_made(&namespace, "by-hand", &image.tag, &node, &[]).await?;
    let made = calls().await? - before;
    ensure!(made == 3.0, "{made} webhook calls for a Revision and a hand-made ImageWarm");
    Ok(())
}
