//! Tests of reading pull secrets.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// A client of an API server that holds these objects by path, and the paths of its requests. An
/// object that is a number is a status code; every other path is not found.
fn server(objects: &[(&str, Value)]) -> (Client, Arc<Mutex<Vec<String>>>) {
    let objects: BTreeMap<String, Value> =
        objects.iter().map(|(path, object)| ((*path).to_owned(), object.clone())).collect();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    let service = tower::service_fn(move |request: Request<Body>| {
        assert_eq!((request.method(), request.uri().query().unwrap_or("")), (&Method::GET, ""));
        let path = request.uri().path().trim_start_matches("/api/v1/namespaces/team/").to_owned();
        let (code, body) = match objects.get(&path) {
            Some(Value::Number(code)) => (code.as_u64().unwrap(), None),
            Some(object) => (200, Some(object.clone())),
            None => (404, None),
        };
        log.lock().unwrap().push(path);
        let code = u16::try_from(code).unwrap();
        let body = body.unwrap_or_else(
            || json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": ""}),
        );
        let response =
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
        async move {
            if code == 599 {
                std::future::pending::<()>().await;
            }
            response
        }
    });
    (Client::new(service, "team"), requests)
}

/// A pull secret: user names by registry.
fn secret(users: &[(&str, &str)]) -> Value {
    let auths: serde_json::Map<String, Value> = users
        .iter()
        .map(|(registry, user)| {
            ((*registry).to_owned(), json!({"username": user, "password": "p"}))
        })
        .collect();
    typed(
        "kubernetes.io/dockerconfigjson",
        ".dockerconfigjson",
        &json!({"auths": auths}).to_string(),
    )
}

fn typed(type_: &str, key: &str, content: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "team"},
        "type": type_, "data": {key: STANDARD.encode(content)},
    })
}

fn account(secrets: &[&str]) -> Value {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "team"},
        "imagePullSecrets": secrets,
    })
}

fn identity(secrets: &[&str], service_account: Option<&str>) -> PullIdentity {
    PullIdentity {
        secrets: secrets.iter().map(|name| (*name).to_owned()).collect(),
        service_account: service_account.map(str::to_owned),
    }
}

/// User names found for `r.example/team/app`, or the error.
async fn users(objects: &[(&str, Value)], identities: &[PullIdentity]) -> (String, Vec<String>) {
    let (client, requests) = server(objects);
    let image = Reference::parse("r.example/team/app:v1").unwrap();
    let users = match resolve(&client, "team", identities, &image).await {
        Ok(found) => found.iter().map(|found| found.username.clone()).collect::<Vec<_>>().join(" "),
        Err(error) => format!("error: {error}"),
    };
    let requests = requests.lock().unwrap().clone();
    (users, requests)
}

