//! The leader's loop: observe the caches, plan what should exist, apply the difference. Whatever
//! admission missed is made here, and what nobody wants any more is deleted.
//!
//! Each run looks at everything and does nothing when everything is right, so that it does not
//! matter which message was lost or doubled.

pub mod events;
pub mod lease;
pub mod metrics;
mod repair;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kube::Client;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::cluster::watch::{Change, Stores};
use crate::plan::diff::{self, Observed};
use crate::plan::eligible::NodeFacts;
use crate::plan::Policy;
use events::Told;
use lease::Leadership;
use metrics::ControllerMetrics;

/// Changes are gathered this long before a run, so that a burst costs one run.
const GATHER: Duration = Duration::from_millis(100);
/// A run is followed by a rest of this many times its own length.
const REST_FACTOR: u32 = 4;
/// After a run in which a write failed, the next one comes this much later.
const RETRY: Duration = Duration::from_secs(2);

/// Settings of warming as a whole, the same for admission and for repairs.
#[derive(clap::Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Stops all warming, at admission and in repairs. What exists is left alone.
    #[arg(long, env = "IMAGEWARM_PAUSED")]
    pub paused: bool,

    /// Registries whose images are never warmed: those that Knative does not resolve.
    #[arg(
        long,
        env = "IMAGEWARM_SKIPPED_REGISTRIES",
        value_delimiter = ',',
        default_value = "dev.local,kind.local,ko.local",
        value_name = "HOST,…"
    )]
    pub skipped_registries: Vec<String>,

    /// Keys of taints that mark a starting node and do not hold warming back.
    #[arg(
        long,
        env = "IMAGEWARM_STARTUP_TAINTS",
        value_delimiter = ',',
        default_value = "node.kubernetes.io/not-ready",
        value_name = "KEY,…"
    )]
    pub startup_taints: Vec<String>,

    /// How long an ImageWarm that no Revision wants is kept before it is deleted. Long enough for
    /// a Revision that admission has seen to appear.
    #[arg(
        long,
        env = "IMAGEWARM_COLLECT_GRACE",
        default_value = "30s",
        value_parser = parse_seconds,
        value_name = "DURATION"
    )]
    pub collect_grace: Duration,

    /// Creates in flight for one Revision's fan-out, and for repairs.
    #[arg(
        long,
        env = "IMAGEWARM_FAN_OUT_CONCURRENCY",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub fan_out_concurrency: u16,
}

impl ControllerArgs {
    /// The settings that planning depends on.
    pub fn policy(&self) -> Policy {
        Policy {
            paused: self.paused,
            skipped_registries: self.skipped_registries.clone(),
            startup_taints: self.startup_taints.clone(),
            collect_grace_seconds: i64::try_from(self.collect_grace.as_secs()).unwrap_or(i64::MAX),
        }
    }
}

/// A duration such as `30s`, `5m` or `1h`; a bare number is seconds.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("expected a number with s, m or h, such as 30s".into()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number with s, m or h, such as 30s")?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| "too long".into())
}

/// What the loop reads and writes.
pub struct Controller {
    /// Writes with the controller's own rights.
    pub client: Client,
    /// The caches.
    pub stores: Stores,
    /// The operator's settings.
    pub policy: Arc<Policy>,
    /// Nodes whose warmer is connected to this replica.
    pub connected: watch::Receiver<Arc<BTreeSet<String>>>,
    /// Whether this replica leads; only then anything is written.
    pub leadership: watch::Receiver<Leadership>,
    /// Writes in flight.
    pub concurrency: usize,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

impl Controller {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.stores.changes.subscribe();
        let mut synced = self.stores.synced.clone();
        let mut told = Told::default();
        loop {
            if !self.leads_and_knows() {
                told = Told::default();
                let woken = tokio::select! {
                    changed = self.leadership.changed() => changed.is_ok(),
                    changed = synced.changed() => changed.is_ok(),
                    () = stop.cancelled() => false,
                };
                if !woken {
                    return;
                }
                continue;
            }
            drain(&mut changes);
            let start = Instant::now();
            let next = tokio::select! {
                next = self.pass(&mut told) => next,
                () = stop.cancelled() => return,
            };
            let took = start.elapsed();
            self.metrics.passed(took);
            let rest = GATHER.max(took * REST_FACTOR);
            tokio::select! {
                () = self.woken(&mut changes, &mut synced, next) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn leads_and_knows(&self) -> bool {
        self.leadership.borrow().leading && self.stores.synced.borrow().own
    }

    /// Waits for the next thing that could make another run worth it.
    async fn woken(
        &mut self,
        changes: &mut broadcast::Receiver<Change>,
        synced: &mut watch::Receiver<crate::cluster::watch::Synced>,
        next: Option<Duration>,
    ) {
        let timer = async {
            match next {
                Some(next) => tokio::time::sleep(next).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            loop {
                match changes.recv().await {
                    // Lagging only means that there is more than one reason to run.
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    // The watches have ended; so will this.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = timer => {}
            () = changed => {}
            _ = self.connected.changed() => {}
            _ = self.leadership.changed() => {}
            _ = synced.changed() => {}
        }
    }

    /// One run. Returns after how long the next one is due without any change.
    async fn pass(&self, told: &mut Told) -> Option<Duration> {
        let observed = self.observe();
        let now = unix_seconds();
        let changes = diff::diff(&observed, now, &self.policy);
        self.metrics.observed(&observed);
        let failed = repair::apply(self, &changes).await;
        events::tell(self, &observed, told).await;
        let due = changes
            .recheck_at
            .map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0).max(1)));
        if failed { Some(due.map_or(RETRY, |due| due.min(RETRY))) } else { due }
    }

    fn observe(&self) -> Observed {
        let synced = *self.stores.synced.borrow();
        let nodes = self.stores.nodes.state();
        Observed {
            revisions: self.stores.revisions.state(),
            image_warms: self.stores.image_warms.state(),
            nodes: nodes.iter().map(|node| NodeFacts::of(node)).collect(),
            opted_out_namespaces: self.stores.opted_out_namespaces(),
            connected: self.connected.borrow().clone(),
            may_delete: synced.may_delete(),
            revisions_known: synced.revisions,
        }
    }
}

/// What has come so far is seen by the run that follows.
fn drain(changes: &mut broadcast::Receiver<Change>) {
    while !matches!(
        changes.try_recv(),
        Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
    ) {}
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_seconds("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_seconds("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_seconds("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "1d", "1.5s", "99999999999999999999s"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
