//! Compares our matching of registry credentials with kubelet's own keyring, over random pull
//! secrets and images, and our matching of credential providers with that of kubelet. `IMAGEWARM_TEST_SEED` draws others.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod go;

use std::collections::{BTreeSet, HashMap};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use imagewarm_core::image::credential_provider::{CredentialProvider, FieldError, parse_config};
use imagewarm_core::image::keychain::KeychainError;
use imagewarm_core::image::{Keychain, Reference};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const CASES: usize = 12_000;

#[derive(Debug, Serialize)]
struct Question {
    secrets: Vec<Secret>,
    #[serde(rename = "matchImages")]
    match_images: Vec<String>,
    images: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Secret {
    #[serde(rename = "type")]
    type_: &'static str,
    /// In base64.
    content: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    matches: Vec<Option<Vec<bool>>>,
    #[serde(default)]
    found: Option<Vec<Vec<Found>>>,
}

#[derive(Debug, Deserialize)]
struct Found {
    username: String,
    password: String,
    key: String,
}

#[test]
fn agrees_with_kubelet() {
    let mut random = go::seeded();
    let questions: Vec<Question> = (0..CASES).map(|_| question(&mut random)).collect();
    let answers: Vec<Answer> = go::ask("keyring", &questions);

    let mut patterns = Patterns::default();
    let (mut refused, mut lookups, mut hits, mut several) = (0, 0, 0, 0);
    for (question, answer) in questions.iter().zip(answers) {
        patterns.compare(question, &answer);
        let mut keychain = Keychain::default();
        let ours = question.secrets.iter().try_for_each(|secret| {
            let content = STANDARD.decode(&secret.content).unwrap();
            match secret.type_ {
                "kubernetes.io/dockercfg" => keychain.add_dockercfg(&content),
                _ => keychain.add_docker_config_json(&content),
            }
        });
        let shown =
            || question.secrets.iter().map(|secret| decoded(&secret.content)).collect::<Vec<_>>();
        // kubelet takes these, and then cannot send them to the runtime: protobuf's strings are UTF-8.
        if matches!(ours, Err(KeychainError::AuthNotText { .. })) {
            continue;
        }
        assert_eq!(ours.is_ok(), answer.ok, "{ours:?} of {:#?}", shown());
        refused += usize::from(ours.is_err());
        let Some(found) = answer.found.filter(|_| answer.ok) else { continue };
        for (image, theirs) in question.images.iter().zip(found) {
            let keys: HashMap<&str, &str> =
                theirs.iter().map(|found| (found.username.as_str(), found.key.as_str())).collect();
            let ours = keychain.lookup(&Reference::parse(image).unwrap());
            let ours = ours.iter().map(|c| (c.username.as_str(), c.password.as_str()));
            let theirs = theirs.iter().map(|c| (c.username.as_str(), c.password.as_str()));
            lookups += 1;
            hits += usize::from(theirs.len() > 0);
            several += usize::from(theirs.len() > 1);
            assert_eq!(settled(ours, &keys), settled(theirs, &keys), "{image} of {:#?}", shown());
        }
    }
    println!(
        "{CASES} sets of secrets, {refused} refused; {lookups} lookups, {hits} found something, \
         {several} of them more than one credential"
    );
    println!("{patterns:?} of credential providers");
    assert!(refused > CASES / 50 && hits > CASES / 5 && several > CASES / 50, "this proves little");
    let Patterns { refused, hits, misses } = patterns;
    assert!(refused > CASES / 50 && hits > CASES / 10 && misses > CASES, "this proves little");
}

/// How many patterns were refused; how many images matched one, and did not.
#[derive(Debug, Default)]
struct Patterns {
    refused: usize,
    hits: usize,
    misses: usize,
}

impl Patterns {
    /// Compares the matching of credential providers.
    fn compare(&mut self, question: &Question, answer: &Answer) {
        assert_eq!(question.match_images.len(), answer.matches.len());
        for (pattern, theirs) in question.match_images.iter().zip(&answer.matches) {
            let ours = provider(pattern);
            assert_eq!(ours.is_ok(), theirs.is_some(), "{pattern:?}: {ours:?}");
            let (Ok(ours), Some(theirs)) = (ours, theirs) else {
                self.refused += 1;
                continue;
            };
            for (image, theirs) in question.images.iter().zip(theirs) {
                let matches = ours[0].matches(&Reference::parse(image).unwrap());
                assert_eq!(matches, *theirs, "{pattern:?} of {image:?}");
                *(if matches { &mut self.hits } else { &mut self.misses }) += 1;
            }
        }
    }
}

/// A provider with this pattern.
fn provider(pattern: &str) -> Result<Vec<CredentialProvider>, FieldError> {
    let config = json!({
        "kind": "CredentialProviderConfig",
        "apiVersion": "kubelet.config.k8s.io/v1",
        "providers": [{
            "name": "plugin",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "defaultCacheDuration": "0",
            "matchImages": [pattern],
        }],
    });
    parse_config(config.to_string().as_bytes(), &mut BTreeSet::new())
}

/// Where one file spells one pattern twice, kubelet's order is that of a Go map: random. Those
/// neighbours are sorted; user names begin with the number of the secret. Repeats are dropped.
/// A mutation may have spoilt a user name, and with it the number: then only what was found is
/// compared, and not in which order.
fn settled<'a>(
    found: impl Iterator<Item = (&'a str, &'a str)>,
    keys: &HashMap<&str, &str>,
) -> Vec<(&'a str, &'a str)> {
    let mut found: Vec<_> = found.collect();
    let numbered = |username: &str| {
        username.split_once('-').is_some_and(|(secret, _)| secret.parse::<usize>().is_ok())
    };
    if !found.iter().all(|(username, _)| numbered(username)) {
        found.sort_unstable();
        found.dedup();
        return found;
    }
    let origin = |username: &str| {
        (keys.get(username).copied(), username.split_once('-').map(|(secret, _)| secret.to_owned()))
    };
    for group in found.chunk_by_mut(|a, b| origin(a.0) == origin(b.0)) {
        group.sort_unstable();
    }
    found.dedup();
    found
}

