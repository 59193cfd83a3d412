//! Many Services at once.

use anyhow::Result;
use futures::future::try_join_all;

use crate::stage::{NODES, Stage, containers, eventually};

crate::tests![fifty_services_at_once];

const SERVICES: usize = 50;

async fn fifty_services_at_once(stage: &Stage) -> Result<()> {
    let namespace = stage.namespace("many").await?;
    let names: Vec<String> = (0..SERVICES).map(|number| format!("hello-{number}")).collect();
    let images = try_join_all(names.iter().map(|name| stage.push(name, "v1"))).await?;
    let created = names.iter().zip(&images).map(|(name, image)| {
        // Without Pods, which are of no interest here.
        namespace.service_at_zero(name, containers(&[&image.tag]))
    });
    try_join_all(created).await?;
    let revisions: Vec<String> = names.iter().map(|name| format!("{name}-00001")).collect();
    let mut image_warms = vec![];
    for (revision, image) in revisions.iter().zip(&images) {
        image_warms.push(namespace.is_fanned_out(revision, &[&image.tag]).await?);
    }
    try_join_all(revisions.iter().map(|revision| namespace.release(revision))).await?;
    let mut orders = vec![];
    for (revision, image_warms) in revisions.iter().zip(&image_warms) {
        orders.push(namespace.order(revision, image_warms).await?);
    }
    orders.sort_by_key(|order| order.lead());
    for (name, order) in [("least", 0), ("median", SERVICES / 2), ("most", SERVICES - 1)] {
        stage.remember(&format!("{} {name} of {SERVICES}", namespace.name), orders[order]);
    }
    let tags: Vec<&str> = images.iter().map(|image| image.tag.as_str()).collect();
    namespace.until_all_ready(&tags).await?;
    for name in &names {
        namespace.delete_service(name).await?;
    }
    eventually(&format!("{} ImageWarms are deleted", SERVICES * NODES), async || {
        namespace.image_warms().await.ok().filter(Vec::is_empty)
    })
    .await
    .map(drop)
}
