//! The controllers: two replicas, started, stopped and killed. After a test both run as at first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use xtask::cluster::{ApiProxy, CONTROLLER_ACCOUNT, Cluster, Imagewarm, NAMESPACE};
use xtask::http_get::http_get;
use xtask::process::Signal;

use super::namespace::{Namespace, PROBES, Verdict, image_warm};
use super::system::{System, locked, wait_ready};
use super::undo::Undo;
use super::warmers::Warmers;
use super::{BINARY, DEADLINE, EVERYTHING, changed, eventually};

pub const REPLICAS: [&str; 2] = ["controller-1", "controller-2"];

/// Short waits, so that the tests need not wait for a day's defaults.
const FLAGS: [&str; 8] = [
    "--collect-grace",
    "3s",
    "--waiting-after",
    "3s",
    "--reserve-delay",
    "3s",
    "--log-level",
    EVERYTHING,
];
const CERTIFICATES: &str = "imagewarm-certs";
const LEASE: &str = "imagewarm-leader";

/// How a replica was started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Started {
    AsAtFirst,
    WithOtherFlags,
    BehindProxy,
}

/// The replicas that run.
#[derive(Default)]
struct Replicas(Mutex<BTreeMap<String, Replica>>);

/// A replica that was started and not yet stopped.
struct Replica {
    process: Arc<Imagewarm>,
    started: Started,
}

#[derive(Clone)]
pub struct Controllers {
    system: Arc<System>,
    undo: Undo,
    replicas: Arc<Replicas>,
}

impl Controllers {
    pub fn new(system: &Arc<System>, undo: &Undo) -> Controllers {
        Controllers { system: system.clone(), undo: undo.clone(), replicas: system.shared() }
    }

    fn restore_after_test(&self) {
        let controllers = self.clone();
        self.undo.register("controllers", async move || controllers.restore().await);
    }

    /// Has both run as at first, with the streams of all warmers; leaves alone what does.
    pub(super) async fn restore(&self) -> Result<()> {
        let behind_proxy = |replica: &Replica| replica.started == Started::BehindProxy;
        if locked(&self.replicas.0).values().any(behind_proxy) {
            // Its proxy may be gone, and with it any good end.
            self.kill_all().await?;
        }
        let as_at_first = |replica: &Replica| {
            replica.started == Started::AsAtFirst && replica.process.is_running()
        };
        let others: Vec<_> =
            locked(&self.replicas.0).extract_if(.., |_, replica| !as_at_first(replica)).collect();
        let mut stopped = Ok(());
        for (name, replica) in others {
            stopped = stopped.and(stop_well(&name, &replica.process).await);
        }
        let missing = |name: &&str| !locked(&self.replicas.0).contains_key(*name);
        for name in REPLICAS.into_iter().filter(missing) {
            self.start_replica(name, &[], Started::AsAtFirst).await?;
        }
        self.until_ready().await?;
        // Until then ImageWarms are reported to wait for their warmer.
        self.until_all_connected().await?;
        stopped
    }

    async fn start_replica(&self, name: &str, flags: &[&str], started: Started) -> Result<()> {
        let flags = changed(&FLAGS, flags);
        let process = self.system.cluster.start_controller(BINARY.as_ref(), name, &flags).await?;
        self.keep(name, process, started);
        Ok(())
    }

    fn keep(&self, name: &str, process: Arc<Imagewarm>, started: Started) {
        locked(&self.replicas.0).insert(name.to_owned(), Replica { process, started });
    }

    fn take(&self, name: &str) -> Result<Arc<Imagewarm>> {
        let replica = locked(&self.replicas.0).remove(name);
        Ok(replica.with_context(|| format!("no {name} runs"))?.process)
    }

    /// Starts both without waiting for them.
    pub async fn start_unready(&self) -> Result<()> {
        for name in REPLICAS {
            self.start_replica(name, &[], Started::AsAtFirst).await?;
        }
        Ok(())
    }

    pub async fn start(&self) -> Result<()> {
        self.start_unready().await?;
        self.until_ready().await
    }

    /// Stops both as a rollout would, and checks that they end well.
    pub async fn stop(&self) -> Result<()> {
        self.restore_after_test();
        let all = std::mem::take(&mut *locked(&self.replicas.0));
        for (name, replica) in all {
            stop_well(&name, &replica.process).await?;
        }
        Ok(())
    }

    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Starts both anew, with further flags, or other values of those of all tests.
    pub async fn restart_with(&self, flags: &[&str]) -> Result<()> {
        self.start_only(&REPLICAS, flags).await
    }

    /// The same with these replicas and no others.
    pub async fn start_only(&self, names: &[&str], flags: &[&str]) -> Result<()> {
        self.stop().await?;
        for name in names {
            self.start_replica(name, flags, Started::WithOtherFlags).await?;
        }
        self.until_ready().await
    }

    /// Starts both anew, with flags for certificates that the tests after this one must not find:
    /// for them there are new ones.
    pub async fn restart_with_own_certificates(&self, flags: &[&str]) -> Result<()> {
        let controllers = self.clone();
        self.undo.register("controllers", async move || {
            controllers.restart_with_new_certificates().await
        });
        self.restart_with(flags).await
    }

    /// Starts both as at first, with nothing left of the certificates that were stored.
    pub async fn restart_with_new_certificates(&self) -> Result<()> {
        self.stop().await?;
        let secrets: Api<Secret> = Api::namespaced(self.system.client(), NAMESPACE);
        secrets.delete(CERTIFICATES, &Default::default()).await?;
        self.start().await
    }

