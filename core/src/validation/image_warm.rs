//! Defaulting and validation of an ImageWarm's spec, without cluster state. Works on JSON, since
//! `/mutate` receives objects before the API server has validated their schema.

use serde_json::Value;

use super::field_error::{Fault, FieldError};
use crate::api::names::{MAX_PULL_SECRET_NAMES, MAX_PULL_SECRETS, MAX_SUBDOMAIN, is_dns_subdomain};
use crate::image::Reference;

/// Longest image reference, as in the CRD.
const LONGEST_IMAGE: usize = 1024;

/// Which parts of a spec are validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// `spec.image`.
    pub image: bool,
    /// `spec.nodeName`.
    pub node_name: bool,
    /// `spec.imagePullSecrets`.
    pub secrets: bool,
}

impl Changed {
    /// Everything, for a new object.
    pub const ALL: Changed = Changed { image: true, node_name: true, secrets: true };

    /// What differs between two specs.
    pub fn between(old: &Value, new: &Value) -> Self {
        let differs = |field| old[field] != new[field];
        Changed {
            image: differs("image"),
            node_name: differs("nodeName"),
            secrets: differs("imagePullSecrets"),
        }
    }
}

/// Removes white space around the changed names, and repeated secrets. Nothing else is changed:
/// values of an unexpected shape are left for the schema to reject.
pub fn apply_defaults(spec: &mut Value, changed: Changed) {
    if changed.image {
        trim(&mut spec["image"]);
    }
    if changed.node_name {
        trim(&mut spec["nodeName"]);
    }
    if changed.secrets
        && let Some(secrets) = spec.get_mut("imagePullSecrets").and_then(Value::as_array_mut)
    {
        for secret in secrets.iter_mut() {
            if let Some(name) = secret.get_mut("name") {
                trim(name);
            }
        }
        let mut seen = std::collections::HashSet::new();
        // Only what has a name can be a repetition.
        secrets.retain(|secret| secret["name"].as_str().is_none_or(|n| seen.insert(n.to_owned())));
    }
}

fn trim(value: &mut Value) {
    if let Value::String(text) = value
        && text.trim().len() != text.len()
    {
        *text = text.trim().to_owned();
    }
}

/// Validates the changed parts of `spec` without cluster state; returns all errors.
pub fn check_value(spec: &Value, changed: Changed) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !spec.is_object() {
        let detail = "an image and a nodeName are needed";
        errors.push(FieldError::new("spec", required_or_invalid(spec), spec, detail));
        return errors;
    }
    if changed.image {
        check_image(&spec["image"], &mut errors);
    }
    if changed.node_name {
        check_name("spec.nodeName".to_owned(), &spec["nodeName"], "Node", &mut errors);
    }
    if changed.secrets {
        check_secrets(&spec["imagePullSecrets"], &mut errors);
    }
    errors
}

fn check_image(image: &Value, errors: &mut Vec<FieldError>) {
    let example = "such as registry.example.com/team/app:v1";
    let detail = match image.as_str() {
        None | Some("") => format!("an image reference is needed, {example}"),
        Some(text) if text.len() > LONGEST_IMAGE => {
            format!("it may have at most {LONGEST_IMAGE} bytes")
        }
        Some(text) => match Reference::parse(text) {
            Ok(_) => return,
            Err(error) => error.to_string(),
        },
    };
    errors.push(FieldError::new("spec.image", required_or_invalid(image), image, detail));
}

fn check_secrets(secrets: &Value, errors: &mut Vec<FieldError>) {
    let field = "spec.imagePullSecrets";
    match secrets {
        Value::Null => {}
        Value::Array(secrets) => {
            if secrets.len() > MAX_PULL_SECRETS {
                let detail = format!("there may be at most {MAX_PULL_SECRETS}");
                errors.push(FieldError::new(field, Fault::TooMany, &secrets.len().into(), detail));
            }
            let names = secrets.iter().filter_map(|secret| secret["name"].as_str());
            let bytes: usize = names.map(str::len).sum();
            if bytes > MAX_PULL_SECRET_NAMES {
                let detail = format!(
                    "all names together may have at most {MAX_PULL_SECRET_NAMES} characters"
                );
                errors.push(FieldError::new(field, Fault::TooLong, &bytes.into(), detail));
            }
            for (at, secret) in secrets.iter().take(MAX_PULL_SECRETS).enumerate() {
                let element = format!("{field}[{at}]");
                if secret.is_object() {
                    check_name(format!("{element}.name"), &secret["name"], "Secret", errors);
                } else {
                    let detail = "it must be an object with the name of a Secret";
                    errors.push(FieldError::new(element, Fault::Invalid, secret, detail));
                }
            }
        }
        other => {
            let detail = "it must be a list of objects with the name of a Secret";
            errors.push(FieldError::new(field, Fault::Invalid, other, detail));
        }
    }
}

fn check_name(field: String, name: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let detail = match name.as_str() {
        None if !name.is_null() => format!("it must be the name of a {kind}, a string"),
        None | Some("") => format!("the name of a {kind} is needed"),
        Some(text) if text.len() > MAX_SUBDOMAIN => {
            format!("the name of a {kind} has at most {MAX_SUBDOMAIN} characters")
        }
        Some(text) if !is_dns_subdomain(text) => format!(
            "the name of a {kind} is a DNS-1123 subdomain: lower case letters, digits, '-' and \
             '.', where each part begins and ends with a letter or digit"
        ),
        Some(_) => return,
    };
    errors.push(FieldError::new(field, required_or_invalid(name), name, detail));
}

fn required_or_invalid(value: &Value) -> Fault {
    if value.is_null() || value.as_str() == Some("") { Fault::Required } else { Fault::Invalid }
}

