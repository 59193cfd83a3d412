//! A request to a Service of Knative that is scaled to zero: its Pod finds its image on the node. And the
//! first Pod of a deploy, which has to wait: what warms the other node does not take the link from it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use xtask::cluster::Link;
use xtask::cold_start::{ColdStarts, LEFT_OUT, WARMED, prerequisites};
use xtask::http_get::http_get;
use xtask::prerequisites;

use crate::{BINARY, TURNS, nothing_is_left};

const BYTES: usize = 20_000_000;
/// Of the one link of both nodes: slow enough that a deploy's Pod and the other node want it together.
const MEGABITS: u32 = 80;
const SUSPENDED: &str = "imagewarm_dispatch_pulls_suspended_total ";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_to_a_service_at_zero_waits_for_no_pull() -> Result<()> {
    let _alone = TURNS.lock().await;
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let link = Link::of_megabits(MEGABITS);
    let started = ColdStarts::start_with(programs, BINARY.as_ref(), || link.clone(), &[]);
    let cold_starts = started.await?;
    let folder = cold_starts.cluster.folder().to_owned();
    let tested = async {
        a_service_at_zero(&cold_starts).await?;
        a_deploys_first_pod(&cold_starts).await
    };
    let tested = tested.await;
    cold_starts.stop().await?;
    tested?;
    nothing_is_left(&folder, &[])
}

async fn a_deploys_first_pod(cold_starts: &ColdStarts) -> Result<()> {
    ensure!(suspended(cold_starts).await? == 0.0, "no Pod has waited yet");
    let image = cold_starts.image("deployed", 2 * BYTES).await?;
    let took = cold_starts.first_pod(WARMED, "deployed", &image).await?;
    println!("deployed: the first Pod was Ready after {:.2} s", took.as_secs_f32());
    ensure!(suspended(cold_starts).await? > 0.0, "the other node's pull was not suspended");
    cold_starts.until_warm(WARMED, "deployed").await
}

/// How many pulls the leader has suspended.
async fn suspended(cold_starts: &ColdStarts) -> Result<f64> {
    let processes = cold_starts.cluster.imagewarm_processes();
    let controller = processes.iter().find(|process| process.name() == "controller-1");
    let health = controller.and_then(|process| process.health()).context("no controller")?;
    let (_, metrics) = http_get(health, "/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(SUSPENDED));
    Ok(line.context("no such metric")?.parse()?)
}

async fn a_service_at_zero(cold_starts: &ColdStarts) -> Result<()> {
    for (namespace, name, is_there) in [(LEFT_OUT, "cold", false), (WARMED, "warmed", true)] {
        let image = cold_starts.image(name, BYTES).await?;
        let took = cold_starts.first_request(namespace, name, &image).await?;
        println!("{name}: answered after {:.2} s", took.as_secs_f32());
        let events: Api<Event> = Api::namespaced(cold_starts.cluster.client(), namespace);
        let events = events.list(&ListParams::default()).await?.items;
        let repository = format!("/{name}@sha256:");
        let said: Vec<String> = events
            .into_iter()
            .filter_map(|event| event.message)
            .filter(|message| message.contains(&repository))
            .collect();
        let first = said.first().with_context(|| format!("nothing was said of {repository}"))?;
        let was_there = said.iter().any(|message| message.contains("already present"));
        let was_pulled = said.iter().any(|message| message.starts_with("Pulling image"));
        ensure!(was_there == is_there && was_pulled != is_there, "{first}: {said:?}");
    }
    Ok(())
}
