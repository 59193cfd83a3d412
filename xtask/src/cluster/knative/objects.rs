//! Knative Serving's own manifests, changed only where this cluster has no Service network or a
//! test needs a feature that is off by default.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::NAMESPACE;
use crate::cluster::manifests;

/// Stands for the image of queue-proxy in the manifests, as the sources have them.
const QUEUE: &str = "ko://knative.dev/serving/cmd/queue";

/// What is there before the first of Knative's programs starts.
const INSTALLED: &[&str] = &[
    "serving/100-namespace.yaml",
    "networking",
    "caching",
    "serving/300-resources",
    "serving/200-roles",
    "serving/200-serviceaccount.yaml",
    "serving/configmaps",
    "serving/webhooks/secret.yaml",
    "serving/999-cache.yaml",
];

/// The configurations of its webhooks.
const WEBHOOKS: &[&str] = &[
    "serving/webhooks/defaulting.yaml",
    "serving/webhooks/resource-validation.yaml",
    "serving/webhooks/configmap-validation.yaml",
];

/// Settings that differ from the defaults: ConfigMap, key, value.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("config-features", "kubernetes.podspec-init-containers", "enabled"),
    // Pods are bound only where a test names a scheduler.
    ("config-features", "kubernetes.podspec-schedulername", "enabled"),
    // A Revision without a single Pod becomes ready: nodes without kubelet have no others.
    ("config-autoscaler", "allow-zero-initial-scale", "true"),
    // The shortest that it takes.
    ("config-autoscaler", "scale-to-zero-grace-period", "6s"),
];

/// The objects to apply before anything runs.
pub(super) fn installed(manifests: &Path, queue_image: &str) -> Result<Vec<Value>> {
    let mut objects = vec![webhook_service()];
    for object in read(manifests, INSTALLED)? {
        objects.push(adapted(object, queue_image));
    }
    Ok(objects)
}

/// The webhook configurations, which lead to `localhost:PORT` through the Service.
pub(super) fn webhooks(manifests: &Path, port: u16) -> Result<Vec<Value>> {
    let mut objects = read(manifests, WEBHOOKS)?;
    for webhook in objects.iter_mut().filter_map(|object| object["webhooks"].as_array_mut()) {
        for webhook in webhook {
            webhook["clientConfig"]["service"]["port"] = json!(port);
        }
    }
    Ok(objects)
}

/// The CRDs alone.
pub(super) fn crds(manifests: &Path) -> Result<Vec<Value>> {
    let mut objects = read(manifests, INSTALLED)?;
    objects.retain(|object| object["kind"] == "CustomResourceDefinition");
    Ok(objects)
}

/// The Service of the activator, and where it is.
pub(super) fn activator(address: &str) -> Vec<Value> {
    let metadata = json!({"name": "activator-service", "namespace": NAMESPACE});
    let ports = [("http", 80, 8012), ("http2", 81, 8013)];
    let service =
        ports.map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}));
    let endpoints = ports.map(|(name, _, target)| json!({"name": name, "port": target}));
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"ports": service},
        }),
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
            "subsets": [{"addresses": [{"ip": address}], "ports": endpoints}],
        }),
    ]
}

fn read(folder: &Path, paths: &[&str]) -> Result<Vec<Value>> {
    let mut objects = vec![];
    for path in paths {
        objects.extend(manifests::read(&folder.join(path))?);
    }
    Ok(objects)
}

/// The API server dials the webhook itself, as it does ours.
fn webhook_service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "webhook", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    })
}

fn adapted(mut object: Value, queue_image: &str) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match object["kind"].as_str() {
        Some("Image") if object["spec"]["image"] == QUEUE => {
            object["spec"]["image"] = json!(queue_image);
        }
        Some("ConfigMap") => {
            if !object["data"].is_object() {
                object["data"] = Value::Object(Map::new());
            }
            if object["data"]["queue-sidecar-image"] == QUEUE {
                object["data"]["queue-sidecar-image"] = json!(queue_image);
            }
            for (_, key, value) in SETTINGS.iter().filter(|(map, ..)| *map == name) {
                object["data"][key] = json!(value);
            }
        }
        _ => {}
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_settings_are_replaced_and_nothing_else_is() {
        let map = |name: &str, data: Value| json!({"kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        let queue =
            map("config-deployment", json!({"queue-sidecar-image": QUEUE, "_example": "a"}));
        let image = json!({"kind": "Image", "metadata": {"name": "q"}, "spec": {"image": QUEUE}});
        let table = [
            (queue, json!({"queue-sidecar-image": "r/q:v1", "_example": "a"})),
            (
                map("config-features", Value::Null),
                json!({SETTINGS[0].1: "enabled", SETTINGS[1].1: "enabled"}),
            ),
            (map("config-gc", json!({"_example": "b"})), json!({"_example": "b"})),
        ];
        for (object, data) in table {
            assert_eq!(adapted(object, "r/q:v1")["data"], data);
        }
        assert_eq!(adapted(image, "r/q:v1")["spec"]["image"], "r/q:v1");
    }
}
