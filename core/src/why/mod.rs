//! `imagewarm why`: the whole story of images on nodes, by what the user may read: who wants an image, with whose
//! credentials, how its pulls went, and what comes next. Pure: the command observes, this decides what is shown.

mod next;
mod render;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::api::knative::SERVICE_LABEL;
use crate::api::names::NodeName;
use crate::api::{
    CachedImageWarm, ConditionStatus, ImageWarm, RUNTIME_KEY, Reason, SERVICE_ACCOUNT_ANNOTATION,
};
use crate::demand::consumers::{Consumer, ConsumerDemand};
use crate::image::Reference;
use crate::placement::{NodeFacts, is_eligible};
use crate::policy::Policy;
use crate::report::container_start::ContainerStart;
use crate::report::pod_image::PodImage;
use crate::table::duration::duration;
use crate::table::images::printable;
use crate::table::row::{Phase, Row};

pub use render::{render_why, render_why_json};

/// Consumers and Pods that are named; the rest are counted.
const NAMED: usize = 3;

/// What was read.
#[derive(Clone, Debug)]
pub struct Observed {
    /// When.
    pub now: Timestamp,
    /// The ImageWarms that were asked about.
    pub image_warms: Vec<ImageWarm>,
    /// The images that are wanted, where the question was about more than one image.
    pub images: Vec<Reference>,
    /// What is demanded in the namespaces, by the leader's own rules.
    pub demands: Vec<ConsumerDemand>,
    /// The Nodes that were asked about; `None` when the user may not list them.
    pub nodes: Option<Vec<Node>>,
    /// Pods whose kubelet has begun to pull an image, by name.
    pub pulling: Vec<(PodImage, String)>,
    /// Pods whose kubelet has the image.
    pub started: Vec<ContainerStart>,
}

/// The story of an image on the nodes where it is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The image.
    pub image: String,
    /// The namespace; empty where nothing is there.
    pub namespace: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Whether the image is there.
    pub is_ready: bool,
    /// What there is to say, each with its heading.
    pub facts: Vec<(&'static str, String)>,
}

/// Tells the stories: of failures first, then of what is under way, then of what is there.
pub fn stories(observed: &Observed) -> Vec<Story> {
    // The same on many nodes is shown once, with the node where most happened.
    let mut groups: BTreeMap<(Phase, &str, &str, &str, &str), Vec<&ImageWarm>> = BTreeMap::new();
    for warm in &observed.image_warms {
        let row = Row::new(warm, observed.now);
        let ready = warm.ready();
        let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
        let reason = ready.map(|ready| ready.reason.as_str()).unwrap_or_default();
        let message = ready.map(|ready| ready.message.as_str()).unwrap_or_default();
        let key = (row.phase, namespace, warm.spec.image.as_str(), reason, message);
        groups.entry(key).or_default().push(warm);
    }
    let mut stories: Vec<Story> =
        groups.into_values().filter_map(|warms| story(observed, &warms)).collect();
    stories.extend(observed.images.iter().flat_map(|image| absences(observed, image)));
    stories
}

fn story(observed: &Observed, warms: &[&ImageWarm]) -> Option<Story> {
    let warm = warms.iter().max_by_key(|warm| {
        warm.status.as_ref().and_then(|status| status.attempts).unwrap_or_default()
    })?;
    let mut nodes: Vec<String> = warms.iter().map(|warm| warm.spec.node_name.clone()).collect();
    nodes.sort();
    let row = Row::new(warm, observed.now);
    let wanting = wanting(observed, warm);
    let mut facts =
        vec![("state", state(observed, warm)), ("wanted by", wanted_by(observed, warm, &wanting))];
    if let Some(whose) = credentials(warm, &wanting) {
        facts.push(("credentials", whose));
    }
    if let Some(tries) = tries(observed, warm) {
        facts.push(("tries", tries));
    }
    let cell = crate::table::images::progress(&row);
    if row.phase == Phase::Pulling && !cell.is_empty() {
        facts.push(("progress", cell));
    }
    if let Some(runtime) =
        warm.status.as_ref().and_then(|status| status.annotations.get(RUNTIME_KEY))
    {
        facts.push(("runtime", printable(runtime)));
    }
    if let Some(pods) = pods(observed, warm) {
        facts.push(("Pods", pods));
    }
    facts.push(("next", next::next(warm, &row, observed.now)));
    Some(Story {
        image: warm.spec.image.clone(),
        namespace: warm.metadata.namespace.clone().unwrap_or_default(),
        nodes,
        is_ready: row.phase == Phase::Ready,
        facts,
    })
}

