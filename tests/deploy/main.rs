//! The shipped manifests hang together, and keep to what is promised of them: who may do what,
//! what a webhook can hold up, and how the Pods are confined.
#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use imagewarm_core::placement::VIRTUAL_NODES;
use serde_json::{Value, json};

mod chart;
mod flow;
mod overlays;
mod program;
#[path = "../rights/mod.rs"]
mod rights;
mod rights_table;

const NAMESPACE: &str = "imagewarm-system";
const CONTROLLER: &str = "imagecontroller";
const WARMER: &str = "imagewarmer";
/// Of the ClusterRole and the Role for `imagewarm check`.
const CHECK: &str = "imagewarm-check";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Beside the base, not in it: kustomize follows no kustomization into a folder around it.
fn overlay(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays").join(name)
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("manifests can be read");
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml_files(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("deploy can be read") {
        let path = entry.expect("deploy can be read").path();
        match path.extension().and_then(|kind| kind.to_str()) {
            // Not of the base: tests of their own.
            _ if path.ends_with("alerts") || path.ends_with("helm") => {}
            _ if path.is_dir() => yaml_files(&path, found),
            Some("yaml") => drop(found.insert(path)),
            Some("yml" | "json") => panic!("{}: manifests end in .yaml", path.display()),
            _ => {}
        }
    }
}

fn kustomization() -> Value {
    read(&folder().join("kustomization.yaml")).remove(0)
}

/// All objects, in the order in which they are listed.
fn objects() -> Vec<Value> {
    list(&kustomization()["resources"])
        .iter()
        .flat_map(|name| read(&folder().join(name.as_str().expect("resources are paths"))))
        .collect()
}

fn of_kind(kind: &str) -> Vec<Value> {
    objects().into_iter().filter(|object| object["kind"] == kind).collect()
}

fn one(kind: &str, name: &str) -> Value {
    let mut found = of_kind(kind);
    found.retain(|object| object["metadata"]["name"] == name);
    assert_eq!(found.len(), 1, "{kind} {name}");
    found.remove(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn name(object: &Value) -> String {
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Deployment and DaemonSet.
fn workloads() -> [Value; 2] {
    [one("Deployment", CONTROLLER), one("DaemonSet", WARMER)]
}

fn container(workload: &Value) -> &Value {
    let containers = list(&workload["spec"]["template"]["spec"]["containers"]);
    assert_eq!(containers.len(), 1, "{}", name(workload));
    &containers[0]
}

fn webhooks() -> Vec<Value> {
    let mut webhooks = Vec::new();
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        webhooks.extend(list(&one(kind, "imagewarm")["webhooks"]).to_vec());
    }
    webhooks
}

fn service_account_user(account: &str) -> String {
    format!("system:serviceaccount:{NAMESPACE}:{account}")
}

#[test]
fn kustomization_lists_every_file_once() {
    let mut files = BTreeSet::new();
    yaml_files(&folder(), &mut files);
    files.remove(&folder().join("kustomization.yaml"));
    let kustomization = kustomization();
    let listed = list(&kustomization["resources"]);
    let paths: BTreeSet<_> = listed.iter().map(|name| folder().join(text(name))).collect();
    assert_eq!(paths, files);
    assert_eq!(listed.len(), paths.len(), "a file is listed twice");
    // One pass of `kubectl apply` is enough only in this order.
    let kinds: Vec<_> = objects().iter().map(|object| text(&object["kind"]).to_owned()).collect();
    assert_eq!(kinds[..2], ["Namespace", "CustomResourceDefinition"]);
}

#[test]
fn every_object_is_labelled_and_in_its_namespace() {
    let cluster_wide = [
        "Namespace",
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "FlowSchema",
        "MutatingWebhookConfiguration",
        "PriorityLevelConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    ];
    let mut seen = BTreeSet::new();
    for object in objects() {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str();
        let wanted = (!cluster_wide.contains(&text(&object["kind"]))).then_some(NAMESPACE);
        assert_eq!(namespace, wanted, "{}", name(&object));
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/part-of"],
            "imagewarm",
            "{}",
            name(&object)
        );
        assert!(seen.insert(name(&object)), "{} exists twice", name(&object));
    }
    assert_eq!(one("Namespace", NAMESPACE)["metadata"]["name"], NAMESPACE);
}

#[test]
fn image_and_version_stand_in_one_place() {
    for workload in workloads() {
        assert_eq!(container(&workload)["image"], "imagewarm", "{}", name(&workload));
    }
    let kustomization = kustomization();
    let [image] = list(&kustomization["images"]) else { panic!("one image is shipped") };
    assert_eq!(image["name"], "imagewarm");
    assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn controller_sets_what_no_file_can_know() {
    for object in objects() {
        let text = object.to_string();
        for field in ["caBundle", "ownerReferences", "uid"] {
            assert!(!text.contains(&format!("\"{field}\":")), "{}: {field}", name(&object));
        }
    }
}

#[test]
fn warmers_have_no_rights() {
    let account = one("ServiceAccount", WARMER);
    assert_eq!(account["automountServiceAccountToken"], false);
    for binding in [of_kind("ClusterRoleBinding"), of_kind("RoleBinding")].concat() {
        for subject in list(&binding["subjects"]) {
            let wanted =
                json!({"kind": "ServiceAccount", "name": CONTROLLER, "namespace": NAMESPACE});
            assert_eq!(*subject, wanted, "{}", name(&binding));
        }
    }
}

#[test]
fn whoever_checks_reads_no_secret_and_stores_nothing() {
    let roles = [one("ClusterRole", CHECK), one("Role", CHECK)];
    for role in &roles {
        for rule in list(&role["rules"]) {
            let place = format!("{} {rule}", role["kind"]);
            assert!(
                !rule.to_string().contains('*') && !rule.to_string().contains("secrets"),
                "{place}"
            );
            for verb in list(&rule["verbs"]).iter().map(text) {
                // Asked for even by a dry run.
                let of_image_warms = verb == "create" && rule["resources"] == json!(["imagewarms"]);
                let in_namespace = of_image_warms && role["kind"] == "Role";
                assert!(["get", "list"].contains(&verb) || in_namespace, "{place}");
            }
        }
    }
    // In no default role: webhook configurations hold the paths of the webhooks.
    let labels = &roles[0]["metadata"]["labels"];
    assert_eq!(*labels, json!({"app.kubernetes.io/part-of": "imagewarm"}));
    for binding in [of_kind("ClusterRoleBinding"), of_kind("RoleBinding")].concat() {
        assert!(binding["roleRef"]["name"] != CHECK, "{}", name(&binding));
    }
}

#[test]
fn controller_has_few_rights() {
    let configurations = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
    let mut roles = [of_kind("ClusterRole"), of_kind("Role")].concat();
    roles.retain(|role| role["metadata"]["name"] != CHECK);
    for role in roles {
        for rule in list(&role["rules"]) {
            let place = format!("{}: {rule}", name(&role));
            assert!(!rule.to_string().contains('*'), "{place}");
            let has = |key: &str, word: &str| list(&rule[key]).iter().any(|one| one == word);
            let all_verbs = ["list", "watch", "escalate", "bind", "impersonate"];
            if has("resources", "secrets") {
                assert!(!all_verbs.iter().any(|verb| has("verbs", verb)), "{place}");
                let writes = has("verbs", "update") || has("verbs", "patch");
                assert!(!writes || rule["resourceNames"] == json!(["imagewarm-certs"]), "{place}");
                assert!(role["kind"] == "Role" || rule["verbs"] == json!(["get"]), "{place}");
            }
            if configurations.iter().any(|resource| has("resources", resource)) {
                assert_eq!(rule["resourceNames"], json!(["imagewarm"]), "{place}");
            }
            if has("resources", "configmaps") && role["kind"] == "ClusterRole" {
                assert_eq!(rule["resourceNames"], json!(["config-deployment"]), "{place}");
                assert_eq!(rule["verbs"], json!(["list", "watch"]), "{place}");
            }
            if has("resources", "runtimeclasses") {
                assert_eq!(rule["verbs"], json!(["list", "watch"]), "{place}");
            }
            let watched = ["revisions", "images", "nodes"];
            if watched.iter().any(|resource| has("resources", resource)) {
                assert_eq!(rule["verbs"], json!(["get", "list", "watch"]), "{place}");
            }
        }
    }
    // What the warmers mount is what the controller may write.
    let daemon_set = one("DaemonSet", WARMER);
    let volumes = list(&daemon_set["spec"]["template"]["spec"]["volumes"]);
    let ca = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str());
    let role = one("Role", "imagewarm-controller").to_string();
    assert!(ca.is_some_and(|ca| role.contains(&format!("\"{ca}\""))), "{ca:?}");
}

#[test]
fn webhooks_hold_up_only_what_they_must() {
    let facts: Vec<Value> = webhooks()
        .iter()
        .map(|webhook| {
            json!([
                webhook["name"],
                webhook["failurePolicy"],
                webhook["timeoutSeconds"],
                webhook["sideEffects"],
                webhook["clientConfig"]["service"]["path"],
                webhook["rules"][0]["resources"],
                webhook["rules"][0]["operations"],
            ])
        })
        .collect();
    let both = json!(["CREATE", "UPDATE"]);
    assert_eq!(
        facts,
        [
            json!([
                "revisions.caching.knative.dev",
                "Ignore",
                1,
                "NoneOnDryRun",
                null,
                ["revisions"],
                ["CREATE"]
            ]),
            json!([
                "defaulting.imagewarms.caching.knative.dev",
                "Fail",
                10,
                "None",
                null,
                ["imagewarms"],
                both
            ]),
            json!([
                "validation.imagewarms.caching.knative.dev",
                "Fail",
                10,
                "None",
                null,
                ["imagewarms"],
                both
            ]),
        ]
    );
    for webhook in webhooks() {
        let place = text(&webhook["name"]);
        assert_eq!(list(&webhook["rules"]).len(), 1, "{place}");
        assert_eq!(webhook["rules"][0]["scope"], "Namespaced", "{place}");
        assert_eq!(webhook["matchPolicy"], "Equivalent", "{place}");
        assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]), "{place}");
        assert!(webhook["reinvocationPolicy"] != "IfNeeded", "{place}");
    }
}

