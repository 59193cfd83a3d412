//! Eligible nodes by placement, computed once for each.

use std::collections::{BTreeMap, BTreeSet};

use super::eligibility::{Exclusion, NodeFacts, is_eligible};
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
        let at = self.position(placement);
        &self.known[at].1
    }

    /// The nodes on which Pods of any of these placements may start.
    pub fn of_any<'p>(
        &mut self,
        placements: impl Iterator<Item = &'p PodConstraints>,
    ) -> Vec<&'a NodeFacts<'a>> {
        let mut found: BTreeMap<&str, &NodeFacts<'_>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for placement in placements {
            if found.len() == self.nodes.len() {
                break; // the rest adds nothing
            }
            let at = self.position(placement);
            if seen.insert(at) {
                found.extend(self.known[at].1.iter().map(|node| (node.name, *node)));
            }
        }
        found.into_values().collect()
    }

    /// Why the API server rejects Pods of this placement, if it does.
    pub fn rejected(&self, placement: &PodConstraints) -> Option<Exclusion> {
        self.classes.constrain(placement.clone()).rejected()
    }

    /// The place of this placement among the known ones.
    fn position(&mut self, placement: &PodConstraints) -> usize {
        let at = self.known.iter().position(|(known, _)| known == placement);
        at.unwrap_or_else(|| {
            let whole = self.classes.constrain(placement.clone());
            let fits = |node: &&NodeFacts<'_>| is_eligible(node, &whole, self.policy).is_ok();
            let mut fitting: Vec<_> = self.nodes.iter().filter(fits).collect();
            fitting.sort_unstable_by_key(|node| node.name);
            self.known.push((placement.clone(), fitting));
            self.known.len() - 1
        })
    }
}
