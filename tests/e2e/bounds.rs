//! Limits that operators set: obeyed at admission, in the fan-out and in repairs, and reported.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use imagewarm_core::api::{ImageWarm, Reason};
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::{Map, Value, json};

use crate::world::{MemoryLimit, REPLICAS, World, containers, eventually, image_warm};

crate::tests![
    namespaces_may_have_to_opt_in,
    limits_of_namespaces_and_revisions_are_kept,
    a_quota_limits_one_namespace_and_stops_no_other,
    a_revision_beyond_the_rate_limit_is_repaired,
    metadata_is_bounded_by_the_api_server,
    a_tenant_at_the_limit_takes_bounded_memory,
];

async fn namespaces_may_have_to_opt_in(world: &World) -> Result<()> {
    let (chosen, other) = (world.namespace("opted-in").await?, world.namespace("unasked").await?);
    chosen.label("caching.knative.dev/warm", "true").await?;
    let app = world.registries.push("opt-in", "v1").await?;
    world.controllers.restart_with(&["--namespace-selection", "opt-in"]).await?;
    for namespace in [&other, &chosen] {
        namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    }
    let ready = chosen.all_ready(3).await?;
    // The leader, too, looks at both, once its grace period for them is over: it is then that
    // it makes again what is missing in the one.
    let taken = ready.first().context("an ImageWarm")?.clone();
    chosen.delete_image_warm(&taken).await?;
    let again = async || {
        let warms = chosen.image_warms().await?;
        Ok((warms.len() == 3 && !warms.iter().any(|one| one.uid() == taken.uid())).then_some(()))
    };
    eventually("the leader makes an ImageWarm again", again).await?;
    ensure!(other.image_warms().await?.is_empty(), "a namespace that did not ask is warmed");
    let denied = other.dry_run(&image_warm("app", "node-1", &[])).await?;
    let denial = denied.denial_by_webhook()?;
    ensure!(denial.contains("caching.knative.dev/warm=true"), "{denial}");
    let verdict = chosen.dry_run(&image_warm("app", "node-1", &[])).await?;
    ensure!(verdict.is_accepted(), "{verdict:?}");
    // It may still ask.
    other.label("caching.knative.dev/warm", "true").await?;
    other.all_ready(3).await?;
    Ok(())
}

