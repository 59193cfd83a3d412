//! Whether containers found their image on the node: what kubelets say in Events when a container starts,
//! and what of that concerns ImageWarms. Pure.
//!
//! Anybody who may create Events can say the same. Nothing is decided by it.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::pending_pod::revision_of;
use super::pod_image::{PULLED, PodImage, of_a_kubelet};
use crate::api::names::Uid;
use crate::api::{CachedImageWarm, Reason};
use crate::labels;

/// The longest time that one pull is taken to have lasted. Kubelets give up sooner.
const LONGEST_PULL: SignedDuration = SignedDuration::from_hours(24);
/// The clocks of nodes and of the leader may differ by this much, and Events have whole seconds.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);

labels! {
    /// What the first container of an image on a node found.
    pub enum StartResult {
        /// The image was there.
        Warm,
        /// The kubelet had to pull it.
        Cold,
    }
}

/// A container's image, as the kubelet found or pulled it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStart {
    /// The image.
    pub image: PodImage,
    /// The Pod's name.
    pub pod: String,
    /// When the kubelet said so first.
    pub at: Timestamp,
    /// `None` when the image was on the node; else how long the container waited for it, zero where the
    /// kubelet does not say.
    pub waited: Option<SignedDuration>,
}

/// What is counted of a [`ContainerStart`].
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// The start.
    pub start: ContainerStart,
    /// What the container found.
    pub result: StartResult,
    /// Of a warm start: how long the image had been on the node, in seconds.
    pub lead_seconds: Option<f64>,
    /// Of a warm start: how long the node's own pull took, in seconds; 0 if it had the image before.
    pub saved_seconds: f64,
    /// Of a cold start: how long the container waited, in seconds.
    pub waited_seconds: f64,
}

impl ContainerStart {
    /// Reads the kubelet's Event `Pulled` of a Pod's container. `None` for everything else.
    pub fn of(event: &Event) -> Option<Self> {
        let said = of_a_kubelet(event, PULLED)?;
        // Of one that repeats: a container of the Pod starts again, and finds what the first one left.
        let times = [&event.first_timestamp, &event.last_timestamp];
        let at = times.into_iter().flatten().map(|time| time.0).next();
        let at = at.or(event.event_time.as_ref().map(|time| time.0))?;
        let waited = match said.before {
            "Container image " if said.after.starts_with(" already present on machine") => None,
            "Successfully pulled image " => Some(waited(said.after).unwrap_or_default()),
            _ => return None,
        };
        Some(ContainerStart { image: said.image, pod: said.pod.to_owned(), at, waited })
    }

    /// The Revision whose Pod it is, by the Pod's name. `None` for other Pods, and for names that Kubernetes has
    /// cut.
    pub fn revision(&self) -> Option<&str> {
        revision_of(&self.pod)
    }

    /// Whether what happened at `time` had happened before. True where the time is not known.
    fn saw(&self, time: Option<Timestamp>) -> bool {
        time.is_none_or(|time| time.duration_since(self.at) <= CLOCK_SKEW)
    }
}

/// The time in ` in 1.2s (1.5s including waiting). …`: the one that includes waiting, if it is there.
fn waited(text: &str) -> Option<SignedDuration> {
    let text = text.strip_prefix(" in ")?;
    let pulled = text.split([' ', '(']).next()?;
    let with_waiting = text.split_once('(').and_then(|(_, rest)| rest.split_once(" including"));
    let duration = with_waiting.map_or(pulled, |(duration, _)| duration);
    let duration = SignedDuration::from_str(duration).ok()?;
    Some(duration.clamp(SignedDuration::ZERO, LONGEST_PULL))
}

/// The ImageWarms whose image a container has used already on their node, by namespace.
#[derive(Debug, Default)]
pub struct Used(HashMap<String, HashSet<Uid>>);