/// The well-formed secrets of a spec, each name once, with the path of its field; those that
/// `old` names already are left out.
pub fn new_secrets<'a>(spec: &'a Value, old: &Value) -> Vec<(String, &'a str)> {
    let names = |spec: &'a Value| -> Vec<Option<&'a str>> {
        let secrets = spec["imagePullSecrets"].as_array();
        secrets.into_iter().flatten().map(|secret| secret["name"].as_str()).collect()
    };
    let old: Vec<&str> = {
        let secrets = old["imagePullSecrets"].as_array();
        secrets.into_iter().flatten().filter_map(|secret| secret["name"].as_str()).collect()
    };
    let mut seen = std::collections::HashSet::new();
    let named = names(spec).into_iter().take(MAX_PULL_SECRETS).enumerate();
    named
        .filter_map(|(at, name)| Some((at, name?)))
        .filter(|(_, name)| is_dns_subdomain(name) && !old.contains(name) && seen.insert(*name))
        .map(|(at, name)| (format!("spec.imagePullSecrets[{at}].name"), name))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    fn errors_of(spec: Value) -> Vec<String> {
        let errors = check_value(&spec, Changed::ALL);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_problems_are_reported_at_once_with_path_and_value() {
        let errors = errors_of(json!({
            "image": "a b", "nodeName": "Node_A",
            "imagePullSecrets": [{"name": "good"}, {"name": "-x"}, {}, 7, {"name": 8}],
        }));
        let subdomain = "is a DNS-1123 subdomain: lower case letters, digits, '-' and '.', \
                         where each part begins and ends with a letter or digit";
        assert_eq!(
            errors,
            [
                "spec.image: Invalid value: \"a b\": invalid character ' ' at position 2 of \"a b\": \
                 remove it"
                    .to_owned(),
                format!("spec.nodeName: Invalid value: \"Node_A\": the name of a Node {subdomain}"),
                format!(
                    "spec.imagePullSecrets[1].name: Invalid value: \"-x\": the name of a Secret \
                     {subdomain}"
                ),
                "spec.imagePullSecrets[2].name: Required value: the name of a Secret is needed"
                    .into(),
                "spec.imagePullSecrets[3]: Invalid value: 7: it must be an object with the name \
                 of a Secret"
                    .into(),
                "spec.imagePullSecrets[4].name: Invalid value: 8: it must be the name of a \
                 Secret, a string"
                    .into(),
            ]
        );
    }

    #[test]
    fn odd_shapes_and_sizes_are_reported() {
        let cases = [
            (Value::Null, "spec: Required value: an image and a nodeName are needed"),
            (json!([]), "spec: Invalid value: []: an image and a nodeName are needed"),
            (
                json!({"image": "a", "nodeName": "n", "imagePullSecrets": "s"}),
                "spec.imagePullSecrets: Invalid value: \"s\": it must be a list of objects with the \
              name of a Secret",
            ),
            (
                json!({"image": "", "nodeName": "n"}),
                "spec.image: Required value: an image reference is needed, such as \
              registry.example.com/team/app:v1",
            ),
            (
                json!({"image": 7, "nodeName": "n"}),
                "spec.image: Invalid value: 7: an image reference is needed, such as \
              registry.example.com/team/app:v1",
            ),
            (json!({"image": "a"}), "spec.nodeName: Required value: the name of a Node is needed"),
            (
                json!({"image": "a", "nodeName": "n",
                    "imagePullSecrets": vec![json!({"name": "s"}); 17]}),
                "spec.imagePullSecrets: Too many: 17: there may be at most 16",
            ),
            (
                json!({"image": "a", "nodeName": "n",
                    "imagePullSecrets": vec![json!({"name": "s".repeat(205)}); 5]}),
                "spec.imagePullSecrets: Too long: 1025: all names together may have at most 1024 \
              characters",
            ),
        ];
        for (spec, message) in cases {
            assert_eq!(errors_of(spec), [message]);
        }
        let long = errors_of(json!({"image": "a".repeat(5000), "nodeName": "n".repeat(254)}));
        assert_eq!(long.len(), 2);
        assert!(long.iter().all(|message| message.len() < 500));
    }

    #[test]
    fn defaults_touch_white_space_and_repetitions_only() {
        let mut spec = json!({
            "image": "\tapp \n", "nodeName": " n", "extra": " x ",
            "imagePullSecrets": [{"name": "a "}, {"name": "b"}, {"name": " a", "x": 1}, 7, {}, {}],
        });
        apply_defaults(&mut spec, Changed::ALL);
        let expected = json!({
            "image": "app", "nodeName": "n", "extra": " x ",
            "imagePullSecrets": [{"name": "a"}, {"name": "b"}, 7, {}, {}],
        });
        assert_eq!(spec, expected);
        apply_defaults(&mut spec, Changed::ALL);
        assert_eq!(spec, expected);

        let mut kept =
            json!({"image": " a", "nodeName": " n", "imagePullSecrets": [{"name": " s"}]});
        let before = kept.clone();
        apply_defaults(&mut kept, Changed::default());
        assert_eq!(kept, before);
    }

    #[test]
    fn only_new_secrets_are_asked_about() {
        let old = json!({"imagePullSecrets": [{"name": "a"}]});
        let new = json!({"imagePullSecrets":
            [{"name": "a"}, {"name": "b"}, {"name": "B"}, {"name": "b"}, 7, {"name": "c"}]});
        let asked: Vec<_> = new_secrets(&new, &old);
        let name = |at| format!("spec.imagePullSecrets[{at}].name");
        assert_eq!(asked, [(name(1), "b"), (name(5), "c")]);
        assert_eq!(new_secrets(&new, &Value::Null).len(), 3);
    }
}
