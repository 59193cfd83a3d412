//! Eligible nodes by placement, computed once for each.

use super::eligibility::{NodeFacts, is_eligible};
use super::{PodConstraints, RuntimeClasses};
use crate::policy::Policy;

/// Eligible nodes by placement, ordered by name; most consumers share one placement.
pub struct EligibleNodes<'a> {
    nodes: &'a [NodeFacts<'a>],
    classes: &'a RuntimeClasses,
    policy: &'a Policy,
    known: Vec<(PodConstraints, Vec<&'a NodeFacts<'a>>)>,
}

impl<'a> EligibleNodes<'a> {
    /// For these nodes; nothing is computed yet.
    pub fn new(
        nodes: &'a [NodeFacts<'a>],
        classes: &'a RuntimeClasses,
        policy: &'a Policy,
    ) -> Self {
        EligibleNodes { nodes, classes, policy, known: Vec::new() }
    }

    /// The nodes on which Pods of this placement may start.
    pub fn of(&mut self, placement: &PodConstraints) -> &[&'a NodeFacts<'a>] {
        let at = self.known.iter().position(|(known, _)| known == placement);
        let at = at.unwrap_or_else(|| {
            let whole = self.classes.constrain(placement.clone());
            let fits = |node: &&NodeFacts<'_>| is_eligible(node, &whole, self.policy).is_ok();
            let mut fitting: Vec<_> = self.nodes.iter().filter(fits).collect();
            fitting.sort_unstable_by_key(|node| node.name);
            self.known.push((placement.clone(), fitting));
            self.known.len() - 1
        });
        &self.known[at].1
    }
}