async fn limits_of_namespaces_and_revisions_are_kept(world: &World) -> Result<()> {
    let namespace = world.namespace("limits").await?;
    let mut images = vec![];
    for name in ["limit-a", "limit-b", "limit-c"] {
        images.push(world.registries.push(name, "v1").await?);
    }
    let all: Vec<&str> = images.iter().map(|image| image.tag.as_str()).collect();
    let flags = ["--max-images-per-revision", "2", "--max-image-warms-per-namespace", "5"];
    world.controllers.restart_with(&flags).await?;
    namespace.revision("hello-00001", containers(&all)).await?;
    // Two images on three nodes are one too many; the third image is not for it at all.
    let warms = namespace.all_ready(5).await?;
    ensure!(warms.iter().all(|warm| warm.spec.image != all[2]), "{warms:?}");
    // Namespaces of other tests are within it, or not: their part is not known here.
    let line = format!(
        "ImageWarms not created: the namespace may have no more than 5 ImageWarms \
             (--max-image-warms-per-namespace) namespace=\"{}\" missing=1",
        namespace.name
    );
    let over = async || {
        let logged = REPLICAS.map(|name| world.logs.count(name, &line));
        let over = world.controllers.metric_sum("imagewarm_image_warms_over_limit", "").await?;
        Ok((over >= 1.0 && logged.iter().any(|times| *times > 0)).then_some(()))
    };
    eventually("the leader logs what is beyond the limit", over).await?;
    ensure!(namespace.image_warms().await?.len() == 5, "a repair went beyond the limit");
    // However many containers: the deploy passes.
    let many: Vec<String> = (0..5_000).map(|at| format!("r.test/app-{at}:v1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    namespace.dry_run_revision("huge-00001", containers(&many)).await?;
    ensure!(world.controllers.all_run(), "a controller ended");
    let denied = namespace.dry_run(&image_warm("app", "node-1", &[])).await?;
    let denial = denied.denial_by_webhook()?;
    ensure!(denial.contains("the namespace may have no more than 5 ImageWarms"), "{denial}");
    world.controllers.restart().await?;
    // Without the limits all is warmed that was left out.
    let warms = namespace.all_ready(9).await?;
    ensure!(warms.iter().all(|warm| warm.reason() == Some(Reason::Pulled)), "{warms:?}");
    Ok(())
}

/// What the API server refuses because of a namespace's ResourceQuota.
async fn a_quota_limits_one_namespace_and_stops_no_other(world: &World) -> Result<()> {
    let (limited, other) = (world.namespace("quota").await?, world.namespace("no-quota").await?);
    let [app, next] =
        [world.registries.push("quota", "v1").await?, world.registries.push("quota", "v2").await?];
    let controller = world.cluster().start_quota_controller()?;
    limited.limit_image_warms("few", 2, &controller).await?;
    let nodes = world.nodes.names();
    for node in &nodes[..2] {
        limited.create_image_warm(&format!("by-hand-{node}"), &app.tag, node, &[]).await?;
    }
    let beyond = limited.create_image_warm("beyond", &app.tag, nodes[2], &[]).await;
    let refused = beyond.err().context("an ImageWarm beyond the quota was created")?.to_string();
    ensure!(refused.contains("exceeded quota: few"), "{refused}");

    let failed = "imagewarm_fan_out_image_warms_total";
    let failed_before = world.controllers.metric_sum(failed, "outcome=\"Failed\"").await?;
    let writes_before = world.controllers.metric_sum("imagewarm_failed_writes_total", "").await?;
    // The deploy passes. Neither the fan-out nor the leader can warm it, and both report it.
    limited.revision("hello-00001", containers(&[&app.tag])).await?;
    other.revision("hello-00001", containers(&[&app.tag])).await?;
    other.all_ready(3).await?;
    let of_namespace = format!("namespace=\"{}\"", limited.name);
    let reported = async || {
        let at_admission = ["cannot create ImageWarm", &of_namespace, "exceeded quota: few"];
        let by_leader =
            ["ImageWarms rejected in the whole namespace", &of_namespace, "QuotaExceeded"];
        let lines = [&at_admission, &by_leader].map(|texts| world.logs.lines_with(texts));
        Ok(lines.iter().all(|lines| *lines > 0).then_some(()))
    };
    eventually("the quota is logged", reported).await?;
    let failed_after = world.controllers.metric_sum(failed, "outcome=\"Failed\"").await?;
    let writes_after = world.controllers.metric_sum("imagewarm_failed_writes_total", "").await?;
    ensure!(failed_after > failed_before, "the fan-out counts no failure");
    ensure!(writes_after > writes_before, "the leader counts no failure");
    // Once one is refused, the others are not tried: a few for the fan-out, a few for the leader.
    let mut tried = world.audit.of_controllers_in(&limited.name)?;
    tried.retain(|one| one.verb == "create" && one.resource == "imagewarms");
    ensure!(!tried.is_empty() && tried.len() <= 12, "{} tries", tried.len());
    ensure!(tried.iter().all(|one| one.status == 403 && !one.refused), "{tried:?}");
    // Whatever is there is warmed as before.
    limited.all_ready(2).await?;

    // A larger quota is used at once by what is admitted next.
    limited.limit_image_warms("few", 8, &controller).await?;
    limited.revision("next-00001", containers(&[&next.tag])).await?;
    let warmed = async || {
        let mut warms = limited.image_warms().await?;
        warms.retain(|warm| warm.spec.image == next.tag && warm.reason() == Some(Reason::Pulled));
        Ok((warms.len() == 3).then_some(()))
    };
    eventually("the next Revision is warmed", warmed).await
}

/// The leader reads all ImageWarms, whoever made them.
async fn metadata_is_bounded_by_the_api_server(world: &World) -> Result<()> {
    let namespace = world.namespace("metadata").await?;
    let many = |count: usize, value: &str| -> Value {
        (0..count)
            .map(|at| (format!("example.com/{at}"), json!(value)))
            .collect::<Map<_, _>>()
            .into()
    };
    let owner =
        |uid: String| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid});
    let cases = [
        ("labels", many(33, "x"), "at most 32 labels"),
        ("annotations", many(17, "x"), "at most 16 annotations"),
        ("annotations", many(1, &"x".repeat(2_049)), "at most 2048 characters"),
        ("ownerReferences", (0..9).map(|at| owner(format!("u{at}"))).collect(), "at most 8 owners"),
        ("ownerReferences", json!([owner("u".repeat(2_000))]), "at most 1024 characters"),
        (
            "finalizers",
            (0..9).map(|at| format!("example.com/{at}")).collect(),
            "at most 8 finalizers",
        ),
    ];
    for (field, value, part) in cases {
        let mut warm = image_warm("app", "node-1", &[]);
        warm["metadata"][field] = value;
        // API servers take a moment to learn of a policy.
        let denial = async || Ok(namespace.dry_run(&warm).await?.denial);
        let denial = eventually("it is denied", denial).await.context(field)?;
        ensure!(denial.contains(part), "{field}: {denial}");
    }
    Ok(())
}

