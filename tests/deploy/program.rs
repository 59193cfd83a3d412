//! The manifests fit the program: it takes the flags that they pass, and the names that it was built
//! with are theirs.

use std::net::SocketAddr;

use clap::Parser;
use imagewarm::cli::Cli;
use imagewarm::leader::LeaseArgs;
use imagewarm::leader::ca_publication::{CONFIG_MAP, CONFIGURATION};
use imagewarm::programs::certificates::{SECRET, SERVICES};
use imagewarm_core::api::deployment_config::DEPLOYMENT_CONFIG;
use serde_json::{Value, json};

use crate::{CONTROLLER, WARMER, container, list, name, of_kind, one, text, workloads};

/// What the kubelet would put for a variable.
fn value_of(variable: &str, pod_ip: &str) -> String {
    match variable {
        "POD_NAME" => "imagecontroller-7d4b9c-x2x7p".into(),
        "POD_NAMESPACE" => crate::NAMESPACE.into(),
        "POD_IP" => pod_ip.into(),
        "POD_UID" => "6d1f5f0e-3c1b-4c58-9a5e-0b1f3c9a7d21".into(),
        other => panic!("what would the kubelet put for $({other})?"),
    }
}

fn arguments(workload: &Value, pod_ip: &str) -> Vec<String> {
    let expand = |argument: &Value| {
        let mut parts = text(argument).split("$(");
        let mut expanded = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (variable, rest) = part.split_once(')').expect("variables end");
            expanded.push_str(&value_of(variable, pod_ip));
            expanded.push_str(rest);
        }
        expanded
    };
    list(&container(workload)["args"]).iter().map(expand).collect()
}

#[test]
fn the_program_takes_the_flags_that_it_is_given() {
    for workload in workloads() {
        for pod_ip in ["10.1.2.3", "fd00:10:1::7"] {
            let arguments = arguments(&workload, pod_ip);
            let words = std::iter::once("imagewarm").chain(arguments.iter().map(String::as_str));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{}: {arguments:?}: {error}", name(&workload));
            }
            // So that parsing above is worth something.
            let unknown = ["imagewarm", &arguments[0], "--no-such-flag"];
            assert!(Cli::try_parse_from(unknown).is_err());
            for argument in &arguments {
                if let Some((flag, address)) = argument.split_once("-listen=") {
                    assert!(address.parse::<SocketAddr>().is_ok(), "{flag}: {address}");
                }
            }
        }
    }
}

#[test]
fn environment_variables_in_the_manifests_are_no_settings_by_accident() {
    // A setting belongs into `args`, where it is seen and parsed by the test above.
    for workload in workloads() {
        for variable in list(&container(&workload)["env"]) {
            assert!(!text(&variable["name"]).starts_with("IMAGEWARM_"), "{variable}");
        }
    }
}

#[test]
fn names_in_the_program_are_those_in_the_manifests() {
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        one(kind, CONFIGURATION);
    }
    let mut services: Vec<_> =
        of_kind("Service").iter().map(|one| text(&one["metadata"]["name"]).to_owned()).collect();
    services.sort_unstable();
    let mut wanted = SERVICES.to_vec();
    wanted.sort_unstable();
    assert_eq!(services, wanted, "the certificate is good for these");

    let daemon_set = one("DaemonSet", WARMER);
    let volumes = list(&daemon_set["spec"]["template"]["spec"]["volumes"]);
    let mounted: Vec<_> =
        volumes.iter().filter_map(|volume| volume["configMap"]["name"].as_str()).collect();
    assert_eq!(mounted, [CONFIG_MAP], "what warmers mount is what the controller publishes");

    // The rights for single objects, one by one: a name too many would be a right too many.
    let named = |role: &Value| -> Vec<Value> {
        let rules = list(&role["rules"]).iter().filter(|rule| !rule["resourceNames"].is_null());
        rules.map(|rule| json!([rule["resources"], rule["resourceNames"]])).collect()
    };
    let configurations = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
    assert_eq!(
        named(&one("ClusterRole", "imagewarm-controller")),
        [json!([configurations, [CONFIGURATION]]), json!([["configmaps"], [DEPLOYMENT_CONFIG]])]
    );
    assert_eq!(
        named(&one("Role", "imagewarm-controller")),
        [json!([["secrets"], [SECRET]]), json!([["configmaps"], [CONFIG_MAP]])]
    );
}

#[test]
fn defaults_of_the_program_are_those_of_the_manifests() {
    #[derive(Parser)]
    struct Lease {
        #[command(flatten)]
        lease: LeaseArgs,
    }
    let lease = Lease::parse_from(["imagewarm"]).lease;
    assert_eq!(lease.lease_name, "imagewarm-leader");
    assert!(lease.check().is_ok());
    // No right names the Lease, so another name needs no other manifest.
    let role = one("Role", "imagewarm-controller");
    let leases = |rule: &&Value| rule["resources"] == json!(["leases"]);
    let rule = list(&role["rules"]).iter().find(leases).expect("a right to Leases");
    assert!(rule["resourceNames"].is_null() && rule["verbs"] == json!(["get", "create", "update"]));

    let token_reviews = crate::service_account_user(WARMER);
    let help = Cli::try_parse_from(["imagewarm", "controller", "--help"]).err();
    let help = help.map(|help| help.to_string()).unwrap_or_default();
    for default in [token_reviews.as_str(), crate::NAMESPACE, "[::]:8443", "[::]:8444"] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}");
    }
    assert!(arguments(&one("Deployment", CONTROLLER), "10.1.2.3").len() > 1);
}
