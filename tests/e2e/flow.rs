//! The controller's own flow in the API server (API priority and fairness): its requests are in it,
//! nobody else's are, and without it there is warming all the same.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use xtask::cluster::{CONTROLLER_ACCOUNT, NAMESPACE, WARMER_ACCOUNT};

use crate::world::{World, containers, eventually};

crate::tests![
    only_the_controllers_account_is_in_its_flow,
    a_fan_out_is_served_from_its_own_seats,
    without_its_flow_the_controller_is_one_account_among_others,
];

/// A path that every account may ask for.
const FOR_ALL: &str = "/version";
/// FlowSchema and priority level of the controller.
const OURS: (&str, &str) = ("imagewarm", "imagewarm");
const DISPATCHED: &str = "apiserver_flowcontrol_dispatched_requests_total";

fn manifest() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/controller/flow.yaml"))
}

/// FlowSchema and priority level of an account's requests, once they are those that are wanted.
async fn is_in(
    world: &World,
    (namespace, account): (&str, &str),
    path: &str,
    wanted: (&str, &str),
) -> Result<()> {
    let client = world.cluster().client_for(namespace, account).await?;
    let what = format!("{account} of {namespace} is in {wanted:?} with {path}");
    eventually(&what, async || {
        let found = world.cluster().flow_of(&client, path).await?;
        Ok(found.filter(|(schema, level)| (&**schema, &**level) == wanted).map(drop))
    })
    .await
}

async fn only_the_controllers_account_is_in_its_flow(world: &World) -> Result<()> {
    let account = (NAMESPACE, CONTROLLER_ACCOUNT);
    // Of the whole cluster, in a namespace, and of no resource.
    let lease = "/apis/coordination.k8s.io/v1/namespaces/imagewarm-system/leases/imagewarm-leader";
    for path in ["/api/v1/nodes", "/api/v1/namespaces/default", lease, FOR_ALL] {
        is_in(world, account, path, OURS).await?;
    }
    // The same namespace, and the same name in another one.
    let namespace = world.namespace("flow").await?;
    namespace.service_account(CONTROLLER_ACCOUNT, &[]).await?;
    let all = ("service-accounts", "workload-low");
    is_in(world, (NAMESPACE, WARMER_ACCOUNT), FOR_ALL, all).await?;
    for path in ["/api/v1/nodes", FOR_ALL] {
        is_in(world, (&namespace.name, CONTROLLER_ACCOUNT), path, all).await?;
        is_in(world, (&namespace.name, "default"), path, all).await?;
    }
    Ok(())
}

/// Requests that the API server let through under a FlowSchema so far.
async fn dispatched(world: &World, schema: &str) -> Result<f64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = world.client().request_text(request).await?;
    let label = format!("flow_schema=\"{schema}\"");
    let lines = metrics.lines().filter(|it| it.starts_with(DISPATCHED) && it.contains(&label));
    let values = lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()));
    let values: Option<Vec<f64>> = values.collect();
    Ok(values.context("a metric without value")?.into_iter().sum())
}

/// Requests of the controllers about ImageWarms of the namespace, by the audit log.
fn audited(world: &World, namespace: &str) -> Result<f64> {
    let requests = world.audit.of_controllers_in(namespace)?;
    let about = requests.iter().filter(|one| one.resource.starts_with("imagewarms"));
    Ok(about.count() as f64)
}

async fn a_fan_out_is_served_from_its_own_seats(world: &World) -> Result<()> {
    let namespace = world.namespace("flow").await?;
    let app = world.registries.push("flow", "v1").await?;
    is_in(world, (NAMESPACE, CONTROLLER_ACCOUNT), FOR_ALL, OURS).await?;
    let before =
        (dispatched(world, "imagewarm").await?, dispatched(world, "service-accounts").await?);
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await?;
    let requests = audited(world, &namespace.name)?;
    let after =
        (dispatched(world, "imagewarm").await?, dispatched(world, "service-accounts").await?);
    ensure!(requests >= 6.0, "{requests} requests for three creations and three statuses");
    let ours = after.0 - before.0;
    ensure!(ours >= requests, "{ours} of {requests} requests were in the controller's flow");
    // Warmers do not talk to the API server, and no other account is awake.
    let others = after.1 - before.1;
    ensure!(others == 0.0, "{others} requests were in the flow of all accounts");
    Ok(())
}

async fn without_its_flow_the_controller_is_one_account_among_others(world: &World) -> Result<()> {
    let account = (NAMESPACE, CONTROLLER_ACCOUNT);
    world.installation.delete(manifest()).await?;
    is_in(world, account, FOR_ALL, ("service-accounts", "workload-low")).await?;
    let namespace = world.namespace("flow").await?;
    let app = world.registries.push("flow", "v2").await?;
    namespace.revision("hello-00001", containers(&[&app.tag])).await?;
    namespace.all_ready(3).await.map(drop)
}
