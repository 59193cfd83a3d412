//! Terms of the required node affinity, read as kube-scheduler reads them: what is malformed in a
//! term makes the whole term hold nowhere, and spoils no other term.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::NodeFacts;
use crate::placement::labels::{is_label_key, is_label_value};

/// Whether the term holds for the node. One without any requirement holds nowhere.
pub(super) fn holds(term: &NodeSelectorTerm, node: &NodeFacts<'_>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|wanted| label_meets(wanted, node))
        && fields.iter().all(|wanted| field_meets(wanted, node))
}

fn label_meets(wanted: &NodeSelectorRequirement, node: &NodeFacts<'_>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    if !is_label_key(&wanted.key) || !values.iter().all(|value| is_label_value(value)) {
        return false;
    }
    let label = node.labels.get(&wanted.key);
    let listed = || label.is_some_and(|label| values.contains(label));
    match wanted.operator.as_str() {
        "In" => listed(),
        "NotIn" => !values.is_empty() && !listed(),
        "Exists" => values.is_empty() && label.is_some(),
        "DoesNotExist" => values.is_empty() && label.is_none(),
        "Gt" => integers(label, values).is_some_and(|(label, bound)| label > bound),
        "Lt" => integers(label, values).is_some_and(|(label, bound)| label < bound),
        _ => false,
    }
}

fn integers(label: Option<&String>, values: &[String]) -> Option<(i64, i64)> {
    let [bound] = values else { return None };
    Some((label?.parse().ok()?, bound.parse().ok()?))
}

/// The only field of a node is its name; any other reads as empty.
fn field_meets(wanted: &NodeSelectorRequirement, node: &NodeFacts<'_>) -> bool {
    let Some([value]) = wanted.values.as_deref() else { return false };
    let field = if wanted.key == "metadata.name" { node.name } else { "" };
    match wanted.operator.as_str() {
        "In" => field == value,
        "NotIn" => field != value,
        _ => false,
    }
}
