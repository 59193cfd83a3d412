//! A good cluster passes; each broken one fails exactly the check that is about what is broken.
#![allow(clippy::unwrap_used)]

use jiff::SignedDuration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_core::CustomResourceExt;
use serde_json::Value;

use super::*;
use crate::api::{ImageWarm, Reason};
use crate::sample::at;

const NOW: i64 = 1_000_000;
const CA: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
const DAY: i64 = 86_400;

fn crd() -> CustomResourceDefinition {
    let mut crd = ImageWarm::crd();
    let conditions = serde_json::json!([
        {"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"},
    ]);
    crd.status = serde_json::from_value(serde_json::json!({"conditions": conditions})).unwrap();
    crd
}

fn configuration(kind: ConfigurationKind) -> WebhookConfiguration {
    let webhook = Webhook {
        name: "validation.imagewarms.caching.knative.dev".into(),
        namespace: Some("imagewarm-system".into()),
        has_path: true,
        ca_bundle: CA.into(),
    };
    WebhookConfiguration { kind, name: "imagewarm".into(), webhooks: vec![webhook] }
}

fn node(name: &str, runtime: &str) -> Node {
    Node { name: name.into(), is_warmed: true, is_ready: true, runtime: runtime.into() }
}

fn warmer(node: &str) -> WarmerPod {
    WarmerPod {
        name: format!("imagewarmer-{node}"),
        node: node.into(),
        is_ready: true,
        waiting: None,
    }
}

fn certificate(name: &'static str, days: i64) -> Certificate {
    let validity = Ok((at(NOW - DAY), at(NOW + days * DAY)));
    Certificate { name, validity, renew_at: Some(at(NOW + (days - 30) * DAY)) }
}

fn server() -> Server {
    Server { version: "v1.36.3".into(), is_served: true, date: Some(at(NOW)) }
}

/// Everything is right.
fn good() -> Observed {
    let denial =
        "admission webhook \"validation.imagewarms.caching.knative.dev\" denied the request: spec";
    Observed {
        namespace: "imagewarm-system".into(),
        version: "0.1.0".into(),
        now: at(NOW),
        server: Ok(server()),
        installed: Some(Box::new(Installed {
            crd: Crd { stored: Read::Found(Box::new(crd())), expected: Box::new(ImageWarm::crd()) },
            lease: Read::Found(Lease {
                holder: "imagecontroller-x@10.0.0.1:8444".into(),
                seconds: 15,
                renewed: Some(at(NOW - 3)),
                stored: Some(at(NOW - 3)),
                version: Some("0.1.0".into()),
            }),
            webhooks: Read::Found(vec![
                configuration(ConfigurationKind::Mutating),
                configuration(ConfigurationKind::Validating),
            ]),
            published_ca: Read::Found(CA.into()),
            certificates: vec![
                certificate("the CA", 3_000),
                certificate("the serving certificate", 80),
            ],
            admission: Admission::Answered { good: Ok("app".into()), bad: Some(denial.into()) },
            nodes: Read::Found(vec![
                node("node-a", "containerd://2.2.3"),
                node("node-b", "cri-o://1.34.1"),
            ]),
            warmers: Read::Found(vec![warmer("node-a"), warmer("node-b")]),
            troubles: Read::Found(vec![]),
            images: Read::Found(Images {
                controller: "r.example/imagewarm:0.1.0".into(),
                warmer: "r.example/imagewarm:0.1.0".into(),
                credential_providers: false,
            }),
            clocks: Read::Found(vec![clock("node-a", 0), clock("node-b", -1)]),
            knative: Read::Found(()),
        })),
    }
}

fn clock(node: &str, ahead: i64) -> NodeClock {
    NodeClock { node: node.into(), renewed: at(NOW + ahead), stored: at(NOW) }
}

fn broken(breaks: impl FnOnce(&mut Installed)) -> Observed {
    let mut observed = good();
    breaks(observed.installed.as_mut().unwrap());
    observed
}

fn found<T>(read: &mut Read<T>) -> &mut T {
    match read {
        Read::Found(found) => found,
        _ => unreachable!("the good cluster has it"),
    }
}

fn trouble(reason: Reason) -> Trouble {
    Trouble { node: "node-b".into(), reason, message: "what the warmer said".into() }
}

fn of(results: &[CheckResult], wanted: impl Fn(&Outcome) -> bool) -> Vec<Check> {
    results.iter().filter(|result| wanted(&result.outcome)).map(|result| result.check).collect()
}

fn failures(results: &[CheckResult]) -> Vec<Check> {
    of(results, |outcome| matches!(outcome, Outcome::Failed { .. }))
}

