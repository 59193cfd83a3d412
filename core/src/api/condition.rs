//! Conditions in the form of Knative's duck/v1, and the one list of typed reasons that is used in
//! conditions, Events, metric labels and the command line alike.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::labels;

/// The condition type that summarizes an object.
pub const READY: &str = "Ready";

/// `status` of a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// The condition is not decided yet.
    #[default]
    Unknown,
}

/// One condition of a duck/v1 status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition; `Ready` summarizes the object.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// Empty for an error, or `Warning`, or `Info`: how the condition affects `Ready`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// Machine-readable reason of the status, in upper camel case.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Human-readable explanation of the status.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When `status`, `reason` or `message` last changed, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// Puts `next` in place of the condition of its type, keeping the order by type. Its transition
/// time is `now`, or the old one where nothing else changed. Returns whether anything changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut next: Condition, now: Time) -> bool {
    let old = conditions.iter().position(|old| old.type_ == next.type_);
    if let Some(old) = old.map(|at| &conditions[at])
        && (old.status, &old.reason, &old.message) == (next.status, &next.reason, &next.message)
        && old.last_transition_time.is_some()
    {
        return false;
    }
    next.last_transition_time = Some(now);
    match old {
        Some(at) => conditions[at] = next,
        None => conditions.push(next),
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    true
}

labels! {
    /// Why an `ImageWarm` is in the state that it is in.
    pub enum Reason {
        /// No warmer is connected for the node yet.
        WaitingForWarmer,
        /// The assignment is on the node; other pulls come first.
        Queued,
        /// The image is being pulled.
        Pulling,
        /// The image was pulled.
        Pulled,
        /// The node held the image already; nothing was downloaded.
        AlreadyPresent,
        /// The registry refused the credentials.
        Unauthorized,
        /// The registry refused the image, and imagewarm has no credentials for it; the kubelet may have
        /// some.
        NoCredentials,
        /// The registry refused the image, and a credential provider of the node failed.
        CredentialProviderFailed,
        /// The registry has no such repository, tag or digest.
        NotFound,
        /// The registry limited the rate of requests.
        RateLimited,
        /// The registry could not be reached, or closed the connection.
        RegistryUnreachable,
        /// The node's image file system has too little space left.
        DiskPressure,
        /// The runtime does not have the handler that the RuntimeClass of the Pods names, or does not unpack
        /// images for it.
        RuntimeHandlerUnsupported,
        /// The image has no variant for the node's operating system and architecture.
        PlatformMismatch,
        /// The pull made no progress for too long.
        TimedOut,
        /// The node's container runtime does not answer, or its own store is damaged.
        RuntimeUnavailable,
        /// The runtime that the warmer reaches is not the kubelet's: what it holds serves no Pod.
        RuntimeMismatch,
        /// The image reference cannot be parsed, or the image itself is broken.
        InvalidImage,
        /// The node's signature policy rejects the image.
        SignatureRejected,
        /// A named pull secret does not exist, or is not a pull secret.
        SecretMissing,
        /// The runtime no longer holds the image.
        Removed,
        /// The node no longer exists.
        NodeGone,
    }
}

impl Reason {
    /// The reason with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Reason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }

    /// The status of the `Ready` condition for this reason.
    pub const fn ready(self) -> ConditionStatus {
        match self {
            Reason::Pulled | Reason::AlreadyPresent => ConditionStatus::True,
            Reason::WaitingForWarmer | Reason::Queued | Reason::Pulling => ConditionStatus::Unknown,
            _ => ConditionStatus::False,
        }
    }

    /// Whether user action is required before another attempt can succeed. Transient failures are
    /// retried quickly; these are retried slowly, and at once after a relevant change.
    pub const fn requires_user_action(self) -> bool {
        matches!(
            self,
            Reason::Unauthorized
                | Reason::NoCredentials
                | Reason::CredentialProviderFailed
                | Reason::NotFound
                | Reason::PlatformMismatch
                | Reason::RuntimeMismatch
                | Reason::RuntimeHandlerUnsupported
                | Reason::InvalidImage
                | Reason::SignatureRejected
                | Reason::SecretMissing
        )
    }

    /// Whether the registry has answered nothing that concerns the image: the node's image of that tag may
    /// still be the newest.
    pub const fn leaves_image_unknown(self) -> bool {
        matches!(self, Reason::RegistryUnreachable | Reason::TimedOut | Reason::RateLimited)
    }

    /// The reason for controllers that know the first ones only.
    pub const fn widened(self) -> Reason {
        match self {
            Reason::NoCredentials | Reason::CredentialProviderFailed => Reason::Unauthorized,
            Reason::SignatureRejected => Reason::InvalidImage,
            Reason::RuntimeHandlerUnsupported => Reason::RuntimeMismatch,
            reason => reason,
        }
    }

    /// Whether the registry answered, and refused the image with the credentials that there were.
    pub const fn is_refusal(self) -> bool {
        matches!(self.widened(), Reason::Unauthorized | Reason::NotFound)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap_or_default())
    }

    fn ready(status: ConditionStatus, message: &str) -> Condition {
        Condition { type_: READY.into(), status, message: message.into(), ..Condition::default() }
    }

    #[test]
    fn transition_time_moves_only_with_a_change() {
        let mut conditions = vec![];
        assert!(set_condition(&mut conditions, ready(ConditionStatus::Unknown, "a"), at(1)));
        assert!(!set_condition(&mut conditions, ready(ConditionStatus::Unknown, "a"), at(2)));
        assert_eq!(conditions[0].last_transition_time, Some(at(1)));
        assert!(set_condition(&mut conditions, ready(ConditionStatus::Unknown, "b"), at(3)));
        assert_eq!(conditions[0].last_transition_time, Some(at(3)));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn conditions_stay_sorted_by_type() {
        let mut conditions = vec![ready(ConditionStatus::True, "")];
        let first = Condition { type_: "Active".into(), ..Condition::default() };
        set_condition(&mut conditions, first, at(1));
        let types: Vec<_> = conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["Active", "Ready"]);
    }

    #[test]
    fn names_round_trip() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::from_name("pulled"), None);
    }

    #[test]
    fn times_are_written_as_strict_rfc_3339() {
        let json = serde_json::to_string(&at(0)).unwrap_or_default();
        assert_eq!(json, r#""1970-01-01T00:00:00Z""#);
    }
}
