//! The checks of an installation, in their order; those of the control plane are here.

use jiff::{SignedDuration, Timestamp};

use super::nodes::{clocks_agree, credentials, every_node, runtimes};
use super::observed::{
    Admission, Certificate, ConfigurationKind, Crd, Images, Installed, Lease, Observed, Read,
    Server, WebhookConfiguration,
};
use super::{
    CLOCK_TOLERANCE, Check, CheckResult, Judge, Verdict, failed, passed, seconds, warning,
};
use crate::api::server_version::OLDEST_MINOR;
use crate::table::images::printable;
use crate::webhook_paths::without_secrets;

/// Name of both webhook configurations.
const CONFIGURATION: &str = "imagewarm";
/// The webhook that denies an ImageWarm whose pull secret does not exist. A denial names it.
const OURS: &str = "validation.imagewarms.caching.knative.dev";
/// Expiry so soon means that renewal does not work: it comes weeks earlier.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
const INSTALL: &str = "install imagewarm: kubectl apply -k deploy";

/// Judges an installation.
pub fn installation(observed: &Observed) -> Vec<CheckResult> {
    let mut judge = Judge::default();
    judge.add(Check::ApiServer, &[], || api_server(&observed.server));
    let namespace = observed.namespace.as_str();
    let date = observed.server.as_ref().ok().and_then(|server| server.date);
    // Certificates and Leases are judged by the cluster's clock, not by that of this machine.
    let now = date.unwrap_or(observed.now);
    let needs = [Check::ApiServer];
    let Some(installed) = &observed.installed else {
        for check in Check::ALL.into_iter().skip_while(|check| *check != Check::Crd) {
            judge.add(check, &needs, || passed(""));
        }
        return judge.results;
    };
    let Installed { crd, lease, webhooks, published_ca, certificates, admission, .. } =
        &**installed;
    judge.add(Check::Crd, &needs, || stored_crd(crd));
    judge.add(Check::Leader, &[Check::Crd], || leader(lease, namespace, now));
    judge.add(Check::Webhooks, &[Check::Crd], || configurations(webhooks, published_ca, namespace));
    judge.add(Check::Certificates, &[Check::Leader], || {
        valid_certificates(certificates, published_ca, namespace, now)
    });
    let needs = [Check::Leader, Check::Webhooks, Check::Certificates];
    judge.add(Check::Admission, &needs, || answers(admission));
    let Installed { nodes, warmers, troubles, images, clocks, knative, .. } = &**installed;
    judge.add(Check::Warmers, &[Check::Leader], || every_node(nodes, warmers, namespace));
    judge.add(Check::Runtimes, &[Check::Crd], || runtimes(troubles, nodes));
    judge.add(Check::Credentials, &[Check::Crd], || credentials(troubles, images));
    judge.add(Check::Clocks, &[Check::ApiServer], || {
        clocks_agree(observed.now, date, lease, clocks)
    });
    judge.add(Check::Versions, &[Check::Leader], || versions(&observed.version, lease, images));
    judge.add(Check::Knative, &[Check::ApiServer], || knative_serving(knative));
    judge.results
}

pub(super) fn api_server(server: &Result<Server, String>) -> Verdict {
    match server {
        Err(error) => failed(
            format!("the API server does not answer: {error}"),
            "does `kubectl version` work? --kubeconfig and --context name another cluster",
        ),
        Ok(server) if !server.is_served => failed(
            format!(
                "it is Kubernetes {}; the oldest that works is 1.{OLDEST_MINOR}",
                printable(&server.version)
            ),
            "upgrade the cluster",
        ),
        Ok(server) => passed(format!("Kubernetes {}", printable(&server.version))),
    }
}

