//! A release from its installation to its end, under a name and in a namespace of its own, on an API server
//! that has nothing of ours. No Pods run there: the controller is a process that has the flags, the variables
//! and the account of the Deployment that Helm has installed.

use anyhow::{Context, Result, ensure};
use imagewarm_core::api::ImageWarm;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use xtask::cluster::manifests;

use super::CHART;
use crate::world::{BINARY, DEADLINE, World, eventually, image_warm};

crate::tests![a_release_from_installation_to_uninstallation, beside_kustomize_helm_says_so];

const RELEASE: &str = "warm";
const NAMESPACE: &str = "image-warming";
/// As Helm's writes are called.
const MANAGER: &str = "helm";

/// The release on its API server.
struct Release<'a> {
    world: &'a World,
    server: &'a xtask::cluster::ApiServer,
    webhook: u16,
}

impl Release<'_> {
    async fn helm(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let server = ["--kube-apiserver", self.server.url()];
        self.world.commands.helm(&[arguments, &server].concat()).await
    }

    async fn helm_well(&self, arguments: &[&str]) -> Result<String> {
        let server = ["--kube-apiserver", self.server.url()];
        self.world.commands.helm_well(&[arguments, &server].concat()).await
    }

    /// Has webhooks lead to the controller's process, as the development cluster does: as Helm, so that
    /// its next write changes that back without a conflict.
    async fn lead_webhooks_here(&self) -> Result<()> {
        let manifest = self.helm_well(&["get", "manifest", RELEASE, "-n", NAMESPACE]).await?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&manifest)?;
        let is_led = |object: &Value| match object["kind"].as_str() {
            Some("MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => true,
            Some("Service") => object["metadata"]["name"] == "imagewarm-webhook",
            _ => false,
        };
        let mut objects: Vec<Value> = objects.into_iter().filter(is_led).collect();
        ensure!(objects.len() == 3, "{} of 3 objects are led", objects.len());
        for object in &mut objects {
            // Helm's own marks, which are in no manifest.
            object["metadata"]["annotations"] = json!({
                "meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE,
            });
        }
        let objects = objects.into_iter().map(|one| manifests::for_development(one, self.webhook));
        manifests::apply_as(&self.server.client(), MANAGER, objects.collect()).await
    }

    fn warms(&self) -> Api<ImageWarm> {
        Api::namespaced(self.server.client(), "default")
    }

    /// The webhooks answer, by the controller's own words.
    async fn admission_answers(&self) -> Result<()> {
        let bad = serde_json::from_value(image_warm("Not An Image", "node-1", &[]))?;
        eventually("the webhook denies a bad ImageWarm", async || {
            match self.warms().create(&PostParams::default(), &bad).await {
                Err(kube::Error::Api(status)) => {
                    Ok(status.message.contains("denied the request: ").then_some(()))
                }
                Err(error) => Err(error.into()),
                Ok(_) => Ok(None),
            }
        })
        .await
    }

    async fn deployment(&self) -> Result<Value> {
        let deployments: Api<Deployment> = Api::namespaced(self.server.client(), NAMESPACE);
        Ok(serde_json::to_value(deployments.get("imagecontroller").await?)?)
    }

    /// Replicas, image, and whether it has this flag.
    async fn installed(&self, flag: &str) -> Result<(i64, String, bool)> {
        let spec = &self.deployment().await?["spec"];
        let container = &spec["template"]["spec"]["containers"][0];
        let replicas = spec["replicas"].as_i64().context("no replicas")?;
        let image = container["image"].as_str().context("no image")?.to_owned();
        let arguments = container["args"].as_array().context("no args")?;
        Ok((replicas, image, arguments.iter().any(|argument| argument == flag)))
    }

    /// What the controller has written into each mutating webhook: the CA and the path.
    async fn published(&self) -> Result<Vec<(Vec<u8>, String)>> {
        let all: Api<MutatingWebhookConfiguration> = Api::all(self.server.client());
        let webhooks = all.get("imagewarm").await?.webhooks.unwrap_or_default();
        let configs = webhooks.into_iter().map(|webhook| webhook.client_config);
        Ok(configs
            .map(|config| {
                let path = config.service.and_then(|service| service.path);
                (config.ca_bundle.unwrap_or_default().0, path.unwrap_or_default())
            })
            .collect())
    }

    /// The names of all objects of any kind with this label.
    async fn labelled(&self, label: &str) -> Result<Vec<String>> {
        let kubectl = async |arguments: &[&str]| {
            let server = ["--server", self.server.url()];
            self.world.commands.kubectl(&[arguments, &server].concat()).await
        };
        let kinds = kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await?;
        // Events have their own names, and are of others.
        let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        ensure!(kinds.len() > 30, "{kinds:?}");
        let arguments = ["get", &kinds.join(","), "-A", "-l", label, "-o", "name"];
        let found = kubectl(&arguments).await?;
        // Of kinds that will go, kubectl warns.
        let is_name = |line: &&str| line.contains('/') && !line.starts_with("Warning: ");
        let found = found.lines().filter(is_name);
        Ok(found.map(str::to_owned).collect())
    }
}

