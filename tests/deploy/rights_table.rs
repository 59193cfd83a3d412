//! `docs/security.md` lists what the manifests allow the controller, and each comparison with the
//! audit log finds what it is there for. `UPDATE_DOCS=1 cargo test --test deploy` writes the list anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::rights::{Grant, IDLE, Request, bound, differences, granted, of_rule};
use crate::{CONTROLLER, NAMESPACE, folder, list, objects, one, read, service_account_user, text};

const MANIFEST: &str = "rbac/controller.yaml";

/// The comment before each rule of the roles, in their order: why the rule is there.
fn reasons() -> Vec<String> {
    let manifest = fs::read_to_string(folder().join(MANIFEST)).expect("the roles are shipped");
    let (mut reasons, mut comment) = (vec![], vec![]);
    for line in manifest.lines() {
        match line.strip_prefix("# ") {
            Some(words) => comment.push(words.trim().to_owned()),
            None if line.starts_with("- apiGroups:") => {
                assert!(!comment.is_empty(), "no reason before {line:?} {}", reasons.len());
                reasons.push(std::mem::take(&mut comment).join(" "));
            }
            None => comment.clear(),
        }
    }
    reasons
}

/// The rules in the order of the manifest: namespace, rule, reason.
fn rules(objects: &[Value]) -> Vec<(Option<&str>, &Value, String)> {
    let mut rules = vec![];
    for (account, namespace, role) in bound(objects) {
        assert_eq!(account, service_account_user(CONTROLLER));
        rules.extend(list(&role["rules"]).iter().map(|rule| (namespace, rule)));
    }
    let reasons = reasons();
    assert_eq!(reasons.len(), rules.len(), "a reason for each rule of {MANIFEST}, and no other");
    rules.into_iter().zip(reasons).map(|((namespace, rule), why)| (namespace, rule, why)).collect()
}

fn table() -> String {
    let objects = objects();
    let mut table = "\n| resource | verbs | where | why |\n|---|---|---|---|\n".to_owned();
    for (namespace, rule, why) in rules(&objects) {
        let grants = of_rule("", namespace, rule);
        let resources: BTreeSet<_> = grants.iter().map(|grant| &grant.resource).collect();
        let code = |words: &[String]| {
            words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        };
        let words = |key: &str| {
            code(&list(&rule[key]).iter().map(|it| text(it).to_owned()).collect::<Vec<_>>())
        };
        let mut place = match namespace {
            Some(namespace) => format!("namespace `{namespace}`"),
            None => "cluster-wide".to_owned(),
        };
        if !rule["resourceNames"].is_null() {
            place = format!("{place}, only {}", words("resourceNames"));
        }
        let resources = code(&resources.into_iter().cloned().collect::<Vec<_>>());
        let verbs = words("verbs");
        writeln!(table, "| {resources} | {verbs} | {place} | {why} |").expect("a String has room");
    }
    table
}

#[test]
fn the_page_lists_what_the_controller_may_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let page = fs::read_to_string(&path).expect("the page exists");
    let (begin, end) = ("<!-- rights: begin -->\n", "<!-- rights: end -->");
    let (before, rest) = page.split_once(begin).expect("the list begins");
    let (_, after) = rest.split_once(end).expect("the list ends");
    let wanted = format!("{before}{begin}{}\n{end}{after}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).expect("the page can be written");
        return;
    }
    assert!(
        page == wanted,
        "docs/security.md differs from deploy/rbac; write its list anew with\n    \
         UPDATE_DOCS=1 cargo test --test deploy"
    );
}

#[test]
fn what_is_excused_from_use_is_granted() {
    let granted = granted(&objects());
    for (resource, verb, why) in IDLE {
        let grant = granted.iter().any(|it| it.resource == *resource && it.verb == *verb);
        assert!(grant && !why.is_empty(), "nothing grants {verb} on {resource}");
    }
}

/// An audit event of the controller.
fn event(verb: &str, resource: [&str; 3], place: [&str; 2], status: i64) -> Value {
    let [group, resource, subresource] = resource;
    json!({
        "verb": verb,
        "user": {"username": service_account_user(CONTROLLER)},
        "objectRef": {
            "apiGroup": group, "resource": resource, "subresource": subresource,
            "namespace": place[0], "name": place[1],
        },
        "responseStatus": {"code": status},
    })
}

/// A request for each grant.
fn every_use(grants: &[Grant]) -> Vec<Value> {
    let used = |grant: &Grant| {
        let parts: Vec<&str> = grant.resource.split('/').collect();
        // Only groups have dots.
        let (group, rest) = match parts[0].contains('.') {
            true => (parts[0], &parts[1..]),
            false => ("", &parts[..]),
        };
        let resource = [group, rest[0], rest.get(1).copied().unwrap_or_default()];
        let namespace = grant.namespace.as_deref().unwrap_or("team");
        event(&grant.verb, resource, [namespace, grant.name.as_deref().unwrap_or_default()], 200)
    };
    grants.iter().map(used).collect()
}

fn compare(events: &[Value]) -> Vec<String> {
    let requests = events.iter().filter_map(Request::read);
    differences(NAMESPACE, &granted(&objects()), requests).into_iter().collect()
}

