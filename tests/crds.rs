//! The shipped CRD is the one that the code defines, and holds what a cluster needs of it.

use imagewarm::commands::crds;
use serde_json::Value;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crd/imagewarms.yaml");

#[test]
fn shipped_crd_agrees_with_the_code() {
    let mut printed = Vec::new();
    crds::run(&mut printed).expect("the CRD can be printed");
    let printed = String::from_utf8(printed).expect("YAML is UTF-8");
    let shipped = std::fs::read_to_string(SHIPPED).unwrap_or_default();
    assert!(
        shipped == printed,
        "{SHIPPED} differs from what `imagewarm crds` prints; regenerate it with\n    \
         cargo run -- crds > deploy/crd/imagewarms.yaml"
    );
}

#[test]
fn shipped_crd_reads_back_as_the_same_object() {
    let shipped = std::fs::read_to_string(SHIPPED).expect("the CRD is shipped");
    let shipped: Value = serde_saphyr::from_str(&shipped).expect("the CRD is YAML");
    assert_eq!(shipped, serde_json::to_value(crds::crd()).expect("the CRD has a JSON form"));
}

#[test]
fn crd_holds_what_clients_rely_on() {
    let crd = serde_json::to_value(crds::crd()).expect("the CRD has a JSON form");
    assert_eq!(crd["metadata"]["name"], "imagewarms.caching.knative.dev");
    assert_eq!(crd["metadata"]["labels"]["app.kubernetes.io/part-of"], "imagewarm");
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    assert_eq!(crd["spec"]["names"]["shortNames"], serde_json::json!(["iw"]));
    // Not `all`: thousands of them would show in `kubectl get all`.
    assert_eq!(crd["spec"]["names"]["categories"], serde_json::json!(["knative"]));

    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["status"], serde_json::json!({}));
    let selectable: Vec<_> = version["selectableFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|f| &f["jsonPath"])
        .collect();
    assert_eq!(selectable, [".spec.nodeName", ".spec.image"]);
    let columns: Vec<_> = version["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(columns, ["Node", "Image", "Ready", "Reason", "Digest", "Size", "Took", "Age"]);

    let root = &version["schema"]["openAPIV3Schema"];
    assert_eq!(root["required"], serde_json::json!(["spec"]));
    let spec = &root["properties"]["spec"];
    assert_eq!(spec["required"], serde_json::json!(["image", "nodeName"]));
    for field in ["image", "nodeName"] {
        let rules = spec["properties"][field]["x-kubernetes-validations"].to_string();
        assert!(rules.contains("self == oldSelf"), "spec.{field} is immutable: {rules}");
    }
    assert_eq!(spec["properties"]["imagePullSecrets"]["maxItems"], 16);
    // Every field is documented: this is what `kubectl explain` shows.
    assert_documented("spec", spec);
    assert_documented("status", &root["properties"]["status"]);
}

fn assert_documented(path: &str, schema: &Value) {
    assert!(schema["description"].is_string(), "{path} has no description");
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        assert_documented(&format!("{path}.{name}"), field);
    }
}
