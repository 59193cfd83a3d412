//! What is shipped beside the base: the overlay for cert-manager, and the alerts. Their parts name
//! each other, the program's settings and the program's metrics.

use std::collections::BTreeSet;

use clap::CommandFactory;
use imagewarm::cli::Cli;
use imagewarm::programs::certificates::SERVICES;
use imagewarm::telemetry::certificates::CertificateMetrics;
use serde_json::{Value, json};

use crate::{CONTROLLER, NAMESPACE, container, folder, list, one, read, text};

fn overlay(file: &str) -> Vec<Value> {
    read(&crate::overlay("cert-manager").join(file))
}

#[test]
fn overlays_stand_on_the_base_and_outside_of_it() {
    let overlays = crate::overlay("");
    let base = folder().canonicalize().expect("the base is a folder");
    let mut seen = 0;
    for entry in std::fs::read_dir(overlays).expect("the overlays are in a folder") {
        let path = entry.expect("the overlays can be read").path();
        let path = path.canonicalize().expect("an overlay is a folder");
        let kustomization = read(&path.join("kustomization.yaml")).remove(0);
        let listed: Vec<_> =
            list(&kustomization["resources"]).iter().map(|it| path.join(text(it))).collect();
        let listed: Vec<_> = listed.iter().filter_map(|it| it.canonicalize().ok()).collect();
        assert!(listed.contains(&base), "{} lacks the base", path.display());
        assert!(listed.iter().all(|it| !path.starts_with(it)), "{}: a cycle", path.display());
        seen += 1;
    }
    assert!(seen >= 2);
}

#[test]
fn the_certificate_is_made_for_our_services_mounted_and_injected() {
    let kustomization = overlay("kustomization.yaml").remove(0);
    assert_eq!(kustomization["resources"], json!(["../../deploy", "certificates.yaml"]));
    let objects = overlay("certificates.yaml");
    let find = |kind: &str, name: &Value| {
        let mut found = objects.iter().filter(|it| it["kind"] == kind);
        found.find(|it| it["metadata"]["name"] == *name).expect("the object is in the file")
    };
    for object in &objects {
        assert_eq!(object["metadata"]["namespace"], NAMESPACE);
        // Each certificate has its issuer, and each issuer its CA.
        match text(&object["kind"]) {
            "Certificate" => drop(find("Issuer", &object["spec"]["issuerRef"]["name"])),
            _ if object["spec"]["ca"].is_null() => {}
            _ => {
                let secret = &object["spec"]["ca"]["secretName"];
                let ca = objects.iter().find(|it| it["spec"]["secretName"] == *secret);
                assert_eq!(ca.expect("a CA of this Secret")["spec"]["isCA"], true);
            }
        }
    }
    let serving = find("Certificate", &json!("imagewarm"));
    let names: BTreeSet<_> = list(&serving["spec"]["dnsNames"]).iter().map(text).collect();
    let wanted = SERVICES.iter().flat_map(|service| {
        ["", ".cluster.local"].map(|end| format!("{service}.{NAMESPACE}.svc{end}"))
    });
    assert_eq!(names, wanted.collect::<Vec<_>>().iter().map(String::as_str).collect());

    let injected = list(&kustomization["patches"]).iter().map(|patch| text(&patch["patch"]));
    let annotation = format!("cert-manager.io/inject-ca-from: {NAMESPACE}/imagewarm");
    assert!(injected.into_iter().any(|patch| patch.contains(&annotation)));

    let patch = overlay("controller.yaml").remove(0);
    assert_eq!(patch["metadata"]["name"], CONTROLLER);
    let ours = container(&patch);
    assert_eq!(ours["name"], container(&one("Deployment", CONTROLLER))["name"]);
    let volume = &list(&patch["spec"]["template"]["spec"]["volumes"])[0];
    assert_eq!(volume["secret"]["secretName"], serving["spec"]["secretName"]);
    let mount = &list(&ours["volumeMounts"])[0];
    assert_eq!((&mount["name"], &mount["readOnly"]), (&volume["name"], &json!(true)));
    let command = Cli::command();
    let controller = command.find_subcommand("controller").expect("a command");
    for variable in list(&ours["env"]) {
        let mut flags = controller.get_arguments();
        let known =
            flags.any(|flag| flag.get_env().is_some_and(|it| it == text(&variable["name"])));
        assert!(known, "{variable}");
    }
    let value = |name: &str| {
        let mut all = list(&ours["env"]).iter();
        all.find(|it| it["name"] == name).map(|it| text(&it["value"]).to_owned())
    };
    assert_eq!(value("IMAGEWARM_TLS_CERT_DIR").as_deref(), mount["mountPath"].as_str());
    assert_eq!(value("IMAGEWARM_PUBLISH_CA_BUNDLE").as_deref(), Some("false"));
}

#[test]
fn alerts_ask_for_metrics_that_exist() {
    let rules = read(&folder().join("alerts/imagewarm.rules.yaml")).remove(0);
    let mut registry = imagewarm::telemetry::metrics::registry();
    CertificateMetrics::register(&mut registry);
    let known = format!("{registry:?}");
    let mut asked = 0;
    for rule in list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"])) {
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
        let words = text(&rule["expr"]).split(|c: char| !c.is_ascii_lowercase() && c != '_');
        for metric in words.filter_map(|word| word.strip_prefix("imagewarm_")) {
            let metric = metric.trim_end_matches("_total");
            assert!(known.contains(&format!("name: \"{metric}\"")), "{metric}");
            asked += 1;
        }
    }
    assert!(asked >= 3, "the alerts ask for too little");
}