#[test]
fn a_run_that_used_everything_differs_in_nothing() {
    let grants = granted(&objects());
    assert!(grants.len() > 30, "{grants:#?}");
    assert_eq!(compare(&every_use(&grants)), Vec::<String>::new());
}

#[test]
fn each_unused_grant_is_reported() {
    let grants = granted(&objects());
    for left_out in &grants {
        let used: Vec<_> = grants.iter().filter(|grant| *grant != left_out).cloned().collect();
        let idle = IDLE.iter().any(|it| (it.0, it.1) == (&*left_out.resource, &*left_out.verb));
        let wanted = if idle { vec![] } else { vec![format!("unused: {left_out}")] };
        assert_eq!(compare(&every_use(&used)), wanted);
    }
}

#[test]
fn a_missing_grant_is_reported() {
    let mut events = every_use(&granted(&objects()));
    let used = events.len();
    let team = ["team", "x"];
    events.extend([
        // Another verb, group, subresource, namespace and name than is granted.
        event("list", ["", "secrets", ""], ["team", ""], 200),
        event("get", ["example.com", "secrets", ""], team, 200),
        event("patch", ["caching.knative.dev", "imagewarms", ""], team, 200),
        event("patch", ["caching.knative.dev", "imagewarms", "scale"], team, 200),
        event("update", ["coordination.k8s.io", "leases", ""], team, 200),
        event("patch", ["", "configmaps", ""], [NAMESPACE, "other"], 200),
        // Refused, whatever the manifests say.
        event("get", ["", "nodes", ""], ["", "node-1"], 403),
    ]);
    let told = compare(&events);
    assert_eq!(told.len(), events.len() - used, "{told:#?}");
    assert_eq!(told.iter().filter(|one| one.starts_with("refused: ")).count(), 1, "{told:#?}");
}

#[test]
fn a_patch_that_makes_the_object_took_the_right_to_create() {
    let grants = granted(&objects());
    let create =
        |event: &Value| event["verb"] == "create" && event["objectRef"]["resource"] == "configmaps";
    let mut events = every_use(&grants);
    events.retain(|event| !create(event));
    assert_eq!(compare(&events).len(), 1);
    let name = dispatch_ca();
    events.push(event("patch", ["", "configmaps", ""], [NAMESPACE, &name], 201));
    assert_eq!(compare(&events), Vec::<String>::new());
}

fn dispatch_ca() -> String {
    let grants = granted(&objects());
    let is_ours = |it: &Grant| it.resource == "configmaps" && it.namespace.is_some();
    let named = grants.into_iter().find(|it| is_ours(it) && it.name.is_some());
    named.and_then(|grant| grant.name).expect("a ConfigMap by name")
}

#[test]
fn others_and_closing_or_full_namespaces_do_not_count() {
    let mut events = every_use(&granted(&objects()));
    let mut other = event("delete", ["", "nodes", ""], ["", "node-1"], 403);
    other["user"]["username"] = json!("system:serviceaccount:kube-system:namespace-controller");
    let mut closing = event("create", ["events.k8s.io", "events", ""], ["team", ""], 403);
    closing["responseStatus"]["message"] = json!(
        "events \"x\" is forbidden: unable to create new content in namespace team because it is \
         being terminated"
    );
    let mut full = event("create", ["caching.knative.dev", "imagewarms", ""], ["team", ""], 403);
    full["responseStatus"]["message"] = json!(
        "imagewarms.caching.knative.dev \"x\" is forbidden: exceeded quota: q, requested: \
         count/imagewarms.caching.knative.dev=1"
    );
    events.extend([other, closing, full, json!({"user": {"username": "u"}, "verb": "get"})]);
    assert_eq!(compare(&events), Vec::<String>::new());
}

#[test]
fn the_overlay_for_namespaced_secrets_moves_one_rule() {
    let overlay = crate::overlay("namespaced-secrets");
    let kustomization = read(&overlay.join("kustomization.yaml")).remove(0);
    assert_eq!(kustomization["resources"], json!(["../../deploy"]));
    let [patch] = list(&kustomization["patches"]) else { panic!("one patch: {kustomization}") };
    let before = one("ClusterRole", "imagewarm-controller");
    assert_eq!(patch["target"]["kind"], before["kind"]);
    assert_eq!(patch["target"]["name"], before["metadata"]["name"]);
    let operations: json_patch::Patch =
        serde_saphyr::from_str(text(&patch["patch"])).expect("a JSON patch");
    let mut after = before.clone();
    json_patch::patch(&mut after, &operations).expect("the rule is where the patch looks");
    let gone: Vec<_> = list(&before["rules"])
        .iter()
        .filter(|rule| !list(&after["rules"]).contains(rule))
        .collect();
    let secrets = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    assert_eq!(gone, [&secrets]);
    assert!(!after.to_string().contains("\"secrets\""), "{after}");

    // What goes comes back, in a namespace that the file does not name.
    let parts = read(&overlay.join("pull-secrets.yaml"));
    assert!(parts.iter().all(|part| part["metadata"]["namespace"].is_null()));
    let there = granted(&parts);
    assert_eq!(there, of_rule(&service_account_user(CONTROLLER), None, &secrets));
    assert!(parts.iter().all(|part| ["Role", "RoleBinding"].contains(&text(&part["kind"]))));
}
