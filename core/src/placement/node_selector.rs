//! A node selector as text: `key=value,key2=value2`.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::labels::{is_label_key, is_label_value};

/// Labels that a node must have, each with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector(pub BTreeMap<String, String>);

/// Why a text is no node selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node selector is written KEY=VALUE,… with keys and values of labels")]
pub struct NodeSelectorError;

impl FromStr for NodeSelector {
    type Err = NodeSelectorError;

    /// Of a key that occurs twice the last value counts. `==` is the same as `=`.
    fn from_str(text: &str) -> Result<Self, NodeSelectorError> {
        let mut labels = BTreeMap::new();
        if text.trim().is_empty() {
            return Ok(NodeSelector(labels));
        }
        for label in text.split(',') {
            let (key, value) = label.split_once('=').ok_or(NodeSelectorError)?;
            let (key, value) = (key.trim(), value.strip_prefix('=').unwrap_or(value).trim());
            if !is_label_key(key) || !is_label_value(value) {
                return Err(NodeSelectorError);
            }
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(NodeSelector(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_their_values() {
        let selector = |text: &str| -> Result<Vec<(String, String)>, NodeSelectorError> {
            text.parse().map(|selector: NodeSelector| selector.0.into_iter().collect())
        };
        let labels = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let valid = [
            ("", labels(&[])),
            ("pool=a", labels(&[("pool", "a")])),
            (" pool = a , zone=b", labels(&[("pool", "a"), ("zone", "b")])),
            ("pool=", labels(&[("pool", "")])),
            ("pool=a,pool=b", labels(&[("pool", "b")])),
            ("pool==a", labels(&[("pool", "a")])),
            ("node-role.kubernetes.io/infra=", labels(&[("node-role.kubernetes.io/infra", "")])),
        ];
        for (text, expected) in valid {
            assert_eq!(selector(text), Ok(expected), "{text:?}");
        }
        for text in ["pool", "pool=a,", ",", "=a", "pool=a=b", "pool=a b", "po ol=a", "pool!=a"] {
            assert_eq!(selector(text), Err(NodeSelectorError), "{text:?}");
        }
    }
}
