//! Settings of the controller: the operator's policy, the leader's grace periods, the lease.

use std::time::Duration;

use clap::ArgAction;
use clap::builder::BoolishValueParser;

use imagewarm_core::api::names::Namespace;
use imagewarm_core::image::ImageRewrites;
use imagewarm_core::image::quoted::quoted;
use imagewarm_core::image::registry_pattern::{RegistryPattern, RegistryPatternError};
use imagewarm_core::placement::{GateTaint, NodeSelector};
use imagewarm_core::plan::diff::GracePeriods;
use imagewarm_core::policy::bounds::NamespaceSelection;
use imagewarm_core::policy::{Bounds, Policy};
use imagewarm_core::settings::duration;

/// Which images are warmed, and how the leader reconciles ImageWarms and deletes orphans.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Controller")]
pub struct ControllerArgs {
    /// Stop all warming: existing ImageWarms stay as they are, none is created or deleted
    #[arg(
        long,
        env = "IMAGEWARM_PAUSED",
        value_name = "BOOL",
        default_value_t = false,
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub paused: bool,

    /// Registries whose images are never warmed, such as `docker.io` or `*.dkr.ecr.*.amazonaws.com`;
    /// Knative does not resolve these by default
    #[arg(
        long,
        env = "IMAGEWARM_SKIPPED_REGISTRIES",
        value_name = "DOMAIN,…",
        default_value = "dev.local,kind.local,ko.local",
        value_parser = registry_patterns
    )]
    pub skipped_registries: RegistryPatterns,

    /// What the cluster makes of images when Pods are admitted, by repository prefix, the longest first:
    /// `docker.io=mirror.example/hub,docker.io/library=mirror.example/official`. What Pods then pull is warmed
    #[arg(
        long,
        env = "IMAGEWARM_IMAGE_REWRITES",
        value_name = "PREFIX=PREFIX,…",
        default_value = ""
    )]
    pub image_rewrites: ImageRewrites,

    /// Keys of taints that only mark a starting node and so do not delay warming; `prefix*` for
    /// all keys with a prefix
    #[arg(
        long,
        env = "IMAGEWARM_STARTUP_TAINTS",
        value_name = "KEY,…",
        value_delimiter = ',',
        default_value = "node.kubernetes.io/not-ready"
    )]
    pub startup_taints: Vec<String>,

    /// Key of a taint with which new nodes come, such as `caching.knative.dev/warming`. It is removed once the
    /// images that active Revisions want there are warm or have failed for good. It is a startup taint, too.
    /// Empty for no node gate. overlays/node-gate has the right that this needs
    #[arg(long, env = "IMAGEWARM_NODE_GATE_TAINT", value_name = "KEY", default_value = "")]
    pub node_gate_taint: GateTaint,

    /// Maximum age of a node with that taint. Then the taint is removed, whatever is missing
    #[arg(
        long,
        env = "IMAGEWARM_NODE_GATE_DEADLINE",
        value_name = "DURATION",
        default_value = "5m",
        value_parser = duration
    )]
    pub node_gate_deadline: Duration,

    /// Which namespaces are warmed: all but those labelled `caching.knative.dev/warm: "false"`
    /// (`opt-out`), or only those labelled `caching.knative.dev/warm: "true"` (`opt-in`)
    #[arg(
        long,
        env = "IMAGEWARM_NAMESPACE_SELECTION",
        value_name = "SELECTION",
        default_value = "opt-out",
        value_parser = namespace_selection
    )]
    pub namespace_selection: NamespaceSelection,

    /// Node selector (KEY=VALUE,…) of namespaces that have none of their own, as Pods get it: OpenShift's
    /// `defaultNodeSelector`, or `clusterDefaultNodeSelector` of the plugin `PodNodeSelector`
    #[arg(
        long,
        env = "IMAGEWARM_DEFAULT_NODE_SELECTOR",
        value_name = "LABELS",
        default_value = ""
    )]
    pub default_node_selector: NodeSelector,

    /// Namespace of Knative Serving. Its ConfigMap `config-deployment` names the queue-proxy's image, and
    /// the RuntimeClasses of Revisions by their labels
    #[arg(
        long,
        env = "IMAGEWARM_KNATIVE_NAMESPACE",
        value_name = "NAME",
        default_value = "knative-serving"
    )]
    pub knative_namespace: Namespace,

    /// Maximum number of images of one Revision to warm, in the order of its containers, then its volumes;
    /// 0 for no limit. When it is lowered, ImageWarms beyond it are deleted
    #[arg(
        long,
        env = "IMAGEWARM_MAX_IMAGES_PER_REVISION",
        value_name = "COUNT",
        default_value_t = Bounds::default().images_per_revision
    )]
    pub max_images_per_revision: usize,

    /// Maximum number of ImageWarms in the cluster; 0 for no limit. By default what fits into the shipped
    /// memory limit. Existing ones stay when the limit is lowered
    #[arg(
        long,
        env = "IMAGEWARM_MAX_IMAGE_WARMS",
        value_name = "COUNT",
        default_value_t = Bounds::default().image_warms
    )]
    pub max_image_warms: usize,

    /// Maximum number of ImageWarms in one namespace (images times nodes; those that users create
    /// count); 0 for no limit. Existing ones stay when the limit is lowered
    #[arg(
        long,
        env = "IMAGEWARM_MAX_IMAGE_WARMS_PER_NAMESPACE",
        value_name = "COUNT",
        default_value_t = Bounds::default().image_warms_per_namespace
    )]
    pub max_image_warms_per_namespace: usize,

    /// Minimum age of an ImageWarm before it is deleted because its Revision or node is missing
    #[arg(
        long,
        env = "IMAGEWARM_COLLECT_GRACE",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration
    )]
    pub collect_grace: Duration,

    /// How long the images of a Revision in reserve (one that no longer receives traffic) stay
    /// warm. Then its ImageWarms are deleted, and created again when it becomes active
    #[arg(
        long,
        env = "IMAGEWARM_RESERVE_DELAY",
        value_name = "DURATION",
        default_value = "10m",
        value_parser = duration
    )]
    pub reserve_delay: Duration,

    /// How long the leader leaves a new Revision to the fan-out at admission before it creates the
    /// missing ImageWarms
    #[arg(
        long,
        env = "IMAGEWARM_REPAIR_DELAY",
        value_name = "DURATION",
        default_value = "2s",
        value_parser = duration
    )]
    pub repair_delay: Duration,

    /// Maximum number of ImageWarms that the leader creates or deletes at the same time, each over
    /// a connection of its own
    #[arg(
        long,
        env = "IMAGEWARM_REPAIR_CONCURRENCY",
        value_name = "COUNT",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub repair_concurrency: u16,

    /// Count how many containers found their image on the node. The leader watches kubelets' Events for
    /// it
    #[arg(
        long,
        env = "IMAGEWARM_COUNT_CONTAINER_STARTS",
        value_name = "BOOL",
        action = ArgAction::Set,
        default_value_t = true
    )]
    pub count_container_starts: bool,

    /// Let images come first that Pods wait for: on a node that has yet to pull them, and, while a kubelet pulls one,
    /// by suspending pulls from the same registry on other nodes, if they take bandwidth from it. The leader watches
    /// Events about Pods for it
    #[arg(
        long,
        env = "IMAGEWARM_PREEMPTION",
        value_name = "BOOL",
        action = ArgAction::Set,
        default_value_t = true
    )]
    pub preemption: bool,
}

