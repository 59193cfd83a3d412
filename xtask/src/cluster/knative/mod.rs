//! Knative Serving itself: its controller, webhook, autoscaler and activator, each a process, under
//! the ServiceAccounts and with the objects of its own manifests.
//!
//! Controller, autoscaler and activator listen on fixed ports of all addresses, so each has a
//! network of its own. There is no ingress: a Service never becomes ready, and the activator is
//! asked directly.

mod objects;
mod part;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use serde_json::json;

use self::part::{Place, program};
use super::network::{Link, Network};
use super::{Cluster, manifests};
use crate::images::TestImage;
use crate::ports::Port;
use crate::prerequisites::{KNATIVE_VERSION, Prerequisite};
use crate::process::Program;
use crate::wait::wait_for;

pub use self::part::Part;

/// Where Knative's programs run.
pub const NAMESPACE: &str = "knative-serving";

/// Controllers of Kubernetes that Knative cannot do without, and imagewarm can.
pub(super) const CONTROLLERS: &str = "endpoints-controller,endpointslice-controller";

const READY: Duration = Duration::from_secs(60);

/// Where the stats server of the autoscaler and the probes of the controller are.
const PROBES: u16 = 8080;
/// Where the activator takes requests.
const REQUESTS: u16 = 8012;

/// How much of Knative there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knative {
    /// Nothing.
    None,
    /// Stand-ins for the CRDs that imagewarm reads.
    StandIn,
    /// Knative Serving.
    Real,
}

/// Knative Serving's programs.
pub struct Serving {
    /// Makes Revisions, Deployments and Images.
    pub controller: Part,
    /// Defaults and validates.
    pub webhook: Part,
    /// Scales.
    pub autoscaler: Part,
    /// Holds the requests of what is scaled to zero.
    pub activator: Part,
    _port: [Port; 3],
}

impl Serving {
    pub(super) fn stop(&self) {
        for part in [&self.activator, &self.autoscaler, &self.controller, &self.webhook] {
            part.stop();
        }
    }
}

impl Cluster {
    /// The CRDs of Knative Serving, where its manifests are among the programs.
    pub fn knative_crds(&self) -> Result<Vec<serde_json::Value>> {
        objects::crds(self.programs.path(Prerequisite::KnativeManifests)?)
    }

    /// Applies all that Knative needs before it starts, its image of queue-proxy among it.
    pub(super) async fn install_serving(&self) -> Result<()> {
        let queue = self.programs.path(Prerequisite::KnativeQueue)?;
        // As in its own image; Knative's Pods refuse to run it as root.
        let image = TestImage::new(&[]).program(queue, &["/knative-queue"])?.user(65532);
        self.registry_plain.push(&image, "knative/queue", KNATIVE_VERSION).await?;
        let image = self.registry_plain.image("knative/queue", KNATIVE_VERSION);
        let manifests = self.programs.path(Prerequisite::KnativeManifests)?;
        manifests::apply(&self.client, objects::installed(manifests, &image)?).await
    }

