//! Tests of credential matching, each case by name.

#![allow(clippy::unwrap_used, clippy::panic)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// User names are `1`, `2`, … in the order of the registries.
fn users(registries: &[&str], image_name: &str) -> String {
    let mut keychain = Keychain::default();
    for (index, registry) in registries.iter().enumerate() {
        let entry = json!({"username": (index + 1).to_string(), "password": "p"});
        let content = json!({"auths": {*registry: entry}}).to_string();
        keychain.add_docker_config_json(content.as_bytes()).unwrap();
    }
    let found = keychain.lookup(&image(image_name));
    found.iter().map(|credential| credential.username.as_str()).collect()
}

#[test]
fn matches_as_kubelet_does() {
    // Name of the case, registries of the secrets in order, image, users found in order.
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("no entry", &[], "r.example/a", ""),
        ("another registry", &["other.example"], "r.example/a", ""),
        ("same host", &["r.example"], "r.example/a", "1"),
        ("same host, image with tag", &["r.example"], "r.example/a:v1", "1"),
        ("https", &["https://r.example"], "r.example/a", "1"),
        ("http", &["http://r.example"], "r.example/a", "1"),
        ("another scheme is no host", &["oci://r.example"], "r.example/a", ""),
        ("upper-case scheme is no scheme", &["HTTPS://r.example"], "r.example/a", ""),
        ("slash at the end", &["r.example/"], "r.example/a", "1"),
        ("https and slash", &["https://r.example/"], "r.example/a", "1"),
        ("v1", &["https://r.example/v1/"], "r.example/a", "1"),
        ("v2", &["https://r.example/v2/"], "r.example/a", "1"),
        ("v2 without scheme", &["r.example/v2/"], "r.example/a", "1"),
        ("v2 without slash is a path", &["r.example/v2"], "r.example/a", ""),
        ("v2 without slash matches a path", &["r.example/v2"], "r.example/v2/a", "1"),
        ("v3 is a path", &["r.example/v3/"], "r.example/a", ""),
        ("v2 and a path", &["r.example/v2/team"], "r.example/team/a", "1"),
        ("v2 and another path", &["r.example/v2/team"], "r.example/other/a", ""),
        ("v2 is taken off once", &["r.example/v2/v2/"], "r.example/v2/a", "1"),
        ("host case matters", &["R.example"], "r.example/a", ""),
        ("host case alike", &["R.example"], "R.example/a", "1"),
        ("subdomain is another host", &["r.example"], "x.r.example/a", ""),
        ("parent domain is another host", &["x.r.example"], "r.example/a", ""),
        ("path", &["r.example/team"], "r.example/team/a", "1"),
        ("path as whole repository", &["r.example/team/a"], "r.example/team/a", "1"),
        ("path longer than the repository", &["r.example/team/a/b"], "r.example/team/a", ""),
        ("path of another team", &["r.example/team"], "r.example/other/a", ""),
        ("path is a prefix by letters", &["r.example/team"], "r.example/teammate/a", "1"),
        ("path with slash is a prefix by parts", &["r.example/team/"], "r.example/teammate/a", ""),
        ("path with slash", &["r.example/team/"], "r.example/team/a", "1"),
        ("path case matters", &["r.example/Team"], "r.example/team/a", ""),
        ("path takes no pattern", &["r.example/*"], "r.example/team/a", ""),
        ("double slash", &["r.example//team"], "r.example/team/a", ""),
        ("longest path first", &["r.example", "r.example/team"], "r.example/team/a", "21"),
        (
            "longest path first, given first",
            &["r.example/team", "r.example"],
            "r.example/team/a",
            "12",
        ),
        ("three depths", &["r.example/a", "r.example", "r.example/a/b"], "r.example/a/b/c", "312"),
        (
            "only the depths that match",
            &["r.example/a", "r.example", "r.example/x"],
            "r.example/a/b",
            "12",
        ),
        ("two secrets of one registry, in order", &["r.example", "r.example"], "r.example/a", "12"),
        (
            "two spellings of one registry",
            &["https://r.example/v2/", "r.example"],
            "r.example/a",
            "12",
        ),
        ("port", &["r.example:5000"], "r.example:5000/a", "1"),
        ("port missing in the entry", &["r.example"], "r.example:5000/a", ""),
        ("port missing in the image", &["r.example:443"], "r.example/a", ""),
        ("another port", &["r.example:5000"], "r.example:5001/a", ""),
        ("empty port is none", &["r.example:"], "r.example/a", "1"),
        ("port and path", &["r.example:5000/team"], "r.example:5000/team/a", "1"),
        ("port takes no pattern", &["r.example:*"], "r.example:5000/a", ""),
        ("port that is no number", &["r.example:http"], "r.example/a", ""),
        ("two colons", &["r.example:50:00"], "r.example:5000/a", ""),
        ("star for a label", &["*.example"], "r.example/a", "1"),
        ("star for one label only", &["*.example"], "x.r.example/a", ""),
        ("star for no label", &["*.example"], "example/a", ""),
        ("two stars", &["*.*.example"], "x.r.example/a", "1"),
        ("star within a label", &["r*.example"], "registry.example/a", "1"),
        ("star between letters", &["r*y.example"], "registry.example/a", "1"),
        ("star between other letters", &["r*x.example"], "registry.example/a", ""),
        ("star that matches nothing", &["r*.example"], "r.example/a", "1"),
        ("several stars in a label", &["*g*t*.example"], "registry.example/a", "1"),
        ("star and port", &["*.example:5000"], "r.example:5000/a", "1"),
        ("star and no port", &["*.example"], "r.example:5000/a", ""),
        ("star and path", &["*.example/team"], "r.example/team/a", "1"),
        ("star as last label", &["r.*"], "r.example/a", "1"),
        ("star alone is one label", &["*"], "r.example/a", ""),
        ("star alone and localhost", &["*"], "localhost/a", "1"),
        ("star comes after letters", &["*.example", "r.example"], "r.example/a", "21"),
        (
            "star with path comes after letters",
            &["*.example/team", "r.example"],
            "r.example/team/a",
            "21",
        ),
        ("question mark begins a query", &["r?.example"], "r.example/a", ""),
        ("query is cut off", &["r.example?x=y"], "r.example/a", "1"),
        ("fragment is cut off", &["r.example#x"], "r.example/a", "1"),
        ("user is cut off", &["https://user:password@r.example"], "r.example/a", "1"),
        ("user that cannot be", &["https://us er@r.example"], "r.example/a", ""),
        ("class in a host is no URL", &["[rs].example"], "r.example/a", ""),
        ("IPv4", &["10.0.0.1"], "10.0.0.1/a", "1"),
        ("IPv4 and port", &["10.0.0.1:5000"], "10.0.0.1:5000/a", "1"),
        ("IPv4 with star", &["10.0.0.*"], "10.0.0.7/a", "1"),
        ("IPv6 and port", &["[2001:db8::1]:5000"], "[2001:db8::1]:5000/a", "1"),
        ("IPv6 and another port", &["[2001:db8::1]:5000"], "[2001:db8::1]:5001/a", ""),
        ("IPv6 without port reads as a class", &["[2001:db8::1]"], "[2001:db8::1]/a", ""),
        ("IPv6 in other words", &["[2001:db8:0::1]:5000"], "[2001:db8::1]:5000/a", ""),
        ("IPv6 that is none", &["[2001:db8::g]:5000"], "[2001:db8::1]:5000/a", ""),
        ("escaped path", &["r.example/te%61m"], "r.example/team/a", "1"),
        ("malformed escape", &["r.example/te%6"], "r.example/team/a", ""),
        ("escaped host", &["r%2eexample"], "r.example/a", ""),
        ("space around", &[" r.example"], "r.example/a", ""),
        ("control character", &["r.example\n"], "r.example/a", ""),
        ("not ASCII", &["ü.example"], "r.example/a", ""),
        ("empty", &[""], "r.example/a", ""),
        ("broken entry beside a good one", &["r.example:x", "r.example"], "r.example/a", "2"),
        ("localhost", &["localhost:5000"], "localhost:5000/a", "1"),
        ("Docker Hub, as docker login writes it", &["https://index.docker.io/v1/"], "a", "1"),
        ("Docker Hub for a team", &["https://index.docker.io/v1/"], "team/a", "1"),
        ("Docker Hub, full name", &["https://index.docker.io/v1/"], "docker.io/library/a", "1"),
        ("Docker Hub, old name", &["https://index.docker.io/v1/"], "index.docker.io/team/a", "1"),
        ("Docker Hub without v1", &["index.docker.io"], "a", "1"),
        ("Docker Hub without the last slash", &["https://index.docker.io/v1"], "a", ""),
        ("Docker Hub with v2", &["https://index.docker.io/v2/"], "a", "1"),
        ("Docker Hub by its domain", &["docker.io"], "a", "1"),
        ("Docker Hub by its domain, full name", &["docker.io"], "docker.io/library/a", "1"),
        ("Docker Hub's own path", &["docker.io/team"], "team/a", "1"),
        ("Docker Hub's other path", &["docker.io/team"], "a", ""),
        ("Docker Hub's library", &["docker.io/library"], "a", "1"),
        ("domain before index", &["index.docker.io", "docker.io"], "a", "2"),
        ("index when the path does not fit", &["index.docker.io", "docker.io/team"], "a", "1"),
        ("Docker Hub's registry host", &["registry-1.docker.io"], "a", ""),
        ("star under docker.io", &["*.docker.io"], "a", ""),
        ("Docker Hub is not everybody", &["https://index.docker.io/v1/"], "r.example/a", ""),
        ("localhost counts as Docker Hub", &["https://index.docker.io/v1/"], "localhost/a", "1"),
        ("localhost with port does not", &["https://index.docker.io/v1/"], "localhost:5000/a", ""),
        ("own entry before Docker Hub's", &["index.docker.io", "localhost"], "localhost/a", "2"),
    ];
    assert!(cases.len() >= 80, "{}", cases.len());
    for (name, registries, image, expected) in cases {
        assert_eq!(users(registries, image), *expected, "{name}");
    }
}