async fn a_release_from_installation_to_uninstallation(world: &World) -> Result<()> {
    const PART_OF: &str = "app.kubernetes.io/part-of=imagewarm";
    const FLAG: &str = "--canary-nodes=3";
    let server = world.cluster().start_another_api_server(&["--etcd-prefix=/chart"]).await?;
    let mut release = Release { world, server: &server, webhook: 0 };

    // The previous version: the same chart under a lower number.
    let folder = tempfile::tempdir()?;
    let path = folder.path().display().to_string();
    let version = ["--version", "0.0.9", "--app-version", "0.0.9"];
    world.commands.helm_well(&[&["package", CHART, "-d", &path], &version[..]].concat()).await?;
    let previous = format!("{path}/imagewarm-0.0.9.tgz");
    let own = "--set=image.repository=registry.test/imagewarm,controller.replicas=1";
    let place = ["-n", NAMESPACE, "--create-namespace", own];
    let notes = release.helm_well(&[&["install", RELEASE, &previous], &place[..]].concat()).await?;
    for part in [
        "imagewarm 0.0.9 is installed in the namespace image-warming.",
        "kubectl -n image-warming rollout status deployment/imagecontroller daemonset/imagewarmer",
        "helm test warm -n image-warming --logs",
        "kubectl label namespace image-warming pod-security.kubernetes.io/enforce=privileged",
        "removes all of it but the CustomResourceDefinition and the\nImageWarms",
    ] {
        ensure!(notes.contains(part), "no {part:?} in the notes\n{notes}");
    }
    ensure!(!notes.contains("ATTENTION"), "{notes}");
    let before = release.installed(FLAG).await?;
    ensure!(before == (1, "registry.test/imagewarm:0.0.9".to_owned(), false), "{before:?}");

    let deployment = release.deployment().await?;
    let cluster = world.cluster();
    let controller = cluster.start_controller_of(&deployment, &server, BINARY.as_ref()).await?;
    release.webhook = controller.webhook().context("no webhook port")?.port();
    release.lead_webhooks_here().await?;
    controller.wait_ready(controller.health().context("no port")?, "/readyz", DEADLINE).await?;
    release.admission_answers().await?;
    let mut warm = image_warm("registry.test/app:v1", "node-1", &[]);
    warm["metadata"] = json!({"name": "by-hand"});
    release.warms().create(&PostParams::default(), &serde_json::from_value(warm)?).await?;
    let published = release.published().await?;
    ensure!(published.iter().all(|(ca, path)| !ca.is_empty() && path.len() > 32), "{published:?}");

    let changed = ["--set=controller.replicas=3,settings.controller.canaryNodes=3"];
    let upgrade = ["upgrade", RELEASE, CHART, "-n", NAMESPACE, "--reset-then-reuse-values"];
    release.helm_well(&[&upgrade[..], &changed].concat()).await?;
    let image = format!("registry.test/imagewarm:{}", env!("CARGO_PKG_VERSION"));
    let after = release.installed(FLAG).await?;
    ensure!(after == (3, image, true), "{after:?}");
    ensure!(release.published().await? == published, "the upgrade took CA or paths away");
    release.lead_webhooks_here().await?;
    release.admission_answers().await?;

    release.helm_well(&["rollback", RELEASE, "1", "-n", NAMESPACE]).await?;
    ensure!(release.installed(FLAG).await? == before, "not rolled back");
    ensure!(release.published().await? == published, "the rollback took CA or paths away");

    // A second one: nothing is changed, and the first one is named.
    let second = ["install", "second", CHART, "-n", "elsewhere", "--create-namespace"];
    let (code, output) = release.helm(&second).await?;
    ensure!(code != 0 && output.contains("invalid ownership metadata"), "{output}");
    ensure!(output.contains(&format!("current value is \"{RELEASE}\"")), "{output}");
    ensure!(release.installed(FLAG).await? == before, "the second release changed the first one");

    controller.terminate(DEADLINE).await?;
    ensure!(release.labelled(PART_OF).await?.len() > 25, "the list shows nothing");
    let output = release.helm_well(&["uninstall", RELEASE, "-n", NAMESPACE]).await?;
    ensure!(output.contains("imagewarms.caching.knative.dev"), "nothing of what is kept: {output}");
    let left = release.labelled(PART_OF).await?;
    const CRD: &str =
        "customresourcedefinition.apiextensions.k8s.io/imagewarms.caching.knative.dev";
    ensure!(left == [CRD], "{left:?}");
    release.warms().get("by-hand").await.context("the ImageWarm is gone")?;

    // The CRD is of the release that it was installed with; another one is to say that it takes it over.
    let elsewhere = ["install", "again", CHART, "-n", "elsewhere", "--create-namespace"];
    let (code, output) = release.helm(&elsewhere).await?;
    ensure!(code != 0 && output.contains("imagewarms.caching.knative.dev"), "{output}");
    release.helm_well(&[&elsewhere[..], &["--take-ownership"]].concat()).await?;
    release.warms().get("by-hand").await.context("the ImageWarm is gone")?;
    release.helm_well(&["uninstall", "again", "-n", "elsewhere"]).await?;
    after_kustomize_helm_goes_on(&release).await
}

