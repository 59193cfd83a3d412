//! What must be so once everything is left alone: told from the objects and the registries alone, by
//! rules that are written down here a second time, as short as they can be, and not taken from the
//! program.

use std::collections::{BTreeMap, BTreeSet};

use imagewarm_core::api::{ImageWarm, KnativeImage, Reason, Revision};
use imagewarm_core::image::Reference;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::fake_nodes::Catalog;
use crate::script::SecretIs;

/// A taint that no Pod here tolerates.
pub const TAINT: &str = "monkey";

/// Everything, from one moment.
pub struct Observed<'a> {
    pub revisions: Vec<Revision>,
    pub images: Vec<KnativeImage>,
    pub warms: Vec<ImageWarm>,
    pub nodes: Vec<Node>,
    /// By namespace.
    pub secrets: &'a BTreeMap<String, SecretIs>,
    /// Nodes whose warmer runs.
    pub connected: BTreeSet<String>,
    /// Node and image (as ordered) of what the runtimes hold.
    pub held: BTreeSet<(String, String)>,
    /// Nodes that lost images more than once: those are not pulled again at once.
    pub losers: BTreeSet<String>,
    pub catalog: &'a Catalog,
    /// Hand-made orders: namespace, name, image, node.
    pub by_hand: &'a BTreeSet<(String, String, String, String)>,
}

/// One image that has to be on every node where its Pods could run.
struct Want {
    namespace: String,
    /// What a tag or digest in a spec says.
    named: String,
    /// The digest that Knative found for it, where an Image tells.
    resolved: Option<String>,
    pool: Option<String>,
}

/// Everything that is not as it must be; empty when all is well.
pub fn problems(observed: &Observed<'_>) -> Vec<String> {
    let wants = wants(observed);
    let mut found = Vec::new();
    missing(observed, &wants, &mut found);
    superfluous(observed, &wants, &mut found);
    for warm in &observed.warms {
        if let Err(problem) = status(observed, warm) {
            found.push(format!("{}: {problem}", brief(warm)));
        }
    }
    for image in &observed.images {
        if let Err(problem) = image_status(observed, image) {
            found.push(format!("Image {}/{}: {problem}", namespace(image), image.name_any()));
        }
    }
    found
}

fn namespace(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}

fn brief(warm: &ImageWarm) -> String {
    format!("{} of {} on {}", warm.spec.image, namespace(warm), warm.spec.node_name)
}

fn canonical(image: &str) -> String {
    Reference::parse(image).map(|image| image.as_str().to_owned()).unwrap_or_default()
}

fn repository(image: &str) -> String {
    Reference::parse(image).map(|image| image.repository().to_owned()).unwrap_or_default()
}

fn is_active(revision: &Revision) -> bool {
    revision.labels().get("serving.knative.dev/routingState").map(String::as_str) != Some("reserve")
}

/// The Revision that an Image says it is of.
fn revision_of<'a>(observed: &'a Observed<'_>, image: &KnativeImage) -> Option<&'a Revision> {
    let name = image.labels().get("serving.knative.dev/revision")?;
    let of = |one: &&Revision| one.name_any() == *name && namespace(*one) == namespace(image);
    observed.revisions.iter().find(of)
}

fn is_of_a_revision(image: &KnativeImage) -> bool {
    image.labels().contains_key("serving.knative.dev/revision")
}

fn pool(revision: &Revision) -> Option<String> {
    revision.spec.node_selector.get("pool").cloned()
}

fn wants(observed: &Observed<'_>) -> Vec<Want> {
    let mut wants = Vec::new();
    for revision in observed.revisions.iter().filter(|one| is_active(one)) {
        for container in &revision.spec.containers {
            let resolved = observed.images.iter().find_map(|image| {
                let its = revision_of(observed, image)?.name_any() == revision.name_any()
                    && namespace(image) == namespace(revision);
                let same = repository(&image.spec.image) == repository(&container.image);
                (its && same).then(|| canonical(&image.spec.image))
            });
            wants.push(Want {
                namespace: namespace(revision),
                named: canonical(&container.image),
                resolved,
                pool: pool(revision),
            });
        }
    }
    for image in &observed.images {
        if !is_of_a_revision(image) && !image.spec.image.is_empty() {
            wants.push(Want {
                namespace: namespace(image),
                named: canonical(&image.spec.image),
                resolved: None,
                pool: None,
            });
        }
    }
    wants
}

