//! The API server's audit log: who has asked for what.

use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use xtask::cluster::{CONTROLLER_ACCOUNT, NAMESPACE};

use super::system::System;
pub use crate::rights::Request;

#[derive(Clone)]
pub struct Audit {
    system: Arc<System>,
}

impl Audit {
    pub fn new(system: &Arc<System>) -> Audit {
        Audit { system: system.clone() }
    }

    /// All requests so far, as audit events.
    pub fn events(&self) -> Result<Vec<Value>> {
        self.system.cluster.audit_events()
    }

    /// The requests of our controllers so far.
    pub fn of_controllers(&self) -> Result<Vec<Request>> {
        let account = format!("system:serviceaccount:{NAMESPACE}:{CONTROLLER_ACCOUNT}");
        let events = self.events()?;
        let requests = events.iter().filter_map(Request::read);
        Ok(requests.filter(|request| request.account == account).collect())
    }

    /// The requests of our controllers about objects of one namespace so far.
    pub fn of_controllers_in(&self, namespace: &str) -> Result<Vec<Request>> {
        let mut requests = self.of_controllers()?;
        requests.retain(|request| request.namespace == namespace);
        Ok(requests)
    }

    /// How many deletions of ImageWarms of the namespace our controllers have asked for so far.
    pub fn deletions_in(&self, namespace: &str) -> Result<usize> {
        let requests = self.of_controllers_in(namespace)?;
        let deletion =
            |one: &&Request| one.verb.starts_with("delete") && one.resource == "imagewarms";
        Ok(requests.iter().filter(deletion).count())
    }
}
