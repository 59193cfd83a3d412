//! The nodes for which each demand is.

use crate::demand::consumers::ConsumerDemand;
use crate::placement::{EligibleNodes, Exclusion, NodeFacts, PodConstraints, RuntimeClasses};
use crate::policy::Policy;

/// The eligible nodes of demands, ordered by name.
pub(super) struct DemandNodes<'a> {
    eligible: EligibleNodes<'a>,
    demands: &'a [ConsumerDemand],
    /// Where the Pods of any Revision may start; computed when a demand is for these.
    of_every_revision: Option<Vec<&'a NodeFacts<'a>>>,
}

impl<'a> DemandNodes<'a> {
    /// For these demands, which are all that there are.
    pub(super) fn new(
        nodes: &'a [NodeFacts<'a>],
        classes: &'a RuntimeClasses,
        demands: &'a [ConsumerDemand],
        policy: &'a Policy,
    ) -> Self {
        let eligible = EligibleNodes::new(nodes, classes, policy);
        DemandNodes { eligible, demands, of_every_revision: None }
    }

    /// The nodes on which the images of this demand are wanted.
    pub(super) fn of(&mut self, one: &ConsumerDemand) -> &[&'a NodeFacts<'a>] {
        if !one.demand.by_every_revision {
            return self.eligible.of(&one.demand.placement);
        }
        let DemandNodes { eligible, demands, of_every_revision } = self;
        of_every_revision.get_or_insert_with(|| {
            let unconstrained = PodConstraints::default();
            let revisions = demands.iter().filter(|one| one.starts_pods());
            let placements = revisions.map(|one| &one.demand.placement);
            eligible.of_any([&unconstrained].into_iter().chain(placements))
        })
    }

    /// Why the API server rejects the Pods of this demand, if it does.
    pub(super) fn rejected(&self, one: &ConsumerDemand) -> Option<Exclusion> {
        self.eligible.rejected(&one.demand.placement)
    }
}
