//! A request to a Service of Knative that is scaled to zero: its Pod finds its image on the node.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use xtask::cold_start::{ColdStarts, LEFT_OUT, WARMED, prerequisites};
use xtask::prerequisites;

use crate::{BINARY, TURNS, nothing_is_left};

const BYTES: usize = 20_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_to_a_service_at_zero_waits_for_no_pull() -> Result<()> {
    let _alone = TURNS.lock().await;
    let programs: Vec<_> = prerequisites().into_iter().collect();
    let programs = prerequisites::ensure(&programs).await?;
    let cold_starts = ColdStarts::start(programs, BINARY.as_ref()).await?;
    let folder = cold_starts.cluster.folder().to_owned();
    let tested = both(&cold_starts).await;
    cold_starts.stop().await?;
    tested?;
    nothing_is_left(&folder, &[])
}

async fn both(cold_starts: &ColdStarts) -> Result<()> {
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