#[test]
fn own_writes_and_tidying_up_call_no_webhook() {
    let own = format!("request.userInfo.username != '{}'", service_account_user(CONTROLLER));
    one("ServiceAccount", CONTROLLER);
    for webhook in webhooks() {
        let conditions = list(&webhook["matchConditions"]);
        assert!(conditions.iter().any(|one| one["expression"] == own), "{}", webhook["name"]);
    }
    let (ours, others): (Vec<Value>, Vec<Value>) =
        webhooks().into_iter().partition(|webhook| webhook["failurePolicy"] == "Fail");
    // The same calls for defaulting and validation.
    assert_eq!(ours[0]["matchConditions"], ours[1]["matchConditions"]);
    let expressions = ours[0]["matchConditions"].to_string();
    for part in ["object.spec != oldObject.spec", "oldObject.metadata.deletionTimestamp"] {
        assert!(expressions.contains(part), "{part}");
    }
    // A namespace that opted out costs no call, and the controller's own is left alone.
    let selector = &others[0]["namespaceSelector"]["matchExpressions"];
    let leaves_out = |key: &str, value: &str| {
        list(selector).contains(&json!({"key": key, "operator": "NotIn", "values": [value]}))
    };
    assert!(leaves_out("caching.knative.dev/warm", "false"), "{selector}");
    assert!(leaves_out("kubernetes.io/metadata.name", NAMESPACE), "{selector}");
}