    /// Starts Knative's programs and waits until its admission answers.
    pub(super) async fn start_serving(&self) -> Result<Serving> {
        self.until_rights_are_granted().await?;
        let kubeconfig = self.kubeconfig_for(NAMESPACE, "controller").await?;
        let ports = [Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let webhook = self.start_webhook(&kubeconfig, &ports).await?;
        let (controller, autoscaler) = (self.place(101).await?, self.place(102).await?);
        let activator = self.activator(self.place(103).await?, &autoscaler).await?;
        let controller = self.controller(controller, &kubeconfig)?;
        let autoscaler = self.autoscaler(autoscaler, &kubeconfig)?;
        tokio::try_join!(controller.start(), autoscaler.start())?;
        activator.start().await?;
        Ok(Serving { controller, webhook, autoscaler, activator, _port: ports })
    }

    /// The role of Knative's programs is an aggregated one.
    async fn until_rights_are_granted(&self) -> Result<()> {
        let roles: Api<ClusterRole> = Api::all(self.client());
        let what = "ClusterRole knative-serving-admin to be aggregated";
        wait_for(READY, what, async || {
            let role = roles.get_opt("knative-serving-admin").await.ok()??;
            role.rules.filter(|rules| !rules.is_empty()).map(drop)
        })
        .await
    }

    /// In a network of its own; on the segment it has this number.
    async fn place(&self, number: u8) -> Result<Place> {
        let folder = tempfile::Builder::new().prefix("knative-").tempdir_in(self.folder())?.keep();
        let network = Network::create(&self.programs, &folder, self.folder()).await?;
        let forwards = self.forward_into(&network, &Link::default())?;
        if let Some(segment) = &self.segment {
            segment.attach(&network, number)?;
        }
        Ok(Place { network, forwards })
    }

    async fn start_webhook(&self, kubeconfig: &Path, ports: &[Port; 3]) -> Result<Part> {
        let [admission, metrics, profiling] = ports;
        let path = self.programs.path(Prerequisite::KnativeWebhook)?;
        let program = program(path, "webhook-0", kubeconfig)
            .env("WEBHOOK_NAME", "webhook")
            .env("WEBHOOK_PORT", admission.number().to_string())
            .env("METRICS_PROMETHEUS_PORT", metrics.number().to_string())
            .env("PROFILING_PORT", profiling.number().to_string());
        let name = "knative-webhook";
        let webhook = Part::new(name, program, admission.address(), self.folder(), None);
        webhook.start().await?;
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        wait_for(READY, "the certificates of Knative's webhook", async || {
            let secret = secrets.get_opt("webhook-certs").await.ok()??;
            secret.data.filter(|data| !data.is_empty()).map(drop)
        })
        .await?;
        let manifests = self.programs.path(Prerequisite::KnativeManifests)?;
        let configurations = objects::webhooks(manifests, admission.number())?;
        manifests::apply(&self.client, configurations).await?;
        self.until_serving_admits().await.with_context(|| webhook.log())?;
        Ok(webhook)
    }

    /// Waits until both webhooks are called, and answer.
    async fn until_serving_admits(&self) -> Result<()> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        wait_for(READY, "the CA of Knative's webhook to be published", async || {
            let mutating = mutating.get_opt("webhook.serving.knative.dev").await.ok()??;
            let name = "validation.webhook.serving.knative.dev";
            let validating = validating.get_opt(name).await.ok()??;
            let mutating = mutating.webhooks?.into_iter().map(|one| one.client_config);
            let validating = validating.webhooks?.into_iter().map(|one| one.client_config);
            mutating.chain(validating).all(|config| config.ca_bundle.is_some()).then_some(())
        })
        .await?;
        let kind = GroupVersionKind::gvk("serving.knative.dev", "v1", "Service");
        let kind = ApiResource::from_gvk(&kind);
        let services: Api<DynamicObject> = Api::default_namespaced_with(self.client(), &kind);
        let probe: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": "probe"},
            "spec": {"template": {"spec": {"containers": [{"image": "probe"}]}}},
        }))?;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        wait_for(READY, "Knative's webhook to set defaults", async || {
            let made = services.create(&dry_run, &probe).await.ok()?;
            made.data.pointer("/spec/traffic").map(drop)
        })
        .await
    }

    fn controller(&self, place: Place, kubeconfig: &Path) -> Result<Part> {
        let path = self.programs.path(Prerequisite::KnativeController)?;
        let mut program = program(path, "controller-0", kubeconfig);
        if let Some(ca) = self.registry_tls.as_ref().and_then(|one| one.ca_pem.as_ref()) {
            // It resolves tags at the registry, whose authority it must trust.
            let file = self.folder().join("knative-registry-ca.crt");
            std::fs::write(&file, ca)?;
            program = program.env("SSL_CERT_FILE", file);
        }
        let address = inside(&place.network, PROBES)?;
        Ok(Part::new("knative-controller", program, address, self.folder(), Some(place)))
    }

    fn autoscaler(&self, place: Place, kubeconfig: &Path) -> Result<Part> {
        let path = self.programs.path(Prerequisite::KnativeAutoscaler)?;
        let program =
            program(path, "autoscaler-0", kubeconfig).env("POD_IP", &place.network.address);
        let address = inside(&place.network, PROBES)?;
        Ok(Part::new("knative-autoscaler", program, address, self.folder(), Some(place)))
    }

    /// Writes the endpoints of the activator's Service; the activator knows the autoscaler by its name.
    async fn activator(&self, mut place: Place, autoscaler: &Place) -> Result<Part> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, PROBES));
        let autoscaler = inside(&autoscaler.network, PROBES)?;
        place.forwards.spawn(place.network.forward(local, autoscaler, Link::default())?);
        let names = self.folder().join("knative-activator-hosts");
        std::fs::write(&names, format!("127.0.0.1 autoscaler.{NAMESPACE}.svc.cluster.local\n"))?;
        manifests::apply(&self.client, objects::activator(&place.network.address)).await?;
        let kubeconfig = self.kubeconfig_for(NAMESPACE, "activator").await?;
        let path = self.programs.path(Prerequisite::KnativeActivator)?;
        let program =
            program(path, "activator-0", &kubeconfig).env("POD_IP", &place.network.address);
        let program = knowing(&names, program);
        let address = inside(&place.network, REQUESTS)?;
        Ok(Part::new("knative-activator", program, address, self.folder(), Some(place)))
    }
}

fn inside(network: &Network, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(network.address.parse()?, port))
}

/// The same program where `/etc/hosts` is this file.
fn knowing(names: &Path, program: Program) -> Program {
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    Program::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .arg(names)
        .followed_by(program)
}