#[tokio::test]
async fn each_fault_of_a_pull_secret_has_its_message() {
    let wrong_entry = json!({"auths": {"a": {}, "hunter2": {"auth": "!hunter2"}}}).to_string();
    let (client, _) = server(&[
        ("secrets/good", secret(&[("r.example", "u")])),
        ("secrets/legacy", typed("kubernetes.io/dockercfg", ".dockercfg", "{}")),
        ("secrets/opaque", typed("Opaque", ".dockerconfigjson", "{}")),
        ("secrets/key", typed("kubernetes.io/dockerconfigjson", ".dockercfg", "{}")),
        ("secrets/empty", typed("kubernetes.io/dockerconfigjson", ".dockerconfigjson", "")),
        (
            "secrets/entry",
            typed("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &wrong_entry),
        ),
        ("secrets/forbidden", json!(403)),
        ("secrets/broken", json!(500)),
        ("secrets/shape", json!({"data": "hunter2"})),
    ]);
    let long = "x".repeat(254);
    let cases = [
        ("good", ""),
        ("legacy", ""),
        ("gone", "Secret \"gone\" in namespace \"team\" does not exist"),
        ("opaque", "has type \"Opaque\": a pull secret has type kubernetes.io/dockerconfigjson or"),
        (
            "key",
            "Secret \"key\" in namespace \"team\" has no \".dockerconfigjson\", which its type requires",
        ),
        ("empty", "has no \".dockerconfigjson\""),
        (
            "entry",
            "\".dockerconfigjson\" of Secret \"entry\" in namespace \"team\": field \"auth\" of entry 2",
        ),
        ("forbidden", "not allowed to read Secret \"forbidden\""),
        (
            "broken",
            "cannot read Secret \"broken\" in namespace \"team\": the API server answered 500: no",
        ),
        ("shape", "the API server's response cannot be decoded"),
        ("", "Secret name \"\" is not valid"),
        ("a/b", "Secret name \"a/b\" is not valid"),
        ("..", "Secret name \"..\" is not valid"),
        ("good?x=y", "is not valid"),
        ("Good", "is not valid"),
        ("-a", "is not valid"),
        (&long, "is not valid"),
    ];
    for (name, expected) in cases {
        let result = check_pull_secret(&client, "team", name).await;
        let unreadable = matches!(name, "forbidden" | "broken" | "shape");
        match result {
            Ok(()) => assert_eq!(expected, "", "{name}"),
            Err(error) => {
                assert!(
                    !expected.is_empty() && error.to_string().contains(expected),
                    "{name}: {error}"
                );
                assert!(!format!("{error}{error:?}").contains("hunter2"), "{error:?}");
                assert_eq!(error.is_unreadable(), unreadable, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_read_times_out() {
    let (client, _) = server(&[("secrets/slow", json!(599))]);
    let api: Api<Secret> = Api::namespaced(client, "team");
    let timeout = Duration::from_millis(20);
    let error = read(&api, secret_ref("team", "slow"), "secrets", timeout).await.unwrap_err();
    assert!(error.is_unreadable());
    assert!(error.to_string().ends_with("no answer from the API server within 20ms"), "{error}");
}

#[tokio::test]
async fn resolves_as_for_pods() {
    let objects = [
        ("secrets/one", secret(&[("r.example", "one")])),
        ("secrets/two", secret(&[("r.example", "two"), ("r.example/team", "two-team")])),
        ("secrets/other", secret(&[("other.example", "other")])),
        ("secrets/opaque", typed("Opaque", "password", "p")),
        ("secrets/forbidden", json!(403)),
        ("serviceaccounts/default", account(&["one"])),
        ("serviceaccounts/builder", account(&["gone", "two", ""])),
        ("serviceaccounts/plain", account(&[])),
        ("serviceaccounts/forbidden", json!(403)),
    ];
    let gone = "error: Secret \"gone\" in namespace \"team\" does not exist";
    let cases: &[(&str, &[PullIdentity], &str)] = &[
        ("nothing", &[], ""),
        ("one secret", &[identity(&["one"], None)], "one"),
        ("most specific first", &[identity(&["one", "two"], None)], "two-team one two"),
        (
            "identities in order",
            &[identity(&["one"], None), identity(&["two"], None)],
            "one two-team two",
        ),
        (
            "nothing twice",
            &[identity(&["two"], None), identity(&["two", "one"], None)],
            "two-team two one",
        ),
        ("another registry's", &[identity(&["other"], None)], ""),
        ("missing beside a good one", &[identity(&["gone", "one"], None)], "one"),
        ("broken beside a good one", &[identity(&["opaque", "one"], None)], "one"),
        ("unreadable beside a good one", &[identity(&["forbidden", "one"], None)], "one"),
        ("missing in one identity", &[identity(&["gone"], None), identity(&["one"], None)], "one"),
        ("missing", &[identity(&["gone"], None)], gone),
        ("missing beside another registry's", &[identity(&["gone", "other"], None)], gone),
        ("the first missing is named", &[identity(&["gone", "gone-too"], None)], gone),
        (
            "invalid name",
            &[identity(&["../one"], None)],
            "error: Secret name \"../one\" is not valid",
        ),
        (
            "unreadable goes first",
            &[identity(&["gone", "forbidden"], None)],
            "error: not allowed to read Secret",
        ),
        ("ServiceAccount", &[identity(&[], Some("builder"))], "two-team two"),
        ("no ServiceAccount name", &[identity(&[], Some(""))], "one"),
        ("own secrets win", &[identity(&["other"], Some("builder"))], ""),
        ("no ServiceAccount at all", &[identity(&[], None)], ""),
        ("ServiceAccount without secrets", &[identity(&[], Some("plain"))], ""),
        ("missing ServiceAccount", &[identity(&[], Some("gone"))], ""),
        (
            "unreadable ServiceAccount",
            &[identity(&[], Some("forbidden"))],
            "error: not allowed to read ServiceAccount",
        ),
        (
            "unreadable ServiceAccount beside",
            &[identity(&[], Some("forbidden")), identity(&["one"], None)],
            "one",
        ),
    ];
    for (name, identities, expected) in cases {
        let (found, _) = users(&objects, identities).await;
        let matches = if expected.starts_with("error") {
            found.starts_with(expected)
        } else {
            found == *expected
        };
        assert!(matches, "{name}: {found}");
    }
}

#[tokio::test]
async fn each_object_that_applies_is_read_once() {
    let objects = [
        ("serviceaccounts/builder", account(&["one"])),
        ("secrets/one", secret(&[("r.example", "u")])),
    ];
    let identities = [
        identity(&["one", "two", "one"], Some("unused")),
        identity(&[], Some("builder")),
        identity(&[], Some("builder")),
        identity(&["two"], None),
    ];
    let (found, mut requests) = users(&objects, &identities).await;
    requests.sort();
    assert_eq!(found, "u");
    assert_eq!(requests, ["secrets/one", "secrets/two", "serviceaccounts/builder"]);
}

#[tokio::test]
async fn reads_are_bounded() {
    let names: Vec<String> = (0..500).map(|index| format!("s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_, requests) = users(&[], &[identity(&names, None)]).await;
    assert_eq!(requests.len(), MAX_SECRETS);
    let many: Vec<_> = names.iter().map(|name| identity(&[], Some(name))).collect();
    let (_, requests) = users(&[], &many).await;
    assert_eq!(requests.len(), MAX_IDENTITIES);
}
