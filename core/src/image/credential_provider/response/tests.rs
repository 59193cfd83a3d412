//! Tests of the protocol, each case by name.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn answer(change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut value = json!({
        "kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry",
        "cacheDuration": "6h",
        "auth": {"r.test": {"username": "u", "password": "opensesame"}},
    });
    change(&mut value);
    value.to_string().into_bytes()
}

fn with(field: &str, value: Value) -> Vec<u8> {
    answer(|answer| answer[field] = value.clone())
}

#[test]
fn an_answer_is_read() {
    let response = parse_response(&answer(|_| ()), ApiVersion::V1).unwrap();
    assert_eq!(response.cache_key_type, CacheKeyType::Registry);
    assert_eq!(response.cache_duration, Some(Duration::from_secs(6 * 3600)));
    let [(registry, credential)] = response.entries.as_slice() else { panic!("one entry") };
    assert_eq!((registry.as_str(), credential.username.as_str()), ("r.test", "u"));
    assert_eq!(credential.password, "opensesame");
    assert!(!format!("{response:?}").contains("opensesame"));
    for (name, answer, duration) in [
        ("the default", with("cacheDuration", Value::Null), None),
        ("not at all", with("cacheDuration", "0s".into()), Some(Duration::ZERO)),
        ("in the past", with("cacheDuration", "-5s".into()), Some(Duration::ZERO)),
    ] {
        let response = parse_response(&answer, ApiVersion::V1).unwrap();
        assert_eq!(response.cache_duration, duration, "{name}");
    }
    for auth in [Value::Null, json!({})] {
        assert!(parse_response(&with("auth", auth), ApiVersion::V1).unwrap().entries.is_empty());
    }
}

#[test]
fn what_is_no_answer_is_refused_without_its_content() {
    let cases: Vec<(&str, Vec<u8>, ProviderFailure)> = vec![
        ("nothing", vec![], ProviderFailure::NoAnswer),
        ("an empty line", b"\n".to_vec(), ProviderFailure::NoAnswer),
        ("too much", vec![b' '; LONGEST_RESPONSE + 1], ProviderFailure::TooLong),
        ("a text", b"opensesame".to_vec(), ProviderFailure::Malformed("it is not JSON")),
        (
            "more behind it",
            [answer(|_| ()), b"{}".to_vec()].concat(),
            ProviderFailure::Malformed("it is not JSON"),
        ),
        ("no UTF-8", b"\"\xff\"".to_vec(), ProviderFailure::Malformed("it is not JSON")),
        (
            "a field twice",
            b"{\"kind\":1,\"kind\":1}".to_vec(),
            ProviderFailure::Malformed("it is not JSON"),
        ),
        ("a list", b"[]".to_vec(), ProviderFailure::Malformed("it is not an object")),
        (
            "a kind",
            with("kind", "opensesame".into()),
            ProviderFailure::Malformed("its kind is not CredentialProviderResponse"),
        ),
        (
            "a version",
            with("apiVersion", "credentialprovider.kubelet.k8s.io/v1beta1".into()),
            ProviderFailure::Malformed("its apiVersion is not that of the request"),
        ),
        (
            "a key type",
            with("cacheKeyType", "opensesame".into()),
            ProviderFailure::Malformed("its cacheKeyType is none of Image, Registry, Global"),
        ),
        (
            "a duration",
            with("cacheDuration", "opensesame".into()),
            ProviderFailure::Malformed("its cacheDuration is no duration"),
        ),
        (
            "a number",
            with("cacheDuration", 5.into()),
            ProviderFailure::Malformed("its cacheDuration is no duration"),
        ),
        (
            "a field",
            with("opensesame", 5.into()),
            ProviderFailure::Malformed("it has an unknown field"),
        ),
        (
            "auth",
            with("auth", json!(["opensesame"])),
            ProviderFailure::Malformed("its auth is no object"),
        ),
        (
            "an entry",
            with("auth", json!({"opensesame": "opensesame"})),
            ProviderFailure::Malformed("an entry of its auth is no username and password"),
        ),
        (
            "a field of an entry",
            with("auth", json!({"r.test": {"token": "opensesame"}})),
            ProviderFailure::Malformed("an entry of its auth is no username and password"),
        ),
        (
            "a password",
            with("auth", json!({"r.test": {"password": 5}})),
            ProviderFailure::Malformed("a field of it that must be a string is none"),
        ),
    ];
    for (name, answer, expected) in cases {
        let failure = parse_response(&answer, ApiVersion::V1).unwrap_err();
        assert!(!format!("{failure} {failure:?}").contains("opensesame"), "{name}: {failure}");
        assert_eq!(failure, expected, "{name}");
    }
}

#[test]
fn each_version_asks_and_expects_its_own() {
    let image = Reference::parse("busybox:1.36").unwrap();
    for version in ApiVersion::ALL {
        let request: Value = serde_json::from_str(&version.request(&image)).unwrap();
        let expected = json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": version.to_string(),
            "image": "docker.io/library/busybox",
        });
        assert_eq!(request, expected);
        assert!(parse_response(&with("apiVersion", version.to_string().into()), version).is_ok());
        assert_eq!(ApiVersion::from_name(&version.to_string()), Some(version));
    }
    assert_eq!(ApiVersion::from_name("v1"), None);
}
