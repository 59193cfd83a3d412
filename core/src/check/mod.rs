//! `imagewarm check`: what must hold in a cluster, each thing as one result with what to do when it does not.
//! Pure: the command observes, this decides.

mod before;
mod installation;
mod nodes;
mod observed;
mod render;

pub use before::{ClusterBefore, ObservedBefore, Right, before_installation};
pub use installation::installation;
pub use observed::{
    Admission, Certificate, ConfigurationKind, Crd, Images, Installed, Lease, Node, NodeClock,
    Observed, Read, ReadFailure, Server, Trouble, WarmerPod, Webhook, WebhookConfiguration,
};
pub use render::{Marks, render, render_json};

use jiff::SignedDuration;

use crate::table::duration::duration;

/// What is checked. The order is that of the output: a later one may need an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// The API server answers, and is new enough.
    ApiServer,
    /// The user may create what is installed.
    Rights,
    /// The namespace can hold the installation.
    Namespace,
    /// Nothing of another installation is in the way.
    Conflicts,
    /// The nodes have runtimes that warmers can use.
    Nodes,
    /// The CustomResourceDefinition of ImageWarms is there, and is that of this version.
    Crd,
    /// A controller leads.
    Leader,
    /// The webhook configurations lead to the controllers.
    Webhooks,
    /// The certificates are valid.
    Certificates,
    /// Admission accepts a good ImageWarm and denies a bad one.
    Admission,
    /// Every node has a warmer that is connected.
    Warmers,
    /// The warmers reach the kubelets' runtimes.
    Runtimes,
    /// The credential provider plugins of the nodes work.
    Credentials,
    /// The clocks agree.
    Clocks,
    /// The versions go together.
    Versions,
    /// Knative Serving is there.
    Knative,
}

impl Check {
    /// All, in the order of the output.
    pub const ALL: [Check; 16] = [
        Check::ApiServer,
        Check::Rights,
        Check::Namespace,
        Check::Conflicts,
        Check::Nodes,
        Check::Crd,
        Check::Leader,
        Check::Webhooks,
        Check::Certificates,
        Check::Admission,
        Check::Warmers,
        Check::Runtimes,
        Check::Credentials,
        Check::Clocks,
        Check::Versions,
        Check::Knative,
    ];

    /// The name in the output, which is also the heading in the documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Check::ApiServer => "api-server",
            Check::Rights => "rights",
            Check::Namespace => "namespace",
            Check::Conflicts => "conflicts",
            Check::Nodes => "nodes",
            Check::Crd => "crd",
            Check::Leader => "leader",
            Check::Webhooks => "webhooks",
            Check::Certificates => "certificates",
            Check::Admission => "admission",
            Check::Warmers => "warmers",
            Check::Runtimes => "runtimes",
            Check::Credentials => "credentials",
            Check::Clocks => "clocks",
            Check::Versions => "versions",
            Check::Knative => "knative",
        }
    }

    /// Where the documentation explains it.
    pub fn link(self) -> String {
        format!("docs/cli.md#{}", self.as_str())
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It holds, and something should be done all the same.
    Warning {
        /// What to do.
        hint: String,
    },
    /// It does not hold.
    Failed {
        /// What to do.
        hint: String,
    },
    /// It could not be judged, for want of a right or of another check that failed.
    Skipped {
        /// The check that it waits for.
        needs: Option<Check>,
    },
}

impl Outcome {
    /// How it is written, in JSON and where the output is not a terminal.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Warning { .. } => "warning",
            Outcome::Failed { .. } => "failed",
            Outcome::Skipped { .. } => "skipped",
        }
    }

    /// What to do, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Outcome::Warning { hint } | Outcome::Failed { hint } => Some(hint),
            Outcome::Passed | Outcome::Skipped { .. } => None,
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// What was checked.
    pub check: Check,
    /// What came of it.
    pub outcome: Outcome,
    /// What was found.
    pub message: String,
}

/// Whether nothing failed.
pub fn all_hold(results: &[CheckResult]) -> bool {
    !results.iter().any(|result| matches!(result.outcome, Outcome::Failed { .. }))
}

/// A judgement: an outcome with its message.
type Verdict = (Outcome, String);

fn passed(message: impl Into<String>) -> Verdict {
    (Outcome::Passed, message.into())
}

fn warning(message: impl Into<String>, hint: impl Into<String>) -> Verdict {
    (Outcome::Warning { hint: hint.into() }, message.into())
}

fn failed(message: impl Into<String>, hint: impl Into<String>) -> Verdict {
    (Outcome::Failed { hint: hint.into() }, message.into())
}

/// Judges in order, and leaves out what needs something that does not hold.
#[derive(Default)]
struct Judge {
    results: Vec<CheckResult>,
}

impl Judge {
    fn add(&mut self, check: Check, needs: &[Check], verdict: impl FnOnce() -> Verdict) {
        let missing = needs.iter().find(|needed| !self.holds(**needed)).copied();
        let (outcome, message) = match missing {
            Some(needed) => {
                let message = format!("needs {}", needed.as_str());
                (Outcome::Skipped { needs: Some(needed) }, message)
            }
            None => verdict(),
        };
        self.results.push(CheckResult { check, outcome, message });
    }

    /// Whether what needs this check can be judged. A check for which the user lacks a right is no reason
    /// against that.
    fn holds(&self, check: Check) -> bool {
        let result = self.results.iter().find(|result| result.check == check);
        !result.is_some_and(|result| {
            matches!(result.outcome, Outcome::Failed { .. } | Outcome::Skipped { needs: Some(_) })
        })
    }
}

/// Clocks may differ by so much: certificates are issued that much earlier, and times have whole seconds.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(10);

fn seconds(length: SignedDuration) -> String {
    duration(length.as_secs_f64())
}

/// The first names, and how many more there are.
fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let all: Vec<String> = names.map(crate::table::images::printable).collect();
    match all.len() {
        0..=SHOWN => all.join(", "),
        count => format!("{} and {} more", all[..SHOWN].join(", "), count - SHOWN),
    }
}

#[cfg(test)]
mod tests;
