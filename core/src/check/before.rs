//! `--pre`: what must hold before imagewarm is installed.

use jiff::Timestamp;

use super::installation::{api_server, knative_serving};
use super::observed::{Crd, Node, Read, ReadFailure, Server, WebhookConfiguration};
use super::{Check, CheckResult, Judge, Verdict, failed, named, passed, warning};
use crate::table::images::printable;

/// A right that installation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty for the first one.
    pub group: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// Whether its objects are in the namespace of the installation.
    pub is_namespaced: bool,
}

impl Right {
    /// To create an object of each kind that the manifests have.
    pub const ALL: [Right; 17] = [
        cluster("", "namespaces"),
        cluster("apiextensions.k8s.io", "customresourcedefinitions"),
        cluster("rbac.authorization.k8s.io", "clusterroles"),
        cluster("rbac.authorization.k8s.io", "clusterrolebindings"),
        cluster("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        cluster("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        cluster("admissionregistration.k8s.io", "validatingadmissionpolicies"),
        cluster("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
        cluster("flowcontrol.apiserver.k8s.io", "flowschemas"),
        namespaced("rbac.authorization.k8s.io", "roles"),
        namespaced("rbac.authorization.k8s.io", "rolebindings"),
        namespaced("", "serviceaccounts"),
        namespaced("", "services"),
        namespaced("apps", "deployments"),
        namespaced("apps", "daemonsets"),
        namespaced("policy", "poddisruptionbudgets"),
        namespaced("networking.k8s.io", "networkpolicies"),
    ];
}

const fn cluster(group: &'static str, resource: &'static str) -> Right {
    Right { group, resource, is_namespaced: false }
}

const fn namespaced(group: &'static str, resource: &'static str) -> Right {
    Right { group, resource, is_namespaced: true }
}

/// A cluster without imagewarm, as observed.
#[derive(Clone, Debug)]
pub struct ObservedBefore {
    /// Where it is to be installed.
    pub namespace: String,
    /// The API server.
    pub server: Result<Server, String>,
    /// All the rest; `None` when the API server does not answer.
    pub cluster: Option<Box<ClusterBefore>>,
}

/// What is there before.
#[derive(Clone, Debug)]
pub struct ClusterBefore {
    /// The rights that the user lacks, or why that is not known.
    pub lacking: Result<Vec<Right>, ReadFailure>,
    /// The namespace: when it is to be deleted, and the Pod Security level that it enforces.
    pub namespace: Read<(Option<Timestamp>, Option<String>)>,
    /// Webhook configurations that have webhooks of ours.
    pub webhooks: Read<Vec<WebhookConfiguration>>,
    /// The CRD.
    pub crd: Crd,
    /// All Nodes.
    pub nodes: Read<Vec<Node>>,
    /// Whether the API server serves Knative's types.
    pub knative: Read<()>,
}

/// Judges a cluster before installation.
pub fn before_installation(observed: &ObservedBefore) -> Vec<CheckResult> {
    let mut judge = Judge::default();
    judge.add(Check::ApiServer, &[], || api_server(&observed.server));
    let needs = [Check::ApiServer];
    let Some(before) = &observed.cluster else {
        for check in
            [Check::Rights, Check::Namespace, Check::Conflicts, Check::Nodes, Check::Knative]
        {
            judge.add(check, &needs, || passed(""));
        }
        return judge.results;
    };
    judge.add(Check::Rights, &needs, || rights(&before.lacking));
    judge.add(Check::Namespace, &needs, || namespace(&before.namespace, &observed.namespace));
    judge.add(Check::Conflicts, &needs, || {
        conflicts(&before.webhooks, &before.crd, &observed.namespace)
    });
    judge.add(Check::Nodes, &needs, || nodes(&before.nodes));
    judge.add(Check::Knative, &needs, || knative_serving(&before.knative));
    judge.results
}

fn rights(lacking: &Result<Vec<Right>, ReadFailure>) -> Verdict {
    match lacking {
        Err(failure) => failure.verdict(),
        Ok(lacking) if lacking.is_empty() => passed("you may create all that is installed"),
        Ok(lacking) => failed(
            format!("you may not create {}", named(lacking.iter().map(|right| right.resource))),
            "install as a cluster administrator: kubectl auth can-i '*' '*' --all-namespaces",
        ),
    }
}

fn namespace(found: &Read<(Option<Timestamp>, Option<String>)>, name: &str) -> Verdict {
    match found {
        Read::Failed(failure) => failure.verdict(),
        Read::Absent => passed(format!("{name} is made by the installation")),
        Read::Found((Some(since), _)) => failed(
            format!("{name} is being deleted since {since}"),
            format!("wait until it is gone: kubectl wait --for=delete namespace/{name}"),
        ),
        Read::Found((None, Some(level))) if level != "privileged" => failed(
            format!(
                "{name} enforces the Pod Security level {}, which forbids the warmers' hostPath",
                printable(level)
            ),
            format!(
                "kubectl label --overwrite namespace {name} pod-security.kubernetes.io/enforce=privileged"
            ),
        ),
        Read::Found(_) => passed(format!("{name} is there")),
    }
}

fn conflicts(webhooks: &Read<Vec<WebhookConfiguration>>, crd: &Crd, own: &str) -> Verdict {
    if let Read::Found(stored) = &crd.stored
        && stored.metadata.deletion_timestamp.is_some()
    {
        return failed(
            "the CustomResourceDefinition of ImageWarms is being deleted",
            "wait until it is gone: kubectl wait --for=delete crd/imagewarms.caching.knative.dev",
        );
    }
    let all = match webhooks.all() {
        Ok(all) => all,
        Err(verdict) => return verdict,
    };
    let elsewhere = |one: &&WebhookConfiguration| {
        one.webhooks.iter().any(|webhook| webhook.namespace.as_deref() != Some(own))
    };
    match all.iter().find(elsewhere) {
        None if all.is_empty() => passed("nothing of another installation is there"),
        None => passed(format!(
            "imagewarm is installed in {own} already: installing it again upgrades it"
        )),
        Some(other) => {
            let (kind, name) = (other.kind.as_str(), printable(&other.name));
            failed(
                format!("{kind} {name} is of an installation outside the namespace {own}"),
                format!("uninstall that one, or kubectl delete {} {name}", kind.to_lowercase()),
            )
        }
    }
}

fn nodes(nodes: &Read<Vec<Node>>) -> Verdict {
    let nodes = match nodes.all() {
        Ok(nodes) => nodes,
        Err(verdict) => return verdict,
    };
    let warmed: Vec<&Node> = nodes.iter().filter(|node| node.is_warmed).collect();
    if warmed.is_empty() {
        return failed(
            "no node can have a warmer: none is a machine with Linux",
            "add one: kubectl get nodes -o wide",
        );
    }
    let unusable: Vec<&&Node> = warmed.iter().filter(|node| !is_usable(&node.runtime)).collect();
    match unusable.first() {
        None => passed(format!("{} nodes can have a warmer", warmed.len())),
        Some(first) => warning(
            format!(
                "{} of {} nodes have no runtime that warmers can use: {} has {}",
                unusable.len(),
                warmed.len(),
                printable(&first.name),
                printable(&first.runtime)
            ),
            "use Docker, containerd 1.6 or newer, or CRI-O there; the other nodes are warmed",
        ),
    }
}

/// Whether there is a warmer for `containerd://2.2.3`.
fn is_usable(runtime: &str) -> bool {
    let (name, version) = runtime.split_once("://").unwrap_or((runtime, ""));
    let mut parts = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    match name {
        "containerd" => match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => (major, minor) >= (1, 6),
            _ => true,
        },
        "docker" | "cri-o" => true,
        _ => false,
    }
}
