//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and the credentials for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::certificates::{Authority, Identity};
use crate::ports::Port;
use crate::prerequisites::{Prerequisite, Programs};
use crate::process::{Process, Program};

/// Controllers that run: those that the API itself needs to feel real. Node lifecycle is not among
/// them, since no kubelet renews the nodes' leases.
pub(super) const CONTROLLERS: &str = "clusterrole-aggregation-controller,daemonset-controller,\
    deployment-controller,garbage-collector-controller,namespace-controller,\
    replicaset-controller,root-ca-certificate-publisher-controller,serviceaccount-controller,\
    serviceaccount-token-controller,validatingadmissionpolicy-status-controller";

/// Requests are logged without bodies, so that tests can count them.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n\
    omitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// `schedulerName` of Pods that the cluster's scheduler binds: no Pod that is made for another
/// purpose is bound by the way.
pub const SCHEDULER: &str = "imagewarm-test";

pub(super) struct ControlPlane {
    // In the order in which they must end.
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    pub(super) server_url: String,
    pub(super) authority: Authority,
    pub(super) kubeconfig: PathBuf,
    pub(super) audit_log: PathBuf,
    folder: PathBuf,
    ports: [Port; 4],
    etcd_client: kube::Client,
}

impl ControlPlane {
    /// Starts etcd and the API server, with these further flags, and waits until it is ready.
    pub(super) async fn start(programs: &Programs, sandbox: &Path, flags: &[&str]) -> Result<Self> {
        let folder = sandbox.join("control-plane");
        fs::create_dir_all(&folder)?;
        let authority = Authority::new("imagewarm development cluster")?;
        let ports = [Port::reserve()?, Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let server_url = format!("https://{}", ports[2].address());
        let etcd_url = format!("http://{}", ports[0].address()).parse()?;
        let mut plane = Self {
            scheduler: None,
            controller_manager: None,
            api_server: None,
            etcd: None,
            kubeconfig: folder.join("admin.kubeconfig"),
            audit_log: folder.join("audit.log"),
            server_url,
            authority,
            folder,
            ports,
            etcd_client: kube::Client::try_from(kube::Config::new(etcd_url))?,
        };
        plane.start_etcd(programs, sandbox)?;
        plane.write_credentials()?;
        plane.start_api_server(programs, sandbox, flags).await?;
        Ok(plane)
    }

    fn start_etcd(&mut self, programs: &Programs, sandbox: &Path) -> Result<()> {
        let client = format!("http://{}", self.ports[0].address());
        let peer = format!("http://{}", self.ports[1].address());
        let program = Program::new(programs.path(Prerequisite::Etcd)?)
            .arg("--data-dir")
            .arg(self.folder.join("etcd"))
            .args(["--name", "default", "--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"));
        self.etcd = Some(Process::start("etcd", program, sandbox)?);
        Ok(())
    }

    /// The key that signs ServiceAccounts' tokens, PEM.
    pub(super) fn service_account_key(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("sa.key"))?)
    }

    fn write_credentials(&self) -> Result<()> {
        let folder = &self.folder;
        fs::write(folder.join("ca.crt"), self.authority.pem())?;
        let names = ["localhost", "127.0.0.1", "kubernetes.default.svc"];
        let serving = self.authority.issue(Identity::server(&names))?;
        fs::write(folder.join("apiserver.crt"), &serving.certificate)?;
        fs::write(folder.join("apiserver.key"), &serving.key)?;
        let accounts = Authority::new("service accounts")?;
        fs::write(folder.join("sa.key"), accounts.private_key_pem())?;
        fs::write(folder.join("sa.pub"), accounts.public_key_pem())?;
        fs::write(folder.join("audit-policy.yaml"), AUDIT_POLICY)?;
        let admin = Identity::client("imagewarm-admin", Some("system:masters"));
        self.write_client_kubeconfig("admin.kubeconfig", admin)?;
        let manager = Identity::client("system:kube-controller-manager", None);
        self.write_client_kubeconfig("controller-manager.kubeconfig", manager)?;
        let scheduler = Identity::client("system:kube-scheduler", None);
        self.write_client_kubeconfig("scheduler.kubeconfig", scheduler)
    }

    /// A kubeconfig with a certificate of that identity; returns its path.
    pub(super) fn client_kubeconfig(&self, file: &str, identity: Identity) -> Result<PathBuf> {
        self.write_client_kubeconfig(file, identity)?;
        Ok(self.folder.join(file))
    }

    fn write_client_kubeconfig(&self, file: &str, identity: Identity) -> Result<()> {
        let pair = self.authority.issue(identity)?;
        let user = json!({
            "client-certificate-data": base64(&pair.certificate),
            "client-key-data": base64(&pair.key),
        });
        write_private(&self.folder.join(file), &self.kubeconfig_with(user).to_string())
    }

    /// A kubeconfig for this API server with the given `user` entry. JSON is YAML.
    pub(super) fn kubeconfig_with(&self, user: Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "development", "cluster": {
                "server": self.server_url,
                "certificate-authority-data": base64(&self.authority.pem()),
            }}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "development", "context": {
                "cluster": "development", "user": "user",
            }}],
            "current-context": "development",
        })
    }

    async fn start_api_server(
        &mut self,
        programs: &Programs,
        sandbox: &Path,
        flags: &[&str],
    ) -> Result<()> {
        let port = self.ports[2].number();
        let program = self.api_server(programs, port, &self.audit_log)?.args(flags);
        let process = Process::start("kube-apiserver", program, sandbox)?;
        api_server_ready(&process, &client_from(&self.kubeconfig).await?).await?;
        self.api_server = Some(process);
        Ok(())
    }

    /// Starts another API server on the same etcd, with these further flags, and waits until it is
    /// ready. It runs until it is dropped.
    pub(super) async fn start_another_api_server(
        &self,
        programs: &Programs,
        sandbox: &Path,
        flags: &[&str],
    ) -> Result<ApiServer> {
        let port = Port::reserve()?;
        let name = format!("kube-apiserver-{}", port.number());
        let audit_log = self.folder.join(format!("audit-{}.log", port.number()));
        let program = self.api_server(programs, port.number(), &audit_log)?.args(flags);
        let process = Process::start(&name, program, sandbox)?;
        let url = format!("https://{}", port.address());
        let config = kubeconfig(&self.kubeconfig, Some(&url)).await?;
        let client = kube::Client::try_from(config)?;
        api_server_ready(&process, &client).await?;
        Ok(ApiServer { url, client, _process: process, _port: port })
    }

    /// Removes from etcd what is older than now, as API servers do every five minutes.
    pub(super) async fn compact_etcd(&self) -> Result<()> {
        // The key of one zero byte, and nothing after it: only the revision is of interest.
        let range = json!({"key": "AA==", "count_only": true});
        let range = self.ask_etcd("/v3/kv/range", range).await?;
        let revision = &range["header"]["revision"];
        let body = json!({"revision": revision, "physical": true});
        self.ask_etcd("/v3/kv/compaction", body).await?;
        Ok(())
    }

    /// Writes objects of a custom resource to etcd as the API server would, by key: several times
    /// quicker, and without admission.
    pub(super) async fn store(&self, objects: impl Iterator<Item = (String, Value)>) -> Result<()> {
        let mut put = objects.map(|(key, object)| {
            let (key, value) = (base64(&format!("/registry/{key}")), base64(&object.to_string()));
            json!({"requestPut": {"key": key, "value": value}})
        });
        // As many as etcd takes at once.
        let transactions = std::iter::from_fn(|| Some(put.by_ref().take(128).collect()))
            .take_while(|operations: &Vec<Value>| !operations.is_empty());
        futures::stream::iter(transactions)
            .map(|operations| self.ask_etcd("/v3/kv/txn", json!({"success": operations})))
            .buffer_unordered(4)
            .try_for_each(async |_| Ok(()))
            .await
    }

    async fn ask_etcd(&self, path: &str, body: Value) -> Result<Value> {
        let request = http::Request::post(path).body(serde_json::to_vec(&body)?)?;
        self.etcd_client.request(request).await.with_context(|| format!("ask etcd for {path}"))
    }

    fn api_server(&self, programs: &Programs, port: u16, audit_log: &Path) -> Result<Program> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let issuer = "https://kubernetes.default.svc";
        Ok(Program::new(programs.path(Prerequisite::KubeApiserver)?)
            .arg(format!("--etcd-servers=http://{}", self.ports[0].address()))
            .arg(format!("--secure-port={port}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // There is no node network in which the default Service could be reached.
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg(format!("--cert-dir={}", file("certs")))
            .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg(format!("--service-account-issuer={issuer}"))
            .arg(format!("--api-audiences={issuer}"))
            .arg(format!("--service-account-key-file={}", file("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("sa.key")))
            .args(["--authorization-mode=RBAC", "--allow-privileged=true", "--profiling=false"])
            // It taints each new node until the node lifecycle controller, which is absent, agrees.
            .arg("--disable-admission-plugins=TaintNodesByCondition")
            .arg(format!("--audit-policy-file={}", file("audit-policy.yaml")))
            .arg(format!("--audit-log-path={}", audit_log.display()))
            // Never begins a new file: tests read all of it.
            .arg("--audit-log-maxsize=100000"))
    }

    /// Starts the controller manager. Late, so that its garbage collector knows every custom
    /// resource from the start: it looks for new ones only every 30 s.
    pub(super) fn start_controller_manager(
        &mut self,
        programs: &Programs,
        sandbox: &Path,
        controllers: &str,
    ) -> Result<()> {
        let program = self
            .controller_manager(programs, controllers)?
            .arg(format!("--cert-dir={}", self.folder.join("certs-controller-manager").display()))
            .arg(format!("--secure-port={}", self.ports[3].number()))
            .arg("--bind-address=127.0.0.1");
        self.controller_manager =
            Some(Process::start("kube-controller-manager", program, sandbox)?);
        Ok(())
    }

    /// Starts the controller of ResourceQuotas. It serves nothing.
    pub(super) fn start_quota_controller(
        &self,
        programs: &Programs,
        sandbox: &Path,
    ) -> Result<Process> {
        let program =
            self.controller_manager(programs, "resourcequota-controller")?.arg("--secure-port=0");
        Process::start("resourcequota-controller", program, sandbox)
    }

    fn controller_manager(&self, programs: &Programs, controllers: &str) -> Result<Program> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        Ok(Program::new(programs.path(Prerequisite::KubeControllerManager)?)
            .arg(format!("--kubeconfig={}", file("controller-manager.kubeconfig")))
            .arg(format!("--service-account-private-key-file={}", file("sa.key")))
            .arg(format!("--root-ca-file={}", file("ca.crt")))
            .args(["--leader-elect=false", "--profiling=false"])
            // Each controller with its own rights, as in every real cluster.
            .arg("--use-service-account-credentials=true")
            .arg(format!("--controllers={controllers}")))
    }

    /// Starts the scheduler for Pods that ask for [`SCHEDULER`]. It serves nothing, and sees first
    /// what is there already.
    pub(super) fn start_scheduler(&mut self, programs: &Programs, sandbox: &Path) -> Result<()> {
        let config = self.folder.join("scheduler.json");
        let content = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": self.folder.join("scheduler.kubeconfig"),
                // By default it binds 50 Pods a second at most.
                "qps": 1000.0,
                "burst": 1000,
            },
            "leaderElection": {"leaderElect": false},
            "profiles": [{"schedulerName": SCHEDULER}],
        });
        fs::write(&config, content.to_string())?;
        let program = Program::new(programs.path(Prerequisite::KubeScheduler)?)
            .arg(format!("--config={}", config.display()))
            .arg("--secure-port=0");
        self.scheduler = Some(Process::start("kube-scheduler", program, sandbox)?);
        Ok(())
    }

    /// Ends everything, the API server before etcd (else it hangs).
    pub(super) fn stop(&mut self) {
        self.scheduler = None;
        self.controller_manager = None;
        self.api_server = None;
        self.etcd = None;
    }
}