fn decoded(content: &str) -> String {
    String::from_utf8_lossy(&STANDARD.decode(content).unwrap()).into_owned()
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

const HOSTS: &[&str] = &[
    "r.example",
    "r.example",
    "r.example",
    "r.example",
    "x.r.example",
    "docker.io",
    "index.docker.io",
    "localhost",
    "10.0.0.1",
    "R.example",
];
const PATHS: &[&str] =
    &["team", "team/app", "team/app/part", "teammate/app", "library/app", "app", "v1/app", "v2"];
const PORTS: &[&str] = &["", "", "", "", "", "", ":5000", ":443"];

fn question(random: &mut StdRng) -> Question {
    let secrets = (0..random.random_range(1..=3)).map(|index| secret(index, random)).collect();
    let match_images = (0..3).map(|_| registry(random)).collect();
    Question { secrets, match_images, images: (0..6).map(|_| image(random)).collect() }
}

fn image(random: &mut StdRng) -> String {
    let path = pick(random, PATHS);
    match random.random_range(0..12) {
        0 => path.to_owned(),
        1 => format!("[2001:db8::1]{}/{path}", pick(random, PORTS)),
        2 => format!("[::]:5000/{path}"),
        3 => format!("[::1::2]:5000/{path}"),
        4 => format!("my_r.example/{path}"),
        5 => format!("Host/{path}"),
        _ => format!("{}{}/{path}:v1", pick(random, HOSTS), pick(random, PORTS)),
    }
}

fn registry(random: &mut StdRng) -> String {
    const ODD_HOSTS: &[&str] = &[
        "*",
        "*.example",
        "r.*",
        "*.*",
        "*.*.*",
        "r*.example",
        "*y.example",
        "re*st*.example",
        "**.example",
        "*.docker.io",
        "[2001:db8::1]",
        "[2001:db8::*]",
        "[::ffff:1.2.3.4]",
        "[fe80::1%25en0]",
        "[::]",
        "10.0.0.*",
        "[r].example",
        "[a-z].example",
        "r.exam[p]le",
        "r\\.example",
        "r%2eexample",
        "%c3%bc.example",
        "ü.example",
        "user@r.example",
        "us er@r.example",
        "u:p@r.example",
        "",
        " r.example",
        "r.example ",
        "r.example\t",
        "*:5000",
        "r.example:*",
        "r.example:",
        "r.example:50:00",
        "r..example",
        ".example",
        "r.example.",
        "r?.example",
        "a,b",
        "r.example%25",
        "\"r\".example",
        "r!$&'()*+,;=.example",
        "{r}.example",
        "[::1]x",
        "x[::1]",
        "[::1",
        "[1.2.3.4]",
    ];
    const ODD_PATHS: &[&str] = &[
        "/",
        "//",
        "//team",
        "/v1/",
        "/v2/",
        "/v1",
        "/v2",
        "/v3/",
        "/v1/team",
        "/v2/v2/",
        "/v2//team",
        "/team/",
        "/te",
        "/te%61m",
        "/te%6",
        "/te%3fam",
        "/te%23am",
        "/te%2fam",
        "/*",
        "/team?x=y",
        "?x",
        "#x",
        "#%zz",
        "/team#",
        "/%ff",
        "/team/../app",
        "/Team",
        "/[",
        "/\\",
        "/ team",
        "/%25",
    ];
    let scheme = pick(random, &["", "", "", "https://", "http://", "HTTPS://", "oci://", "//"]);
    let host = if random.random_bool(0.3) { pick(random, ODD_HOSTS) } else { pick(random, HOSTS) };
    let path = match random.random_range(0..10) {
        0..4 => String::new(),
        4..7 => format!("/{}", pick(random, PATHS)),
        _ => pick(random, ODD_PATHS).to_owned(),
    };
    let mut registry = format!("{scheme}{host}{}{path}", pick(random, PORTS));
    if random.random_bool(0.1) {
        const CHARACTERS: &[char] = &[
            '*', '[', ']', ':', '.', '/', '%', '#', '?', '@', '\\', '-', '^', 'a', '0', 'é',
            '\u{1}',
        ];
        let mut characters: Vec<char> = registry.chars().collect();
        let at = random.random_range(0..=characters.len());
        characters.insert(at, CHARACTERS[random.random_range(0..CHARACTERS.len())]);
        registry = characters.into_iter().collect();
    }
    registry
}

fn secret(index: usize, random: &mut StdRng) -> Secret {
    let entries: Vec<String> = (0..random.random_range(0..=5))
        .map(|entry| format!("{}: {}", json!(registry(random)), credential(index, entry, random)))
        .collect();
    let registries = format!("{{{}}}", entries.join(", "));
    let is_dockercfg = random.random_bool(0.2);
    let content = match random.random_range(0..100) {
        0 => pick(
            random,
            &["null", "{}", "[]", "7", "\"x\"", "{\"auths\": null}", "{\"auths\": []}"],
        )
        .to_owned(),
        _ if is_dockercfg => registries,
        1 => format!("{{\"Auths\": {registries}}}"),
        2 => format!(
            "{{\"auths\": {registries}, \"auths\": {{\"r.example\": {{\"username\": \"{index}-x\"}}}}}}"
        ),
        3 => format!("{{\"auths\": {registries}, \"AUTHS\": null}}"),
        4 => format!("{{\"auths\": {registries}, \"HttpHeaders\": {{\"a\": \"b\", \"c\": null}}}}"),
        5 => format!("{{\"auths\": {registries}, \"httpheaders\": {{\"a\": 1}}}}"),
        6 => format!(
            "{{\"auths\": {registries}, \"credsStore\": \"x\", \"more\": [1e999, {{\"a\": null}}]}}"
        ),
        7 => format!("{{\"auths\": {registries}}} x"),
        _ => format!("{{\"auths\": {registries}}}"),
    };
    let mut content = content.into_bytes();
    // Small damage: mostly no JSON any more, sometimes JSON of another meaning.
    if random.random_bool(0.02) {
        let at = random.random_range(0..content.len());
        match random.random_range(0..3) {
            0 => content.truncate(at.max(1)),
            1 => content[at] = pick(random, &["{", "}", "\"", ",", "0", " ", "x"]).as_bytes()[0],
            _ => drop(content.remove(at)),
        }
    }
    let type_ =
        if is_dockercfg { "kubernetes.io/dockercfg" } else { "kubernetes.io/dockerconfigjson" };
    // kubelet passes over an empty file, which our caller does before it comes here.
    if content.is_empty() {
        content = b"{}".to_vec();
    }
    Secret { type_, content: STANDARD.encode(content) }
}

fn credential(secret: usize, entry: usize, random: &mut StdRng) -> String {
    let (user, password) = (format!("{secret}-{entry}"), format!("p{}", random.random_range(0..3)));
    let pair = format!("{user}:{password}");
    // What makes kubelet refuse a whole file has to stay rare.
    let is_wrong = random.random_bool(0.1);
    let value: Value = match random.random_range(0..40) {
        0 => json!({"username": user}),
        1 => json!({"username": user, "password": null, "email": "e"}),
        2 if is_wrong => json!({"username": user, "password": 7}),
        3 => json!({"Username": user, "PASSWORD": password, "Auth": ""}),
        4 => json!({"auth": STANDARD_NO_PAD.encode(&pair)}),
        5 if is_wrong => json!({"auth": format!("{}=", STANDARD_NO_PAD.encode(&pair))}),
        6 => json!({"auth": format!("{}\n", STANDARD.encode(&pair))}),
        7 => json!({"auth": STANDARD.encode(&pair), "identitytoken": "t", "registrytoken": 1}),
        8 if is_wrong => json!({"auth": STANDARD.encode(&user)}),
        9 if is_wrong => json!({"auth": format!(" {}", STANDARD.encode(&pair))}),
        10 => json!({"auth": STANDARD.encode(format!("{pair}:more"))}),
        11 => json!({"username": "x", "password": "y", "auth": STANDARD.encode(&pair)}),
        12 => {
            let mut auth = STANDARD.encode(&pair);
            auth.insert_str(3, "\r\n");
            json!({"auth": auth, "username": user})
        }
        13 => {
            return format!(
                "{{\"username\": \"x\", \"username\": \"{user}\", \"password\": \"{password}\"}}"
            );
        }
        14 if is_wrong => json!([]),
        _ if random.random_bool(0.5) => json!({"auth": STANDARD.encode(&pair)}),
        _ => json!({"username": user, "password": password}),
    };
    value.to_string()
}
