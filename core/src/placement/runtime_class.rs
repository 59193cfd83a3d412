//! What a RuntimeClass adds to a Pod: the handler of the runtime, and rules of scheduling. Kubernetes adds
//! these to each Pod at its admission, after the Revision, so they are added here before nodes are filtered.

use std::collections::HashMap;

use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};

use super::PodConstraints;

/// All RuntimeClasses, by name.
#[derive(Clone, Debug, Default)]
pub struct RuntimeClasses(HashMap<String, Class>);

#[derive(Clone, Debug)]
struct Class {
    handler: String,
    scheduling: Scheduling,
}

impl RuntimeClasses {
    /// Reads these RuntimeClasses.
    pub fn new<'a>(classes: impl IntoIterator<Item = &'a RuntimeClass>) -> Self {
        let classes = classes.into_iter().map(|class| {
            let name = class.metadata.name.clone().unwrap_or_default();
            let scheduling = class.scheduling.clone().unwrap_or_default();
            (name, Class { handler: class.handler.clone(), scheduling })
        });
        RuntimeClasses(classes.collect())
    }

    /// The handler of the RuntimeClass of this name, if there is one.
    pub fn handler(&self, name: &str) -> Option<&str> {
        Some(&self.0.get(name)?.handler)
    }

    /// The placement with what its RuntimeClass adds: labels to select, taints to tolerate.
    ///
    /// Kubernetes rejects the Pods when the RuntimeClass does not exist, or when it and the Pod
    /// select different values of one label. The placement then still names the RuntimeClass, and
    /// such a placement fits no node.
    pub fn constrain(&self, mut placement: PodConstraints) -> PodConstraints {
        let Some(name) = &placement.runtime_class else { return placement };
        let Some(Class { scheduling: rules, .. }) = self.0.get(name) else { return placement };
        let selected = rules.node_selector.iter().flatten();
        let contradicts = |(key, value): (&String, &String)| {
            placement.node_selector.get(key).is_some_and(|known| known != value)
        };
        if selected.clone().any(contradicts) {
            return placement;
        }
        placement.runtime_class = None;
        placement.node_selector.extend(selected.map(|(key, value)| (key.clone(), value.clone())));
        placement.tolerations.extend(rules.tolerations.iter().flatten().cloned());
        placement
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Revision;
    use crate::demand::revision::demand;
    use crate::placement::{Exclusion, NodeFacts, is_eligible};
    use crate::policy::Policy;
    use crate::sample::{labelled, node, tainted};

    fn classes() -> RuntimeClasses {
        let class = |name: &str, scheduling: Value| -> RuntimeClass {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "handler": "h", "scheduling": scheduling,
            }))
            .unwrap()
        };
        RuntimeClasses::new(&[
            class("plain", Value::Null),
            class("empty", json!({})),
            class("selecting", json!({"nodeSelector": {"sandbox": "yes", "disk": "ssd"}})),
            class("tolerating", json!({"tolerations": [{"key": "k", "operator": "Exists"}]})),
        ])
    }

    fn judge(spec: Value, node: &Node) -> Result<(), Exclusion> {
        let revision: Revision =
            serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
        let policy = Policy::default();
        let placement = classes().constrain(demand(&revision, false, &policy).placement);
        is_eligible(&NodeFacts::new(node, &BTreeSet::new()), &placement, &policy)
    }

    #[test]
    fn a_class_narrows_and_widens() {
        let sandbox = || labelled(labelled(node("a"), "sandbox", "yes"), "disk", "ssd");
        let dedicated = || tainted(sandbox(), "k", "NoSchedule");
        let rejected = |name: &str| Err(Exclusion::RuntimeClass(name.into()));
        let cases = [
            ("no class", json!({}), node("a"), Ok(())),
            ("empty name", json!({"runtimeClassName": ""}), node("a"), Ok(())),
            ("no scheduling", json!({"runtimeClassName": "plain"}), node("a"), Ok(())),
            ("empty scheduling", json!({"runtimeClassName": "empty"}), node("a"), Ok(())),
            ("unknown", json!({"runtimeClassName": "none"}), sandbox(), rejected("none")),
            ("selected", json!({"runtimeClassName": "selecting"}), sandbox(), Ok(())),
            (
                "not selected",
                json!({"runtimeClassName": "selecting"}),
                labelled(node("a"), "sandbox", "yes"),
                Err(Exclusion::NodeSelector("disk".into())),
            ),
            (
                "the Pod's own selector stays",
                json!({"runtimeClassName": "selecting", "nodeSelector": {"zone": "z"}}),
                sandbox(),
                Err(Exclusion::NodeSelector("zone".into())),
            ),
            (
                "both ask for the same",
                json!({"runtimeClassName": "selecting", "nodeSelector": {"disk": "ssd"}}),
                sandbox(),
                Ok(()),
            ),
            (
                "they contradict each other",
                json!({"runtimeClassName": "selecting", "nodeSelector": {"disk": "hdd"}}),
                sandbox(),
                rejected("selecting"),
            ),
            (
                "tolerated by the class",
                json!({"runtimeClassName": "tolerating"}),
                dedicated(),
                Ok(()),
            ),
            (
                "not tolerated by another",
                json!({"runtimeClassName": "selecting"}),
                dedicated(),
                Err(Exclusion::Taint("k".into())),
            ),
            (
                "the Pod's own toleration stays",
                json!({
                    "runtimeClassName": "tolerating",
                    "tolerations": [{"key": "other", "operator": "Exists"}],
                }),
                tainted(dedicated(), "other", "NoExecute"),
                Ok(()),
            ),
        ];
        for (name, spec, node, expected) in cases {
            assert_eq!(judge(spec, &node), expected, "{name}");
        }
    }
}