/// The one credential of `r.example`, as `user:password`.
fn read(entry: serde_json::Value) -> Result<String, String> {
    let mut keychain = Keychain::default();
    let content = json!({"auths": {"r.example": entry}}).to_string();
    keychain.add_docker_config_json(content.as_bytes()).map_err(|error| error.to_string())?;
    let found = keychain.lookup(&image("r.example/a"));
    assert_eq!(found.len(), 1);
    Ok(format!("{}:{}", found[0].username, found[0].password))
}

#[test]
fn reads_entries_as_kubelet_does() {
    let auth = |text: &str| STANDARD.encode(text);
    let unpadded = |text: &str| auth(text).trim_end_matches('=').to_owned();
    let cases = [
        ("user and password", json!({"username": "u", "password": "p"}), "u:p"),
        ("auth", json!({"auth": auth("u:p")}), "u:p"),
        ("auth without padding", json!({"auth": unpadded("us:p")}), "us:p"),
        ("auth wins", json!({"username": "x", "password": "y", "auth": auth("u:p")}), "u:p"),
        ("empty auth is none", json!({"username": "u", "password": "p", "auth": ""}), "u:p"),
        ("password with colons", json!({"auth": auth("u:p:q:")}), "u:p:q:"),
        ("empty user", json!({"auth": auth(":p")}), ":p"),
        ("empty password", json!({"auth": auth("u:")}), "u:"),
        ("line ends", json!({"auth": "dTp\nw\r\n"}), "u:p"),
        ("null", json!({"username": "u", "password": "p", "auth": null}), "u:p"),
        ("case", json!({"UserName": "u", "PASSWORD": "p"}), "u:p"),
        ("long s", json!({"u\u{17f}ername": "u", "password": "p"}), "u:p"),
        (
            "tokens are not read",
            json!({"auth": auth("u:p"), "identitytoken": "i", "registrytoken": 1}),
            "u:p",
        ),
        ("nothing", json!({}), ":"),
        ("null entry", json!(null), ":"),
        ("email", json!({"email": "e", "username": "u"}), "u:"),
    ];
    for (name, entry, expected) in cases {
        assert_eq!(read(entry).as_deref(), Ok(expected), "{name}");
    }
}

