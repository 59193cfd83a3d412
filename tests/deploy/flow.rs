//! The controller's own flow in the API server: it takes the controller's requests and nobody
//! else's, and the numbers that its comments give are those that the API server computes.

use imagewarm::fan_out::FanOutArgs;
use serde_json::json;

use crate::rights::granted;
use crate::{CONTROLLER, NAMESPACE, folder, list, objects, one};

/// `--max-requests-inflight` and `--max-mutating-requests-inflight` of an API server together, as
/// they are when not set.
const SEATS: f64 = 600.0;
/// What the levels that Kubernetes brings along add up to.
const OTHER_SHARES: f64 = 245.0;
/// Calls of one kind that a replica has in flight, where no flag says how many.
const IN_FLIGHT: u64 = 16;

#[test]
fn all_that_the_controller_does_is_in_its_own_flow_and_nothing_else() {
    let schema = one("FlowSchema", "imagewarm");
    let spec = &schema["spec"];
    let level = spec["priorityLevelConfiguration"]["name"].as_str().expect("a level");
    one("PriorityLevelConfiguration", level);
    let [rule] = list(&spec["rules"]) else { panic!("one rule: {spec}") };
    let account = json!({"name": CONTROLLER, "namespace": NAMESPACE});
    let subject = json!({"kind": "ServiceAccount", "serviceAccount": account});
    assert_eq!(rule["subjects"], json!([subject]));
    let [all] = list(&rule["resourceRules"]) else { panic!("one rule for resources: {rule}") };
    for key in ["apiGroups", "resources", "verbs", "namespaces"] {
        assert_eq!(all[key], json!(["*"]), "{key}");
    }
    assert_eq!(all["clusterScope"], true);
    let others = json!([{"nonResourceURLs": ["*"], "verbs": ["*"]}]);
    assert_eq!(rule["nonResourceRules"], others);
    // Between the accounts of kube-system and `service-accounts`.
    let precedence = spec["matchingPrecedence"].as_u64().expect("a number");
    assert!((901..9_000).contains(&precedence), "{precedence}");
    // The leader's Lease is in a namespace where no Revision is fanned out.
    assert_eq!(spec["distinguisherMethod"], json!({"type": "ByNamespace"}));
    let leases = granted(&objects());
    let lease = leases.iter().find(|it| it.resource == "coordination.k8s.io/leases");
    assert_eq!(lease.and_then(|it| it.namespace.as_deref()), Some(NAMESPACE));
}

#[test]
fn there_are_seats_for_a_fan_out_at_any_moment_and_few_that_others_lack() {
    let limited = &one("PriorityLevelConfiguration", "imagewarm")["spec"]["limited"];
    let number = |key: &str| limited[key].as_f64().unwrap_or_else(|| panic!("{key}: {limited}"));
    let shares = number("nominalConcurrencyShares");
    let nominal = (SEATS * shares / (OTHER_SHARES + shares)).ceil();
    let lent = (nominal * number("lendablePercent") / 100.0).round();
    let borrowed = (nominal * number("borrowingLimitPercent") / 100.0).round();
    let (own, most) = (nominal - lent, nominal + borrowed);
    let fan_out = FanOutArgs::default().fan_out_concurrency as f64;
    assert!(own >= fan_out + IN_FLIGHT as f64, "{own} seats for {fan_out} creations and statuses");
    let tenth = (SEATS / 10.0 * shares / (OTHER_SHARES + shares)).ceil();
    assert!(lent == 0.0 && tenth > fan_out / 2.0, "{tenth} seats of a small API server");
    assert!(most <= 0.2 * SEATS, "{most} of {SEATS} seats");
    // As the comments say.
    let manifest = folder().join("controller/flow.yaml");
    let manifest = std::fs::read_to_string(manifest).expect("the manifest is shipped");
    for told in [
        format!("{OTHER_SHARES} shares,"),
        format!("{nominal} of the {SEATS} seats"),
        format!("{tenth} still let a fan-out go on"),
        format!("more than {most} of {SEATS}."),
    ] {
        assert!(manifest.contains(&told), "not told: {told}");
    }
}

#[test]
fn a_request_of_the_controller_waits_and_is_not_turned_away() {
    let limited = &one("PriorityLevelConfiguration", "imagewarm")["spec"]["limited"];
    let response = &limited["limitResponse"];
    assert_eq!(response["type"], "Queue");
    let number = |key: &str| response["queuing"][key].as_u64().expect("a number");
    let (hand, places) = (number("handSize"), number("queueLengthLimit"));
    assert!(hand < number("queues"), "flows share all queues");
    // Fan-out, repair, statuses, reviews of tokens, pull secrets: of three replicas in one flow.
    let most = 3 * 5 * IN_FLIGHT;
    assert!(hand * places >= most, "{hand} queues of {places} places for {most} requests");
}