fn state(observed: &Observed, warm: &ImageWarm) -> String {
    let Some(ready) = warm.ready() else {
        return "new: no warmer has reported on it yet".into();
    };
    let since = ready.last_transition_time.as_ref();
    let since = since.map(|at| format!(" for {}", age(observed.now, at.0))).unwrap_or_default();
    let message = match ready.message.as_str() {
        "" => String::new(),
        message => format!(": {}", printable(message)),
    };
    format!("{}{since}{message}", printable(&ready.reason))
}

/// Who demands the image of the ImageWarm now.
fn wanting<'a>(observed: &'a Observed, warm: &ImageWarm) -> Vec<&'a ConsumerDemand> {
    let Ok(image) = Reference::parse(&warm.spec.image) else { return Vec::new() };
    let namespace = warm.metadata.namespace.as_deref().unwrap_or_default();
    let wants = |one: &&ConsumerDemand| {
        one.by.namespace() == namespace && one.demand.images.iter().any(|wanted| wanted.is(&image))
    };
    observed.demands.iter().filter(wants).collect()
}

fn wanted_by(observed: &Observed, warm: &ImageWarm, wanting: &[&ConsumerDemand]) -> String {
    let now = observed.now;
    let since = warm.metadata.creation_timestamp.as_ref();
    let since = since.map(|at| format!("; assigned {} ago", age(now, at.0))).unwrap_or_default();
    let name = |one: &&ConsumerDemand| {
        let metadata = one.by.metadata();
        let name = printable(metadata.name.as_deref().unwrap_or_default());
        let text = match &one.by {
            Consumer::Revision(_) => {
                let labels = metadata.labels.as_ref();
                let service = labels.and_then(|labels| labels.get(SERVICE_LABEL));
                let of = service.map(|service| format!(" of the Service {}", printable(service)));
                format!("Revision {name}{}", of.unwrap_or_default())
            }
            Consumer::Image(_) => format!("Knative's Image {name}"),
            Consumer::DeploymentConfig(_) => format!("Knative's ConfigMap {name}"),
        };
        match one.is_routable() {
            true => text,
            false => format!("{text} (in reserve)"),
        }
    };
    let mut names: Vec<String> = wanting.iter().take(NAMED).map(name).collect();
    if wanting.len() > NAMED {
        names.push(format!("{} more", wanting.len() - NAMED));
    }
    match (names.is_empty(), warm.is_managed()) {
        (false, _) => format!("{}{since}", names.join(", ")),
        (true, true) => {
            format!("nobody whom you may see{since}: what nobody wants is deleted soon")
        }
        (true, false) => {
            let until = CachedImageWarm::from(warm.clone()).expires_at().map(|at| match at > now {
                true => format!("the leader deletes it in {}", age(at, now)),
                false => "its time is over: the leader deletes it".to_owned(),
            });
            let until = until.unwrap_or_else(|| "the leader never deletes it".into());
            format!("whoever created it by hand{since}; {until}")
        }
    }
}