/// Nodes on which a Pod with this node selector could be started.
fn eligible<'a>(observed: &'a Observed<'_>, pool: &Option<String>) -> Vec<&'a str> {
    let fits = |node: &&Node| {
        let spec = node.spec.clone().unwrap_or_default();
        let tainted = spec.taints.iter().flatten().any(|taint| taint.key == TAINT);
        !tainted
            && spec.unschedulable != Some(true)
            && node.metadata.deletion_timestamp.is_none()
            && (pool.is_none() || node.labels().get("pool") == pool.as_ref())
    };
    let names = observed.nodes.iter().filter(fits).filter_map(|node| node.metadata.name.as_deref());
    names.collect()
}

fn orders<'a>(
    observed: &'a Observed<'_>,
    in_namespace: &str,
    image: &str,
    node: &str,
) -> Vec<&'a ImageWarm> {
    let is = |warm: &&ImageWarm| {
        warm.spec.node_name == node
            && namespace(*warm) == in_namespace
            && canonical(&warm.spec.image) == image
    };
    observed.warms.iter().filter(is).collect()
}

fn digest(warm: &ImageWarm) -> Option<&str> {
    warm.status.as_ref()?.digest.as_deref()
}

fn missing(observed: &Observed<'_>, wants: &[Want], found: &mut Vec<String>) {
    for want in wants {
        for node in eligible(observed, &want.pool) {
            let named = orders(observed, &want.namespace, &want.named, node);
            let there = match &want.resolved {
                None => !named.is_empty(),
                Some(resolved) => {
                    let exact = orders(observed, &want.namespace, resolved, node);
                    let content = resolved.split_once('@').map(|(_, digest)| digest);
                    // By tag is as good while it is not known to be other content.
                    let as_good =
                        |warm: &&ImageWarm| digest(warm).is_none() || digest(warm) == content;
                    !exact.is_empty() || named.iter().any(as_good)
                }
            };
            if !there {
                found.push(format!("missing: {} of {} on {node}", want.named, want.namespace));
            }
        }
    }
}

fn superfluous(observed: &Observed<'_>, wants: &[Want], found: &mut Vec<String>) {
    let nodes: BTreeSet<String> = observed.nodes.iter().map(|node| node.name_any()).collect();
    for warm in &observed.warms {
        let made_by_hand = (
            namespace(warm),
            warm.name_any(),
            warm.spec.image.clone(),
            warm.spec.node_name.clone(),
        );
        if warm.metadata.deletion_timestamp.is_some() {
            found.push(format!("stuck in deletion: {}", brief(warm)));
        }
        if observed.by_hand.contains(&made_by_hand) {
            continue;
        }
        let image = canonical(&warm.spec.image);
        let wanted = wants.iter().any(|want| {
            want.namespace == namespace(warm)
                && (want.named == image || want.resolved.as_ref() == Some(&image))
        });
        if !wanted {
            found.push(format!("nobody wants: {}", brief(warm)));
        }
        if !nodes.contains(&warm.spec.node_name) {
            found.push(format!("its node is gone: {}", brief(warm)));
        }
    }
    for (namespace, name, image, node) in observed.by_hand {
        let is = |warm: &&ImageWarm| {
            warm.name_any() == *name && warm.namespace().as_ref() == Some(namespace)
        };
        match observed.warms.iter().find(is) {
            Some(warm) if warm.spec.image == *image && warm.spec.node_name == *node => {}
            other => found.push(format!("hand-made {namespace}/{name} is now {other:?}")),
        }
    }
}

fn status(observed: &Observed<'_>, warm: &ImageWarm) -> Result<(), String> {
    let node = &warm.spec.node_name;
    let known = observed.nodes.iter().any(|one| one.name_any() == *node);
    if !known {
        return Ok(()); // a hand-made one; nobody can say anything of it
    }
    let ready = warm.ready().ok_or("no Ready condition")?;
    let reason = warm.reason().ok_or(format!("reason {:?}", ready.reason))?;
    let told = format!("{reason} {}", ready.message);
    if ready.status != reason.ready() {
        return Err(format!("{:?} with {told}", ready.status));
    }
    if !observed.connected.contains(node) {
        return match reason {
            Reason::Queued | Reason::Pulling => Err(format!("{told} without a warmer")),
            _ => Ok(()),
        };
    }
    let image = canonical(&warm.spec.image);
    let holds = observed.held.contains(&(node.clone(), image.clone()));
    let is_ready = matches!(reason, Reason::Pulled | Reason::AlreadyPresent);
    let refused =
        matches!(reason, Reason::Unauthorized | Reason::NoCredentials | Reason::SecretMissing);
    if reason == Reason::Removed && !holds && observed.losers.contains(node) {
        return Ok(());
    }
    let secret = observed.secrets.get(&namespace(warm)).copied().unwrap_or(SecretIs::Absent);
    let delivered = |content: &String| is_ready && holds && digest(warm) == Some(content.as_str());
    // All that asks names the Secret, save hand-made orders from a time when there was none.
    let names_none = !warm.is_managed() && warm.spec.image_pull_secrets.is_empty();
    let right = match observed.catalog.images.get(&image) {
        // A missing Secret may be why a registry hides it; it may have been tried before.
        None if secret == SecretIs::Absent => {
            matches!(reason, Reason::NotFound | Reason::SecretMissing)
        }
        None => reason == Reason::NotFound,
        Some((content, None)) => delivered(content),
        Some((content, Some(_))) => match secret {
            SecretIs::Right if names_none => delivered(content) || refused,
            SecretIs::Right => delivered(content),
            // Somebody else's pull may have brought it.
            _ if holds => is_ready || refused,
            _ => refused,
        },
    };
    if right { Ok(()) } else { Err(format!("{told}; held: {holds}; digest {:?}", digest(warm))) }
}

