//! Leader election with a Lease. A leader that cannot renew the Lease stops by its own clock before
//! another replica may take over, even while the API server is unreachable.
//!
//! Own code: the Lease also carries the address to which warmers connect, the decision is a pure
//! function (`imagewarm_core::election`) that tests drive through every order of events, and each
//! write of the leader asks whether it still leads.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::LeaseArgs;
use crate::clock::wall_clock;
use crate::kubernetes::apply_error::ApplyError;
use crate::kubernetes::leadership::Leadership;
use imagewarm_core::api::VERSION_ANNOTATION;
use imagewarm_core::election::{self, Action, Observation, Record, decide};

/// Timeout of one attempt: a read of the Lease and a write.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    args: LeaseArgs,
    identity: String,
    sender: watch::Sender<Leadership>,
    seen: Option<Observation>,
    /// Until when this replica leads without another renewal.
    leading_until: Option<Instant>,
}

impl Elector {
    /// `name` is the name of this replica, such as its Pod's; `dispatch_address` is where warmers
    /// reach its dispatch server.
    pub fn new(
        client: Client,
        args: LeaseArgs,
        namespace: &str,
        name: &str,
        dispatch_address: &str,
    ) -> (Self, watch::Receiver<Leadership>) {
        let (sender, receiver) = watch::channel(Leadership::default());
        // A restarted replica is a new candidate: it lost the state of the leader that it was.
        let run: u32 = rand::random();
        let identity = format!("{name}-{run:08x}@{dispatch_address}");
        let leases = Api::namespaced(client, namespace);
        (Elector { leases, args, identity, sender, seen: None, leading_until: None }, receiver)
    }

    /// Runs until `shutdown`; then releases a held Lease, so that the next leader need not wait for
    /// it to expire.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.step()).await.is_some() {}
        let was_leading = self.leading_until.take().is_some();
        self.publish();
        if was_leading && timeout(ATTEMPT_TIMEOUT, self.release()).await.is_err() {
            tracing::warn!("releasing the lease timed out");
        }
    }

    /// One attempt, and the wait for the retry interval after it.
    async fn step(&mut self) {
        let began = Instant::now();
        let limit = began + ATTEMPT_TIMEOUT;
        let limit = self.leading_until.map_or(limit, |until| limit.min(until));
        match timeout_at(limit.into(), self.attempt()).await {
            Ok(Ok(true)) => self.leading_until = Some(began + self.args.lease_renew_deadline),
            Ok(Ok(false)) => self.leading_until = None,
            Ok(Err(error)) => tracing::warn!(%error, "cannot read or renew the lease"),
            Err(_) => tracing::warn!("reading or renewing the lease timed out"),
        }
        self.publish();
        let jitter = rand::random_range(0.8..1.0);
        let next = began + self.args.lease_retry.mul_f64(jitter);
        if let Some(until) = self.leading_until.filter(|until| *until < next) {
            sleep_until(until.into()).await;
            self.publish();
        }
        sleep_until(next.into()).await;
    }

    /// True when this replica holds the Lease now.
    async fn attempt(&mut self) -> Result<bool, ApplyError> {
        let lease = self.leases.get_opt(&self.args.lease_name).await?;
        let now = Instant::now();
        self.seen =
            lease.as_ref().map(|lease| Observation::update(self.seen.take(), read(lease), now));
        let action = decide(self.seen.as_ref(), &self.identity, now);
        let mut held = match (action, lease) {
            (Action::Follow, _) => return Ok(false),
            (Action::Create, _) | (_, None) => self.new_lease(),
            (Action::Take | Action::Renew, Some(lease)) => lease,
        };
        hold(&mut held, &self.identity, self.args.lease_duration, action != Action::Renew);
        let parameters = PostParams::default();
        let written = match action {
            Action::Create => self.leases.create(&parameters, &held).await,
            _ => self.leases.replace(&self.args.lease_name, &parameters, &held).await,
        };
        match written.map_err(ApplyError::from) {
            Ok(lease) => {
                self.seen = Some(Observation::update(self.seen.take(), read(&lease), now));
                Ok(true)
            }
            // Another replica was quicker; the next attempt reads which.
            Err(ApplyError::Conflict | ApplyError::AlreadyExists) if action != Action::Renew => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn new_lease(&self) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.args.lease_name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        }
    }

    async fn release(&self) {
        let released = async {
            let Some(mut lease) = self.leases.get_opt(&self.args.lease_name).await? else {
                return Ok(());
            };
            if read(&lease).holder != self.identity {
                return Ok(());
            }
            hold(&mut lease, "", Duration::from_secs(1), false);
            self.leases.replace(&self.args.lease_name, &PostParams::default(), &lease).await?;
            Ok::<_, kube::Error>(())
        };
        match released.await {
            Ok(()) => tracing::info!("lease released"),
            Err(error) => tracing::warn!(%error, "cannot release the lease"),
        }
    }

    /// Publishes who leads now. Needs no API server to see that this replica's own time has
    /// expired.
    fn publish(&mut self) {
        let now = Instant::now();
        if self.leading_until.is_some_and(|until| until <= now) {
            self.leading_until = None;
        }
        let leading = self.leading_until.is_some();
        let holder = self.seen.as_ref().map(|seen| seen.record.holder.as_str()).unwrap_or_default();
        let next = Leadership {
            leading,
            leader_address: election::address(holder)
                .filter(|_| leading || holder != self.identity),
        };
        self.sender.send_if_modified(|known| {
            if *known == next {
                return false;
            }
            if known.leading != next.leading {
                tracing::info!(leading = next.leading, identity = %self.identity, "leadership changed");
            }
            *known = next;
            true
        });
    }
}

fn read(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds =
        u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
    }
}

/// Sets the holder and the renewal time. The resourceVersion stays, so a concurrent write
/// conflicts.
fn hold(lease: &mut Lease, identity: &str, duration: Duration, acquired: bool) {
    let now = MicroTime(wall_clock());
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(VERSION_ANNOTATION.into(), env!("CARGO_PKG_VERSION").into());
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(now.clone());
    if acquired {
        spec.acquire_time = Some(now);
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count + 1));
    }
}