fn warnings(results: &[CheckResult]) -> Vec<Check> {
    of(results, |outcome| matches!(outcome, Outcome::Warning { .. }))
}

#[test]
fn a_good_cluster_passes() {
    let results = installation(&good());
    assert!(all_hold(&results) && of(&results, |outcome| *outcome != Outcome::Passed).is_empty());
    insta::assert_snapshot!(render(&results, Marks { symbols: true, colour: false }));
}

#[test]
fn each_broken_cluster_fails_exactly_its_own_check() {
    type Break = fn(&mut Installed);
    let cases: [(&str, Check, Break); 35] = [
        ("no CRD", Check::Crd, |it| it.crd.stored = Read::Absent),
        ("the CRD is being deleted", Check::Crd, |it| {
            found(&mut it.crd.stored).metadata.deletion_timestamp = Some(Time(at(NOW)));
        }),
        ("names of the CRD are taken", Check::Crd, |it| {
            let status = found(&mut it.crd.stored).status.as_mut().unwrap();
            status.conditions.as_mut().unwrap()[0].status = "False".into();
        }),
        ("the version is not served", Check::Crd, |it| {
            found(&mut it.crd.stored).spec.versions[0].served = false;
        }),
        ("the CRD has another version only", Check::Crd, |it| {
            found(&mut it.crd.stored).spec.versions[0].name = "v1".into();
        }),
        ("no Lease", Check::Leader, |it| it.lease = Read::Absent),
        ("the Lease is released", Check::Leader, |it| found(&mut it.lease).holder.clear()),
        ("the Lease has expired", Check::Leader, |it| {
            let lease = found(&mut it.lease);
            (lease.renewed, lease.stored) = (Some(at(NOW - 16)), Some(at(NOW - 16)));
        }),
        ("the Lease was never renewed", Check::Leader, |it| {
            let lease = found(&mut it.lease);
            (lease.renewed, lease.stored) = (None, None);
        }),
        ("no webhook configuration", Check::Webhooks, |it| it.webhooks = Read::Absent),
        ("one webhook configuration", Check::Webhooks, |it| {
            found(&mut it.webhooks).pop();
        }),
        ("no caBundle", Check::Webhooks, |it| {
            found(&mut it.webhooks)[1].webhooks[0].ca_bundle.clear()
        }),
        ("no caBundle, and no right to read the published one", Check::Webhooks, |it| {
            let what = "get ConfigMap imagewarm-dispatch-ca".into();
            it.published_ca = Read::Failed(ReadFailure::Forbidden { what });
            found(&mut it.webhooks)[1].webhooks[0].ca_bundle.clear()
        }),
        ("another caBundle", Check::Webhooks, |it| {
            found(&mut it.webhooks)[0].webhooks[0].ca_bundle.push('x');
        }),
        ("no path", Check::Webhooks, |it| found(&mut it.webhooks)[0].webhooks[0].has_path = false),
        ("webhooks of another namespace", Check::Webhooks, |it| {
            found(&mut it.webhooks)[0].webhooks[0].namespace = Some("other".into());
        }),
        ("two installations", Check::Webhooks, |it| {
            let mut other = configuration(ConfigurationKind::Mutating);
            other.name = "imagewarm-old".into();
            found(&mut it.webhooks).push(other);
        }),
        ("no CA is published", Check::Certificates, |it| it.published_ca = Read::Absent),
        ("the CA has expired", Check::Certificates, |it| {
            it.certificates[0] = certificate("the CA", -1)
        }),
        ("not valid yet", Check::Certificates, |it| {
            it.certificates[1].validity = Ok((at(NOW + DAY), at(NOW + 2 * DAY)));
        }),
        ("no certificate at all", Check::Certificates, |it| {
            it.certificates[0].validity = Err("ca.crt cannot be read".into());
        }),
        ("the published CA is empty", Check::Certificates, |it| it.certificates.clear()),
        ("the API server cannot call the webhook", Check::Admission, |it| {
            let error = Err("failed calling webhook: connection refused".into());
            it.admission = Admission::Answered { good: error, bad: None };
        }),
        ("the mutating webhook is not called", Check::Admission, |it| {
            it.admission = Admission::Answered { good: Ok(" app ".into()), bad: Some(OURS.into()) };
        }),
        ("no webhook is called", Check::Admission, |it| {
            it.admission = Admission::Answered { good: Ok("app".into()), bad: None };
        }),
        ("somebody else denies everything", Check::Admission, |it| {
            let denial = Some("admission webhook \"policy.example\" denied the request".into());
            it.admission = Admission::Answered { good: Ok("app".into()), bad: denial };
        }),
        ("a node without warmer", Check::Warmers, |it| {
            found(&mut it.warmers).pop();
        }),
        ("a warmer that is not connected", Check::Warmers, |it| {
            found(&mut it.warmers)[0].is_ready = false
        }),
        ("a warmer without image", Check::Warmers, |it| {
            let pod = &mut found(&mut it.warmers)[1];
            (pod.is_ready, pod.waiting) = (false, Some("ImagePullBackOff".into()));
        }),
        ("another runtime than the kubelet's", Check::Runtimes, |it| {
            found(&mut it.troubles).push(trouble(Reason::RuntimeMismatch));
        }),
        ("a runtime that does not answer", Check::Runtimes, |it| {
            found(&mut it.troubles).push(trouble(Reason::RuntimeUnavailable));
        }),
        ("a credential provider that fails", Check::Credentials, |it| {
            found(&mut it.troubles).push(trouble(Reason::CredentialProviderFailed));
        }),
        ("the clock of a node", Check::Clocks, |it| {
            found(&mut it.clocks).push(clock("node-c", -3_600))
        }),
        ("the clock of the leader", Check::Clocks, |it| {
            found(&mut it.lease).renewed = Some(at(NOW + 60))
        }),
        ("a leader of another age", Check::Versions, |it| {
            found(&mut it.lease).version = Some("0.3.0".into())
        }),
    ];
    for (name, check, breaks) in cases {
        let results = installation(&broken(breaks));
        assert_eq!(failures(&results), [check], "{name}: {results:#?}");
        assert!(warnings(&results).is_empty(), "{name}");
        let result = results.iter().find(|result| result.check == check).unwrap();
        assert!(!result.outcome.hint().unwrap().is_empty() && !result.message.is_empty(), "{name}");
    }
}