#[test]
fn services_lead_to_the_controller() {
    let deployment = one("Deployment", CONTROLLER);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let ports: BTreeMap<_, _> = list(&container(&deployment)["ports"])
        .iter()
        .map(|port| (text(&port["name"]).to_owned(), port["containerPort"].clone()))
        .collect();
    for service in of_kind("Service") {
        for (key, value) in service["spec"]["selector"].as_object().into_iter().flatten() {
            assert_eq!(labels[key], *value, "{}", name(&service));
        }
        for port in list(&service["spec"]["ports"]) {
            assert!(ports.contains_key(text(&port["targetPort"])), "{}: {port}", name(&service));
        }
    }
    for webhook in webhooks() {
        let target = &webhook["clientConfig"]["service"];
        assert_eq!(target["namespace"], NAMESPACE);
        let service = one("Service", text(&target["name"]));
        assert_eq!(service["spec"]["ports"][0]["port"], target["port"]);
    }
    // The flags open the ports that are declared.
    let arguments = container(&deployment)["args"].to_string();
    for (name, port) in ports {
        assert!(
            arguments.contains(&format!("--{name}-listen=[::]:{port}\"")),
            "{name}: {arguments}"
        );
    }
    let server = format!("https://imagewarm-dispatch.{NAMESPACE}.svc:8444");
    let daemon_set = one("DaemonSet", WARMER);
    assert!(container(&daemon_set)["args"].to_string().contains(&server));
    assert_eq!(one("Service", "imagewarm-dispatch")["spec"]["ports"][0]["port"], 8444);
}