/// As many ImageWarms as the limit allows, each as large as it can be, in the shipped memory limit.
async fn a_tenant_at_the_limit_takes_bounded_memory(world: &World) -> Result<()> {
    const LIMIT: usize = 500;
    const GROWN_MIB: u64 = 30;
    const PAGE_MIB: u64 = 60;
    let (greedy, other) = (world.namespace("greedy").await?, world.namespace("modest").await?);
    let app = world.registries.push("modest", "v1").await?;
    let flags = ["--max-image-warms-per-namespace", "500"];
    world.controllers.start_only(&["controller-1"], &flags).await?;
    world.controllers.until_all_connected().await?;
    let pid = world.controllers.replicas().first().context("no controller")?.pid();
    let group = MemoryLimit::as_shipped(pid)?;
    let before = world.controllers.memory()?;

    let mut largest = image_warm(&format!("r.test/{}", "a".repeat(200)), "no-such-node", &[]);
    let many = |count: usize, value: String| -> Value {
        (0..count)
            .map(|at| (format!("example.com/{at}"), json!(value)))
            .collect::<Map<_, _>>()
            .into()
    };
    largest["metadata"]["labels"] = many(32, "x".repeat(63));
    largest["metadata"]["annotations"] = many(16, "x".repeat(2_048));
    let api = greedy.api::<ImageWarm>();
    let largest: ImageWarm = serde_json::from_value(largest)?;
    let params = PostParams::default();
    let create = |_| api.create(&params, &largest);
    let created: Vec<_> =
        futures::stream::iter(0..LIMIT).map(create).buffer_unordered(16).collect().await;
    created.into_iter().collect::<kube::Result<Vec<_>>>()?;
    let one_more = async || {
        let verdict = greedy.dry_run(&image_warm("app", "node-1", &[])).await?;
        Ok(verdict.denial.filter(|denial| denial.contains("no more than 500 ImageWarms")))
    };
    eventually("one more is denied", one_more).await?;
    // Everything else goes on, also of a replica that reads all of it anew.
    other.revision("hello-00001", containers(&[&app.tag])).await?;
    other.all_ready(3).await?;
    let grown = world.controllers.memory()?.saturating_sub(before);
    println!("{LIMIT} of the largest ImageWarms take {grown} MiB");
    ensure!(grown < GROWN_MIB, "the leader grew by {grown} MiB");
    ensure!(group.kills()? == 0 && world.controllers.all_run(), "the controller was killed");
    drop(group);
    // A page of a list holds them whole, for a moment.
    world.controllers.start_only(&["controller-1"], &flags).await?;
    world.controllers.until_all_connected().await?;
    eventually("one more is denied after a restart", one_more).await?;
    let grown = world.controllers.memory()?.saturating_sub(before);
    ensure!(grown < GROWN_MIB + PAGE_MIB, "a replica that reads them has {grown} MiB more");
    Ok(())
}

async fn a_revision_beyond_the_rate_limit_is_repaired(world: &World) -> Result<()> {
    let namespace = world.namespace("rate-limit").await?;
    let mut images = vec![];
    for tag in ["v1", "v2", "v3", "v4"] {
        images.push(world.registries.push("rate-limit", tag).await?);
    }
    // Each of the two replicas counts for itself.
    world.controllers.restart_with(&["--fan-out-per-minute", "1"]).await?;
    for (at, image) in images.iter().enumerate() {
        let name = format!("hello-0000{at}");
        namespace.revision(&name, containers(&[&image.tag])).await?;
    }
    namespace.all_ready(12).await?;
    let beyond = world.controllers.metric_sum("imagewarm_fan_out_rate_limited_total", "").await?;
    ensure!(beyond >= 2.0, "only {beyond} Revisions were beyond the limit");
    let repaired = world.controllers.metric_sum("imagewarm_repairs_total", "Missing").await?;
    ensure!(repaired >= 6.0, "only {repaired} ImageWarms were repairs");
    Ok(())
}