impl Used {
    /// What is to be counted of `starts`, beside the ImageWarms of their namespaces. Of each ImageWarm the first container
    /// counts that finds the image: those that follow would find it without us. `since` is when the starts
    /// began to be followed: of an image that was there before it is not known whether one had used it.
    pub fn count<'a>(
        &mut self,
        starts: &[ContainerStart],
        image_warms: impl Iterator<Item = &'a CachedImageWarm>,
        since: Timestamp,
    ) -> Vec<Counted> {
        let mut of_node: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (at, start) in starts.iter().enumerate() {
            let PodImage { namespace, node, .. } = &start.image;
            of_node.entry((namespace, node)).or_default().push(at);
        }
        let mut used: HashMap<&str, HashSet<Uid>> = HashMap::new();
        let mut candidates: HashMap<usize, Vec<&CachedImageWarm>> = HashMap::new();
        for warm in image_warms {
            if self.contains(warm) {
                used.entry(&warm.namespace).or_default().insert(warm.uid.clone());
            }
            let there = of_node.get(&(&*warm.namespace, &*warm.node_name)).into_iter().flatten();
            let is_of = |start: &ContainerStart| start.image.is_of(warm) && start.saw(warm.created);
            for at in there.filter(|at| starts.get(**at).is_some_and(is_of)) {
                candidates.entry(*at).or_default().push(warm);
            }
        }
        // Of ImageWarms that are gone nothing is kept.
        for (namespace, _) in of_node.keys() {
            self.0.remove(*namespace);
        }
        self.0.extend(used.into_iter().map(|(namespace, used)| (namespace.to_owned(), used)));
        let in_order = starts.iter().enumerate();
        in_order
            .filter_map(|(at, start)| self.count_one(start, candidates.get(&at)?, since))
            .collect()
    }

    /// Forgets the namespaces that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|namespace, _| exists(namespace));
    }

    fn contains(&self, warm: &CachedImageWarm) -> bool {
        self.0.get(&*warm.namespace).is_some_and(|used| used.contains(&warm.uid))
    }

    fn add(&mut self, start: &ContainerStart, warms: &[&CachedImageWarm]) {
        let used = self.0.entry(start.image.namespace.clone()).or_default();
        used.extend(warms.iter().map(|warm| warm.uid.clone()));
    }

    fn count_one(
        &mut self,
        start: &ContainerStart,
        warms: &[&CachedImageWarm],
        since: Timestamp,
    ) -> Option<Counted> {
        let is_first = !warms.iter().any(|warm| self.contains(warm));
        let counted = |result| Counted {
            start: start.clone(),
            result,
            lead_seconds: None,
            saved_seconds: 0.0,
            waited_seconds: 0.0,
        };
        let finished = |warm: &CachedImageWarm| warm.status.as_ref()?.finished_at;
        let ready = warms
            .iter()
            .filter(|warm| matches!(warm.reason(), Some(Reason::Pulled | Reason::AlreadyPresent)));
        let ready = ready.filter_map(|warm| Some((finished(warm)?, *warm))).min_by_key(|one| one.0);
        if let Some(waited) = start.waited {
            self.add(start, warms);
            let waited_seconds = waited.as_secs_f64();
            return Some(Counted { waited_seconds, ..counted(StartResult::Cold) });
        }
        // Else the image is there for another's sake, and its own warmer had not reported yet.
        let (finished_at, warm) = ready.filter(|(at, _)| start.saw(Some(*at)))?;
        self.add(start, warms);
        if !is_first || finished_at < since {
            return None;
        }
        let took = warm.status.as_ref().and_then(|status| status.took.as_deref());
        let took = took.filter(|_| warm.reason() == Some(Reason::Pulled));
        let took = took.and_then(|took| SignedDuration::from_str(took).ok()).unwrap_or_default();
        Some(Counted {
            lead_seconds: Some(start.at.duration_since(finished_at).as_secs_f64().max(0.0)),
            saved_seconds: took.clamp(SignedDuration::ZERO, LONGEST_PULL).as_secs_f64(),
            ..counted(StartResult::Warm)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::api::ImageWarm;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn event(message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "app.1"},
            "involvedObject": {"kind": "Pod", "namespace": "ns", "name": "app"},
            "reason": "Pulled", "message": message,
            "source": {"component": "kubelet", "host": "node-1"},
            "lastTimestamp": "2026-01-01T00:01:00Z",
        }))
        .unwrap()
    }

    fn present(image: &str) -> ContainerStart {
        let message = format!("Container image \"{image}\" already present on machine");
        ContainerStart::of(&event(&message)).unwrap()
    }

    fn warm(uid: &str, image: &str, reason: &str, took: &str) -> CachedImageWarm {
        let finished_at = "2026-01-01T00:00:25Z";
        let warm: ImageWarm = serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"namespace": "ns", "name": uid, "uid": uid},
            "spec": {"image": image, "nodeName": "node-1"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": reason}],
                "digest": DIGEST, "took": took, "finishedAt": finished_at,
            },
        }))
        .unwrap();
        warm.into()
    }

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn kubelets_of_all_versions_are_understood() {
        let of = |message: &str| ContainerStart::of(&event(message)).map(|start| start.waited);
        let waited = |text: &str| Some(Some(text.parse::<SignedDuration>().unwrap()));
        let cases = [
            (r#"Container image "a.test/app:v1" already present on machine"#, Some(None)),
            (
                r#"Container image "app" already present on machine and can be accessed by the pod"#,
                Some(None),
            ),
            (r#"Successfully pulled image "app:v1""#, waited("0s")),
            (r#"Successfully pulled image "app:v1" in 1.5s"#, waited("1.5s")),
            (
                r#"Successfully pulled image "app:v1" in 850ms (2m3.25s including waiting)"#,
                waited("2m3.25s"),
            ),
            (
                r#"Successfully pulled image "app:v1" in 1.2s (1.3s including waiting). Image size: 52 bytes."#,
                waited("1.3s"),
            ),
            (r#"Successfully pulled image "app:v1" in 9999999h"#, waited("24h")),
            (r#"Successfully pulled image "app:v1" in a moment"#, waited("0s")),
            (r#"Pulling image "app:v1""#, None),
            (r#"Container image "NOT/an image" already present on machine"#, None),
            ("Container image", None),
            ("", None),
        ];
        for (message, expected) in cases {
            assert_eq!(of(message), expected, "{message}");
        }
        assert_eq!(of(&format!("Successfully pulled image \"app\"{}", " ".repeat(3_000))), None);
    }

    #[test]
    fn only_kubelets_speak_of_pods_of_the_same_namespace() {
        let message = r#"Container image "app:v1" already present on machine"#;
        let changed = |change: fn(&mut Event)| {
            let mut event = event(message);
            change(&mut event);
            ContainerStart::of(&event).is_some()
        };
        assert!(changed(|_| {}));
        assert!(changed(|event| {
            event.source = None;
            event.reporting_component = Some("kubelet".into());
            event.reporting_instance = Some("node-1".into());
        }));
        assert!(!changed(|event| event.involved_object.namespace = Some("other".into())));
        assert!(!changed(|event| event.involved_object.kind = Some("Job".into())));
        assert!(!changed(|event| event.reason = Some("Pulling".into())));
        assert!(!changed(|event| event.source = None));
        assert!(!changed(|event| event.last_timestamp = None));
    }

    #[test]
    fn the_revision_is_known_by_the_pods_name() {
        for (pod, revision) in [
            ("hello-00001-deployment-6d5f9c7b8-x2x4z", Some("hello-00001")),
            ("a-deployment-deployment-6d5f9c7b8-x2x4z", Some("a-deployment")),
            ("-deployment-6d5f9c7b8-x2x4z", None),
            ("hello-6d5f9c7b8-x2x4z", None),
            ("hello", None),
            ("", None),
        ] {
            let start = ContainerStart { pod: pod.into(), ..present("app:v1") };
            assert_eq!(start.revision(), revision, "{pod}");
        }
    }

    #[test]
    fn of_a_container_that_starts_again_the_first_time_counts() {
        let mut event = event(r#"Container image "app:v1" already present on machine"#);
        let first: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        event.first_timestamp = Some(Time(first));
        assert_eq!(ContainerStart::of(&event).unwrap().at, first);
    }

    #[test]
    fn the_first_container_of_an_image_counts_once() {
        let warms = [warm("u1", "a.test/app:v1", "Pulled", "1m2.5s")];
        let mut used = Used::default();
        let by_digest = present(&format!("a.test/app@{DIGEST}"));
        let others = [present("a.test/other:v1"), present("b.test/app:v1")];
        assert_eq!(used.count(&others, warms.iter(), start()), []);
        let counted = used.count(&[by_digest.clone(), by_digest.clone()], warms.iter(), start());
        let expected = Counted {
            start: by_digest.clone(),
            result: StartResult::Warm,
            lead_seconds: Some(35.0),
            saved_seconds: 62.5,
            waited_seconds: 0.0,
        };
        assert_eq!(counted, [expected]);
        assert_eq!(used.count(std::slice::from_ref(&by_digest), warms.iter(), start()), []);
        // What was pulled again by the kubelet was missing again.
        let cold = ContainerStart { waited: Some(SignedDuration::from_secs(7)), ..by_digest };
        let counted = used.count(&[cold], warms.iter(), start());
        assert_eq!((counted[0].result, counted[0].waited_seconds), (StartResult::Cold, 7.0));
        used.retain(|namespace| namespace == "ns");
        assert!(!used.0.is_empty());
        used.count(&others, [].iter(), start());
        assert!(used.0.is_empty(), "nothing is kept of ImageWarms that are gone");
        used.count(std::slice::from_ref(&counted[0].start), warms.iter(), start());
        used.retain(|namespace| namespace != "ns");
        assert!(used.0.is_empty(), "nor of namespaces");
    }

    #[test]
    fn an_image_that_nobody_pulled_saves_nothing_and_an_old_one_is_not_judged() {
        let there = [warm("u1", "a.test/app:v1", "AlreadyPresent", "0.1s")];
        let starts = [present("a.test/app:v1")];
        let counted = Used::default().count(&starts, there.iter(), start());
        assert_eq!((counted[0].result, counted[0].saved_seconds), (StartResult::Warm, 0.0));
        let later = "2026-01-01T00:00:30Z".parse().unwrap();
        assert_eq!(Used::default().count(&starts, there.iter(), later), []);
        // Nor is one that was warmed after the container, or for which there was no ImageWarm yet.
        let late =
            ContainerStart { at: "2026-01-01T00:00:10Z".parse().unwrap(), ..starts[0].clone() };
        assert_eq!(Used::default().count(&[late], there.iter(), start()), []);
        let mut created_later = there.clone();
        created_later[0].created = Some("2026-01-01T00:02:00Z".parse().unwrap());
        assert_eq!(Used::default().count(&starts, created_later.iter(), start()), []);
        let pulling = [warm("u1", "a.test/app:v1", "Pulling", "0.1s")];
        assert_eq!(Used::default().count(&starts, pulling.iter(), start()), []);
    }
}