const OURS: &str =
    "admission webhook \"validation.imagewarms.caching.knative.dev\" denied the request";

#[test]
fn without_an_api_server_only_that_is_said() {
    let mut observed = good();
    observed.server = Err("connection refused".into());
    observed.installed = None;
    let results = installation(&observed);
    assert_eq!(failures(&results), [Check::ApiServer]);
    assert_eq!(results.len(), 12);
    let mut old = good();
    old.server = Ok(Server { version: "v1.31.0".into(), is_served: false, date: None });
    let results = installation(&old);
    assert_eq!(failures(&results), [Check::ApiServer]);
    assert!(results[0].message.contains("1.32"), "{results:?}");
}

#[test]
fn the_clock_of_this_machine_judges_nothing_but_itself() {
    let mut observed = good();
    observed.now = at(NOW) + SignedDuration::from_hours(24 * 365);
    assert_eq!(failures(&installation(&observed)), [Check::Clocks]);
}

#[test]
fn what_works_for_now_is_a_warning() {
    type Break = fn(&mut Installed);
    let cases: [(&str, Check, Break); 7] = [
        ("no Knative", Check::Knative, |it| it.knative = Read::Absent),
        ("a neighbouring version", Check::Versions, |it| {
            found(&mut it.lease).version = Some("0.2.7".into())
        }),
        ("a leader without version", Check::Versions, |it| found(&mut it.lease).version = None),
        ("an upgrade under way", Check::Versions, |it| found(&mut it.images).warmer.push('x')),
        ("a certificate that nobody renews", Check::Certificates, |it| {
            it.certificates[1] = certificate("the serving certificate", 3);
        }),
        ("a registry that wants the node's credentials", Check::Credentials, |it| {
            found(&mut it.troubles).push(trouble(Reason::NoCredentials));
        }),
        ("the CRD of another version", Check::Crd, |it| {
            found(&mut it.crd.stored).spec.versions[0].selectable_fields = None;
        }),
    ];
    for (name, check, breaks) in cases {
        let results = installation(&broken(breaks));
        assert_eq!(
            (warnings(&results), all_hold(&results)),
            (vec![check], true),
            "{name}: {results:#?}"
        );
    }
}

#[test]
fn nodes_that_need_no_warmer_do_not_count() {
    let results = installation(&broken(|it| {
        let nodes = found(&mut it.nodes);
        nodes.push(Node { is_warmed: false, ..node("windows", "containerd://2.2.3") });
        nodes.push(Node { is_ready: false, ..node("down", "containerd://2.2.3") });
    }));
    assert!(all_hold(&results), "{results:#?}");
}

