//! An ImageWarm as the controller caches it. One exists for each image and node, and most have
//! equal parts: [`Shared`] stores such parts once. Takes a tenth of the memory of the object as
//! sent.

use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube_core::Resource;

use super::condition::{Condition, READY, Reason};
use super::names::{MAX_PULL_SECRET_NAMES, MAX_PULL_SECRETS, MAX_SUBDOMAIN, NodeName, Uid};
use super::{
    CREATED_FOR_ANNOTATION, EXPIRES_AT_ANNOTATION, ImageWarm, ImageWarmSpec, ImageWarmStatus,
    KnativeImage, MANAGED_BY, MANAGED_BY_LABEL, Progress, SERVICE_ACCOUNT_ANNOTATION,
    SecretReference,
};

/// Longest annotation that we set, in bytes: a uid and a name, or a name.
const LONGEST_ANNOTATION: usize = 512;
/// Longest uid of an owner, in bytes. The API server gives 36, but takes any from users.
const LONGEST_UID: usize = 64;
/// An ImageWarm has one owner at most that is an Image; of more, the first counts.
const MAX_OWNERS: usize = 1;

/// The cached fields of an ImageWarm: those that a decision or a status write depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CachedImageWarm {
    /// `metadata.namespace`; empty without.
    pub namespace: Arc<str>,
    /// `metadata.name`; empty without.
    pub name: Box<str>,
    /// `metadata.uid`; empty without, which the API server never stores.
    pub uid: Uid,
    /// `metadata.resourceVersion`; empty without.
    pub resource_version: Box<str>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `metadata.deletionTimestamp`.
    pub deletion_timestamp: Option<Timestamp>,
    /// `spec.image`.
    pub image: Arc<str>,
    /// `spec.nodeName`.
    pub node_name: NodeName,
    /// What ImageWarms of the same Revision have in common.
    pub common: Arc<Common>,
    /// `status`.
    pub status: Option<CachedStatus>,
}

/// What ImageWarms of the same Revision have in common: only what a decision depends on, and of that no
/// more than we write. Users may put a megabyte of anything into an object's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Common {
    /// Of `metadata.labels` that of [`MANAGED_BY_LABEL`].
    pub labels: BTreeMap<String, String>,
    /// Of `metadata.annotations` those that we set.
    pub annotations: BTreeMap<String, String>,
    /// Of `metadata.ownerReferences` the Images.
    pub owners: Vec<OwnerReference>,
    /// `spec.imagePullSecrets`.
    pub secrets: Vec<SecretReference>,
}

impl Common {
    fn new(
        mut labels: BTreeMap<String, String>,
        mut annotations: BTreeMap<String, String>,
        mut owners: Vec<OwnerReference>,
        mut secrets: Vec<SecretReference>,
    ) -> Self {
        labels.retain(|key, _| key == MANAGED_BY_LABEL);
        annotations.retain(|key, value| {
            [CREATED_FOR_ANNOTATION, EXPIRES_AT_ANNOTATION, SERVICE_ACCOUNT_ANNOTATION]
                .contains(&key.as_str())
                && value.len() <= LONGEST_ANNOTATION
        });
        owners.retain(|owner| {
            owner.kind == KnativeImage::kind(&())
                && owner.api_version == KnativeImage::api_version(&())
                && owner.name.len() <= MAX_SUBDOMAIN
                && owner.uid.len() <= LONGEST_UID
        });
        owners.truncate(MAX_OWNERS);
        secrets.retain(|secret| secret.name.len() <= MAX_SUBDOMAIN);
        secrets.truncate(MAX_PULL_SECRETS);
        let mut bytes = 0;
        secrets.retain(|secret| {
            bytes += secret.name.len();
            bytes <= MAX_PULL_SECRET_NAMES
        });
        owners.shrink_to_fit();
        secrets.shrink_to_fit();
        Common { labels, annotations, owners, secrets }
    }
}

impl Eq for Common {}

impl Hash for Common {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.labels, &self.annotations, &self.secrets).hash(state);
        self.owners.iter().for_each(|owner| owner.uid.hash(state));
    }
}

