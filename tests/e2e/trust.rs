//! Who may report what on the dispatch port.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use imagewarm_core::api::Reason;
use imagewarm_core::protocol::{FromWarmer, Hello, Outcome, from_controller, from_warmer};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tonic::Code;
use xtask::cluster::{Fault, NAMESPACE};

use crate::world::{World, containers, eventually, image_warm};

crate::tests![
    a_stream_needs_the_right_token,
    a_stream_is_renewed_when_its_token_ends,
    a_token_reports_for_its_own_node_only,
    the_controllers_account_is_held_to_its_own_objects,
    with_fixed_paths_the_controller_changes_no_webhook_configuration,
    the_warmers_account_may_do_nothing,
];

fn hello(epoch: u64) -> FromWarmer {
    let hello = Hello { protocol_version: 1, epoch, ..Hello::default() };
    FromWarmer { message: Some(from_warmer::Message::Hello(hello)) }
}

/// Streams that the leader has ended, and why.
const ENDED: &str = "imagewarm_dispatch_streams_ended_total";
const EXPIRED: &str = "reason=\"Expired\"";

/// Greater than those before, and smaller than the next of the node's warmer.
fn epoch() -> Result<u64> {
    Ok(u64::try_from(jiff::Timestamp::now().as_millisecond())?)
}

async fn a_stream_needs_the_right_token(world: &World) -> Result<()> {
    let node = world.nodes.names()[0];
    let other_account = world.streams.token_for("default", "default", node, "imagewarm").await?;
    let wrong_audience = world.streams.warmer_token(node, "https://kubernetes.default.svc").await?;
    let no_node = world.streams.unbound_warmer_token("imagewarm").await?;
    let good = world.streams.warmer_token(node, "imagewarm").await?;
    let expired = world.cluster().retimed_token(&good, -3600)?;
    let nowhere = world.streams.warmer_token("node-that-is-not", "imagewarm").await?;
    // It is what was changed that they are refused for.
    let again = world.cluster().retimed_token(&good, 600)?;
    let opened = world.streams.open(Some(&again), vec![hello(epoch()?)]).await.map(drop);
    opened.context("a token that was only signed anew was refused")?;
    for (name, token) in [
        ("none", None),
        ("nonsense", Some("nonsense".to_owned())),
        ("wrong audience", Some(wrong_audience)),
        ("another account", Some(other_account)),
        ("bound to no node", Some(no_node)),
        ("expired", Some(expired)),
        ("of a node that does not exist", Some(nowhere)),
    ] {
        let refused = world.streams.open(token.as_deref(), vec![hello(1)]).await.err();
        let status = refused.with_context(|| format!("a stream was opened with token: {name}"))?;
        let code = status.code();
        ensure!(
            matches!(code, Code::Unauthenticated | Code::PermissionDenied),
            "{name}: {status:?}"
        );
    }
    Ok(())
}

async fn a_stream_is_renewed_when_its_token_ends(world: &World) -> Result<()> {
    let namespace = world.namespace("renewed").await?;
    let node = world.nodes.names()[0];
    let pushed = world.registries.push("renewed", "v1").await?;
    let proxied = world.registries.behind_proxy("token", "renewed");
    let image = proxied.image("v1");
    proxied.spoil(Fault::Hold);
    namespace.create_image_warm("app", &image, node, &[]).await?;
    proxied.until_held().await?;
    // Another stream of the node makes its warmer open a new one, with a token that ends soon.
    let good = world.streams.warmer_token(node, "imagewarm").await?;
    world.warmers.give_token(node, &world.cluster().retimed_token(&good, 6)?)?;
    let (leader, connected) =
        (world.controllers.leader().await?, format!("warmer connected node=\"{node}\""));
    let streams = || world.logs.count(&leader, &connected);
    let before = streams();
    let expired_before = world.controllers.metric_sum(ENDED, EXPIRED).await?;
    world.streams.open(Some(&good), vec![hello(epoch()?)]).await.map(drop)?;
    let again = async || Ok((streams() >= before + 2).then_some(()));
    eventually("the warmer has a new stream", again).await?;
    // The kubelet renews tokens long before their end.
    world.warmers.give_token(node, &good)?;
    let expired = async || {
        let more = world.controllers.metric_sum(ENDED, EXPIRED).await? > expired_before;
        Ok((more && streams() >= before + 3).then_some(()))
    };
    eventually("the stream ended with its token, and there is another", expired).await?;
    ensure!(proxied.held() > 0, "the pull did not go on");
    let begun = proxied.layers_begun();
    proxied.heal();
    let warm = namespace.all_ready(1).await?.remove(0);
    let status = warm.status.clone().context("no status")?;
    ensure!(warm.reason() == Some(Reason::Pulled), "{warm:?}");
    ensure!(status.attempts == Some(1), "it was begun anew: {status:?}");
    ensure!(status.digest.as_ref() == Some(&pushed.digest), "{status:?}");
    ensure!(proxied.layers_begun() == begun, "a layer was downloaded again");
    Ok(())
}

