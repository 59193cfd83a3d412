//! Watches the images arrive: the ImageWarms from the API server, the images from each runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt as _;
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use tokio::task::JoinSet;

use super::arrival::Arrival;
use super::board::Board;
use super::scene::{Scene, image_warms};
use crate::cluster::{Cluster, Node};

const DEADLINE: Duration = Duration::from_secs(180);

pub(super) struct Arrivals(Vec<Arrival>);

impl Arrivals {
    /// Every image on every node.
    pub(super) fn expect(cluster: &Cluster, scene: &Scene) -> Self {
        let nodes = cluster.nodes_by_name();
        let pairs = nodes.iter().flat_map(|node| {
            scene.images.iter().map(|image| Arrival {
                node: node.name.clone(),
                image: image.clone(),
                ordered: None,
                present: None,
                ready: false,
                state: String::new(),
                message: String::new(),
                downloaded: 0,
                total: image.bytes,
                size: None,
                took: None,
            })
        });
        Self(pairs.collect())
    }

    /// Creates the Revision and watches until every ImageWarm is Ready and every runtime has every
    /// image. Returns the Revision's name.
    pub(super) async fn watch(
        mut self,
        cluster: &Cluster,
        scene: &Scene,
    ) -> Result<(String, Vec<Arrival>)> {
        let mut events = watcher(image_warms(cluster), watcher::Config::default()).boxed();
        // The watch is open before anything happens.
        loop {
            let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
            match event.context("no watch on ImageWarms")? {
                Some(Ok(Event::InitDone)) => break,
                Some(_) => {}
                None => bail!("the watch on ImageWarms ended"),
            }
        }
        let sent = Instant::now();
        let mut presence = self.ask_nodes(cluster);
        let create = scene.create_revision(cluster);
        tokio::pin!(create);
        let mut revision = None;
        let mut board = Board::new(&self.0);
        let deadline = tokio::time::sleep(DEADLINE);
        tokio::pin!(deadline);
        while revision.is_none() || !self.0.iter().all(|one| one.ready && one.present.is_some()) {
            tokio::select! {
                created = &mut create, if revision.is_none() => revision = Some(created?),
                event = events.next() => {
                    if let Some(Ok(Event::Apply(object) | Event::InitApply(object))) = event
                        && let Some(index) = self.note(&object, sent.elapsed())
                    {
                        board.show(index, &self.0[index], sent.elapsed());
                    }
                }
                Some(Ok((index, at))) = presence.join_next() => {
                    self.0[index].present = Some(at.duration_since(sent));
                    board.show(index, &self.0[index], sent.elapsed());
                }
                () = &mut deadline => {
                    board.close();
                    super::board::print_table(&self.0);
                    bail!("the images were not all there after {} s", DEADLINE.as_secs());
                }
            }
        }
        board.close();
        Ok((revision.unwrap_or_default(), self.0))
    }

    /// Takes over what an ImageWarm says; returns which one it is, if it is one of ours.
    fn note(&mut self, object: &DynamicObject, now: Duration) -> Option<usize> {
        let spec = &object.data["spec"];
        let (node, image) = (spec["nodeName"].as_str()?, spec["image"].as_str()?);
        let ours = |one: &Arrival| {
            one.node == node && (one.image.reference == image || one.image.by_digest == image)
        };
        let index = self.0.iter().position(ours)?;
        let one = &mut self.0[index];
        one.ordered.get_or_insert(now);
        let status = &object.data["status"];
        // CRI runtimes tell no bytes: then both are 0.
        let number = |value: &Value| value.as_u64().filter(|number| *number > 0);
        if let Some(total) = number(&status["progress"]["totalBytes"]) {
            one.total = total;
        }
        if let Some(downloaded) = number(&status["progress"]["downloadedBytes"]) {
            one.downloaded = downloaded;
        }
        one.size = number(&status["sizeBytes"]).or(one.size);
        one.took = status["took"].as_str().map(str::to_owned).or(one.took.take());
        let conditions = status["conditions"].as_array();
        let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
        if let Some(ready) = ready {
            one.ready = ready["status"] == "True";
            one.state = ready["reason"].as_str().unwrap_or_default().to_owned();
            one.message = ready["message"].as_str().unwrap_or_default().to_owned();
        }
        if one.ready {
            one.downloaded = one.total;
        }
        Some(index)
    }

    /// One task for each expected image asks its runtime until the image is there.
    fn ask_nodes(&self, cluster: &Cluster) -> JoinSet<(usize, Instant)> {
        let nodes: Vec<Arc<Node>> = cluster.nodes();
        let mut tasks = JoinSet::new();
        for (index, one) in self.0.iter().enumerate() {
            let Some(node) = nodes.iter().find(|node| node.name == one.node).cloned() else {
                continue;
            };
            let image = one.image.clone();
            tasks.spawn(async move {
                loop {
                    for reference in [&image.reference, &image.by_digest] {
                        if node.holds(reference).await {
                            return (index, Instant::now());
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
        tasks
    }
}
