//! What our ServiceAccounts did in the whole run, held against the shipped manifests.

use anyhow::{Context, Result};
use xtask::cluster::NAMESPACE;

use super::system::System;
use crate::rights::{Request, differences, granted};

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbac");
/// Granted while the tests of the node gate run.
const NODE_GATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/overlays/node-gate/rights.yaml");

impl System {
    /// Whether every right was used and none was missing. Prints what differs.
    pub fn uses_what_is_granted(&self) -> bool {
        match self.rights() {
            Ok(differences) if differences.is_empty() => {
                eprintln!("rights: all that deploy/rbac grants was used, and nothing else");
                true
            }
            Ok(differences) => {
                eprintln!("rights: deploy/rbac and the audit log of this run differ");
                differences.iter().for_each(|one| eprintln!("    {one}"));
                false
            }
            Err(error) => {
                eprintln!("rights: they cannot be compared: {error:#}");
                false
            }
        }
    }

    fn rights(&self) -> Result<std::collections::BTreeSet<String>> {
        let mut objects = Vec::new();
        let roles = std::fs::read_dir(ROLES).context(ROLES)?.map(|file| Ok(file?.path()));
        for file in roles.chain([anyhow::Ok(NODE_GATE.into())]) {
            let text = std::fs::read_to_string(file?)?;
            objects.extend(serde_saphyr::from_multiple::<serde_json::Value>(&text)?);
        }
        let events = self.cluster.audit_events()?;
        let requests = events.iter().filter_map(Request::read);
        Ok(differences(NAMESPACE, &granted(&objects), requests))
    }
}