async fn a_token_reports_for_its_own_node_only(world: &World) -> Result<()> {
    let namespace = world.namespace("lies").await?;
    let nodes = world.nodes.names();
    let missing = format!("{}/lies/nothing:v1", world.registries.open().address);
    let made = namespace.create_image_warm("of-node-b", &missing, nodes[1], &[]).await?;
    let before = namespace.all_failed(1, Reason::NotFound).await?.remove(0);

    // Node A's own warmer steps aside, so that its node can speak through us.
    world.warmers.stop(nodes[0]).await?;
    let token = world.streams.warmer_token(nodes[0], "imagewarm").await?;
    let lie = Outcome {
        uid: made.metadata.uid.clone().unwrap_or_default(),
        present: true,
        reason: Reason::Pulled.as_str().into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        ..Outcome::default()
    };
    let lie = FromWarmer { message: Some(from_warmer::Message::Outcome(lie)) };
    let (first, mut stream, _open) = world
        .streams
        .open(Some(&token), vec![hello(u64::MAX), lie])
        .await
        .context("node A's own token was refused")?;
    match first.and_then(|first| first.message) {
        Some(from_controller::Message::Welcome(welcome)) => {
            ensure!(welcome.node_name == nodes[0], "{welcome:?}");
        }
        other => anyhow::bail!("no Welcome first, but {other:?}"),
    }
    // Everything that arrives before Synced belongs to node A.
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.message()).await??;
        match next.context("the stream ended")?.message {
            Some(from_controller::Message::Assign(assign)) => {
                ensure!(
                    Some(&assign.uid) != made.metadata.uid.as_ref(),
                    "an ImageWarm of node B was sent to A"
                );
            }
            Some(from_controller::Message::Synced(_)) => break,
            _ => {}
        }
    }
    world.leader_has_caught_up().await?;
    let after = namespace.image_warms().await?.remove(0);
    ensure!(
        after.ready().map(|r| r.status) == before.ready().map(|r| r.status),
        "the lie was believed: {after:?}"
    );
    ensure!(after.reason() == Some(Reason::NotFound), "the lie was believed: {after:?}");
    Ok(())
}

/// What RBAC grants the controller and it does not need, the shipped policies deny: an attacker in
/// control of it intercepts no requests, and plants no Secret.
async fn the_controllers_account_is_held_to_its_own_objects(world: &World) -> Result<()> {
    let client = world.controllers.client().await?;
    let denied = |what: &str, result: kube::Result<()>| match result {
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Ok(())
        }
        other => Err(anyhow!("{what}: {other:?}")),
    };
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let everything = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"],
        "operations": ["*"], "scope": "*"}]);
    let to = |place: &str, value: Value| json!([{"op": "add", "path": place, "value": value}]);
    for (what, patch) in [
        ("all requests", to("/webhooks/0/rules", everything)),
        ("no failure ignored", to("/webhooks/0/failurePolicy", json!("Fail"))),
        ("all namespaces", to("/webhooks/0/namespaceSelector", json!({}))),
        ("no condition", json!([{"op": "remove", "path": "/webhooks/0/matchConditions"}])),
        ("a slow webhook", to("/webhooks/0/timeoutSeconds", json!(30))),
        ("another server", to("/webhooks/0/clientConfig/service/name", json!("other"))),
        ("one webhook less", json!([{"op": "remove", "path": "/webhooks/0"}])),
    ] {
        let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
        let result = webhooks.patch("imagewarm", &PatchParams::default(), &patch).await;
        denied(what, result.map(drop))?;
    }
    let deleted = webhooks.delete("imagewarm", &Default::default()).await;
    denied("deletion", deleted.map(drop))?;

    let post = PostParams::default();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let secret = serde_json::from_value(json!({"metadata": {"name": "planted"}}))?;
    denied("a Secret", secrets.create(&post, &secret).await.map(drop))?;
    let secret = serde_json::from_value(json!({"metadata": {"generateName": "imagewarm-certs"}}))?;
    denied("a Secret of any name", secrets.create(&post, &secret).await.map(drop))?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let map = serde_json::from_value(json!({"metadata": {"name": "planted"}}))?;
    denied("a ConfigMap", maps.create(&post, &map).await.map(drop))?;
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let lease = serde_json::from_value(json!({"metadata": {"name": "planted"}}))?;
    denied("a Lease", leases.create(&post, &lease).await.map(drop))
}