fn stored_crd(crd: &Crd) -> Verdict {
    let Crd { stored, expected } = crd;
    let name = expected.metadata.name.as_deref().unwrap_or_default();
    let stored = match stored {
        Read::Failed(failure) => return failure.verdict(),
        Read::Absent => {
            return failed(format!("there is no CustomResourceDefinition {name}"), INSTALL);
        }
        Read::Found(stored) => stored,
    };
    if stored.metadata.deletion_timestamp.is_some() {
        return failed(
            format!("{name} is being deleted, and all ImageWarms with it"),
            "wait until it is gone, then install imagewarm again",
        );
    }
    let conditions = stored.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let faulty = ["Established", "NamesAccepted"].iter().find_map(|wanted| {
        let condition = conditions.clone().find(|condition| condition.type_ == *wanted)?;
        (condition.status != "True").then_some(condition)
    });
    if let Some(condition) = faulty {
        let message = printable(condition.message.as_deref().unwrap_or_default());
        return failed(
            format!(
                "the API server does not accept {name}: {} is {}: {message}",
                condition.type_, condition.status
            ),
            "another CustomResourceDefinition may have the same names: kubectl get crd",
        );
    }
    let reapply = "apply it again: imagewarm crds | kubectl apply --server-side -f -";
    for version in &expected.spec.versions {
        let same = stored.spec.versions.iter().find(|other| other.name == version.name);
        let Some(same) = same.filter(|other| other.served) else {
            return failed(format!("{name} does not serve the version {}", version.name), reapply);
        };
        if (&same.schema, &same.selectable_fields, &same.subresources)
            != (&version.schema, &version.selectable_fields, &version.subresources)
        {
            let message = format!("{name} {} is not that of this version", version.name);
            return warning(message, format!("if this version is the newer one, {reapply}"));
        }
    }
    passed(format!("{name} is that of this version"))
}

fn leader(lease: &Read<Lease>, namespace: &str, now: Timestamp) -> Verdict {
    let hint = format!(
        "kubectl -n {namespace} get pods; kubectl -n {namespace} logs deployment/imagecontroller"
    );
    match lease {
        Read::Failed(failure) => failure.verdict(),
        Read::Absent => {
            failed(format!("no controller has ever led in the namespace {namespace}"), hint)
        }
        Read::Found(lease) if lease.holder.is_empty() => {
            failed("no controller leads: the last one has released its Lease", hint)
        }
        Read::Found(lease) => {
            let renewed = lease.stored.or(lease.renewed);
            let age = renewed.map(|renewed| now.duration_since(renewed));
            let holder = printable(lease.holder.split('@').next().unwrap_or_default());
            match age {
                Some(age) if age.as_secs() <= lease.seconds => passed(format!("{holder} leads")),
                Some(age) => failed(
                    format!(
                        "no controller leads: {holder} has not renewed its Lease for {}",
                        seconds(age)
                    ),
                    hint,
                ),
                None => {
                    failed(format!("no controller leads: {holder} never renewed its Lease"), hint)
                }
            }
        }
    }
}

fn configurations(
    configurations: &Read<Vec<WebhookConfiguration>>,
    published_ca: &Read<String>,
    namespace: &str,
) -> Verdict {
    let all = match configurations.all() {
        Ok(all) => all,
        Err(verdict) => return verdict,
    };
    if let Some(other) = all.iter().find(|one| one.name != CONFIGURATION) {
        let (kind, name) = (other.kind.as_str(), printable(&other.name));
        return failed(
            format!("there is a second installation: {kind} {name} has webhooks of imagewarm"),
            format!("delete it: kubectl delete {} {name}", kind.to_lowercase()),
        );
    }
    let repair = format!(
        "the leader writes it within seconds, or cert-manager: kubectl -n {namespace} logs deployment/imagecontroller"
    );
    for kind in [ConfigurationKind::Mutating, ConfigurationKind::Validating] {
        let kind_name = kind.as_str();
        let Some(found) = all.iter().find(|one| one.kind == kind) else {
            return failed(format!("there is no {kind_name} {CONFIGURATION}"), INSTALL);
        };
        for webhook in &found.webhooks {
            let name = printable(&webhook.name);
            let of = format!("{name} of the {kind_name}");
            if let Some(other) = webhook.namespace.as_ref().filter(|it| *it != namespace) {
                return failed(
                    format!("{of} leads to the namespace {}, not to {namespace}", printable(other)),
                    "--namespace names the one of the controllers",
                );
            }
            if webhook.ca_bundle.is_empty() {
                return failed(
                    format!("{of} has no caBundle: API servers trust no controller"),
                    repair,
                );
            }
            if let Read::Found(published) = published_ca
                && *published != webhook.ca_bundle
            {
                return failed(
                    format!("{of} has another caBundle than controllers have published"),
                    repair,
                );
            }
            if !webhook.has_path {
                return failed(
                    format!("{of} has no path: controllers answer to none but their own"),
                    repair,
                );
            }
        }
    }
    passed("both configurations lead to the controllers, with their CA")
}

