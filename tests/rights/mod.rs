//! What the shipped manifests allow our ServiceAccounts, held against what the API server's audit
//! log says that they did. No I/O: objects and audit events in, differences out. Shared by the test
//! of the manifests, which writes the table of `docs/security.md`, and by the end-to-end tests,
//! which ask at their end whether the table is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

/// RegistryBudgets that no request shows: resource with its group, verb, and why they are there all the same.
pub const IDLE: &[(&str, &str, &str)] = &[
    ("admissionregistration.k8s.io/mutatingwebhookconfigurations", "delete", OWNER),
    ("admissionregistration.k8s.io/validatingwebhookconfigurations", "delete", OWNER),
];
const OWNER: &str = "asked for by OwnerReferencesPermissionEnforcement when the owner is set";

/// One verb on one resource, granted to one account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub account: String,
    /// With its group and subresource: `GROUP/RESOURCE/SUBRESOURCE`, without `GROUP/` in the core.
    pub resource: String,
    pub verb: String,
    /// Where; everywhere without.
    pub namespace: Option<String>,
    /// The one object; any without.
    pub name: Option<String>,
}

/// A request that the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked, as the API server calls it.
    pub account: String,
    pub verb: String,
    pub group: String,
    /// With its subresource.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub status: i64,
    /// Refused for want of a right, not because of what was asked for.
    pub refused: bool,
}

impl Request {
    /// None for what is no object: `/version`, discovery, health.
    pub fn read(event: &Value) -> Option<Request> {
        let object = event.get("objectRef")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = match (text(&object["resource"]), text(&object["subresource"])) {
            (resource, part) if part.is_empty() => resource,
            (resource, part) => format!("{resource}/{part}"),
        };
        let status = event["responseStatus"]["code"].as_i64().unwrap_or_default();
        let message = event["responseStatus"]["message"].as_str().unwrap_or_default();
        // Nobody may create in a namespace that is being deleted.
        let closing = message.ends_with("because it is being terminated");
        // Nor beyond a quota.
        let full = message.contains(" is forbidden: exceeded quota: ");
        Some(Request {
            account: text(&event["user"]["username"]),
            verb: text(&event["verb"]),
            group: text(&object["apiGroup"]),
            resource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            status,
            refused: status == 403 && !closing && !full,
        })
    }

    fn full_resource(&self) -> String {
        full(&self.group, &self.resource)
    }

    /// The verbs that it took: a patch or an update that made the object was asked for `create` too.
    fn verbs(&self) -> Vec<&str> {
        let made = self.status == 201 && ["patch", "update"].contains(&self.verb.as_str());
        std::iter::once(self.verb.as_str()).chain(made.then_some("create")).collect()
    }
}

impl Grant {
    fn covers(&self, request: &Request, verb: &str) -> bool {
        // The name of what is to be made is not known when the right to make it is asked for.
        let name = (verb != "create").then_some(request.name.as_str());
        self.account == request.account
            && self.resource == request.full_resource()
            && self.verb == verb
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == request.namespace)
            && self.name.as_ref().is_none_or(|one| name == Some(one))
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Grant { account, resource, verb, namespace, name } = self;
        write!(f, "{account}: {verb} {resource}")?;
        name.iter().try_for_each(|name| write!(f, " {name}"))?;
        namespace.iter().try_for_each(|namespace| write!(f, " in {namespace}"))
    }
}

fn full(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{group}/{resource}") }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> impl Iterator<Item = String> {
    list(value).iter().filter_map(Value::as_str).map(str::to_owned)
}

/// What one rule of a role grants to an account, verb by verb.
pub fn of_rule(account: &str, namespace: Option<&str>, rule: &Value) -> Vec<Grant> {
    let names: Vec<_> = texts(&rule["resourceNames"]).map(Some).collect();
    let names = if names.is_empty() { vec![None] } else { names };
    let mut grants = vec![];
    for group in texts(&rule["apiGroups"]) {
        for resource in texts(&rule["resources"]) {
            for (verb, name) in texts(&rule["verbs"])
                .flat_map(|verb| names.iter().map(move |it| (verb.clone(), it)))
            {
                grants.push(Grant {
                    account: account.to_owned(),
                    resource: full(&group, &resource),
                    verb,
                    namespace: namespace.map(str::to_owned),
                    name: name.clone(),
                });
            }
        }
    }
    grants
}

/// The rules that bindings give to ServiceAccounts: account, namespace, role and rules.
pub fn bound(objects: &[Value]) -> Vec<(String, Option<&str>, &Value)> {
    let mut bound = vec![];
    let bindings = objects
        .iter()
        .filter(|it| matches!(it["kind"].as_str(), Some("ClusterRoleBinding" | "RoleBinding")));
    for binding in bindings {
        let namespace = binding["metadata"]["namespace"].as_str();
        let (kind, name) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
        let role = objects.iter().find(|it| {
            let there = kind == "ClusterRole" || it["metadata"]["namespace"].as_str() == namespace;
            it["kind"] == *kind && it["metadata"]["name"] == *name && there
        });
        let role = role.expect("a binding names a role of the same manifests");
        for subject in list(&binding["subjects"]) {
            let text = |key: &str| subject[key].as_str().unwrap_or_default();
            let account = format!("system:serviceaccount:{}:{}", text("namespace"), text("name"));
            bound.push((account, namespace, role));
        }
    }
    bound
}

/// All that the manifests grant to ServiceAccounts.
pub fn granted(objects: &[Value]) -> Vec<Grant> {
    let of_role = |(account, namespace, role): (String, Option<&str>, &Value)| {
        let rules = list(&role["rules"]).iter();
        rules.flat_map(|rule| of_rule(&account, namespace, rule)).collect::<Vec<_>>()
    };
    bound(objects).into_iter().flat_map(of_role).collect()
}

/// Where the accounts of a namespace did what nothing grants, or never did what something grants.
/// A request counts for the narrowest grant that allows it, so that a wide one beside it is not
/// taken for used.
pub fn differences(
    namespace: &str,
    grants: &[Grant],
    requests: impl IntoIterator<Item = Request>,
) -> BTreeSet<String> {
    let mut differences = BTreeSet::new();
    let mut used: BTreeMap<&Grant, usize> = grants.iter().map(|grant| (grant, 0)).collect();
    let ours = format!("system:serviceaccount:{namespace}:");
    for request in requests.into_iter().filter(|request| request.account.starts_with(&ours)) {
        let resource = request.full_resource();
        let Request { account, namespace, name, .. } = &request;
        for verb in request.verbs() {
            let what = format!("{account}: {verb} {resource} {name} in {namespace:?}");
            if request.refused {
                differences.insert(format!("refused: {what}"));
                continue;
            }
            let covering = grants.iter().filter(|grant| grant.covers(&request, verb));
            match covering.max_by_key(|grant| (grant.name.is_some(), grant.namespace.is_some())) {
                Some(grant) => *used.entry(grant).or_default() += 1,
                None => drop(differences.insert(format!("not granted: {what}"))),
            }
        }
    }
    let unused = used.into_iter().filter(|(_, times)| *times == 0).map(|(grant, _)| grant);
    for grant in unused {
        let idle = |(resource, verb, _): &&(&str, &str, &str)| {
            *resource == grant.resource && *verb == grant.verb
        };
        if !IDLE.iter().any(|one| idle(&one)) {
            differences.insert(format!("unused: {grant}"));
        }
    }
    differences
}
