//! Many Services at once.

use anyhow::{Result, ensure};
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
    let mut orders = vec![];
    for (name, image) in names.iter().zip(&images) {
        orders.push(namespace.order(&format!("{name}-00001"), &[&image.tag]).await?);
    }
    let late: Vec<_> = orders.iter().filter(|order| !order.is_ahead()).collect();
    ensure!(late.is_empty(), "Deployments came before their ImageWarms: {late:#?}");
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