/// One more API server of the cluster.
pub struct ApiServer {
    url: String,
    client: kube::Client,
    _process: Process,
    // Kept, so that no other process ever answers in its place.
    _port: Port,
}

impl ApiServer {
    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of this server, with an administrator's rights.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }
}

/// A client that reads its server and credentials from `kubeconfig`.
pub(super) async fn client_from(kubeconfig: &Path) -> Result<kube::Client> {
    let config = self::kubeconfig(kubeconfig, None).await?;
    kube::Client::try_from(config).context("make a client for the API server")
}

/// What is in a kubeconfig, for its own server or another one.
async fn kubeconfig(path: &Path, server: Option<&str>) -> Result<kube::Config> {
    let mut kubeconfig = Kubeconfig::read_from(path)?;
    if let Some(server) = server {
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(server.to_owned());
        }
    }
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.proxy_url = None;
    Ok(config)
}

async fn api_server_ready(process: &Process, client: &kube::Client) -> Result<()> {
    process
        .wait_until(Duration::from_secs(90), async || {
            let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
            let answer = client.request_text(request).await.ok()?;
            (answer == "ok").then_some(())
        })
        .await
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // Renamed into place, so that a reader never sees half of it.
    let stage = path.with_extension("new");
    fs::write(&stage, content)?;
    fs::set_permissions(&stage, fs::Permissions::from_mode(0o600))?;
    fs::rename(&stage, path).with_context(|| format!("write {}", path.display()))
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
