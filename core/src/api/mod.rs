//! The objects stored in Kubernetes: `ImageWarm`, duck/v1 conditions, and the fields that are read
//! of Knative's objects. Data and its rules only; no I/O and no clock.

pub mod cached;
mod cached_object;
pub mod condition;
pub mod deployment_config;
pub mod image_warm;
pub mod knative;
pub(crate) mod lenient;
pub mod names;
pub mod server_version;

pub use cached::CachedImageWarm;
pub use cached_object::CachedObject;
pub use condition::{Condition, ConditionStatus, Reason};
pub use deployment_config::DeploymentConfig;
pub use image_warm::{ImageWarm, ImageWarmSpec, ImageWarmStatus, Progress, SecretReference};
pub use knative::{KnativeImage, Revision};

/// API group of `ImageWarm`.
pub const GROUP: &str = "caching.knative.dev";

/// Annotation on a Revision, or label on a Namespace: `"false"` excludes its images from warming.
pub const WARM_KEY: &str = "caching.knative.dev/warm";

/// Annotation in the status of an ImageWarm: the node's runtime and its version, as last reported.
pub const RUNTIME_KEY: &str = "caching.knative.dev/runtime";

/// Annotation in the status of an ImageWarm: what that runtime reports by itself.
pub const RUNTIME_REPORTS_KEY: &str = "caching.knative.dev/runtime-reports";

/// Annotation on the Lease of the leader: its version.
pub const VERSION_ANNOTATION: &str = "caching.knative.dev/version";

/// Label of every object created by this program; hand-made objects lack it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "imagewarm";

/// Annotation on an `ImageWarm` of ours: the Revision for which it was created, written as
/// `<uid of the Revision's owner, may be empty>/<Revision name>`. See [`revision_token`].
pub const CREATED_FOR_ANNOTATION: &str = "caching.knative.dev/created-for";

/// Annotation on an `ImageWarm` of ours: the ServiceAccount whose `imagePullSecrets` apply when
/// the spec names none.
pub const SERVICE_ACCOUNT_ANNOTATION: &str = "caching.knative.dev/service-account";

/// Annotation on an `ImageWarm` made by hand: when the leader may delete it, unless a Revision or an Image wants it
/// (RFC 3339).
pub const EXPIRES_AT_ANNOTATION: &str = "caching.knative.dev/expires-at";

/// Names one Revision in a form that is known both at admission (no uid yet) and later: the uid
/// of its controlling owner (the Configuration; empty without one), a slash, the Revision's name.
/// `None` while the name is not known (`generateName`).
pub fn revision_token(revision: &Revision) -> Option<String> {
    let name = revision.metadata.name.as_deref().filter(|name| !name.is_empty())?;
    let owner =
        knative::configuration_owner(&revision.metadata).map_or("", |owner| owner.uid.as_str());
    Some(format!("{owner}/{name}"))
}