/// The cached status of an ImageWarm: all its fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CachedStatus {
    /// `observedGeneration`.
    pub observed_generation: Option<i64>,
    /// `conditions`.
    pub conditions: Arc<Conditions>,
    /// `annotations`.
    pub annotations: Arc<BTreeMap<String, String>>,
    /// `digest`.
    pub digest: Option<Arc<str>>,
    /// `sizeBytes`.
    pub size_bytes: Option<i64>,
    /// `progress`.
    pub progress: Option<Progress>,
    /// `attempts`.
    pub attempts: Option<i32>,
    /// `startedAt`.
    pub started_at: Option<Timestamp>,
    /// `finishedAt`.
    pub finished_at: Option<Timestamp>,
    /// `took`.
    pub took: Option<Arc<str>>,
    /// `checkedFor`.
    pub checked_for: Option<Arc<str>>,
}

/// Conditions that can be shared: those of pulls that end in the same second are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(pub Vec<Condition>);

impl Hash for Conditions {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for one in &self.0 {
            let second = one.last_transition_time.as_ref().map(|time| time.0.as_second());
            (&one.type_, &one.reason, &one.message, second).hash(state);
        }
    }
}

impl CachedImageWarm {
    /// Caches `warm`, with the parts that it has in common with others from `shared`.
    pub fn new(warm: ImageWarm, shared: &mut Shared) -> Self {
        let ImageWarm { metadata, spec, status } = warm;
        let common = Common::new(
            metadata.labels.unwrap_or_default(),
            metadata.annotations.unwrap_or_default(),
            metadata.owner_references.unwrap_or_default(),
            spec.image_pull_secrets,
        );
        CachedImageWarm {
            namespace: shared.text(metadata.namespace.as_deref().unwrap_or_default()),
            name: metadata.name.unwrap_or_default().into(),
            uid: metadata.uid.unwrap_or_default().into(),
            resource_version: metadata.resource_version.unwrap_or_default().into(),
            generation: metadata.generation,
            created: metadata.creation_timestamp.map(|time| time.0),
            deletion_timestamp: metadata.deletion_timestamp.map(|time| time.0),
            image: shared.text(&spec.image),
            node_name: shared.text(&spec.node_name).into(),
            common: shared.commons.share(common),
            status: status.map(|status| CachedStatus::new(status, shared)),
        }
    }

    /// The object, without the fields that are not cached (managed fields, finalizers).
    pub fn to_image_warm(&self) -> ImageWarm {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let Common { labels, annotations, owners, secrets } = &*self.common;
        ImageWarm {
            metadata: ObjectMeta {
                namespace: some(&self.namespace),
                name: some(&self.name),
                uid: some(&self.uid),
                resource_version: some(&self.resource_version),
                generation: self.generation,
                creation_timestamp: self.created.map(Time),
                deletion_timestamp: self.deletion_timestamp.map(Time),
                labels: Some(labels.clone()).filter(|all| !all.is_empty()),
                annotations: Some(annotations.clone()).filter(|all| !all.is_empty()),
                owner_references: Some(owners.clone()).filter(|all| !all.is_empty()),
                ..ObjectMeta::default()
            },
            spec: ImageWarmSpec {
                image: self.image.to_string(),
                node_name: self.node_name.to_string(),
                image_pull_secrets: secrets.clone(),
            },
            status: self.status.as_ref().map(CachedStatus::to_status),
        }
    }

    /// Whether the object is terminating.
    pub fn is_terminating(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The `Ready` condition, if it was ever written.
    pub fn ready(&self) -> Option<&Condition> {
        let conditions = &self.status.as_ref()?.conditions.0;
        conditions.iter().find(|condition| condition.type_ == READY)
    }

    /// The typed reason of the `Ready` condition.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_name(&self.ready()?.reason)
    }

    /// `status.digest`.
    pub fn digest(&self) -> Option<&str> {
        self.status.as_ref()?.digest.as_deref()
    }

    /// When the leader may delete one that was made by hand; never without, or with what is no time.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.annotation(EXPIRES_AT_ANNOTATION)?.parse().ok()
    }

    /// The annotation of this key.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.common.annotations.get(key).map(String::as_str)
    }

    /// Whether this program created the object (and so may delete it).
    pub fn is_managed(&self) -> bool {
        self.common.labels.get(MANAGED_BY_LABEL).map(String::as_str) == Some(MANAGED_BY)
    }
}

impl From<ImageWarm> for CachedImageWarm {
    /// Caches an object without sharing.
    fn from(warm: ImageWarm) -> Self {
        CachedImageWarm::new(warm, &mut Shared::default())
    }
}

