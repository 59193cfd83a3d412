//! What `imagewarm check` reads of a cluster, as plain data.

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{Outcome, Verdict, failed};
use crate::api::Reason;

/// What came of reading something.
#[derive(Clone, Debug, PartialEq)]
pub enum Read<T> {
    /// It was read.
    Found(T),
    /// It does not exist.
    Absent,
    /// It was not read.
    Failed(ReadFailure),
}

impl<T> Read<Vec<T>> {
    /// All of them: none where they do not exist, and a verdict where they were not read.
    pub(super) fn all(&self) -> Result<&[T], Verdict> {
        match self {
            Read::Found(all) => Ok(all),
            Read::Absent => Ok(&[]),
            Read::Failed(failure) => Err(failure.verdict()),
        }
    }
}

/// Why something was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The user may not read it.
    Forbidden {
        /// What was to be read, such as `list Nodes`.
        what: String,
    },
    /// The request failed.
    Error {
        /// What was to be read.
        what: String,
        /// Why not.
        error: String,
    },
}

impl ReadFailure {
    /// Without the right nothing can be said; with another failure, something is wrong.
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            ReadFailure::Forbidden { what } => (
                Outcome::Skipped { needs: None },
                format!(
                    "you may not {what}: the ClusterRole and the Role imagewarm-check allow it"
                ),
            ),
            ReadFailure::Error { what, error } => failed(
                format!("cannot {what}: {error}"),
                "try again: this is the API server's answer",
            ),
        }
    }
}

/// An installation, as observed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Where the controllers run.
    pub namespace: String,
    /// Version of this program.
    pub version: String,
    /// By the clock of this machine.
    pub now: Timestamp,
    /// The API server. When it does not answer, nothing else was read.
    pub server: Result<Server, String>,
    /// All the rest; `None` when the API server does not answer.
    pub installed: Option<Box<Installed>>,
}

/// The API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Its version, such as `v1.36.3`.
    pub version: String,
    /// Whether that is new enough.
    pub is_served: bool,
    /// Its clock, in whole seconds.
    pub date: Option<Timestamp>,
}

/// What is installed.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The CRD that is stored.
    pub crd: Crd,
    /// The Lease of the leader.
    pub lease: Read<Lease>,
    /// All webhook configurations of both kinds that have webhooks of ours.
    pub webhooks: Read<Vec<WebhookConfiguration>>,
    /// The CAs that controllers have published for warmers, PEM.
    pub published_ca: Read<String>,
    /// Certificates that could be read; one that cannot be parsed has a fault.
    pub certificates: Vec<Certificate>,
    /// What admission answered to ImageWarms that were not stored.
    pub admission: Admission,
    /// All Nodes.
    pub nodes: Read<Vec<Node>>,
    /// The warmers' Pods.
    pub warmers: Read<Vec<WarmerPod>>,
    /// ImageWarms whose reason speaks of the node, not of the image.
    pub troubles: Read<Vec<Trouble>>,
    /// Images of controllers and warmers.
    pub images: Read<Images>,
    /// Clocks of kubelets.
    pub clocks: Read<Vec<NodeClock>>,
    /// Whether the API server serves Knative's types.
    pub knative: Read<()>,
}

/// The CRD as it is stored, and as this version has it.
#[derive(Clone, Debug)]
pub struct Crd {
    /// As stored.
    pub stored: Read<Box<CustomResourceDefinition>>,
    /// As this version has it.
    pub expected: Box<CustomResourceDefinition>,
}

/// The Lease of the leader.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lease {
    /// Who holds it; empty when it was released.
    pub holder: String,
    /// For how long a renewal counts, in seconds.
    pub seconds: i64,
    /// When its holder renewed it, by the holder's clock.
    pub renewed: Option<Timestamp>,
    /// When the API server last stored a renewal, by its own clock.
    pub stored: Option<Timestamp>,
    /// The version of the holder.
    pub version: Option<String>,
}

/// The kind of a webhook configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigurationKind {
    /// MutatingWebhookConfiguration.
    Mutating,
    /// ValidatingWebhookConfiguration.
    Validating,
}

impl ConfigurationKind {
    /// The kind, as Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConfigurationKind::Mutating => "MutatingWebhookConfiguration",
            ConfigurationKind::Validating => "ValidatingWebhookConfiguration",
        }
    }
}

/// A webhook configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookConfiguration {
    /// Its kind.
    pub kind: ConfigurationKind,
    /// `metadata.name`.
    pub name: String,
    /// Its webhooks.
    pub webhooks: Vec<Webhook>,
}

/// One webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Namespace of its Service; `None` with a URL.
    pub namespace: Option<String>,
    /// Whether it has a path that a controller has published.
    pub has_path: bool,
    /// `caBundle`, PEM.
    pub ca_bundle: String,
}

/// A certificate, or why it is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// Which one, such as `the CA`.
    pub name: &'static str,
    /// Start and expiry of its validity, or what is wrong with it.
    pub validity: Result<(Timestamp, Timestamp), String>,
    /// From when on it should have been renewed.
    pub renew_at: Option<Timestamp>,
}

/// What admission answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing could be asked.
    Unread(ReadFailure),
    /// Both questions were answered.
    Answered {
        /// The image of a good ImageWarm as it would be stored, or why it was not accepted.
        good: Result<String, String>,
        /// Why a bad ImageWarm was denied; `None` when it was accepted.
        bad: Option<String>,
    },
}

/// A Node, as far as warmers are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Whether it is to have a warmer: a machine with Linux.
    pub is_warmed: bool,
    /// Whether its kubelet is heard of.
    pub is_ready: bool,
    /// Name and version of its runtime, such as `containerd://2.2.3`.
    pub runtime: String,
}

/// The Pod of a warmer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmerPod {
    /// `metadata.name`.
    pub name: String,
    /// Its node; empty while it has none.
    pub node: String,
    /// Whether it is Ready, which it is while its stream to the leader is open.
    pub is_ready: bool,
    /// Why its container does not run, such as `ImagePullBackOff`.
    pub waiting: Option<String>,
}

/// What keeps a node from pulling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The node.
    pub node: String,
    /// The reason.
    pub reason: Reason,
    /// What the warmer said.
    pub message: String,
}

/// Images of the two workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Of the controllers.
    pub controller: String,
    /// Of the warmers.
    pub warmer: String,
    /// Whether the warmers have the nodes' credential provider plugins.
    pub credential_providers: bool,
}

/// How far the clock of a node is ahead of the API server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClock {
    /// The node.
    pub node: String,
    /// When its kubelet renewed its Lease, by its own clock.
    pub renewed: Timestamp,
    /// When the API server stored that.
    pub stored: Timestamp,
}
