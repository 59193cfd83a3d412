//! Objects of Kubernetes as plain data for `imagewarm check`.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1;
use k8s_openapi::api::core::v1::{self as core, Container, Pod, PodSpec};
use kube::ResourceExt;

use imagewarm_core::api::names::NodeName;
use imagewarm_core::api::{ImageWarm, ImageWarmSpec, Reason, SecretReference, VERSION_ANNOTATION};
use imagewarm_core::check::{
    ConfigurationKind, Images, Lease, Node, NodeClock, Trouble, WarmerPod, Webhook,
    WebhookConfiguration,
};
use imagewarm_core::placement::{Exclusion, NodeFacts, PodConstraints, is_eligible};
use imagewarm_core::policy::Policy;

/// Webhooks of ours end with this, whatever their configuration is called.
const OURS: &str = ".caching.knative.dev";

/// An ImageWarm that is never stored. Admission takes the spaces off its image.
pub(super) fn probe(secrets: &[&str]) -> ImageWarm {
    let mut probe = ImageWarm::new(
        "imagewarm-check",
        ImageWarmSpec {
            image: " imagewarm.check/probe:v1 ".into(),
            node_name: "imagewarm-check".into(),
            image_pull_secrets: secrets
                .iter()
                .map(|name| SecretReference { name: (*name).into() })
                .collect(),
        },
    );
    // A name that is taken would answer something else.
    probe.metadata.name = None;
    probe.metadata.generate_name = Some("imagewarm-check-".into());
    probe
}

pub(super) fn lease(lease: v1::Lease) -> Lease {
    let stored = super::stored_at(&lease);
    let version = lease.annotations().get(VERSION_ANNOTATION).cloned();
    let spec = lease.spec.unwrap_or_default();
    Lease {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: spec.lease_duration_seconds.unwrap_or_default().into(),
        renewed: spec.renew_time.map(|at| at.0),
        stored,
        version,
    }
}

/// The clock of the kubelet that renews the Lease.
pub(super) fn node_clock(lease: v1::Lease) -> Option<NodeClock> {
    let (node, stored) = (lease.name_any(), super::stored_at(&lease)?);
    let renewed = lease.spec?.renew_time?.0;
    Some(NodeClock { node, renewed, stored })
}

pub(super) fn mutating(found: MutatingWebhookConfiguration) -> Option<WebhookConfiguration> {
    let webhooks = found.webhooks.iter().flatten().map(|one| (&one.name, &one.client_config));
    configuration(ConfigurationKind::Mutating, found.name_any(), webhooks)
}

pub(super) fn validating(found: ValidatingWebhookConfiguration) -> Option<WebhookConfiguration> {
    let webhooks = found.webhooks.iter().flatten().map(|one| (&one.name, &one.client_config));
    configuration(ConfigurationKind::Validating, found.name_any(), webhooks)
}

fn configuration<'a>(
    kind: ConfigurationKind,
    name: String,
    webhooks: impl Iterator<Item = (&'a String, &'a WebhookClientConfig)>,
) -> Option<WebhookConfiguration> {
    let webhooks: Vec<Webhook> = webhooks
        .filter(|(name, _)| name.ends_with(OURS))
        .map(|(name, config)| {
            let ca =
                config.ca_bundle.as_ref().map(|ca| String::from_utf8_lossy(&ca.0).into_owned());
            let service = config.service.as_ref();
            let path = service.and_then(|service| service.path.as_deref());
            Webhook {
                name: name.clone(),
                namespace: service.map(|service| service.namespace.clone()),
                has_path: config.url.is_some() || path.is_some_and(|path| path.len() > 1),
                ca_bundle: ca.unwrap_or_default(),
            }
        })
        .collect();
    (!webhooks.is_empty()).then_some(WebhookConfiguration { kind, name, webhooks })
}

/// As the controller judges where Pods without any constraint can run.
pub(super) fn node(node: core::Node) -> Node {
    let connected: BTreeSet<NodeName> = BTreeSet::new();
    let facts = NodeFacts::new(&node, &connected);
    let exclusion = is_eligible(&facts, &PodConstraints::default(), &Policy::default()).err();
    let is_warmed = !matches!(
        exclusion,
        Some(Exclusion::Leaving | Exclusion::VirtualKubelet | Exclusion::OperatingSystem)
    );
    let (name, is_ready) = (facts.name.to_owned(), facts.ready);
    let info = node.status.and_then(|status| status.node_info);
    let runtime = info.map(|info| info.container_runtime_version).unwrap_or_default();
    Node { name, is_warmed, is_ready, runtime }
}

pub(super) fn warmer_pod(pod: Pod) -> WarmerPod {
    let name = pod.name_any();
    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let is_ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let mut states = status.container_statuses.iter().flatten().flat_map(|one| &one.state);
    let waiting = states.find_map(|state| state.waiting.as_ref()?.reason.clone());
    WarmerPod { name, node, is_ready, waiting }
}

/// `None` for an ImageWarm whose reason is not about its node.
pub(super) fn trouble(warm: &ImageWarm) -> Option<Trouble> {
    let reason = warm.reason()?;
    let is_of_node = matches!(
        reason,
        Reason::RuntimeMismatch
            | Reason::RuntimeUnavailable
            | Reason::RuntimeHandlerUnsupported
            | Reason::CredentialProviderFailed
            | Reason::NoCredentials
    );
    is_of_node.then(|| Trouble {
        node: warm.spec.node_name.clone(),
        reason,
        message: warm.ready().map(|ready| ready.message.clone()).unwrap_or_default(),
    })
}

pub(super) fn images(controller: Deployment, warmer: DaemonSet) -> Images {
    const SETTING: &str = "IMAGEWARM_IMAGE_CREDENTIAL_PROVIDER_CONFIG";
    const FLAG: &str = "--image-credential-provider-config";
    let containers = |spec: Option<PodSpec>| spec.map(|spec| spec.containers).unwrap_or_default();
    let image = |containers: &[Container]| {
        containers.first().and_then(|one| one.image.clone()).unwrap_or_default()
    };
    let controller = containers(controller.spec.and_then(|spec| spec.template.spec));
    let warmer = containers(warmer.spec.and_then(|spec| spec.template.spec));
    let has_setting = |container: &Container| {
        container.env.iter().flatten().any(|variable| variable.name == SETTING)
            || container.args.iter().flatten().any(|argument| argument.starts_with(FLAG))
    };
    Images {
        controller: image(&controller),
        warmer: image(&warmer),
        credential_providers: warmer.iter().any(has_setting),
    }
}
