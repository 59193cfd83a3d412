//! Where a Pod may start: the rules of kube-scheduler as far as they depend on the node alone, and
//! a few of our own.

mod constraints;
pub mod eligibility;
mod gate_taint;
mod labels;
pub mod namespace;
mod node_selector;
mod nodes;
mod runtime_class;

pub use constraints::{PodConstraints, Rejection};
pub use eligibility::{Exclusion, NodeFacts, VIRTUAL_NODES, is_eligible};
pub use gate_taint::{GATE_TAINT, GateTaint, GateTaintError};
pub use namespace::NamespaceRules;
pub use node_selector::{NodeSelector, NodeSelectorError};
pub use nodes::EligibleNodes;
pub use runtime_class::RuntimeClasses;