impl ControllerArgs {
    /// The decisions for the whole cluster.
    pub fn policy(&self) -> Policy {
        let filled = |list: &[String]| {
            list.iter().map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
        };
        Policy {
            paused: self.paused,
            skipped_registries: self.skipped_registries.0.clone(),
            image_rewrites: self.image_rewrites.clone(),
            startup_taints: filled(&self.startup_taints),
            gate_taint: self.node_gate_taint.0.clone(),
            default_node_selector: self.default_node_selector.clone(),
            knative_namespace: self.knative_namespace.to_string(),
            bounds: Bounds {
                namespaces: self.namespace_selection,
                images_per_revision: self.max_images_per_revision,
                image_warms_per_namespace: self.max_image_warms_per_namespace,
                image_warms: self.max_image_warms,
            },
        }
    }

    pub(super) fn grace_periods(&self) -> GracePeriods {
        GracePeriods {
            fan_out: self.repair_delay,
            collect: self.collect_grace,
            reserve: self.reserve_delay,
        }
    }
}

/// The value of `--skipped-registries`; empty for none.
#[derive(Clone, Debug)]
pub struct RegistryPatterns(Vec<RegistryPattern>);

fn registry_patterns(value: &str) -> Result<RegistryPatterns, RegistryPatternError> {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(RegistryPatterns(parts.map(str::parse).collect::<Result<_, _>>()?))
}

