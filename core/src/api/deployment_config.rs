//! What is read of Knative's ConfigMap `config-deployment`: which RuntimeClass the Pods of a Revision get,
//! and the image of the queue-proxy, which runs beside every Revision's containers.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use super::names::is_dns_subdomain;
use crate::image::quoted::quoted;

/// Name of the ConfigMap, in Knative's namespace.
pub const DEPLOYMENT_CONFIG: &str = "config-deployment";

const RUNTIME_CLASSES: &str = "runtime-class-name";
/// The key of the queue-proxy's image, and the one that it replaced.
const QUEUE_PROXY: [&str; 2] = ["queue-sidecar-image", "queueSidecarImage"];
/// The longest value that is read, in bytes.
const LONGEST: usize = 64 * 1024;

/// The ConfigMap, reduced to what is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeploymentConfig {
    /// Namespace, name, uid, resourceVersion and creation.
    pub metadata: ObjectMeta,
    /// The queue-proxy's image as written; empty without.
    pub queue_proxy: String,
    /// RuntimeClasses by label.
    pub runtime_classes: RuntimeClassSelectors,
    /// Why the RuntimeClasses cannot be read; there are none then.
    pub problem: Option<String>,
}

/// RuntimeClasses by name, each with the labels of the Revisions whose Pods get it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeClassSelectors(BTreeMap<String, BTreeMap<String, String>>);

impl DeploymentConfig {
    /// Reads the ConfigMap.
    pub fn new(config: ConfigMap) -> Self {
        let ConfigMap { metadata, data, .. } = config;
        let data = data.unwrap_or_default();
        let value = |key: &str| data.get(key).filter(|value| value.len() <= LONGEST);
        let queue_proxy = QUEUE_PROXY.into_iter().find_map(value).cloned().unwrap_or_default();
        let classes = match data.get(RUNTIME_CLASSES) {
            Some(text) if text.len() > LONGEST => Err(format!("longer than {LONGEST} bytes")),
            Some(text) => selectors(text),
            None => Ok(RuntimeClassSelectors::default()),
        };
        let (runtime_classes, problem) = match classes {
            Ok(classes) => (classes, None),
            Err(problem) => (RuntimeClassSelectors::default(), Some(problem)),
        };
        DeploymentConfig {
            metadata: ObjectMeta {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                creation_timestamp: metadata.creation_timestamp,
                deletion_timestamp: metadata.deletion_timestamp,
                ..ObjectMeta::default()
            },
            queue_proxy,
            runtime_classes,
            problem,
        }
    }

    /// Whether both decide the same.
    pub fn is_like(&self, other: &DeploymentConfig) -> bool {
        self.metadata.uid == other.metadata.uid
            && self.queue_proxy == other.queue_proxy
            && self.runtime_classes == other.runtime_classes
            && self.problem == other.problem
    }
}

impl RuntimeClassSelectors {
    /// The RuntimeClass of a Revision with these labels that names none itself: the one that selects by
    /// the most labels, of several such the first by name. The empty name stands for no RuntimeClass.
    pub fn of(&self, labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
        let has = |(key, value): (&String, &String)| {
            labels.is_some_and(|labels| labels.get(key) == Some(value))
        };
        let mut chosen: Option<(&str, usize)> = None;
        for (name, selector) in self.0.iter().filter(|(_, selector)| selector.iter().all(has)) {
            if chosen.is_none_or(|(_, most)| selector.len() > most) {
                chosen = Some((name, selector.len()));
            }
        }
        chosen.map(|(name, _)| name).filter(|name| !name.is_empty())
    }
}

fn selectors(text: &str) -> Result<RuntimeClassSelectors, String> {
    if text.trim().is_empty() {
        return Ok(RuntimeClassSelectors::default());
    }
    let classes: Option<BTreeMap<String, Option<Class>>> =
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let classes = classes.unwrap_or_default();
    if let Some(name) = classes.keys().find(|name| !name.is_empty() && !is_dns_subdomain(name)) {
        return Err(format!("{} is not the name of a RuntimeClass", quoted(name)));
    }
    let selector = |class: Option<Class>| -> BTreeMap<String, String> {
        let labels = class.and_then(|class| class.selector).unwrap_or_default();
        labels.into_iter().map(|(key, value)| (key, value.0)).collect()
    };
    let classes = classes.into_iter().map(|(name, class)| (name, selector(class)));
    Ok(RuntimeClassSelectors(classes.collect()))
}

