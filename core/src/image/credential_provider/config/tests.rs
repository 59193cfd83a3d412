//! Tests of the configuration, each case by name.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const SHIPPED: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: cloud-a
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  defaultCacheDuration: 12h
  matchImages:
  - "*.dkr.ecr.*.amazonaws.com"
  - "*.*.registry.test:5000/team"
  args: [get-credentials]
  env: [{name: REGION, value: eu-west-1}]
- name: cloud-b
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  defaultCacheDuration: 0s
  matchImages: ["*.pkg.test", "pkg.test"]
"#;

fn parsed(text: &str) -> Result<Vec<CredentialProvider>, String> {
    parse_config(text.as_bytes(), &mut BTreeSet::new()).map_err(|error| error.to_string())
}

#[test]
fn images_have_the_providers_that_the_kubelet_finds() {
    let providers = parsed(SHIPPED).unwrap();
    for (image, expected) in [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/orders:1.4", "cloud-a"),
        ("dkr.ecr.eu-west-1.amazonaws.com/shop/orders", "-"),
        ("a.b.registry.test:5000/team/app", "cloud-a"),
        ("a.b.registry.test:5000/other/app", "-"),
        ("a.b.registry.test/team/app", "-"),
        ("pkg.test/x", "cloud-b"),
        ("eu.pkg.test/x", "cloud-b"),
        ("a.eu.pkg.test/x", "-"),
    ] {
        let image = Reference::parse(image).unwrap();
        let found: Vec<_> =
            providers.iter().filter(|it| it.matches(&image)).map(|it| it.name.as_str()).collect();
        let found = if found.is_empty() { "-".to_owned() } else { found.join(" ") };
        assert_eq!(found, expected, "{image:?}");
    }
}

#[test]
fn yaml_and_json_are_read_alike() {
    let yaml = parsed(SHIPPED).unwrap();
    let value: Value = serde_saphyr::from_str(SHIPPED).unwrap();
    let json = parsed(&format!("\n {value}")).unwrap();
    for providers in [&yaml, &json] {
        let [first, second] = providers.as_slice() else { panic!("{providers:?}") };
        assert_eq!(
            (first.api_version, first.args.as_slice()),
            (ApiVersion::V1, &["get-credentials".to_owned()][..])
        );
        assert_eq!(first.default_cache_duration, Duration::from_secs(12 * 3600));
        assert_eq!(
            (first.env[0].name.as_str(), first.env[0].value.as_str()),
            ("REGION", "eu-west-1")
        );
        assert!(second.default_cache_duration.is_zero() && second.env.is_empty());
    }
    assert!(!format!("{yaml:?}").contains("eu-west-1"), "a value may be a secret");
}