#[test]
fn a_missing_right_skips_one_check_and_none_behind_it() {
    let forbidden = |what: &str| ReadFailure::Forbidden { what: what.into() };
    let results = installation(&broken(|it| {
        it.crd.stored = Read::Failed(forbidden("get CustomResourceDefinitions"));
        it.lease = Read::Failed(forbidden("get Leases in imagewarm-system"));
    }));
    assert!(all_hold(&results));
    let skipped = of(&results, |outcome| matches!(outcome, Outcome::Skipped { .. }));
    assert_eq!(skipped, [Check::Crd, Check::Leader, Check::Versions]);
}

#[test]
fn what_does_not_hold_says_what_to_do() {
    let mut observed = broken(|it| {
        found(&mut it.lease).holder.clear();
        it.knative = Read::Absent;
        it.nodes = Read::Failed(ReadFailure::Forbidden { what: "list Nodes".into() });
    });
    observed.now = at(NOW + 1);
    let results = installation(&observed);
    insta::assert_snapshot!("broken", render(&results, Marks::default()));
    let colour = render(&results, Marks { symbols: true, colour: true });
    assert!(colour.contains("\x1b[31m×\x1b[0m leader"), "{colour}");
    let value: Value = serde_json::from_str(&render_json(&results)).unwrap();
    assert_eq!(value["passed"], false);
    assert_eq!(value["checks"][2]["name"], "leader");
    assert_eq!(value["checks"][2]["outcome"], "failed");
    assert_eq!(value["checks"][2]["link"], "docs/cli.md#leader");
    assert!(value["checks"][0]["hint"].is_null());
}

fn before() -> ObservedBefore {
    ObservedBefore {
        namespace: "imagewarm-system".into(),
        server: Ok(server()),
        cluster: Some(Box::new(ClusterBefore {
            lacking: Ok(vec![]),
            namespace: Read::Absent,
            webhooks: Read::Absent,
            crd: Crd { stored: Read::Absent, expected: Box::new(ImageWarm::crd()) },
            nodes: Read::Found(vec![
                node("node-a", "containerd://1.6.0"),
                node("node-b", "docker://20.10.24"),
            ]),
            knative: Read::Found(()),
        })),
    }
}

#[test]
fn before_installation_each_obstacle_is_named() {
    let results = before_installation(&before());
    assert!(of(&results, |outcome| *outcome != Outcome::Passed).is_empty(), "{results:#?}");
    type Break = fn(&mut ClusterBefore);
    let cases: [(&str, Check, Break); 7] = [
        ("no rights", Check::Rights, |it| it.lacking = Ok(Right::ALL[..5].to_vec())),
        ("a namespace that goes", Check::Namespace, |it| {
            it.namespace = Read::Found((Some(at(NOW)), None));
        }),
        ("a namespace that confines Pods", Check::Namespace, |it| {
            it.namespace = Read::Found((None, Some("restricted".into())));
        }),
        ("an installation elsewhere", Check::Conflicts, |it| {
            let mut other = configuration(ConfigurationKind::Validating);
            other.webhooks[0].namespace = Some("other".into());
            it.webhooks = Read::Found(vec![other]);
        }),
        ("a CRD that goes", Check::Conflicts, |it| {
            let mut crd = crd();
            crd.metadata.deletion_timestamp = Some(Time(at(NOW)));
            it.crd.stored = Read::Found(Box::new(crd));
        }),
        ("no nodes", Check::Nodes, |it| it.nodes = Read::Found(vec![])),
        ("no Linux", Check::Nodes, |it| {
            found(&mut it.nodes).iter_mut().for_each(|node| node.is_warmed = false);
        }),
    ];
    for (name, check, breaks) in cases {
        let mut observed = before();
        breaks(observed.cluster.as_mut().unwrap());
        let results = before_installation(&observed);
        assert_eq!(failures(&results), [check], "{name}: {results:#?}");
    }
    let mut observed = before();
    observed.cluster.as_mut().unwrap().nodes =
        Read::Found(vec![node("old", "containerd://1.5.13")]);
    assert_eq!(warnings(&before_installation(&observed)), [Check::Nodes]);
    observed.cluster = None;
    observed.server = Err("no route".into());
    let results = before_installation(&observed);
    assert_eq!((failures(&results), results.len()), (vec![Check::ApiServer], 6));
}

#[test]
fn an_installation_is_upgraded_where_it_is() {
    let mut observed = before();
    let both = [ConfigurationKind::Mutating, ConfigurationKind::Validating].map(configuration);
    observed.cluster.as_mut().unwrap().webhooks = Read::Found(both.into());
    let results = before_installation(&observed);
    assert!(all_hold(&results));
    assert!(results[3].message.contains("already"), "{results:#?}");
}
