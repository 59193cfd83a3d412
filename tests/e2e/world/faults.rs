//! Faults between the controllers and the API server: a proxy in their way, controllers that are
//! started behind it, and what it and the audit log have counted.

use imagewarm_core::api::Revision;
use k8s_openapi::api::core::v1::Namespace;
use xtask::cluster::ApiProxy;

use kube::ResourceExt;

use super::*;

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

    /// The controller of that name, which runs.
    pub fn controller(&self, name: &str) -> Result<Arc<Imagewarm>> {
        locked(&self.controllers).get(name).cloned().with_context(|| format!("no {name} runs"))
    }

    /// The sum of one metric's samples in one controller.
    pub async fn metric_of(&self, name: &str, metric: &str) -> Result<f64> {
        let address = self.controller(name)?.health().context("no health port")?;
        let (_, text) = http_get(address, "/metrics").await?;
        let samples = text.lines().filter(|line| line.starts_with(metric));
        Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until this controller leads and the warmers of all nodes have their streams to it.
    pub async fn is_served_by(&self, name: &str) -> Result<()> {
        let nodes = locked(&self.warmers).len();
        self.eventually(&format!("{name} leads and has all streams"), async || {
            let leads = self.metric_of(name, "imagewarm_leading").await? == 1.0;
            let connected = self.metric_of(name, "imagewarm_dispatch_nodes_connected").await?;
            Ok((leads && connected == nodes as f64).then_some(()))
        })
        .await
    }

    /// The name of the controller that holds the Lease.
    pub async fn leader(&self) -> Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client(), NAMESPACE);
        let lease = leases.get("imagewarm-leader").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        // `NAME-RUN@ADDRESS`, with another RUN for each start of the process.
        let name = holder.split('@').next().unwrap_or_default();
        Ok(name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned())
    }

    /// Sends SIGTERM to a controller and does not wait for its end.
    pub fn terminate_controller(&self, name: &str) -> Result<Arc<Imagewarm>> {
        let controller = locked(&self.controllers).remove(name);
        let controller = controller.with_context(|| format!("no {name} runs"))?;
        controller.signal(xtask::process::Signal::Terminate);
        Ok(controller)
    }

    /// Lets every request to the open registry hang, or answers them.
    pub fn freeze_registry(&self, frozen: bool) {
        match frozen {
            true => self.cluster.registry_plain.freeze(),
            false => self.cluster.registry_plain.thaw(),
        }
    }

    /// Node objects that are Ready, with neither runtime nor warmer, labelled `pool=NAME`; returns
    /// their names.
    pub async fn fake_nodes(&self, pool: &str, count: usize) -> Result<Vec<String>> {
        let names: Vec<String> = (1..=count).map(|number| format!("{pool}-{number}")).collect();
        for name in &names {
            self.make_node(name, pool).await?;
        }
        Ok(names)
    }

    /// A Node object that is Ready and labelled `pool=NAME`.
    pub async fn make_node(&self, name: &str, pool: &str) -> Result<Node> {
        let nodes: Api<Node> = Api::all(self.client());
        let labels = json!({
            "pool": pool, "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        });
        let body = json!({"metadata": {"name": name, "labels": labels}});
        nodes.create(&Default::default(), &serde_json::from_value(body)?).await?;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        Ok(nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await?)
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

    /// Keeps a Revision, once deleted, from going; or lets it go.
    pub async fn hold_revision(&self, namespace: &str, name: &str, hold: bool) -> Result<()> {
        let revisions: Api<Revision> = Api::namespaced(self.client(), namespace);
        let finalizers = hold.then_some(["tests.example/held"]);
        let body = json!({"metadata": {"finalizers": finalizers}});
        revisions.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        namespaces.delete(name, &Default::default()).await?;
        Ok(())
    }

    pub async fn namespace_exists(&self, name: &str) -> Result<bool> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        Ok(namespaces.get_opt(name).await?.is_some())
    }

    /// The API server's calls by our controllers so far, as its audit log has them.
    pub fn audited(&self) -> Result<Vec<Audited>> {
        let account =
            format!("system:serviceaccount:{NAMESPACE}:{}", xtask::cluster::CONTROLLER_ACCOUNT);
        let events = self.cluster.audit_events()?;
        let requests = events.iter().filter_map(Audited::read);
        Ok(requests.filter(|request| request.account == account).collect())
    }

    /// Returns once no ImageWarm of any test lies on a node that is gone.
    pub async fn gone_nodes_are_cleared(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        let warms: Api<ImageWarm> = Api::all(self.client());
        self.eventually("nothing lies on nodes that are gone", async || {
            let nodes = nodes.list(&Default::default()).await?.items;
            let exists = |name: &str| nodes.iter().any(|node| node.name_any() == name);
            let warms = warms.list(&Default::default()).await?.items;
            Ok(warms.iter().all(|warm| exists(&warm.spec.node_name)).then_some(()))
        })
        .await
    }

    /// How many ImageWarms our controllers have asked to delete so far.
    pub fn deletes(&self) -> Result<usize> {
        let audited = self.audited()?;
        let deletes =
            |one: &&Audited| one.verb.starts_with("delete") && one.resource == "imagewarms";
        Ok(audited.iter().filter(deletes).count())
    }
}