impl CachedStatus {
    fn new(status: ImageWarmStatus, shared: &mut Shared) -> Self {
        CachedStatus {
            observed_generation: status.observed_generation,
            conditions: shared.conditions.share(Conditions(status.conditions)),
            annotations: shared.annotations.share(status.annotations),
            digest: status.digest.map(|digest| shared.text(&digest)),
            size_bytes: status.size_bytes,
            progress: status.progress,
            attempts: status.attempts,
            started_at: status.started_at.map(|time| time.0),
            finished_at: status.finished_at.map(|time| time.0),
            took: status.took.map(|took| shared.text(&took)),
            checked_for: status.checked_for.map(|token| shared.text(&token)),
        }
    }

    fn to_status(&self) -> ImageWarmStatus {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        ImageWarmStatus {
            observed_generation: self.observed_generation,
            conditions: self.conditions.0.clone(),
            annotations: (*self.annotations).clone(),
            digest: text(&self.digest),
            size_bytes: self.size_bytes,
            progress: self.progress,
            attempts: self.attempts,
            started_at: self.started_at.map(Time),
            finished_at: self.finished_at.map(Time),
            took: text(&self.took),
            checked_for: text(&self.checked_for),
        }
    }
}

/// Parts that several cached objects have in common, each stored once.
#[derive(Debug, Default)]
pub struct Shared {
    texts: Pool<str>,
    commons: Pool<Common>,
    conditions: Pool<Conditions>,
    annotations: Pool<BTreeMap<String, String>>,
}

impl Shared {
    fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.get(text).unwrap_or_else(|| self.texts.put(text.into()))
    }
}

/// How many parts a pool holds before unused ones are first removed.
const FIRST_SWEEP: usize = 1_024;

