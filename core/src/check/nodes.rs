//! The checks of what is on nodes: warmers, runtimes, credential providers and clocks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::observed::{Images, Lease, Node, NodeClock, Read, Trouble, WarmerPod};
use super::{CLOCK_TOLERANCE, Verdict, failed, named, passed, seconds, warning};
use crate::api::Reason;
use crate::table::images::printable;

pub(super) fn every_node(
    nodes: &Read<Vec<Node>>,
    warmers: &Read<Vec<WarmerPod>>,
    namespace: &str,
) -> Verdict {
    let (nodes, warmers) = match (nodes.all(), warmers.all()) {
        (Ok(nodes), Ok(warmers)) => (nodes, warmers),
        (Err(verdict), _) | (_, Err(verdict)) => return verdict,
    };
    let warmed: Vec<&Node> = nodes.iter().filter(|node| node.is_warmed).collect();
    // What is wrong with a node whose kubelet is not heard of is not about warmers.
    let expected = || warmed.iter().filter(|node| node.is_ready);
    let pods = |node: &Node| -> Vec<&WarmerPod> {
        warmers.iter().filter(|pod| pod.node == node.name).collect()
    };
    let without: Vec<&str> =
        expected().filter(|node| pods(node).is_empty()).map(|node| &*node.name).collect();
    let all = expected().count();
    if !without.is_empty() {
        return failed(
            format!(
                "{} of {all} nodes have no warmer: {}",
                without.len(),
                named(without.into_iter())
            ),
            format!("kubectl -n {namespace} describe daemonset imagewarmer"),
        );
    }
    let unready: Vec<&Node> =
        expected().filter(|node| !pods(node).iter().any(|pod| pod.is_ready)).copied().collect();
    if let Some(first) = unready.first() {
        let pod = pods(first).first().copied();
        let why = pod.and_then(|pod| pod.waiting.as_deref());
        let why = why.map(|why| format!(" ({})", printable(why))).unwrap_or_default();
        return failed(
            format!(
                "{} of {all} warmers are not connected to the leader: {}{why}",
                unready.len(),
                named(unready.iter().map(|node| &*node.name))
            ),
            format!(
                "kubectl -n {namespace} logs {}",
                pod.map(|pod| printable(&pod.name)).unwrap_or_default()
            ),
        );
    }
    match all {
        0 => warning("no node is Ready and can have a warmer", "kubectl get nodes -o wide"),
        _ => passed(format!("{all} of {} nodes have a connected warmer", warmed.len())),
    }
}

pub(super) fn runtimes(troubles: &Read<Vec<Trouble>>, nodes: &Read<Vec<Node>>) -> Verdict {
    let troubles = match troubles.all() {
        Ok(troubles) => troubles,
        Err(verdict) => return verdict,
    };
    let wanted =
        [Reason::RuntimeMismatch, Reason::RuntimeUnavailable, Reason::RuntimeHandlerUnsupported];
    if let Some(message) = of_reasons(troubles, &wanted) {
        return failed(
            message,
            "docs/runtimes.md has the sockets, --runtime-endpoint names another one",
        );
    }
    let Read::Found(nodes) = nodes else {
        return passed("no warmer reports that its runtime is not the kubelet's");
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.is_warmed) {
        *counts.entry(node.runtime.split("://").next().unwrap_or_default()).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(runtime, count)| format!("{} on {count}", printable(runtime)))
        .collect();
    passed(format!("no warmer reports a wrong runtime ({})", counts.join(", ")))
}

pub(super) fn credentials(troubles: &Read<Vec<Trouble>>, images: &Read<Images>) -> Verdict {
    let troubles = match troubles.all() {
        Ok(troubles) => troubles,
        Err(verdict) => return verdict,
    };
    let hint = "docs/credentials.md says how warmers get the node's credential providers";
    if let Some(message) = of_reasons(troubles, &[Reason::CredentialProviderFailed]) {
        return failed(message, hint);
    }
    let configured = matches!(images, Read::Found(images) if images.credential_providers);
    match of_reasons(troubles, &[Reason::NoCredentials]) {
        Some(message) if !configured => {
            warning(format!("{message}; warmers have no credential provider plugins"), hint)
        }
        _ if configured => passed("no credential provider plugin of a node failed"),
        _ => passed("no registry asked for credentials that are not in a pull secret"),
    }
}

/// The message of the first of these reasons, and on which nodes it is.
fn of_reasons(troubles: &[Trouble], reasons: &[Reason]) -> Option<String> {
    let first = troubles.iter().find(|trouble| reasons.contains(&trouble.reason))?;
    let nodes: BTreeSet<&str> = troubles
        .iter()
        .filter(|trouble| trouble.reason == first.reason)
        .map(|trouble| &*trouble.node)
        .collect();
    let message = printable(&first.message);
    Some(format!("{} on {}: {message}", first.reason, named(nodes.into_iter())))
}

pub(super) fn clocks_agree(
    now: Timestamp,
    date: Option<Timestamp>,
    lease: &Read<Lease>,
    clocks: &Read<Vec<NodeClock>>,
) -> Verdict {
    let mut wrong: Vec<(String, SignedDuration)> = Vec::new();
    let mut compare = |whose: String, theirs: Timestamp, stored: Timestamp| {
        let ahead = theirs.duration_since(stored);
        if ahead.abs() > CLOCK_TOLERANCE {
            wrong.push((whose, ahead));
        }
    };
    if let Some(date) = date {
        compare("this machine".into(), now, date);
    }
    if let Read::Found(Lease { holder, renewed: Some(renewed), stored: Some(stored), .. }) = lease {
        let holder = printable(holder.split('@').next().unwrap_or_default());
        compare(format!("the node of {holder}"), *renewed, *stored);
    }
    if let Read::Found(clocks) = clocks {
        for clock in clocks {
            compare(format!("the node {}", printable(&clock.node)), clock.renewed, clock.stored);
        }
    }
    let hint = "set the clock by NTP: with a wrong one, certificates and tokens count as expired or not yet valid";
    match (wrong.first(), clocks) {
        (Some((whose, ahead)), _) => {
            let direction = if ahead.is_negative() { "behind" } else { "ahead of" };
            let more = match wrong.len() {
                1 => String::new(),
                count => format!(", and {} more are wrong", count - 1),
            };
            failed(
                format!(
                    "the clock of {whose} is {} {direction} the API server's{more}",
                    seconds(ahead.abs())
                ),
                hint,
            )
        }
        (None, Read::Failed(failure)) if date.is_none() => failure.verdict(),
        (None, Read::Found(clocks)) => passed(format!(
            "this machine, the leader and {} nodes agree with the API server",
            clocks.len()
        )),
        (None, _) => passed(
            "this machine and the leader agree with the API server; those of nodes were not read",
        ),
    }
}
