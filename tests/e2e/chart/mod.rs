//! The Helm chart, with the real `helm`: what it renders, and a release from its installation to its end.

pub mod lifecycle;
pub mod rendering;
pub mod values;

use anyhow::Result;
use serde_json::Value;

use crate::world::World;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/imagewarm");

/// The objects that `helm template` renders into the namespace, without the test.
async fn template(world: &World, namespace: &str, flags: &[&str]) -> Result<Vec<Value>> {
    let always = ["template", "any", CHART, "--namespace", namespace, "--skip-tests"];
    let output = world.commands.helm_well(&[&always[..], flags].concat()).await?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&output)?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}
