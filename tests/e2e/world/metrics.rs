//! What the controllers' metrics show, and how much memory they take.

use anyhow::{Context, Result};
use xtask::cluster::Imagewarm;
use xtask::http_get::http_get;

use super::controllers::Controllers;
use super::eventually;

/// Nodes whose warmers have a stream.
const CONNECTED: &str = "imagewarm_dispatch_nodes_connected";

impl Controllers {
    /// The sum of a metric over all replicas, of the samples whose labels contain a text.
    pub async fn metric_sum(&self, metric: &str, label: &str) -> Result<f64> {
        let mut sum = 0.0;
        for controller in self.replicas() {
            sum += samples(&controller, metric, label).await?;
        }
        Ok(sum)
    }

    /// The sum of one metric's samples in one replica.
    pub async fn metric_of(&self, name: &str, metric: &str) -> Result<f64> {
        samples(&*self.replica(name)?, metric, "").await
    }

    /// Waits until this replica leads and all warmers have their streams to it.
    pub async fn until_serving(&self, name: &str) -> Result<()> {
        eventually(&format!("{name} leads and has all streams"), async || {
            let leads = self.metric_of(name, "imagewarm_leading").await? == 1.0;
            let connected = self.metric_of(name, CONNECTED).await?;
            Ok((leads && connected == self.warmers() as f64).then_some(()))
        })
        .await
    }

    /// Waits until all warmers have their streams to whichever replica leads.
    pub async fn until_all_connected(&self) -> Result<()> {
        eventually("all warmers are connected", async || {
            let connected = self.metric_sum(CONNECTED, "").await?;
            Ok((connected >= self.warmers() as f64).then_some(()))
        })
        .await
    }

    /// The resident memory of the largest replica, in MiB.
    pub fn memory(&self) -> Result<u64> {
        let mut largest = 0;
        for controller in self.replicas() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", controller.pid()))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
            let kib: u64 = kib.context("a process without memory")?;
            largest = largest.max(kib / 1024);
        }
        Ok(largest)
    }
}

async fn samples(controller: &Imagewarm, metric: &str, label: &str) -> Result<f64> {
    let address = controller.health().context("no health port")?;
    let (_, text) = http_get(address, "/metrics").await?;
    let lines = text.lines().filter(|line| line.starts_with(metric) && line.contains(label));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}
