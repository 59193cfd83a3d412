//! Random nodes and Pod specs, of the shapes that the API server takes. Few keys and values, so
//! that they meet often.

use imagewarm_core::placement::namespace::{DEFAULT_TOLERATIONS, NODE_SELECTOR};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

const LABELS: [(&str, &[&str]); 5] = [
    ("zone", &["a", "b", ""]),
    ("cores", &["4", "16", "016", "-", "many"]),
    ("example.dev/disk", &["ssd", "hdd"]),
    ("kubernetes.io/arch", &["amd64", "arm64"]),
    ("sandbox", &["yes", "no"]),
];
const TAINT_KEYS: [&str; 3] = ["dedicated", "example.dev/gpu", "node.kubernetes.io/unschedulable"];
const TAINT_VALUES: [&str; 3] = ["", "x", "y"];
const EFFECTS: [&str; 3] = ["NoSchedule", "NoExecute", "PreferNoSchedule"];
/// Bounds; "016" is 16, and the last is too large.
const NUMBERS: [&str; 8] = ["4", "16", "016", "15", "17", "004", "many", "9223372036854775808"];
/// RuntimeClasses that exist, and one that does not.
const CLASSES: [&str; 5] = ["plain", "selecting", "tolerating", "both", "missing"];

fn pick<T: Copy>(random: &mut StdRng, all: &[T]) -> T {
    all[random.random_range(0..all.len())]
}

