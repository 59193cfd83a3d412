//! Required node affinity: each requirement by itself, and terms of several.

use super::*;

fn field(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"matchFields": [{"key": key, "operator": operator, "values": values}]})
}

#[test]
fn requirements_of_labels() {
    let long = "v".repeat(64);
    let cases = [
        ("in", ("zone", "In", &["z1"][..]), true),
        ("in, one of several", ("zone", "In", &["z0", "z1"]), true),
        ("in, none of several", ("zone", "In", &["z0", "z2"]), false),
        ("in, no such label", ("gpu", "In", &["z1"]), false),
        ("in, empty value", ("empty", "In", &[""]), true),
        ("in, empty value and no such label", ("gpu", "In", &[""]), false),
        ("in, a key with a domain", ("example.dev/disk", "In", &["ssd"]), true),
        ("in, the architecture", ("kubernetes.io/arch", "In", &["amd64", "arm64"]), true),
        ("not in", ("zone", "NotIn", &["z2"]), true),
        ("not in, yet it is", ("zone", "NotIn", &["z2", "z1"]), false),
        ("not in, no such label", ("gpu", "NotIn", &["z1"]), true),
        ("exists", ("zone", "Exists", &[]), true),
        ("exists with an empty value", ("empty", "Exists", &[]), true),
        ("exists, no such label", ("gpu", "Exists", &[]), false),
        ("does not exist", ("gpu", "DoesNotExist", &[]), true),
        ("does not exist, yet it does", ("zone", "DoesNotExist", &[]), false),
        ("greater", ("cores", "Gt", &["15"]), true),
        ("greater, but equal", ("cores", "Gt", &["16"]), false),
        ("greater by number, not by text", ("cores", "Gt", &["9"]), true),
        ("greater, no such label", ("gpu", "Gt", &["0"]), false),
        ("greater, label is no number", ("zone", "Gt", &["0"]), false),
        ("greater, label is too long a number", ("huge", "Gt", &["0"]), false),
        ("less", ("cores", "Lt", &["17"]), true),
        ("less, but equal", ("cores", "Lt", &["16"]), false),
        ("less, leading zeros", ("cores", "Lt", &["0017"]), true),
        ("less, empty label", ("empty", "Lt", &["17"]), false),
        // What is malformed holds nowhere, whatever the label.
        ("in nothing", ("zone", "In", &[]), false),
        ("not in nothing", ("zone", "NotIn", &[]), false),
        ("exists with values", ("zone", "Exists", &["z1"]), false),
        ("does not exist with values", ("gpu", "DoesNotExist", &["z1"]), false),
        ("less than two numbers", ("cores", "Lt", &["32", "64"]), false),
        ("less than nothing", ("cores", "Lt", &[]), false),
        ("less than no number", ("cores", "Lt", &["many"]), false),
        (
            "greater than a negative number, which no label may have",
            ("cores", "Gt", &["-1"]),
            false,
        ),
        ("less than a fraction", ("cores", "Lt", &["32.5"]), false),
        ("less than too long a number", ("cores", "Lt", &["9223372036854775808"]), false),
        ("less than a number with a blank", ("cores", "Lt", &[" 32"]), false),
        ("unknown operator", ("zone", "Odd", &["z1"]), false),
        ("no operator", ("zone", "", &["z1"]), false),
        ("operator in another case", ("zone", "in", &["z1"]), false),
        ("no key", ("", "DoesNotExist", &[]), false),
        ("a key that no label may have", ("odd key!", "Exists", &[]), false),
        ("a key of two slashes", ("a/b/c", "DoesNotExist", &[]), false),
        ("a key without its domain", ("/disk", "DoesNotExist", &[]), false),
        ("a key without its name", ("example.dev/", "DoesNotExist", &[]), false),
        ("a key with a bad domain", ("Example.dev/disk", "DoesNotExist", &[]), false),
        ("too long a key", (&long, "DoesNotExist", &[]), false),
        ("too long a value", ("zone", "NotIn", &[&long]), false),
        ("a value that no label may have", ("zone", "NotIn", &["z 2"]), false),
        ("a value that ends with a dash", ("zone", "NotIn", &["z2-"]), false),
        ("a bad value beside the right one", ("zone", "In", &["z1", "/"]), false),
    ];
    for (name, (key, operator, values), fits) in cases {
        let pod = requires(json!([expression(key, operator, values)]));
        let expected = if fits { Ok(()) } else { Err(Exclusion::NodeAffinity) };
        assert_eq!(judge(&target(), &pod), expected, "{name}");
    }
}

#[test]
fn requirements_of_fields() {
    let cases = [
        ("this node", ("metadata.name", "In", &["a"][..]), true),
        ("another node", ("metadata.name", "In", &["b"]), false),
        ("not another node", ("metadata.name", "NotIn", &["b"]), true),
        ("not this node", ("metadata.name", "NotIn", &["a"]), false),
        // Malformed.
        ("one of two nodes", ("metadata.name", "In", &["a", "b"]), false),
        ("neither of two nodes", ("metadata.name", "NotIn", &["b", "c"]), false),
        ("no node", ("metadata.name", "In", &[]), false),
        ("not no node", ("metadata.name", "NotIn", &[]), false),
        ("an operator of labels", ("metadata.name", "Exists", &[]), false),
        // Fields that a node does not have are empty.
        ("another field", ("metadata.uid", "In", &["a"]), false),
        ("another field, empty", ("metadata.uid", "In", &[""]), true),
        ("not another field", ("metadata.uid", "NotIn", &["a"]), true),
    ];
    for (name, (key, operator, values), fits) in cases {
        let pod = requires(json!([field(key, operator, values)]));
        assert_eq!(judge(&target(), &pod).is_ok(), fits, "{name}");
    }
}

#[test]
fn terms() {
    let (yes, no) = (expression("zone", "In", &["z1"]), expression("zone", "In", &["z2"]));
    let (here, away) = (field("metadata.name", "In", &["a"]), field("metadata.name", "In", &["b"]));
    let (broken, empty) = (expression("zone", "Odd", &[]), json!({}));
    let merged = |one: &Value, other: &Value| {
        let mut both = one.clone();
        both.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        both
    };
    let all = |terms: &[&Value]| {
        let expressions: Vec<_> =
            terms.iter().map(|term| term["matchExpressions"][0].clone()).collect();
        json!({"matchExpressions": expressions})
    };
    let cases = [
        ("no term", json!([]), false),
        ("an empty term", json!([empty]), false),
        ("empty lists", json!([{"matchExpressions": [], "matchFields": []}]), false),
        ("an empty term beside one that holds", json!([empty, yes]), true),
        ("an empty term beside one that does not", json!([no, empty]), false),
        ("one of two holds", json!([no, yes]), true),
        ("none of two holds", json!([no, away]), false),
        ("a broken one beside one that holds", json!([broken, yes]), true),
        ("a broken one alone", json!([broken]), false),
        ("two requirements, both hold", json!([all(&[&yes, &yes])]), true),
        ("two requirements, one holds", json!([all(&[&yes, &no])]), false),
        ("two requirements, one is broken", json!([all(&[&yes, &broken])]), false),
        ("label and field hold", json!([merged(&yes, &here)]), true),
        ("label holds, field does not", json!([merged(&yes, &away)]), false),
        ("field holds, label does not", json!([merged(&no, &here)]), false),
        ("field holds in another term", json!([no, here]), true),
    ];
    for (name, terms, fits) in cases {
        assert_eq!(judge(&target(), &requires(terms)).is_ok(), fits, "{name}");
    }
}