fn valid_certificates(
    certificates: &[Certificate],
    published_ca: &Read<String>,
    namespace: &str,
    now: Timestamp,
) -> Verdict {
    let hint = format!(
        "imagewarm certs -n {namespace}; kubectl -n {namespace} logs deployment/imagecontroller"
    );
    if *published_ca == Read::Absent {
        return failed(
            "no CA is published for warmers: there is no ConfigMap imagewarm-dispatch-ca",
            hint,
        );
    }
    let mut first: Option<(&str, Timestamp)> = None;
    for Certificate { name, validity, renew_at } in certificates {
        let (begin, end) = match validity {
            Ok(validity) => *validity,
            Err(fault) => return failed(format!("{name}: {}", printable(fault)), hint),
        };
        if now > end {
            return failed(format!("{name} expired at {end}"), hint);
        }
        if begin > now + CLOCK_TOLERANCE {
            return failed(format!("{name} is not valid before {begin}"), hint);
        }
        if renew_at.is_some_and(|at| at < now) && end < now + EXPIRES_SOON {
            return warning(format!("{name} expires at {end}, and was to be renewed before"), hint);
        }
        if first.is_none_or(|(_, known)| end < known) {
            first = Some((name, end));
        }
    }
    match (first, published_ca) {
        (Some((name, end)), _) => passed(format!("all are valid; {name} expires at {end}")),
        (None, Read::Failed(failure)) => failure.verdict(),
        (None, _) => failed("the CA that is published for warmers is empty", hint),
    }
}

fn answers(admission: &Admission) -> Verdict {
    let (good, bad) = match admission {
        Admission::Unread(failure) => return failure.verdict(),
        Admission::Answered { good, bad } => (good, bad),
    };
    let reach = "API servers must reach port 8443 of the controllers' Pods: docs/clusters.md";
    match (good, bad) {
        (Err(error), _) => {
            failed(format!("an ImageWarm cannot be created: {}", shown(error)), reach)
        }
        (Ok(image), _) if image.trim() != image => failed(
            "an ImageWarm gets no defaults: the API server does not call the mutating webhook",
            "kubectl get mutatingwebhookconfiguration imagewarm -o yaml; apply the manifests again",
        ),
        (_, None) => failed(
            "an ImageWarm whose pull secret does not exist is accepted: the API server does not call the validating webhook",
            "kubectl get validatingwebhookconfiguration imagewarm -o yaml; apply the manifests again",
        ),
        (_, Some(denial)) if !denial.contains(OURS) => failed(
            format!(
                "an ImageWarm without a valid image is not denied by imagewarm, but so: {}",
                printable(denial)
            ),
            reach,
        ),
        _ => passed("good ImageWarms are accepted, bad ones denied"),
    }
}

/// What the API server says of a webhook, which may quote its URL.
fn shown(message: &str) -> String {
    printable(&without_secrets(message))
}

fn versions(own: &str, lease: &Read<Lease>, images: &Read<Images>) -> Verdict {
    if let Read::Found(images) = images
        && images.controller != images.warmer
    {
        return warning(
            format!(
                "controllers and warmers have different images: {} and {}",
                printable(&images.controller),
                printable(&images.warmer)
            ),
            "finish the upgrade: kubectl apply -k deploy",
        );
    }
    let theirs = match lease {
        Read::Failed(failure) => return failure.verdict(),
        Read::Absent => None,
        Read::Found(lease) => lease.version.as_deref(),
    };
    let Some(theirs) = theirs else {
        return warning(
            format!("the leader has no version on its Lease; this program is {own}"),
            "upgrade the controllers: kubectl apply -k deploy",
        );
    };
    let found = format!("the leader is {}, this program {own}", printable(theirs));
    match (minor(own), minor(theirs)) {
        (Some(own), Some(theirs)) if own == theirs => passed(found),
        (Some((major, own)), Some((other, theirs)))
            if major == other && own.abs_diff(theirs) == 1 =>
        {
            warning(found, "they work together; upgrade the older one")
        }
        _ => failed(
            found,
            "use neighbouring versions: what the other one writes may not be understood",
        ),
    }
}

/// Major and minor version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn knative_serving(knative: &Read<()>) -> Verdict {
    match knative {
        Read::Found(()) => passed("Knative Serving's Revisions and Images are served"),
        Read::Failed(failure) => failure.verdict(),
        Read::Absent => warning(
            "Knative Serving is not installed: only ImageWarms made by hand are served",
            "install Knative Serving, before or after imagewarm",
        ),
    }
}