/// A Node that is Ready and has room.
pub fn node(random: &mut StdRng, name: &str) -> Value {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/hostname".into(), json!(name));
    labels.insert("kubernetes.io/os".into(), json!("linux"));
    for (key, values) in LABELS {
        let value = pick(random, values);
        // "-" is no value, and stands for none.
        if value != "-" && random.random_bool(0.7) {
            labels.insert(key.into(), json!(value));
        }
    }
    let mut taints: Vec<Value> = Vec::new();
    for _ in 0..pick(random, &[0, 0, 1, 1, 2]) {
        let (key, effect) = (pick(random, &TAINT_KEYS), pick(random, &EFFECTS));
        // The API server wants each pair once.
        if !taints.iter().any(|taint| taint["key"] == key && taint["effect"] == effect) {
            let value = pick(random, &TAINT_VALUES);
            taints.push(json!({"key": key, "value": value, "effect": effect}));
        }
    }
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints, "unschedulable": random.random_bool(0.15)},
        "status": {
            "capacity": {"cpu": "64", "memory": "64Gi", "pods": "500"},
            "allocatable": {"cpu": "64", "memory": "64Gi", "pods": "500"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// The RuntimeClasses that [`pod_spec`] may name, save the missing one.
pub fn runtime_classes() -> Vec<Value> {
    let class = |name: &str, scheduling: Value| json!({"metadata": {"name": name}, "handler": "handler", "scheduling": scheduling});
    let tolerations = json!([
        {"key": "dedicated", "operator": "Exists"},
        {"key": "example.dev/gpu", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
    ]);
    vec![
        json!({"metadata": {"name": "plain"}, "handler": "handler"}),
        class("selecting", json!({"nodeSelector": {"zone": "b"}})),
        class("tolerating", json!({"tolerations": tolerations})),
        class("both", json!({"nodeSelector": {"zone": "a"}, "tolerations": tolerations})),
    ]
}

/// Namespaces by name, each with annotations that admission plugins read. In the first most Pods are.
pub fn namespaces() -> Vec<(&'static str, Value)> {
    let (selector, tolerations) = (NODE_SELECTOR, DEFAULT_TOLERATIONS);
    let dedicated = json!([{"key": "dedicated", "operator": "Exists"}]).to_string();
    vec![
        ("plain", json!({})),
        ("selecting", json!({selector: "zone=a"})),
        ("selecting-two", json!({selector: " example.dev/disk = ssd,zone="})),
        ("selecting-none", json!({selector: ""})),
        ("tolerating", json!({tolerations: dedicated})),
        ("malformed", json!({selector: "zone==a"})),
        ("malformed-tolerations", json!({tolerations: "{}"})),
    ]
}

/// The part of a Pod's spec that decides where it may start; only `target` has its hostname.
pub fn pod_spec(random: &mut StdRng, target: &str) -> Value {
    let mut selector = Map::new();
    selector.insert("kubernetes.io/hostname".into(), json!(target));
    if random.random_bool(0.25) {
        let (key, values) = pick(random, &LABELS);
        let value = pick(random, values);
        let value = if value == "-" { "4" } else { value };
        selector.insert(key.into(), json!(value));
    }
    let mut spec = json!({"nodeSelector": selector});
    // Most nodes have taints; a Pod that tolerates none of them says nothing of anything else.
    let tolerations: Vec<Value> = match random.random_range(0..10) {
        0..=3 => vec![json!({"operator": "Exists"})],
        4..=8 => (0..random.random_range(1..=4)).map(|_| toleration(random)).collect(),
        _ => Vec::new(),
    };
    spec["tolerations"] = json!(tolerations);
    if random.random_bool(0.5) {
        let terms: Vec<Value> =
            (0..pick(random, &[1, 1, 2, 3])).map(|_| term(random, target)).collect();
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": terms});
    }
    if random.random_bool(0.25) {
        spec["runtimeClassName"] = json!(pick(random, &CLASSES));
        // Some ask for what their RuntimeClass asks for, and some for the contrary.
        if random.random_bool(0.6) {
            spec["nodeSelector"]["zone"] = json!(pick(random, &["a", "b"]));
        }
    }
    spec
}

fn toleration(random: &mut StdRng) -> Value {
    let mut toleration = Map::new();
    let keyless = random.random_bool(0.15);
    if !keyless {
        toleration.insert("key".into(), json!(pick(random, &TAINT_KEYS)));
    }
    if keyless || random.random_bool(0.4) {
        toleration.insert("operator".into(), json!("Exists"));
    } else {
        if random.random_bool(0.5) {
            toleration.insert("operator".into(), json!("Equal"));
        }
        if random.random_bool(0.8) {
            toleration.insert("value".into(), json!(pick(random, &TAINT_VALUES)));
        }
    }
    let effect = pick(random, &["", "", "NoSchedule", "NoExecute", "PreferNoSchedule"]);
    if !effect.is_empty() {
        toleration.insert("effect".into(), json!(effect));
    }
    if effect == "NoExecute" && random.random_bool(0.5) {
        toleration.insert("tolerationSeconds".into(), json!(pick(random, &[0, 300])));
    }
    Value::Object(toleration)
}

/// A term of zero to two requirements of labels and, now and then, some of the node's name.
fn term(random: &mut StdRng, target: &str) -> Value {
    let expressions: Vec<Value> =
        (0..pick(random, &[0, 1, 1, 1, 2])).map(|_| expression(random)).collect();
    let mut term = Map::new();
    if !expressions.is_empty() || random.random_bool(0.2) {
        term.insert("matchExpressions".into(), json!(expressions));
    }
    if random.random_bool(0.3) {
        let field = |random: &mut StdRng| {
            let name = if random.random_bool(0.6) { target } else { "target-0" };
            let operator = pick(random, &["In", "In", "NotIn"]);
            json!({"key": "metadata.name", "operator": operator, "values": [name]})
        };
        let fields: Vec<Value> = (0..pick(random, &[1, 1, 1, 2])).map(|_| field(random)).collect();
        term.insert("matchFields".into(), json!(fields));
    }
    Value::Object(term)
}

fn expression(random: &mut StdRng) -> Value {
    let (key, values) = pick(random, &LABELS);
    let key = if random.random_bool(0.1) { "absent" } else { key };
    match random.random_range(0..6) {
        0 | 1 => {
            let operator = pick(random, &["In", "NotIn"]);
            let values: Vec<&str> = (0..random.random_range(1..=3))
                .map(|_| pick(random, values))
                .map(|value| if value == "-" { "other" } else { value })
                .collect();
            json!({"key": key, "operator": operator, "values": values})
        }
        2 | 3 => json!({"key": key, "operator": pick(random, &["Exists", "DoesNotExist"])}),
        _ => {
            let key = if random.random_bool(0.8) { "cores" } else { key };
            let operator = pick(random, &["Gt", "Lt"]);
            json!({"key": key, "operator": operator, "values": [pick(random, &NUMBERS)]})
        }
    }
}