/// What a name stands for: `{}` or nothing selects every Revision.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Class {
    selector: Option<BTreeMap<String, LabelValue>>,
}

/// The value of a label. Knative reads numbers and booleans without quotes as texts too.
struct LabelValue(String);

impl<'de> Deserialize<'de> for LabelValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = LabelValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the value of a label")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<LabelValue, E> {
                Ok(LabelValue(value.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<LabelValue, E> {
                Ok(LabelValue(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<LabelValue, E> {
                Ok(LabelValue(value.to_string()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<LabelValue, E> {
                Ok(LabelValue(value.to_string()))
            }

            fn visit_unit<E: Error>(self) -> Result<LabelValue, E> {
                Ok(LabelValue(String::new()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn read(data: Value) -> DeploymentConfig {
        let config = json!({
            "metadata": {"name": DEPLOYMENT_CONFIG, "namespace": "knative-serving", "uid": "u"},
            "data": data,
        });
        DeploymentConfig::new(serde_json::from_value(config).unwrap())
    }

    fn class_of(text: &str, labels: &[(&str, &str)]) -> Option<String> {
        let config = read(json!({RUNTIME_CLASSES: text}));
        assert_eq!(config.problem, None, "{text}");
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        config.runtime_classes.of(Some(&labels.collect())).map(str::to_owned)
    }

    /// The setting, a Revision's labels, and the RuntimeClass of its Pods.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    #[test]
    fn the_most_specific_class_wins() {
        let by_trust = "low: {selector: {trust: low}}\nplain: {}\n";
        let two = "z: {selector: {a: b}}\ny: {selector: {c: d}}\nx: {selector: {a: b, c: d, e: f}}";
        let default = "\"\": {selector: {runc: \"yes\"}}\nkata:\ngvisor: {selector: {use: please}}";
        let cases: [Case<'_>; 16] = [
            (by_trust, &[("trust", "low")], Some("low")),
            (by_trust, &[("trust", "high")], Some("plain")),
            (by_trust, &[], Some("plain")),
            (two, &[("a", "b")], Some("z")),
            (two, &[("a", "b"), ("c", "d")], Some("y")),
            (two, &[("a", "b"), ("c", "d"), ("e", "f")], Some("x")),
            (two, &[("a", "")], None),
            (default, &[("runc", "yes")], None),
            (default, &[("runc", "yes"), ("use", "please")], None),
            (default, &[("use", "please")], Some("gvisor")),
            (default, &[], Some("kata")),
            ("", &[], None),
            ("# nothing\n", &[], None),
            ("a: {}\nb: {selector: {}}", &[("x", "y")], Some("a")),
            ("a: {selector: {on: true, n: 1}}", &[("on", "true"), ("n", "1")], Some("a")),
            ("{\"a\": {\"selector\": {\"x\": \"y\"}, \"other\": 1}}", &[("x", "y")], Some("a")),
        ];
        for (text, labels, expected) in cases {
            assert_eq!(class_of(text, labels).as_deref(), expected, "{text} for {labels:?}");
        }
        let config = read(json!({RUNTIME_CLASSES: by_trust}));
        assert_eq!(config.runtime_classes.of(None), Some("plain"));
    }

    #[test]
    fn what_cannot_be_read_selects_nothing() {
        for text in ["- a", "a", "A_b: {}", "a: {selector: [x]}", "a: 1", "a: {selector: {x: [1]}}"]
        {
            let config = read(json!({RUNTIME_CLASSES: text, QUEUE_PROXY[0]: "queue:v1"}));
            assert!(config.problem.is_some(), "{text}");
            assert_eq!(config.runtime_classes, RuntimeClassSelectors::default(), "{text}");
            assert_eq!(config.queue_proxy, "queue:v1", "{text}");
        }
        let long = read(json!({RUNTIME_CLASSES: "#".repeat(LONGEST + 1)}));
        assert_eq!(long.problem.as_deref(), Some("longer than 65536 bytes"));
    }

    #[test]
    fn the_queue_proxy_by_its_new_key_or_the_old_one() {
        let image = |data| read(data).queue_proxy;
        let (new, old) = (QUEUE_PROXY[0], QUEUE_PROXY[1]);
        assert_eq!(image(json!({new: "a", old: "b"})), "a");
        assert_eq!(image(json!({old: "b"})), "b");
        assert_eq!(image(json!({"_example": "queue-sidecar-image: x"})), "");
        assert_eq!(
            read(Value::Null),
            DeploymentConfig { queue_proxy: String::new(), ..read(json!({})) }
        );
    }
}