/// In the order in which they are tried. The names only: what is in a Secret is never read here.
fn credentials(warm: &ImageWarm, wanting: &[&ConsumerDemand]) -> Option<String> {
    let secrets = |names: &mut dyn Iterator<Item = &str>| {
        let names: Vec<String> = names.map(printable).collect();
        (!names.is_empty()).then(|| format!("the pull secrets {}", names.join(", ")))
    };
    let account =
        |name: &str| format!("the pull secrets of the ServiceAccount {}", printable(name));
    let mut whose: Vec<String> = Vec::new();
    for one in wanting {
        let identity = &one.demand.identity;
        let named = secrets(&mut identity.secrets.iter().map(String::as_str));
        whose.extend(named.or(identity.service_account.as_deref().map(account)));
    }
    if whose.is_empty() {
        let named =
            secrets(&mut warm.spec.image_pull_secrets.iter().map(|secret| secret.name.as_str()));
        let annotations = warm.metadata.annotations.as_ref();
        let of_account = annotations.and_then(|all| all.get(SERVICE_ACCOUNT_ANNOTATION));
        whose.extend(named.or(of_account.map(|name| account(name))));
    }
    let mut distinct: Vec<String> = Vec::new();
    for one in whose {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct.push("the node's own".into());
    Some(distinct.join(", then "))
}

fn tries(observed: &Observed, warm: &ImageWarm) -> Option<String> {
    let status = warm.status.as_ref()?;
    let count = status.attempts.filter(|count| *count > 0)?;
    let mut text = count.to_string();
    if let Some(began) = &status.started_at {
        text += &format!("; the last began {} ago", age(observed.now, began.0));
    }
    match (&status.finished_at, &status.took, warm.reason().map(Reason::ready)) {
        (_, Some(took), Some(ConditionStatus::True)) => {
            text += &format!(" and took {}", printable(took))
        }
        (Some(ended), ..) => text += &format!(" and ended {} ago", age(observed.now, ended.0)),
        _ => {}
    }
    Some(text)
}

/// What kubelets say of Pods that use the image on the node.
fn pods(observed: &Observed, warm: &ImageWarm) -> Option<String> {
    let cached = CachedImageWarm::from(warm.clone());
    let is_here = |image: &PodImage| image.node == cached.node_name;
    let started: Vec<&ContainerStart> = observed
        .started
        .iter()
        .filter(|start| is_here(&start.image) && start.image.is_of(&cached))
        .collect();
    let mut reported: Vec<String> = Vec::new();
    for (image, pod) in &observed.pulling {
        let is_done = started.iter().any(|start| start.pod == *pod);
        let is_of = is_here(image)
            && Reference::parse(&warm.spec.image).is_ok_and(|name| image.may_be_of(&name));
        if is_of && !is_done {
            reported.push(format!("{} waits for its kubelet's own pull", printable(pod)));
        }
    }
    for start in started {
        let pod = printable(&start.pod);
        reported.push(match start.waited {
            None => format!("{pod} found it on the node"),
            Some(waited) => {
                format!(
                    "{pod} waited {} for its kubelet's own pull",
                    duration(waited.as_secs_f64())
                )
            }
        });
    }
    let more = reported.len().saturating_sub(NAMED);
    reported.truncate(NAMED);
    if more > 0 {
        reported.push(format!("{more} more"));
    }
    (!reported.is_empty()).then(|| reported.join(", "))
}

/// Why nodes have no ImageWarm of an image that is wanted.
fn absences(observed: &Observed, image: &Reference) -> Vec<Story> {
    let wants = |one: &&ConsumerDemand| one.demand.images.iter().any(|wanted| wanted.is(image));
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let demands: Vec<&ConsumerDemand> = observed.demands.iter().filter(wants).collect();
    let names: Vec<&Reference> = demands
        .iter()
        .flat_map(|one| one.demand.images.iter().filter(|wanted| wanted.is(image)))
        .flat_map(|wanted| wanted.names())
        .collect();
    let is_on = |node: &str| {
        observed.image_warms.iter().any(|warm| {
            warm.spec.node_name == node
                && Reference::parse(&warm.spec.image)
                    .is_ok_and(|held| held == *image || names.contains(&&held))
        })
    };
    match &observed.nodes {
        _ if demands.is_empty() && observed.image_warms.is_empty() => {
            let text =
                "no Revision with traffic and no Image wants it, and nobody created an ImageWarm";
            reasons.insert(text.into(), Vec::new());
        }
        None if observed.image_warms.is_empty() => {
            let text = "there is no ImageWarm; you may not list Nodes, so which could have one is not known";
            reasons.insert(text.into(), Vec::new());
        }
        None => {}
        Some(nodes) => {
            let none = Default::default();
            for node in nodes {
                let facts = NodeFacts::new(node, &none);
                if demands.is_empty() || is_on(facts.name) {
                    continue;
                }
                let text = absence(&facts, &demands);
                reasons.entry(text).or_default().push(facts.name.to_owned());
            }
        }
    }
    let absent = reasons.into_iter().map(|(reason, nodes)| Story {
        image: image.as_str().to_owned(),
        namespace: String::new(),
        nodes,
        is_ready: false,
        facts: vec![("not there", reason)],
    });
    absent.collect()
}

fn absence(node: &NodeFacts<'_>, demands: &[&ConsumerDemand]) -> String {
    let policy = Policy::default();
    let mut first = None;
    for one in demands.iter().filter(|one| one.is_routable()) {
        match is_eligible(node, &one.demand.placement, &policy) {
            Ok(()) => {
                return "the leader is to create an ImageWarm: `imagewarm check` says whether there is one; \
                        a limit or a quota may be reached"
                    .into();
            }
            Err(exclusion) => first = first.or(Some(exclusion)),
        }
    }
    match first {
        Some(exclusion) => format!("Pods that use it cannot start here: {exclusion}"),
        None => "only Revisions in reserve want it".into(),
    }
}

fn age(now: Timestamp, at: Timestamp) -> String {
    duration(now.duration_since(at).as_secs_f64())
}

/// Whether an ImageWarm is of the node, or no node was asked about.
pub fn is_on(warm: &ImageWarm, node: Option<&NodeName>) -> bool {
    node.is_none_or(|node| **node == *warm.spec.node_name)
}

#[cfg(test)]
mod tests;