/// Equal values, each once.
#[derive(Debug)]
pub struct Pool<T: ?Sized + Eq + Hash> {
    parts: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Pool<T> {
    fn default() -> Self {
        Pool { parts: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn get(&self, part: &T) -> Option<Arc<T>> {
        self.parts.get(part).cloned()
    }

    /// Adds a part that is not stored yet. Unused parts are removed at times: seldom enough to be
    /// cheap, often enough that at most half of the parts are unused.
    fn put(&mut self, part: Arc<T>) -> Arc<T> {
        if self.parts.len() >= self.sweep_at {
            self.parts.retain(|part| Arc::strong_count(part) > 1);
            self.parts.shrink_to_fit();
            self.sweep_at = (2 * self.parts.len()).max(FIRST_SWEEP);
        }
        self.parts.insert(part.clone());
        part
    }
}

impl<T: Eq + Hash> Pool<T> {
    /// The one that equals `part`.
    pub fn share(&mut self, part: T) -> Arc<T> {
        self.get(&part).unwrap_or_else(|| self.put(Arc::new(part)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn whole(node: &str) -> ImageWarm {
        serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {
                "name": format!("app-{node}"), "namespace": "team", "uid": format!("uid-{node}"),
                "resourceVersion": "7", "generation": 1,
                "creationTimestamp": "2026-11-23T10:00:00Z",
                "deletionTimestamp": "2026-11-23T11:00:00Z",
                "labels": {MANAGED_BY_LABEL: MANAGED_BY},
                "annotations": {CREATED_FOR_ANNOTATION: "b"},
                "ownerReferences": [{"apiVersion": "caching.internal.knative.dev/v1alpha1",
                    "kind": "Image", "name": "app", "uid": "u", "controller": false, "blockOwnerDeletion": false}],
            },
            "spec": {"image": "r.test/app:v1", "nodeName": node,
                "imagePullSecrets": [{"name": "one"}, {"name": "two"}]},
            "status": {
                "observedGeneration": 1,
                "conditions": [
                    {"type": "Other", "status": "False"},
                    {"type": "Ready", "status": "True", "reason": "Pulled", "message": "m",
                     "lastTransitionTime": "2026-11-23T10:00:03Z"},
                ],
                "annotations": {"runtime": "containerd 2.2.3"},
                "digest": "sha256:1", "sizeBytes": 5, "attempts": 2,
                "progress": {"downloadedBytes": 1, "totalBytes": 2},
                "startedAt": "2026-11-23T10:00:01Z", "finishedAt": "2026-11-23T10:00:02Z",
                "took": "1.0s", "checkedFor": "u/app-00001",
            },
        }))
        .unwrap()
    }

    #[test]
    fn nothing_is_lost() {
        let warm = whole("a");
        let mut bare = ImageWarm::new("bare", ImageWarmSpec::default());
        bare.status = Some(ImageWarmStatus::default());
        for warm in [warm.clone(), bare, ImageWarm::new("", ImageWarmSpec::default())] {
            let mut again = CachedImageWarm::from(warm.clone()).to_image_warm();
            again.metadata.name.get_or_insert_default();
            assert_eq!(again, warm);
        }
        let kept = CachedImageWarm::from(warm.clone());
        assert_eq!((kept.ready(), kept.reason()), (warm.ready(), warm.reason()));
        assert!(kept.is_managed() && kept.is_terminating());
        assert_eq!(
            (kept.digest(), kept.annotation(CREATED_FOR_ANNOTATION)),
            (Some("sha256:1"), Some("b"))
        );
    }

    #[test]
    fn what_users_add_takes_no_memory() {
        let warm = whole("a");
        let mut stuffed = warm.clone();
        let many = |value: String| (0..1_000).map(move |at| (format!("k{at}"), value.clone()));
        let metadata = &mut stuffed.metadata;
        metadata.labels.get_or_insert_default().extend(many("v".into()));
        metadata.annotations.get_or_insert_default().extend(many("x".repeat(200)));
        let owners = metadata.owner_references.get_or_insert_default();
        let owner = owners[0].clone();
        owners.extend((0..1_000).map(|_| OwnerReference { kind: "Pod".into(), ..owner.clone() }));
        assert_eq!(CachedImageWarm::from(stuffed.clone()), CachedImageWarm::from(warm));
        // Also what looks like ours is bounded.
        let metadata = &mut stuffed.metadata;
        metadata.annotations = Some([(CREATED_FOR_ANNOTATION.into(), "x".repeat(513))].into());
        let long = OwnerReference { uid: "u".repeat(65), ..owner.clone() };
        let other = OwnerReference { api_version: "x".repeat(1_000), ..owner.clone() };
        metadata.owner_references = Some([vec![long, other], vec![owner.clone(); 1_000]].concat());
        let secret = SecretReference { name: "s".into() };
        stuffed.spec.image_pull_secrets = vec![secret; 1_000];
        stuffed.spec.image_pull_secrets.insert(0, SecretReference { name: "s".repeat(254) });
        let cached = CachedImageWarm::from(stuffed).common.clone();
        assert!(cached.annotations.is_empty());
        assert_eq!((cached.owners.len(), cached.secrets.len()), (1, 16));
        assert_eq!(cached.owners[0], owner);
        assert_eq!(cached.secrets[0].name, "s");
        let secrets = (0..16).map(|_| SecretReference { name: "s".repeat(253) });
        let mut warm = whole("a");
        warm.spec.image_pull_secrets = secrets.collect();
        assert_eq!(CachedImageWarm::from(warm).common.secrets.len(), 4);
    }

    #[test]
    fn unused_parts_go_when_as_many_again_were_added() {
        let mut pool = Pool::<u64>::default();
        let kept: Vec<_> = (0..FIRST_SWEEP as u64).map(|at| pool.share(at)).collect();
        let added: Vec<u64> = (0..FIRST_SWEEP as u64).map(|at| at + 1_000_000).collect();
        added.iter().for_each(|at| drop(pool.share(*at)));
        assert_eq!(pool.parts.len(), 2 * kept.len(), "swept too early");
        pool.share(9_999_999);
        assert_eq!(pool.parts.len(), kept.len() + 1);
    }

    #[test]
    fn neighbours_share_what_they_have_in_common() {
        let mut shared = Shared::default();
        let (a, b) = (
            CachedImageWarm::new(whole("a"), &mut shared),
            CachedImageWarm::new(whole("b"), &mut shared),
        );
        assert!(Arc::ptr_eq(&a.common, &b.common) && Arc::ptr_eq(&a.image, &b.image));
        assert_ne!(a.node_name, b.node_name);
        let (a, b) = (a.status.unwrap(), b.status.unwrap());
        assert!(Arc::ptr_eq(&a.conditions, &b.conditions));
        assert!(Arc::ptr_eq(&a.annotations, &b.annotations));
    }

    #[test]
    fn what_nobody_has_any_more_is_dropped() {
        let mut shared = Shared::default();
        let kept = CachedImageWarm::new(whole("kept"), &mut shared);
        for at in 0..10 * FIRST_SWEEP {
            shared.text(&at.to_string());
        }
        assert!(shared.texts.parts.len() <= FIRST_SWEEP, "{}", shared.texts.parts.len());
        assert!(Arc::ptr_eq(&shared.text("r.test/app:v1"), &kept.image));
    }
}