fn image_status(observed: &Observed<'_>, image: &KnativeImage) -> Result<(), String> {
    let status = image.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|one| one.type_ == "Ready").ok_or("no Ready")?;
    let told = format!("{:?} {}: {}", ready.status, ready.reason, ready.message);
    if status.observed_generation != image.metadata.generation {
        return Err(format!("{told}, of generation {:?}", status.observed_generation));
    }
    let revision = revision_of(observed, image);
    let expected = expected_image_status(observed, image, revision);
    let says = format!("{:?}", ready.status);
    let counts: Vec<String> = ["nodes", "nodes-ready", "nodes-failed"]
        .iter()
        .filter_map(|key| status.annotations.get(&format!("caching.knative.dev/{key}")).cloned())
        .collect();
    match expected {
        Expected::Plain(status) if says == status => Ok(()),
        Expected::Counted(status, numbers)
            if says == status && counts == numbers.map(|one| one.to_string()) =>
        {
            Ok(())
        }
        other => Err(format!("{told} {counts:?}, and not {other:?}")),
    }
}

#[derive(Debug)]
enum Expected {
    Plain(&'static str),
    /// With nodes, those that hold it, those that cannot.
    Counted(&'static str, [usize; 3]),
}

fn expected_image_status(
    observed: &Observed<'_>,
    image: &KnativeImage,
    revision: Option<&Revision>,
) -> Expected {
    if image.spec.image.is_empty() {
        return Expected::Plain("Unknown");
    }
    if revision.is_some_and(|revision| !is_active(revision)) {
        return Expected::Plain("Unknown");
    }
    let wanted = canonical(&image.spec.image);
    let content = wanted.split_once('@').map(|(_, digest)| digest);
    let tag = revision.and_then(|revision| {
        let mut images = revision.spec.containers.iter().map(|one| canonical(&one.image));
        images.find(|one| repository(one) == repository(&wanted))
    });
    let nodes = eligible(observed, &revision.and_then(pool));
    let (mut held, mut failed) = (0, 0);
    for node in &nodes {
        let exact = orders(observed, &namespace(image), &wanted, node);
        let named = match &tag {
            Some(tag) => orders(observed, &namespace(image), tag, node),
            None => Vec::new(),
        };
        let is_ready = |warm: &&&ImageWarm| {
            matches!(warm.reason(), Some(Reason::Pulled | Reason::AlreadyPresent))
        };
        let same = |warm: &&&ImageWarm| content.is_none() || digest(warm) == content;
        if exact.iter().any(|warm| is_ready(&warm))
            || named.iter().any(|warm| is_ready(&warm) && same(&warm))
        {
            held += 1;
            continue;
        }
        let decisive = if exact.is_empty() { &named } else { &exact };
        let reasons: Vec<_> = decisive.iter().filter_map(|warm| warm.reason()).collect();
        let waits = |reason: &Reason| {
            matches!(reason, Reason::WaitingForWarmer | Reason::Queued | Reason::Pulling)
        };
        let fails = |reason: &Reason| {
            matches!(
                reason,
                Reason::NotFound
                    | Reason::Unauthorized
                    | Reason::NoCredentials
                    | Reason::SecretMissing
                    | Reason::RuntimeUnavailable
                    | Reason::RegistryUnreachable
            )
        };
        if !reasons.iter().any(waits) && reasons.iter().any(fails) {
            failed += 1;
        }
    }
    let numbers = [nodes.len(), held, failed];
    let status = match () {
        () if failed > 0 => "False",
        () if nodes.is_empty() || held < nodes.len() => "Unknown",
        () => "True",
    };
    Expected::Counted(status, numbers)
}