/// What `kubectl apply -k deploy` has installed becomes a release, as the documentation says.
async fn after_kustomize_helm_goes_on(release: &Release<'_>) -> Result<()> {
    const NAMESPACE: &str = xtask::cluster::NAMESPACE;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    let kubectl = ["apply", "-k", folder, "--server", release.server.url()];
    release.world.commands.kubectl(&kubectl).await?;
    let install = ["install", RELEASE, CHART, "-n", NAMESPACE, "--take-ownership"];
    let own = ["--force-conflicts", "--set=image.repository=registry.test/imagewarm"];
    release.helm_well(&[&install[..], &own].concat()).await?;
    let deployments: Api<Deployment> = Api::namespaced(release.server.client(), NAMESPACE);
    let deployment = serde_json::to_value(deployments.get("imagecontroller").await?)?;
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    ensure!(*image == format!("registry.test/imagewarm:{}", env!("CARGO_PKG_VERSION")), "{image}");
    ensure!(deployment["metadata"]["annotations"]["meta.helm.sh/release-name"] == RELEASE);
    Ok(())
}

/// Where the manifests were applied already, nothing is changed.
async fn beside_kustomize_helm_says_so(world: &World) -> Result<()> {
    let install = ["install", "beside", CHART, "-n", xtask::cluster::NAMESPACE];
    let (code, output) = world.commands.helm(&install).await?;
    ensure!(code != 0, "it is installed: {output}");
    ensure!(output.contains("exists and cannot be imported into the current release"), "{output}");
    let deployments: Api<Deployment> = Api::namespaced(world.client(), xtask::cluster::NAMESPACE);
    let deployment = deployments.get("imagecontroller").await?;
    let annotations = deployment.metadata.annotations.unwrap_or_default();
    ensure!(!annotations.keys().any(|key| key.starts_with("meta.helm.sh")), "{annotations:?}");
    Ok(())
}
