//! What all tests share: the development cluster, and what was started in it.

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use kube::Client;
use xtask::cluster::{Cluster, Imagewarm, Knative, Node, Options};

use super::DEADLINE;

/// How the names of the nodes begin that a test lets join.
pub const JOINED: &str = "joined-";

pub struct System {
    pub cluster: Cluster,
    shared: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    credentials: Mutex<BTreeSet<String>>,
}

impl System {
    /// Starts the development cluster, with nothing of ours in it yet.
    pub async fn start() -> Result<Arc<System>> {
        let options =
            Options { nodes: 3, tls_registry: true, knative: Knative::StandIn, deploy: true };
        let system = Arc::new(System {
            cluster: Cluster::start(options).await?,
            shared: Mutex::default(),
            credentials: Mutex::default(),
        });
        if let Some(password) =
            system.cluster.registry_tls.as_ref().and_then(|it| it.password.clone())
        {
            system.remember_credential(&password);
        }
        Ok(system)
    }

    /// What the fixtures of one type share for the whole run: one value, made when first asked for.
    pub fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut shared = locked(&self.shared);
        let value = shared.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        value.clone().downcast().unwrap_or_default()
    }

    /// Stops everything; keeps the logs in view when something failed.
    pub fn stop(self: Arc<Self>, failed: bool) {
        if failed {
            for process in self.cluster.imagewarm_processes() {
                eprintln!("--- end of the log of {}:\n{}", process.name(), process.log_tail());
            }
        }
        if Arc::into_inner(self).is_none() {
            eprintln!("a test still uses the system: its processes are not stopped");
        }
    }

    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        let found = self.cluster.nodes().into_iter().find(|node| node.name == name);
        found.with_context(|| format!("there is no {name}"))
    }

    /// Keeps what a test has put into a Secret in mind, for the search at the end of the run.
    pub fn remember_credential(&self, credential: &str) {
        locked(&self.credentials).insert(credential.to_owned());
    }

    /// All credentials so far, right and wrong ones.
    pub fn credentials(&self) -> Vec<String> {
        locked(&self.credentials).iter().cloned().collect()
    }
}

/// Waits until a process of ours is ready.
pub async fn wait_ready(process: &Imagewarm) -> Result<()> {
    let health = process.health().context("no health port")?;
    process.wait_ready(health, "/readyz", DEADLINE).await
}

pub fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
