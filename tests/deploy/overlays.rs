//! What is shipped beside the base: the overlays. Their parts name each other and the program's settings. What alerts
//! ask for is checked in `tests/metrics.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::CommandFactory;
use imagewarm::cli::Cli;
use imagewarm::programs::certificates::SERVICES;
use imagewarm_core::placement::GATE_TAINT;
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
        // Itself, or by another overlay.
        let on_base = |it: &PathBuf| *it == base || it.join("kustomization.yaml").is_file();
        assert!(listed.iter().any(on_base), "{} lacks the base", path.display());
        assert!(listed.iter().all(|it| !path.starts_with(it)), "{}: a cycle", path.display());
        seen += 1;
    }
    assert!(seen >= 8);
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
fn with_fixed_paths_the_controller_only_reads_webhook_configurations() {
    let overlay = |file: &str| read(&crate::overlay("cert-manager-fixed-paths").join(file));
    let kustomization = overlay("kustomization.yaml").remove(0);
    assert_eq!(kustomization["resources"], json!(["../cert-manager"]));

    let before = one("ClusterRole", "imagewarm-controller");
    let patches = list(&kustomization["patches"]);
    let patch = patches.iter().find(|patch| patch["target"]["kind"] == "ClusterRole");
    let patch = patch.expect("a patch of the role");
    assert_eq!(patch["target"]["name"], before["metadata"]["name"]);
    let operations: json_patch::Patch =
        serde_saphyr::from_str(text(&patch["patch"])).expect("a JSON patch");
    let mut after = before.clone();
    json_patch::patch(&mut after, &operations).expect("the rule is where the patch looks");
    for (before, after) in list(&before["rules"]).iter().zip(list(&after["rules"])) {
        let is_changed = before.to_string().contains("webhookconfigurations");
        assert_eq!(before != after, is_changed, "{after}");
        let verbs = if is_changed { json!(["get"]) } else { before["verbs"].clone() };
        assert_eq!(after["verbs"], verbs);
    }

    // Each webhook gets a path of its own, from the file that the installer writes.
    let mut paths = BTreeMap::new();
    for replacement in list(&kustomization["replacements"]) {
        let [target] = list(&replacement["targets"]) else { panic!("{replacement}") };
        let [field] = list(&target["fieldPaths"]) else { panic!("{replacement}") };
        let kind = text(&target["select"]["kind"]).to_owned();
        let from = text(&replacement["source"]["fieldPath"]).to_owned();
        assert!(paths.insert((kind, text(field).to_owned()), from).is_none(), "{replacement}");
    }
    let mut sources = BTreeSet::new();
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for webhook in list(&one(kind, "imagewarm")["webhooks"]) {
            let name = text(&webhook["name"]);
            let field = format!("webhooks.[name={name}].clientConfig.service.path");
            let source = paths.remove(&(kind.to_owned(), field));
            assert!(sources.insert(source.expect(name)), "{name} shares its path");
        }
    }
    assert!(paths.is_empty(), "{paths:?}");

    let patch = overlay("controller.yaml").remove(0);
    assert_eq!(patch["metadata"]["name"], CONTROLLER);
    let ours = container(&patch);
    assert_eq!(ours["name"], container(&one("Deployment", CONTROLLER))["name"]);
    let variable = json!([{"name": "IMAGEWARM_PUBLISH_WEBHOOK_PATHS", "value": "false"}]);
    assert_eq!(ours["env"], variable);
    let command = Cli::command();
    let controller = command.find_subcommand("controller").expect("a command");
    let known = |flag: &clap::Arg| {
        flag.get_env().is_some_and(|name| name == "IMAGEWARM_PUBLISH_WEBHOOK_PATHS")
    };
    assert!(controller.get_arguments().any(known));
}

