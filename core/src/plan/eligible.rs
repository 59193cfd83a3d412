//! The nodes for which each demand is.

use crate::demand::consumers::ConsumerDemand;
use crate::placement::{EligibleNodes, Exclusion, NodeFacts, PodConstraints, RuntimeClasses};
use crate::policy::Policy;

/// The eligible nodes of demands, ordered by name.
pub(super) struct DemandNodes<'a> {
    eligible: EligibleNodes<'a>,
    every_revision: &'a [PodConstraints],
    /// Where the Pods of any Revision may start; computed when a demand is for these.
    of_every_revision: Option<Vec<&'a NodeFacts<'a>>>,
}

impl<'a> DemandNodes<'a> {
    /// For these nodes; `every_revision` are the [`placements`] of all Revisions.
    pub(super) fn new(
        nodes: &'a [NodeFacts<'a>],
        classes: &'a RuntimeClasses,
        every_revision: &'a [PodConstraints],
        policy: &'a Policy,
    ) -> Self {
        let eligible = EligibleNodes::new(nodes, classes, policy);
        DemandNodes { eligible, every_revision, of_every_revision: None }
    }

    /// The nodes on which the images of this demand are wanted.
    pub(super) fn of(&mut self, one: &ConsumerDemand) -> &[&'a NodeFacts<'a>] {
        if !one.demand.by_every_revision {
            return self.eligible.of(&one.demand.placement);
        }
        let DemandNodes { eligible, every_revision, of_every_revision } = self;
        of_every_revision.get_or_insert_with(|| {
            let unconstrained = PodConstraints::default();
            eligible.of_any([&unconstrained].into_iter().chain(every_revision.iter()))
        })
    }

    /// Why the API server rejects the Pods of this demand, if it does.
    pub(super) fn rejected(&self, one: &ConsumerDemand) -> Option<Exclusion> {
        self.eligible.rejected(&one.demand.placement)
    }
}

/// The placements of Revisions that start Pods, each once, as far as they may add to the nodes on which Pods
/// without constraints start: a node selector alone only takes nodes away.
pub fn placements<'a>(demands: impl Iterator<Item = &'a ConsumerDemand>) -> Vec<PodConstraints> {
    let mut found: Vec<PodConstraints> = Vec::new();
    for one in demands.filter(|one| one.starts_pods()) {
        let placement = &one.demand.placement;
        let may_add = !placement.tolerations.is_empty() || placement.runtime_class.is_some();
        if may_add && !found.contains(placement) {
            found.push(placement.clone());
        }
    }
    found
}