#[test]
fn variables_in_arguments_are_defined() {
    for workload in workloads() {
        let container = container(&workload);
        let defined: Vec<_> =
            list(&container["env"]).iter().map(|env| text(&env["name"])).collect();
        for argument in list(&container["args"]) {
            for part in text(argument).split("$(").skip(1) {
                let variable = part.split(')').next().unwrap_or_default();
                assert!(defined.contains(&variable), "{}: {argument}", name(&workload));
            }
        }
    }
}

#[test]
fn pods_are_confined() {
    for workload in workloads() {
        let place = name(&workload);
        let pod = &workload["spec"]["template"]["spec"];
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[host].is_null(), "{place}: {host}");
        }
        // Services would set IMAGEWARM_… variables, which are settings of the program.
        assert_eq!(pod["enableServiceLinks"], false, "{place}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{place}");
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}), "{place}");
        let container = container(&workload);
        assert_eq!(
            container["securityContext"],
            json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            }),
            "{place}"
        );
        for (key, value) in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")] {
            assert!(container["resources"][key][value].is_string(), "{place}: {key}.{value}");
        }
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert_eq!(*get, json!({"path": path, "port": "health"}), "{place}: {probe}");
        }
        let mounts = list(&container["volumeMounts"]);
        assert!(mounts.iter().all(|mount| mount["readOnly"] == true), "{place}");
    }
}