/// The warmer's flags name the node's files, which are mounted there, read-only.
#[test]
fn in_clouds_the_plugins_are_where_the_warmer_looks_for_them() {
    let command = Cli::command();
    let warmer = command.find_subcommand("warmer").expect("a command");
    for cloud in ["eks", "gke", "aks"] {
        let patch = read(&crate::overlay(cloud).join("warmer.yaml")).remove(0);
        assert_eq!(patch["metadata"]["name"], crate::WARMER, "{cloud}");
        let (pod, ours) = (&patch["spec"]["template"]["spec"], container(&patch));
        assert_eq!(ours["name"], container(&one("DaemonSet", crate::WARMER))["name"], "{cloud}");
        let mounts = list(&ours["volumeMounts"]);
        let volumes = list(&pod["volumes"]);
        assert_eq!(mounts.len(), volumes.len(), "{cloud}");
        for (mount, volume) in mounts.iter().zip(volumes) {
            assert_eq!((&mount["name"], &mount["readOnly"]), (&volume["name"], &json!(true)));
            // A plugin's arguments and configuration name the node's paths.
            assert_eq!(mount["mountPath"], volume["hostPath"]["path"], "{cloud}");
            let kind = text(&volume["hostPath"]["type"]);
            assert!(["File", "Directory"].contains(&kind), "{cloud}: {volume}");
        }
        let mut flags = BTreeSet::new();
        for variable in list(&ours["env"]) {
            let mut arguments = warmer.get_arguments();
            let named =
                |flag: &&clap::Arg| flag.get_env().is_some_and(|it| it == text(&variable["name"]));
            let flag = arguments.find(named).unwrap_or_else(|| panic!("{cloud}: {variable}"));
            flags.insert(flag.get_long().unwrap_or_default().to_owned());
            let path = std::path::Path::new(text(&variable["value"]));
            let is_below = |mount: &Value| path.starts_with(text(&mount["mountPath"]));
            assert!(mounts.iter().any(is_below), "{cloud}: {variable} is not mounted");
        }
        let expected = ["image-credential-provider-bin-dir", "image-credential-provider-config"];
        assert_eq!(flags.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{cloud}");
        if pod["hostNetwork"] == true {
            assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet", "{cloud}");
        }
        let kustomization = read(&crate::overlay(cloud).join("kustomization.yaml")).remove(0);
        // On the node's network the warmers are no Pods for the controllers' policy; else their own policy holds.
        let target = if pod["hostNetwork"] == true { "imagecontroller" } else { "imagewarmer" };
        let policies = list(&kustomization["patches"]).iter().filter(|patch| {
            patch["target"]["kind"] == "NetworkPolicy" && patch["target"]["name"] == target
        });
        assert_eq!(policies.count(), 1, "{cloud}");
    }
}

/// The overlay for the node gate adds one right, for the account that its policy narrows; and the base has none.
#[test]
fn the_node_gate_adds_one_right_and_its_policy() {
    let overlay = |file: &str| read(&crate::overlay("node-gate").join(file));
    let kustomization = overlay("kustomization.yaml").remove(0);
    assert_eq!(kustomization["resources"], json!(["../../deploy", "rights.yaml", "policy.yaml"]));
    let rights = overlay("rights.yaml");
    let granted = crate::rights::granted(&rights);
    let account = crate::service_account_user(CONTROLLER);
    let granted: Vec<_> = granted.iter().map(ToString::to_string).collect();
    assert_eq!(granted, [format!("{account}: patch nodes")]);
    let [policy, binding] = &overlay("policy.yaml")[..] else { panic!("a policy and its binding") };
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let condition = text(&policy["spec"]["matchConditions"][0]["expression"]);
    assert_eq!(condition, format!("request.userInfo.username == '{account}'"));
    let key = json!({"name": "key", "expression": format!("'{GATE_TAINT}'")});
    assert!(list(&policy["spec"]["variables"]).contains(&key), "{policy}");
    let patch = overlay("controller.yaml").remove(0);
    assert_eq!(patch["metadata"]["name"], CONTROLLER);
    let ours = container(&patch);
    assert_eq!(ours["name"], container(&one("Deployment", CONTROLLER))["name"]);
    let variable = json!([{"name": "IMAGEWARM_NODE_GATE_TAINT", "value": GATE_TAINT}]);
    assert_eq!(ours["env"], variable);
    // Off in the base: the setting is not there, and is empty by default.
    let base = container(&one("Deployment", CONTROLLER)).to_string();
    assert!(!base.contains("NODE_GATE") && !base.contains("node-gate"), "{base}");
    for object in rights.iter().chain([policy, binding]) {
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "imagewarm");
    }
}