fn namespace_selection(value: &str) -> Result<NamespaceSelection, String> {
    match value {
        "opt-out" => Ok(NamespaceSelection::OptOut),
        "opt-in" => Ok(NamespaceSelection::OptIn),
        other => Err(format!("{} is neither opt-out nor opt-in", quoted(other))),
    }
}

/// Settings of leader election.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Leader election")]
pub struct LeaseArgs {
    /// Name of the Lease. The policy in deploy/rbac/controller-policy.yaml permits those that begin
    /// with imagewarm-
    #[arg(
        long,
        env = "IMAGEWARM_LEASE_NAME",
        value_name = "NAME",
        default_value = "imagewarm-leader"
    )]
    pub lease_name: String,

    /// How long other replicas wait before they acquire a Lease that is not renewed
    #[arg(
        long,
        env = "IMAGEWARM_LEASE_DURATION",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = duration
    )]
    pub lease_duration: Duration,

    /// How long the leader continues without renewing the Lease; less than the Lease's duration
    #[arg(
        long,
        env = "IMAGEWARM_LEASE_RENEW_DEADLINE",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration
    )]
    pub lease_renew_deadline: Duration,

    /// How often the Lease is checked and renewed; less than the renew deadline
    #[arg(
        long,
        env = "IMAGEWARM_LEASE_RETRY",
        value_name = "DURATION",
        default_value = "2s",
        value_parser = duration
    )]
    pub lease_retry: Duration,
}

/// Settings of the Lease that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--lease-duration ({0:?}) must be whole seconds and more than --lease-renew-deadline ({1:?}), \
     and that more than --lease-retry ({2:?})"
)]
pub struct LeaseArgsError(Duration, Duration, Duration);

impl LeaseArgs {
    /// Whether the times fit each other.
    pub fn check(&self) -> Result<(), LeaseArgsError> {
        let times = (self.lease_duration, self.lease_renew_deadline, self.lease_retry);
        let (duration, deadline, retry) = times;
        if duration > deadline && deadline > retry && duration.subsec_nanos() == 0 {
            Ok(())
        } else {
            Err(LeaseArgsError(duration, deadline, retry))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse<A: Args + FromArgMatches>(flags: &[&str]) -> Result<A, clap::Error> {
        let command = A::augment_args(Command::new("imagewarm"));
        let matches = command.try_get_matches_from(std::iter::once(&"imagewarm").chain(flags))?;
        A::from_arg_matches(&matches)
    }

    #[test]
    fn defaults_are_those_of_the_policy() {
        let args: ControllerArgs = parse(&[]).unwrap();
        let (policy, default) = (args.policy(), Policy::default());
        assert_eq!(policy.skipped_registries, default.skipped_registries);
        assert_eq!(policy.startup_taints, default.startup_taints);
        assert_eq!(policy.gate_taint, default.gate_taint);
        assert!(!policy.paused);
        assert_eq!(policy.bounds, default.bounds);
        assert_eq!(policy.default_node_selector, default.default_node_selector);
        assert_eq!(policy.knative_namespace, default.knative_namespace);
        assert_eq!(args.collect_grace, GracePeriods::default().collect);
        assert_eq!(args.repair_delay, GracePeriods::default().fan_out);
        assert_eq!(args.reserve_delay, GracePeriods::default().reserve);
        assert!(parse::<LeaseArgs>(&[]).unwrap().check().is_ok());
    }

    #[test]
    fn lists_can_be_emptied() {
        let args: ControllerArgs = parse(&["--skipped-registries", ""]).unwrap();
        assert!(args.policy().skipped_registries.is_empty());
    }

    #[test]
    fn contradictory_lease_times_are_refused() {
        for flags in [
            ["--lease-duration", "10s"],
            ["--lease-duration", "10500ms"],
            ["--lease-retry", "10s"],
            ["--lease-renew-deadline", "1s"],
        ] {
            assert!(parse::<LeaseArgs>(&flags).unwrap().check().is_err(), "{flags:?}");
        }
        assert!(parse::<LeaseArgs>(&["--lease-retry", "-1s"]).is_err());
    }
}