#[test]
fn what_the_kubelet_refuses_is_refused_with_the_field_and_the_right_form() {
    // Name of the case, what is replaced in the file above, by what, parts of the message.
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "kind",
            "CredentialProviderConfig",
            "KubeletConfiguration",
            &["kind: is \"KubeletConfiguration\"", "CredentialProviderConfig"],
        ),
        (
            "group",
            "kubelet.config.k8s.io/v1",
            "config.k8s.io/v1",
            &["apiVersion: is", "must be kubelet.config.k8s.io/v1"],
        ),
        ("version", "kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v2", &["apiVersion: is"]),
        (
            "an unknown field",
            "args:",
            "arguments:",
            &["providers[0].\"arguments\": is unknown", "matchImages"],
        ),
        ("another case of a field", "args:", "Args:", &["providers[0].\"Args\": is unknown"]),
        (
            "a field twice",
            "  args: [get-credentials]",
            "  name: x",
            &["the file: is not YAML, or has a field twice: syntax error at line"],
        ),
        ("no name", "name: cloud-a", "name: ''", &["providers[0].name: \"\" must not be empty"]),
        (
            "a path",
            "name: cloud-a",
            "name: bin/cloud-a",
            &["providers[0].name", "must not contain /"],
        ),
        ("spaces", "name: cloud-a", "name: cloud a", &["must not contain spaces"]),
        ("the folder", "name: cloud-a", "name: .", &["must not be . or .."]),
        ("its parent", "name: cloud-a", "name: ..", &["must not be . or .."]),
        (
            "a name twice",
            "name: cloud-b",
            "name: cloud-a",
            &["providers[1].name: \"cloud-a\" is the name of another"],
        ),
        (
            "no version",
            "credentialprovider.kubelet.k8s.io/v1",
            "''",
            &[
                "providers[0].apiVersion: \"\" is not supported: use credentialprovider.kubelet.k8s.io/v1",
            ],
        ),
        (
            "another version",
            "credentialprovider.kubelet.k8s.io/v1",
            "credentialprovider.kubelet.k8s.io/v2",
            &["providers[0].apiVersion"],
        ),
        (
            "no patterns",
            "[\"*.pkg.test\", \"pkg.test\"]",
            "[]",
            &["providers[1].matchImages: must have at least one"],
        ),
        (
            "no pattern",
            "\"pkg.test\"",
            "'a b'",
            &["providers[1].matchImages[1]: \"a b\" is no pattern"],
        ),
        (
            "a number as pattern",
            "\"pkg.test\"",
            "7",
            &["providers[1].matchImages[1]: must be a string"],
        ),
        (
            "no duration",
            "  defaultCacheDuration: 12h\n",
            "",
            &["providers[0].defaultCacheDuration: is required", "12h"],
        ),
        ("null as duration", "12h", "null", &["providers[0].defaultCacheDuration: is required"]),
        (
            "a negative duration",
            "12h",
            "-1s",
            &["providers[0].defaultCacheDuration: \"-1s\" must be"],
        ),
        (
            "a duration of other people",
            "12h",
            "1d",
            &["\"1d\" must be a duration of 0s or more, such as 12h"],
        ),
        (
            "a number as duration",
            "12h",
            "43200",
            &["providers[0].defaultCacheDuration: must be a string"],
        ),
        (
            "arguments",
            "[get-credentials]",
            "get-credentials",
            &["providers[0].args: must be a list"],
        ),
        (
            "a variable",
            "{name: REGION, value: eu-west-1}",
            "REGION=eu",
            &["providers[0].env[0]: must be an object with name, value"],
        ),
        (
            "a value",
            "value: eu-west-1",
            "value: 1",
            &["providers[0].env[0].value: must be a string"],
        ),
        (
            "tokens",
            "  args:",
            "  tokenAttributes: {serviceAccountTokenAudience: x}\n  args:",
            &[
                "providers[0].tokenAttributes: is not supported",
                "without this provider",
                "imagePullSecrets",
            ],
        ),
    ];
    for (name, from, to, parts) in cases {
        let text = SHIPPED.replacen(from, to, 1);
        assert_ne!(text, SHIPPED, "{name}: nothing is replaced");
        let error = parsed(&text).unwrap_err();
        for part in *parts {
            assert!(error.contains(part), "{name}: no {part:?} in {error}");
        }
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
    }
    for (text, part) in [
        ("", "must be an object"),
        ("[]", "must be an object"),
        ("{", "is not JSON"),
        ("{\"kind\": 1, \"kind\": 2}", "field twice: syntax error at line 1"),
        ("a: [", "is not YAML"),
        (
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1",
            "providers: must have at least one",
        ),
    ] {
        let error = parsed(text).unwrap_err();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    assert!(parse_config(b"\xff", &mut BTreeSet::new()).is_err());
}

#[test]
fn older_versions_of_both_apis_are_read() {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let text = SHIPPED
            .replacen("kubelet.config.k8s.io/v1", &format!("kubelet.config.k8s.io/{version}"), 1)
            .replace("provider.kubelet.k8s.io/v1", &format!("provider.kubelet.k8s.io/{version}"));
        let api_version = parsed(&text).unwrap()[0].api_version;
        assert_eq!(api_version.to_string(), format!("credentialprovider.kubelet.k8s.io/{version}"));
    }
}

#[test]
fn a_name_is_unique_over_all_files() {
    let mut seen = BTreeSet::new();
    parse_config(SHIPPED.as_bytes(), &mut seen).unwrap();
    let error = parse_config(SHIPPED.as_bytes(), &mut seen).unwrap_err();
    assert_eq!(error.field, "providers[0].name");
}