#[test]
fn errors_name_the_place_and_no_content() {
    let secret = "hunter2";
    let auth = STANDARD.encode(secret);
    let cases = [
        (format!("{{\"auths\": {{\"{secret}\""), "is not JSON: syntax error at line 1, column"),
        (String::new(), "is not JSON: syntax error"),
        (format!("{{}} {secret}"), "is not JSON: syntax error at line 1, column 4"),
        (format!("[\"{secret}\"]"), "the file must be an object with \"auths\" (line 1"),
        (format!("\"{secret}\""), "the file must be an object"),
        (
            format!("{{\"auths\": \"{secret}\"}}"),
            "\"auths\" must be an object of credentials by registry",
        ),
        (
            format!("{{\"auths\": {{\"a\": {{}}, \"{secret}\": \"{secret}\"}}}}"),
            "entry 2 of \"auths\" must be an object with \"auth\"",
        ),
        (
            format!("{{\"auths\": {{\"{secret}\": {{\"username\": [\"{secret}\"]}}}}}}"),
            "field \"username\" of entry 1 of \"auths\" must be a string",
        ),
        (
            format!("{{\"auths\": {{\"{secret}\": {{\"auth\": \"!{secret}\"}}}}}}"),
            "field \"auth\" of entry 1 of \"auths\" is not base64",
        ),
        (
            format!("{{\"auths\": {{\"{secret}\": {{\"auth\": \"{auth}\"}}}}}}"),
            "field \"auth\" of entry 1 of \"auths\" has no colon once decoded",
        ),
        (
            format!("{{\"auths\": {{\"{secret}\": {{\"auth\": \"/zpw\"}}}}}}"),
            "field \"auth\" of entry 1 of \"auths\" is not UTF-8",
        ),
        (
            format!("{{\"HttpHeaders\": {{\"{secret}\": 7}}}}"),
            "\"HttpHeaders\" must be an object of strings",
        ),
    ];
    for (content, expected) in cases {
        let mut keychain = Keychain::default();
        let error = keychain.add_docker_config_json(content.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{content}: {error}");
        assert!(
            !format!("{error} {error:?} {keychain:?}").contains(secret),
            "{content}: {error:?}"
        );
        assert!(keychain.entries.is_empty());
    }
}

#[test]
fn dockercfg_has_no_auths() {
    let mut keychain = Keychain::default();
    let content = json!({"https://r.example": {"auth": STANDARD.encode("u:p"), "email": "e"}});
    keychain.add_dockercfg(content.to_string().as_bytes()).unwrap();
    assert_eq!(keychain.lookup(&image("r.example/a"))[0].username, "u");
    let error = keychain.add_dockercfg(b"{\"r.example\": 7}").unwrap_err();
    assert!(error.to_string().starts_with("entry 1 must be an object"), "{error}");
}

#[test]
fn of_a_repeated_registry_the_last_entry_counts() {
    let mut keychain = Keychain::default();
    let content =
        br#"{"auths": {"r.example": {"username": "old"}, "r.example": {"username": "new"}}}"#;
    keychain.add_docker_config_json(content).unwrap();
    let found = keychain.lookup(&image("r.example/a"));
    assert_eq!(found.iter().map(|found| found.username.as_str()).collect::<Vec<_>>(), ["new"]);
}

#[test]
fn nothing_is_tried_twice_and_nothing_printed() {
    let mut keychain = Keychain::default();
    let content = json!({"auths": {
        "r.example": {"username": "hunter2", "password": "hunter2"},
        "r.example/team": {"username": "hunter2", "password": "hunter2"},
        "https://hunter2@*.example": {"username": "hunter2"},
    }});
    keychain.add_docker_config_json(content.to_string().as_bytes()).unwrap();
    let found = keychain.lookup(&image("r.example/team/a"));
    assert_eq!(found.len(), 2);
    assert!(!format!("{keychain:?}{found:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn never_panics(
        registry in "(?s).{0,12}|[a-z*?\\[\\]\\\\^:.%0-9@/#-]{0,24}",
        name in "(([a-z]{1,3}(\\.[a-z]{1,3})?|\\[[0-9:]{1,5}\\])(:[0-9]{1,2})?/)?[a-z]{1,3}(/[a-z]{1,3})?",
        content in "(?s).{0,40}",
    ) {
        let mut keychain = Keychain::default();
        let _ = keychain.add_docker_config_json(content.as_bytes());
        let _ = keychain.add_dockercfg(content.as_bytes());
        keychain.add_dockercfg(json!({registry: {"username": "u"}}).to_string().as_bytes()).unwrap();
        if let Ok(reference) = Reference::parse(&name) {
            keychain.lookup(&reference);
        }
    }
}

/// As many entries as a Secret of 1 MiB can hold, all of which match: each is looked at a bounded
/// number of times. With the square of their number this would take minutes.
#[test]
fn the_largest_secret_is_read_and_matched_in_linear_time() {
    const ENTRIES: usize = 90_000;
    let mut text = String::from("{");
    for number in 0..ENTRIES {
        let comma = if number == 0 { "" } else { "," };
        // Each registry twice, and each user name of its own.
        let registry = number / 2;
        text.push_str(&format!(r#"{comma}"r.example/v2/?{registry}":{{"username":"{number}"}}"#));
    }
    text.push('}');
    let mut keychain = Keychain::default();
    keychain.add_dockercfg(text.as_bytes()).unwrap();
    let found = keychain.lookup(&image("r.example/a"));
    assert_eq!(found.len(), ENTRIES / 2, "of each registry the last entry counts");
    assert!(found.iter().all(|one| one.username.parse::<usize>().unwrap() % 2 == 1));
}

#[test]
fn debug_shows_the_number_of_registries_only() {
    let mut keychain = Keychain::default();
    keychain.add_dockercfg(br#"{"https://u:secret@r.example": {"username": "u"}}"#).unwrap();
    assert_eq!(format!("{keychain:?}"), "Keychain { registries: 1 }");
}

#[test]
fn what_counts_as_docker_hub() {
    for (repository, is_hub) in [
        ("app", true),
        ("", false),
        ("docker.io/library/app", true),
        ("index.docker.io/library/app", true),
        ("localhost/app", true),
        ("/app", false),
        ("r.example/app", false),
        ("host:5000/app", false),
    ] {
        assert_eq!(is_default_registry(repository), is_hub, "{repository}");
    }
}