    /// Starts a replica, in addition to those that run, behind a proxy. Does not wait.
    pub async fn start_through(&self, proxy: &ApiProxy, name: &str, flags: &[&str]) -> Result<()> {
        self.restore_after_test();
        let flags = changed(&FLAGS, flags);
        let (cluster, binary) = (&self.system.cluster, BINARY.as_ref());
        let process = cluster.start_controller_through(proxy, binary, name, &flags).await?;
        self.keep(name, process, Started::BehindProxy);
        Ok(())
    }

    /// SIGKILL for all; the Leases go too, so that the next one need not wait.
    pub async fn kill_all(&self) -> Result<()> {
        self.restore_after_test();
        for replica in std::mem::take(&mut *locked(&self.replicas.0)).values() {
            replica.process.kill();
        }
        self.leases().delete_collection(&Default::default(), &Default::default()).await?;
        Ok(())
    }

    /// SIGKILL for the replica that holds the Lease.
    pub async fn kill_leader(&self) -> Result<()> {
        self.restore_after_test();
        let leader = self.leader().await?;
        self.take(&leader)?.kill();
        Ok(())
    }

    /// Sends SIGTERM to a replica and does not wait for its end.
    pub fn terminate(&self, name: &str) -> Result<Arc<Imagewarm>> {
        self.restore_after_test();
        let controller = self.take(name)?;
        controller.signal(Signal::Terminate);
        Ok(controller)
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.system.client(), NAMESPACE)
    }

    /// Identity of the leader: `NAME-RUN@ADDRESS`, with another RUN for each start of the process.
    async fn holder(&self) -> Result<String> {
        let lease = self.leases().get(LEASE).await?;
        Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    }

    /// The name of the replica that holds the Lease.
    pub async fn leader(&self) -> Result<String> {
        let holder = self.holder().await?;
        let name = holder.split('@').next().unwrap_or_default();
        Ok(name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned())
    }

    /// Where the leader takes streams, once somebody leads.
    pub async fn leader_address(&self) -> Result<String> {
        eventually("somebody leads", async || {
            let holder = self.holder().await?;
            Ok(holder.split_once('@').map(|(_, address)| address.to_owned()))
        })
        .await
    }

    /// The cluster that they run in.
    pub fn cluster(&self) -> &Cluster {
        &self.system.cluster
    }

    /// How many warmers run.
    pub fn warmers(&self) -> usize {
        Warmers::new(&self.system, &self.undo).count()
    }

    /// The replica of that name, which runs.
    pub fn replica(&self, name: &str) -> Result<Arc<Imagewarm>> {
        let controllers = locked(&self.replicas.0);
        let replica = controllers.get(name).with_context(|| format!("no {name} runs"))?;
        Ok(replica.process.clone())
    }

    /// All replicas that were started and not told to stop.
    pub fn replicas(&self) -> Vec<Arc<Imagewarm>> {
        locked(&self.replicas.0).values().map(|it| it.process.clone()).collect()
    }

    /// Whether none of them has ended by itself.
    pub fn all_run(&self) -> bool {
        self.replicas().iter().all(|controller| controller.is_running())
    }

    /// Waits until all are ready, and admission answers through the API server.
    pub async fn until_ready(&self) -> Result<()> {
        for controller in self.replicas() {
            wait_ready(&controller).await?;
        }
        // The API server keeps connections to replicas that are gone; as with a real Service it
        // takes a moment until it finds the new ones.
        eventually("admission answers", async || {
            Ok(self.probe_admission("app").await?.is_accepted().then_some(()))
        })
        .await
    }

    /// What becomes of an ImageWarm for this image, as a dry run.
    pub async fn probe_admission(&self, image: &str) -> Result<Verdict> {
        let probe = image_warm(image, "node-1", &[]);
        let probes = Namespace::existing(&self.system, &self.undo, PROBES.to_owned());
        probes.dry_run(&probe).await
    }

    /// Has the API server call both webhooks without a pause until `done`; an error when one call
    /// failed. Returns how many there were.
    pub async fn admissions_while(&self, done: impl Future<Output = Result<()>>) -> Result<usize> {
        let asked = AtomicUsize::new(0);
        let calls = (0..4).map(|_| async {
            loop {
                // Refused where a webhook cannot be asked.
                if let Some(denial) = self.probe_admission("app").await?.denial {
                    bail!("admission failed: {denial}");
                }
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        tokio::select! {
            failed = futures::future::try_join_all(calls) => failed.map(|_: Vec<()>| ()),
            done = done => done,
        }?;
        Ok(asked.into_inner())
    }

    /// The CA that they have published last, PEM.
    pub fn published_ca(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.system.cluster.dispatch_ca_file())?)
    }

    /// What all answer at /readyz, however ready they are.
    pub async fn readiness(&self) -> Result<Vec<String>> {
        let mut answers = vec![];
        for controller in self.replicas() {
            let address = controller.health().context("no health port")?;
            // Not there yet answers nothing.
            let answer = http_get(address, "/readyz").await.map(|(_, text)| text);
            answers.push(answer.unwrap_or_default());
        }
        Ok(answers)
    }

    /// A client with the controllers' own account.
    pub async fn client(&self) -> Result<Client> {
        self.system.cluster.client_for(NAMESPACE, CONTROLLER_ACCOUNT).await
    }
}

/// Terminates a process that is to exit with 0.
async fn stop_well(name: &str, process: &Imagewarm) -> Result<()> {
    let status = process.terminate(DEADLINE).await?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}
