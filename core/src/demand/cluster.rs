//! What of the cluster decides about a Revision beside the Revision: its namespace, and the settings of
//! Knative.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{DeploymentConfig, Revision};
use crate::placement::{NamespaceRules, PodConstraints};
use crate::policy::Policy;

/// The settings of the cluster that decide about Revisions.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Namespaces that are excluded from warming.
    pub opted_out: BTreeSet<String>,
    /// Knative's ConfigMap, where there is one that can be read.
    pub deployment: Option<Arc<DeploymentConfig>>,
    /// Rules of the namespaces that have others than most.
    rules: HashMap<String, NamespaceRules>,
    /// Those of all others.
    default_rules: NamespaceRules,
}

impl Cluster {
    /// Without any namespace yet.
    pub fn new(policy: &Policy, deployment: Option<Arc<DeploymentConfig>>) -> Self {
        let default_rules = NamespaceRules::new(None, &policy.default_node_selector);
        Cluster { deployment, default_rules, ..Cluster::default() }
    }

    /// With these namespaces left out.
    #[cfg(test)]
    pub(crate) fn without<'a>(namespaces: impl IntoIterator<Item = &'a str>) -> Self {
        let opted_out = namespaces.into_iter().map(Into::into).collect();
        Cluster { opted_out, ..Cluster::default() }
    }

    /// Adds a Namespace.
    pub fn add(&mut self, namespace: &ObjectMeta, policy: &Policy) {
        let name = || namespace.name.clone().unwrap_or_default();
        if !policy.bounds.selects(namespace.labels.as_ref()) {
            self.opted_out.insert(name());
        }
        let annotations = namespace.annotations.as_ref();
        let rules = NamespaceRules::new(annotations, &policy.default_node_selector);
        if rules != self.default_rules {
            self.rules.insert(name(), rules);
        }
    }

    /// The placement of the Revision's Pods: with the RuntimeClass that Knative chooses for them, and what
    /// their namespace adds.
    pub fn constrain(&self, revision: &Revision, mut placement: PodConstraints) -> PodConstraints {
        let metadata = &revision.metadata;
        if placement.runtime_class.is_none()
            && let Some(deployment) = &self.deployment
        {
            let class = deployment.runtime_classes.of(metadata.labels.as_ref());
            placement.runtime_class = class.map(str::to_owned);
        }
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        self.rules.get(namespace).unwrap_or(&self.default_rules).constrain(placement)
    }
}
