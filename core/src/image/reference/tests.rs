//! Tests of the reference grammar.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

const SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_that_are_right() {
    // Text, domain, path, tag, digest, canonical; D stands for a sha256 digest.
    let cases = [
        ("app", "docker.io", "library/app", "", "", "docker.io/library/app:latest"),
        ("app:v1", "docker.io", "library/app", "v1", "", "docker.io/library/app:v1"),
        ("team/app", "docker.io", "team/app", "", "", "docker.io/team/app:latest"),
        ("docker.io/app", "docker.io", "library/app", "", "", "docker.io/library/app:latest"),
        ("index.docker.io/app", "docker.io", "library/app", "", "", "docker.io/library/app:latest"),
        ("index.docker.io/a/b@D", "docker.io", "a/b", "", "D", "docker.io/a/b@D"),
        ("app:v1@D", "docker.io", "library/app", "v1", "D", "docker.io/library/app@D"),
        ("localhost/app", "localhost", "app", "", "", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000", "app", "x", "", "localhost:5000/app:x"),
        ("LOCALHOST/app", "LOCALHOST", "app", "", "", "LOCALHOST/app:latest"),
        ("Registry/app", "Registry", "app", "", "", "Registry/app:latest"),
        ("[::1]/app", "[::1]", "app", "", "", "[::1]/app:latest"),
        (
            "[2001:DB8::1]:5000/app",
            "[2001:DB8::1]:5000",
            "app",
            "",
            "",
            "[2001:DB8::1]:5000/app:latest",
        ),
        ("r.example:443/a/b/c:1.0", "r.example:443", "a/b/c", "1.0", "", "r.example:443/a/b/c:1.0"),
        ("a__b/c---d", "docker.io", "a__b/c---d", "", "", "docker.io/a__b/c---d:latest"),
        (
            "localhost:5000",
            "docker.io",
            "library/localhost",
            "5000",
            "",
            "docker.io/library/localhost:5000",
        ),
        ("my_host.example/app", "", "my_host.example/app", "", "", "my_host.example/app:latest"),
        ("app:_A.b-c", "docker.io", "library/app", "_A.b-c", "", "docker.io/library/app:_A.b-c"),
    ];
    for (text, domain, path, tag, digest, canonical) in cases {
        let full = |text: &str| text.replace('D', SHA256);
        let text = if text.contains("DB8") { text.to_owned() } else { full(text) };
        let canonical =
            if canonical.contains("DB8") { canonical.to_owned() } else { full(canonical) };
        let named = Named::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(named.domain(), domain, "{text}");
        assert_eq!(named.path(), path, "{text}");
        assert_eq!(named.tag().unwrap_or(""), tag, "{text}");
        assert_eq!(named.digest().unwrap_or(""), full(digest), "{text}");
        let reference = named.canonical();
        assert_eq!(reference.as_str(), canonical, "{text}");
        assert_eq!(reference.domain(), domain, "{text}");
        assert_eq!(reference.path(), path, "{text}");
        assert_eq!(reference.digest(), named.digest(), "{text}");
        assert_eq!(reference.tag().is_some(), reference.digest().is_none(), "{text}");
    }
}

#[test]
fn names_that_are_wrong_say_why() {
    let long = format!("a/{}", "b".repeat(254));
    let cases = [
        ("", "image reference is empty"),
        (&SHA256[7..], "is an image ID"),
        ("App:v1", "repository name must be lower case: \"App\" in \"App:v1\""),
        ("team/App", "repository name must be lower case: \"team/App\" in \"team/App\""),
        ("app:", "invalid tag \"\" in \"app:\""),
        ("app:-x", "invalid tag \"-x\""),
        ("app:v1:v2", "invalid tag \"v1:v2\""),
        ("app@", "invalid digest \"\""),
        ("app@sha256", "invalid digest \"sha256\""),
        ("app@sha256:abc", "sha256 digest has 3 hexadecimal digits, not 64"),
        ("app@sha256:ABC", "invalid digest \"sha256:ABC\""),
        ("app@md5:d41d8cd98f00b204e9800998ecf8427e", "digest algorithm \"md5\" is not supported"),
        ("/app", "repository name has an empty part"),
        ("app/", "repository name has an empty part"),
        ("a//b", "repository name has an empty part"),
        ("a..b", "invalid repository name \"a..b\""),
        ("a___b", "invalid repository name \"a___b\""),
        ("-a", "invalid repository name \"-a\""),
        ("example..com/app", "invalid registry host \"example..com\""),
        ("example.com:/app", "invalid registry host \"example.com:\""),
        ("[fe80::1%eth0]/app", "invalid registry host"),
        ("https://example.com/app", "has no scheme: write \"example.com/app\""),
        ("app:v1 ", "invalid character ' ' at position 7 of \"app:v1 \": remove it"),
        ("app\n", "invalid character '\\n' at position 4"),
        ("äpp", "invalid repository name \"äpp\""),
        (&long, ""),
    ];
    for (text, expected) in cases {
        match Named::parse(text) {
            Ok(_) if expected.is_empty() => {}
            Ok(named) => panic!("{text}: parsed as {named:?}"),
            Err(error) => assert!(error.to_string().contains(expected), "{text}: {error}"),
        }
    }
}

#[test]
fn lengths_at_their_limits() {
    // "library/" counts.
    assert!(Named::parse(&"a".repeat(247)).is_ok());
    let error = Named::parse(&"a".repeat(248)).unwrap_err();
    assert!(matches!(error, ReferenceError::TooLong { length: 256, .. }), "{error}");
    assert!(Named::parse(&format!("r.example/{}", "a".repeat(255))).is_ok());
    assert!(Named::parse(&format!("r.example/{}", "a".repeat(256))).is_err());
    assert!(Named::parse(&format!("a:{}", "t".repeat(128))).is_ok());
    assert!(Named::parse(&format!("a:{}", "t".repeat(129))).is_err());
}

#[test]
fn messages_stay_short() {
    // The second has characters that are escaped: each takes eight bytes of a message.
    for text in ["Ä".repeat(100_000), "\u{ec00}".repeat(130), "\u{7f}".repeat(130)] {
        for text in [text.clone(), format!("{text}:{text}"), format!("app@sha256:{text}")] {
            let error = Named::parse(&text).unwrap_err().to_string();
            assert!(error.len() < 1_000, "{} bytes: {error}", error.len());
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
}

#[test]
fn by_digest() {
    let tagged = Reference::parse("r.example/team/app:v1").unwrap();
    let by_digest = tagged.with_digest(&SHA256.parse().unwrap());
    assert_eq!(by_digest.as_str(), format!("r.example/team/app@{SHA256}"));
    assert_eq!(by_digest, Reference::parse(&format!("r.example/team/app:v2@{SHA256}")).unwrap());
    assert_eq!((by_digest.repository(), by_digest.path()), ("r.example/team/app", "team/app"));
    assert!("sha256:abc".parse::<Digest>().is_err());
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*|[a-zA-Z0-9:@/._\\[\\]-]{0,40}|(?s).{0,20}") {
        if let Err(error) = Named::parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn canonical_is_canonical(
        text in "([a-zA-Z0-9._-]{1,8}(:[0-9]{1,4})?/)?[a-z0-9]{1,5}([._/-][a-z0-9]{1,3}){0,3}(:[a-z0-9_.-]{1,5})?(@sha256:[a-f0-9]{64})?"
    ) {
        if let Ok(named) = Named::parse(&text) {
            let canonical = named.canonical();
            prop_assert_eq!(&Reference::parse(canonical.as_str()).unwrap(), &canonical);
            prop_assert_eq!(canonical.domain(), named.domain());
            prop_assert_eq!(canonical.path(), named.path());
        }
    }
}

#[test]
fn references_are_ordered_as_their_texts() {
    let parse = |text: &str| Reference::parse(text).unwrap();
    let (first, second) = (parse("r.test/a:v1"), parse("r.test/b:v1"));
    assert!(first < second && first <= first.clone());
    let mut all = [second.clone(), first.clone()];
    all.sort();
    assert_eq!(all, [first, second]);
}

#[test]
fn maps_of_references_can_be_asked_by_the_canonical_name() {
    let known: std::collections::HashSet<Reference> =
        ["app", "r.test/a:v1"].iter().map(|name| Reference::parse(name).unwrap()).collect();
    assert!(known.contains("docker.io/library/app:latest") && known.contains("r.test/a:v1"));
    assert!(!known.contains("app") && !known.contains(""));
}