/// The installer sets the paths and cert-manager sets `caBundle`, so the role lacks the verbs.
async fn with_fixed_paths_the_controller_changes_no_webhook_configuration(
    world: &World,
) -> Result<()> {
    const OVERLAY: &str = "cert-manager-fixed-paths";
    const WEBHOOKS: [(&str, &str); 3] = [
        ("revisions.caching.knative.dev", "/mutate/00112233445566778899aabbccddee01"),
        ("defaulting.imagewarms.caching.knative.dev", "/mutate/00112233445566778899aabbccddee02"),
        ("validation.imagewarms.caching.knative.dev", "/validate/00112233445566778899aabbccddee03"),
    ];
    let namespace = world.namespace("fixed-paths").await?;
    let [revisions, defaulting, validation] = WEBHOOKS.map(|(_, path)| path);
    let file = format!("revisions={revisions}\ndefaulting={defaulting}\nvalidation={validation}\n");
    let folder = format!("{}/overlays/{OVERLAY}", env!("CARGO_MANIFEST_DIR"));
    let unset = world.commands.kubectl(&["kustomize", &folder]).await;
    ensure!(unset.is_err(), "it is rendered without the installer's paths: {unset:?}");
    let rendered = world.commands.overlay_with(OVERLAY, ("webhook-paths.env", &file)).await?;
    let names = |one: &&Value| one["metadata"]["name"] == "webhook-paths";
    ensure!(rendered.iter().find(names).is_none(), "the file itself would be applied");
    ensure!(may_change_webhooks(world).await? == ["delete", "patch"], "the test shows nothing");

    world.controllers.stop().await?;
    // A new installation: nothing is there yet that an earlier leader has published.
    world.installation.delete_webhooks_and_certificates().await?;
    world.installation.apply_role_and_webhooks(rendered).await?;
    ensure!(may_change_webhooks(world).await?.is_empty(), "the role has more verbs than `get`");
    let changes = || -> Result<usize> {
        let mut all = world.audit.of_controllers()?;
        all.retain(|one| one.resource.ends_with("webhookconfigurations") && one.verb != "get");
        Ok(all.len())
    };
    let failures = || world.logs.lines_with(&["cannot publish"]);
    let (before, failed_before) = (changes()?, failures());
    // Nobody but the fan-out at admission creates ImageWarms.
    let flags = ["--publish-ca-bundle", "false", "--publish-webhook-paths", "false"];
    let flags = [&flags[..], &["--repair-delay", "1h"]].concat();
    let started = world.controllers.restart_with(&flags);
    tokio::try_join!(started, world.installation.inject_ca_bundles())?;
    world.controllers.until_all_connected().await?;
    let app = world.registries.push("fixed-paths", "v1").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let denied = namespace.dry_run(&image_warm("Not An Image", "node-1", &[])).await?;
    denied.denial_by_webhook()?;
    for (webhook, path) in WEBHOOKS {
        let held = world.cluster().webhook_path(webhook).await?;
        ensure!(held == path, "{webhook} is at {held}");
    }
    ensure!(!world.installation.webhooks_are_owned().await?, "somebody set an owner");
    ensure!(changes()? == before, "the controllers wrote webhook configurations");
    ensure!(failures() == failed_before, "the controllers failed to publish");
    Ok(())
}

/// With which verbs the controllers may change their own webhook configurations.
async fn may_change_webhooks(world: &World) -> Result<Vec<&'static str>> {
    let mut allowed = vec![];
    for verb in ["create", "delete", "deletecollection", "patch", "update"] {
        for resource in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            let (account, group) = ("imagecontroller", "admissionregistration.k8s.io");
            if world.account_may_with(account, verb, group, resource, "imagewarm").await? {
                allowed.push(verb);
            }
        }
    }
    allowed.dedup();
    Ok(allowed)
}

/// Whatever an account without any binding may do, such as asking what it may do, the warmers'
/// may; and nothing else.
async fn the_warmers_account_may_do_nothing(world: &World) -> Result<()> {
    const VERBS: [&str; 6] = ["get", "list", "create", "patch", "delete", "deletecollection"];
    const RESOURCES: [(&str, &[&str]); 10] = [
        (
            "",
            &[
                "secrets",
                "configmaps",
                "serviceaccounts",
                "serviceaccounts/token",
                "pods",
                "pods/exec",
                "nodes",
                "nodes/status",
                "nodes/proxy",
                "namespaces",
                "events",
            ],
        ),
        ("apps", &["daemonsets", "deployments"]),
        ("authentication.k8s.io", &["tokenreviews", "selfsubjectreviews"]),
        ("authorization.k8s.io", &["selfsubjectaccessreviews", "subjectaccessreviews"]),
        ("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"]),
        ("rbac.authorization.k8s.io", &["clusterroles", "clusterrolebindings", "rolebindings"]),
        ("coordination.k8s.io", &["leases"]),
        ("caching.knative.dev", &["imagewarms", "imagewarms/status"]),
        ("caching.internal.knative.dev", &["images", "images/status"]),
        ("serving.knative.dev", &["revisions", "services", "configurations"]),
    ];
    let mut allowed = 0;
    for (group, resources) in RESOURCES {
        for (resource, verb) in resources.iter().flat_map(|r| VERBS.map(|verb| (*r, verb))) {
            let may = world.account_may("imagewarmer", verb, group, resource).await?;
            let anybody = world.account_may("bound-to-nothing", verb, group, resource).await?;
            ensure!(may == anybody, "the warmer may {verb} {group}/{resource}: {may}");
            allowed += usize::from(may);
        }
    }
    ensure!((1..10).contains(&allowed), "the comparison shows nothing: {allowed} are allowed");
    // The same question about an account that has rights is answered with yes.
    ensure!(
        world.account_may("imagecontroller", "get", "", "secrets").await?,
        "the authorizer denies everything"
    );
    Ok(())
}
