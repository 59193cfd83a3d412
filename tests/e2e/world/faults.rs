//! Faults between the controllers and the API server: a proxy in their way, controllers that are
//! started behind it, and what it and the audit log have counted.

use imagewarm::api::Revision;
use xtask::cluster::ApiProxy;

use super::*;

/// A write of our controllers that the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    pub verb: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub status: i64,
}

impl World {
    /// A proxy in front of the API server. Nobody uses it as yet.
    pub async fn api_proxy(&self) -> Result<ApiProxy> {
        self.cluster.api_proxy().await
    }

    /// Starts a controller, in addition to those that run, behind a proxy. Does not wait.
    pub async fn start_controller_through(
        &self,
        proxy: &ApiProxy,
        name: &str,
        flags: &[&str],
    ) -> Result<Arc<Imagewarm>> {
        let flags = [&CONTROLLER_FLAGS, flags].concat();
        let binary = BINARY.as_ref();
        let started = self.cluster.start_controller_through(proxy, binary, name, &flags).await?;
        locked(&self.controllers).insert(name.to_owned(), started.clone());
        Ok(started)
    }

    /// SIGKILL for all controllers; the Leases go too, so that the next one need not wait.
    pub async fn kill_controllers(&self) -> Result<()> {
        for controller in std::mem::take(&mut *locked(&self.controllers)).values() {
            controller.kill();
        }
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client(), NAMESPACE);
        leases.delete_collection(&Default::default(), &Default::default()).await?;
        Ok(())
    }

    /// Node objects that are Ready, with neither runtime nor warmer, labelled `pool=NAME`; returns
    /// their names.
    pub async fn fake_nodes(&self, pool: &str, count: usize) -> Result<Vec<String>> {
        let nodes: Api<Node> = Api::all(self.client());
        let mut names = vec![];
        for number in 1..=count {
            let name = format!("{pool}-{number}");
            let labels = json!({
                "pool": pool, "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            });
            let body = json!({"metadata": {"name": name, "labels": labels}});
            nodes.create(&Default::default(), &serde_json::from_value(body)?).await?;
            let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await?;
            names.push(name);
        }
        Ok(names)
    }

    pub async fn delete_nodes(&self, names: &[String]) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        for name in names {
            nodes.delete(name, &Default::default()).await?;
        }
        Ok(())
    }

    /// How often this text stands in the log of all processes of that name.
    pub fn logged(&self, name: &str, text: &str) -> usize {
        let processes = self.cluster.imagewarm_processes();
        // They share one file.
        let log = processes.iter().find(|process| process.name() == name).map(|one| one.log());
        log.unwrap_or_default().matches(text).count()
    }

    pub async fn label_revision(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let revisions: Api<Revision> = Api::namespaced(self.client(), namespace);
        let body = json!({"metadata": {"labels": {key: value}}});
        revisions.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    /// The API server's calls by our controllers so far, as its audit log has them.
    pub fn audited(&self) -> Result<Vec<Audited>> {
        let account =
            format!("system:serviceaccount:{NAMESPACE}:{}", xtask::cluster::CONTROLLER_ACCOUNT);
        let events = self.cluster.audit_events()?;
        let ours = events.iter().filter(|event| event["user"]["username"] == account.as_str());
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let read = |event: &serde_json::Value| {
            let object = &event["objectRef"];
            let subresource = text(&object["subresource"]);
            let mut resource = text(&object["resource"]);
            if !subresource.is_empty() {
                resource = format!("{resource}/{subresource}");
            }
            Audited {
                verb: text(&event["verb"]),
                resource,
                namespace: text(&object["namespace"]),
                name: text(&object["name"]),
                status: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
            }
        };
        Ok(ours.map(read).collect())
    }

    /// How many ImageWarms our controllers have asked to delete so far.
    pub fn deletes(&self) -> Result<usize> {
        let audited = self.audited()?;
        let deletes =
            |one: &&Audited| one.verb.starts_with("delete") && one.resource == "imagewarms";
        Ok(audited.iter().filter(deletes).count())
    }
}
