//! The Pods that an image is for, as far as the runtime has to know of them.

use std::collections::BTreeSet;

/// The Pod sandboxes that an image is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandboxes {
    /// Namespace of the Pods: CRI-O has signature policies for each.
    pub namespace: String,
    /// Handlers of their RuntimeClasses, at least one; the empty name is that of Pods without a RuntimeClass.
    pub runtime_handlers: BTreeSet<String>,
}

impl Sandboxes {
    /// Pods of this namespace with these handlers; without any, those without a RuntimeClass.
    pub fn new(namespace: &str, runtime_handlers: &[String]) -> Self {
        let default = runtime_handlers.is_empty().then(String::new);
        let runtime_handlers = runtime_handlers.iter().cloned().chain(default).collect();
        Sandboxes { namespace: namespace.to_owned(), runtime_handlers }
    }

    /// Whether an image that is there for the `other` Pods is there for these.
    pub fn are_covered_by(&self, other: &Sandboxes) -> bool {
        self.runtime_handlers.is_subset(&other.runtime_handlers)
    }
}