#[test]
fn controller_survives_a_node() {
    let deployment = one("Deployment", CONTROLLER);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert!(pod["volumes"].is_null(), "the controller mounts nothing");
    let apart = &pod["affinity"]["podAntiAffinity"];
    let term = &apart["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
    assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let budget = one("PodDisruptionBudget", CONTROLLER);
    for selector in
        [&deployment["spec"]["selector"], &budget["spec"]["selector"], &term["labelSelector"]]
    {
        for (key, value) in selector["matchLabels"].as_object().expect("a selector of labels") {
            assert_eq!(labels[key], *value);
        }
    }
}

#[test]
fn warmers_run_everywhere_with_one_token_and_one_folder() {
    let daemon_set = one("DaemonSet", WARMER);
    let pod = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], WARMER);
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(daemon_set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "10%");
    let volumes = list(&pod["volumes"]);
    let with = |kind: &str| -> Vec<&Value> {
        volumes.iter().filter(|volume| !volume[kind].is_null()).collect()
    };
    let token = json!([{"serviceAccountToken":
        {"audience": "imagewarm", "expirationSeconds": 3600, "path": "token"}}]);
    assert_eq!(with("projected").len(), 1);
    assert_eq!(with("projected")[0]["projected"]["sources"], token);
    assert_eq!(with("hostPath").len(), 1);
    // The folder, since a mounted socket would stay the dead one when the runtime restarts.
    assert_eq!(with("hostPath")[0]["hostPath"]["type"], "Directory");
    assert_eq!(with("configMap")[0]["configMap"]["optional"], true);
    assert_eq!(volumes.len(), 3);
    // Files that the flags name lie in what is mounted.
    let container = container(&daemon_set);
    let mounts: Vec<_> =
        list(&container["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"])).collect();
    // Where the warmer looks for its runtime.
    assert!(mounts.contains(&"/host/run"), "{mounts:?}");
    for flag in ["--dispatch-ca-file=", "--token-file="] {
        let mut arguments = list(&container["args"]).iter().map(text);
        let path = arguments.find_map(|argument| argument.strip_prefix(flag));
        let parent = path.and_then(|path| Path::new(path).parent()?.to_str());
        assert!(parent.is_some_and(|parent| mounts.contains(&parent)), "{flag} {path:?}");
    }
}

#[test]
fn only_warmers_reach_the_dispatch_port_and_they_reach_nothing_else() {
    let ports = |rule: &Value| -> Vec<String> {
        list(&rule["ports"]).iter().map(|port| port["port"].to_string()).collect()
    };
    let controllers = one("NetworkPolicy", CONTROLLER);
    assert_eq!(
        controllers["spec"]["podSelector"],
        one("Deployment", CONTROLLER)["spec"]["selector"]
    );
    let ingress = list(&controllers["spec"]["ingress"]);
    let rules: Vec<_> = ingress.iter().map(ports).collect();
    assert_eq!(rules, [[r#""dispatch""#], [r#""webhook""#], [r#""health""#]]);
    assert_eq!(controllers["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    // The API server's usual ports and DNS: where it is, no selector can say.
    let egress: Vec<_> = list(&controllers["spec"]["egress"]).iter().map(ports).collect();
    assert_eq!(egress, [vec!["443", "6443", "8443", "16443"], vec!["53", "53"]]);
    let warmers = one("DaemonSet", WARMER)["spec"]["selector"].clone();
    assert_eq!(ingress[0]["from"], json!([{"podSelector": warmers}]));
    let policy = one("NetworkPolicy", WARMER);
    assert_eq!(policy["spec"]["podSelector"], warmers);
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let egress: Vec<_> = list(&policy["spec"]["egress"]).iter().map(ports).collect();
    assert_eq!(egress, [vec![r#""dispatch""#.to_owned()], vec!["53".into(), "53".into()]]);
    // Named ports, and those are the Pods' own.
    let deployment = one("Deployment", CONTROLLER);
    let named = list(&container(&deployment)["ports"]).iter().map(|port| &port["name"]);
    assert_eq!(named.collect::<Vec<_>>(), ["webhook", "dispatch", "health"]);
}

#[test]
fn no_warmer_is_scheduled_where_the_controller_plans_none() {
    let pod = &one("DaemonSet", WARMER)["spec"]["template"]["spec"];
    let required =
        &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let [term] = list(&required["nodeSelectorTerms"]) else { panic!("{required}") };
    let expected: Vec<Value> = VIRTUAL_NODES
        .iter()
        .map(|(key, value)| json!({"key": key, "operator": "NotIn", "values": [value]}))
        .collect();
    assert_eq!(list(&term["matchExpressions"]), expected);
}
