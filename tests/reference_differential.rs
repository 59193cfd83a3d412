//! Compares our reference parser with `github.com/distribution/reference` itself, over many
//! mutations of real and odd image names. `IMAGEWARM_TEST_SEED` draws others.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod go;

use imagewarm_core::image::{Named, Reference};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::Deserialize;

const CASES: usize = 150_000;

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Verdict {
    ok: bool,
    domain: String,
    path: String,
    tag: String,
    digest: String,
    canonical: String,
}

#[test]
fn agrees_with_the_original() {
    let mut random = go::seeded();
    let corpus = corpus();
    let mut texts = corpus.clone();
    while texts.len() < CASES {
        texts.push(mutation(&corpus, &mut random));
    }
    let originals: Vec<Verdict> = go::ask("reference", &texts);

    let mut differences = Vec::new();
    let mut valid = 0;
    for (text, original) in texts.iter().zip(&originals) {
        let ours = judge(text);
        valid += usize::from(ours.ok);
        if ours != *original {
            differences.push(format!("{text:?}\n  ours     {ours:?}\n  original {original:?}"));
        }
    }
    println!("{} names compared, {valid} of them valid", texts.len());
    assert!(valid > CASES / 10 && valid < CASES * 9 / 10, "the mutations prove little");
    differences.truncate(20);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn judge(text: &str) -> Verdict {
    let named = match Named::parse(text) {
        Ok(named) => named,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return Verdict::default();
        }
    };
    let canonical = named.canonical();
    assert_eq!(Reference::parse(canonical.as_str()).as_ref(), Ok(&canonical), "{text:?}");
    assert_eq!(canonical.domain(), named.domain(), "{text:?}");
    assert_eq!(canonical.path(), named.path(), "{text:?}");
    Verdict {
        ok: true,
        domain: named.domain().to_owned(),
        path: named.path().to_owned(),
        tag: named.tag().unwrap_or_default().to_owned(),
        digest: named.digest().unwrap_or_default().to_owned(),
        canonical: canonical.to_string(),
    }
}

/// Real and odd names, each a seed for mutations.
fn corpus() -> Vec<String> {
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let mut corpus: Vec<String> = [
        "",
        "a",
        "app",
        "app:v1",
        "app:latest",
        "App",
        "team/app",
        "Team/app",
        "team/App",
        "a/b/c/d",
        "docker.io/app",
        "docker.io/library/app:v1",
        "docker.io/team/app",
        "Docker.io/app",
        "index.docker.io/app",
        "index.docker.io/library/app",
        "index.docker.io/v1/app",
        "registry-1.docker.io/app",
        "docker.io",
        "docker.io/",
        "index.docker.io/",
        "index.docker.io",
        "localhost",
        "localhost/app",
        "localhost:5000",
        "localhost:5000/app:v1",
        "LOCALHOST/app",
        "registry.example.com/team/app:v1.2.3",
        "registry.example.com:5000/app",
        "r.example:/app",
        "registry.k8s.io/pause:3.10",
        "gcr.io/knative-releases/knative.dev/serving/cmd/queue",
        "quay.io/prometheus/node-exporter:v1.8.2",
        "ghcr.io/owner/repo/image:sha-0a1b2c3",
        "public.ecr.aws/lambda/python:3.12",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:v1",
        "mcr.microsoft.com/dotnet/aspnet:8.0-alpine",
        "dev.local/app",
        "kind.local/app",
        "ko.local/a",
        "10.0.0.1/app",
        "10.0.0.1:5000/app:v1",
        "[::1]/app",
        "[::1]:5000/app:v1",
        "[2001:db8::1]/a/b",
        "[2001:DB8::FFFF]:443/app",
        "[fe80::1%eth0]/app",
        "[::ffff:1.2.3.4]/app",
        "[]/app",
        "[:]/app",
        "::1/app",
        "xn--n3h.com/app",
        "a-b.c-d/app",
        "a--b/app",
        "-a.b/app",
        "a-.b/app",
        "a..b/app",
        "foo_bar.com/app",
        "foo_bar.com:80/app",
        "foo__bar.x/app",
        "foo.bar_/app",
        "a_b/c",
        "a__b",
        "a___b",
        "a.b",
        "a..b",
        "a-b",
        "a--b",
        "a---b",
        "a-_b",
        "a._b",
        "_a",
        "a_",
        ".a",
        "a.",
        "-a",
        "a-",
        "a//b",
        "/a",
        "a/",
        "//",
        "/",
        ":",
        "@",
        ":v1",
        "@sha256",
        "app:",
        "app@",
        "app:@",
        "app:v1:v2",
        "app:v1@",
        "app@sha256:",
        "app@sha256:abc",
        "app:V1",
        "app:_",
        "app:.a",
        "app:-a",
        "app:a.b-c_d",
        "app:v1/x",
        "a:80/b:c",
        "a:b/c",
        "a.b:80/c:d",
        "A/b",
        "A.b/c",
        "AbC:80/d:e",
        "a.B/c:D",
        "https://registry.example.com/app",
        "http://a/b",
        "docker://app",
        "app latest",
        " app",
        "app ",
        "app\n",
        "app\t:v1",
        "ünicode/app",
        "app:ü",
        "日本/app",
        "ａｐｐ",
        "K/app",
        "ſ/app",
        "app\u{0}",
        "app@md5:d41d8cd98f00b204e9800998ecf8427e",
        "app@sha256+b64:d41d8cd98f00b204e9800998ecf8427e",
        "app@sha512:cf83",
        "İ.com/app",
        "app:latest@x",
        "${IMAGE}",
        "%41pp",
        "*",
        "app?",
        "app#1",
    ]
    .map(str::to_owned)
    .into();
    let sha384 = format!("{sha256}{}", &sha256[..32]);
    let sha512 = format!("{sha256}{sha256}");
    corpus.extend([
        sha256.to_owned(),
        sha256.to_uppercase(),
        sha256[1..].to_owned(),
        format!("{sha256}:v1"),
        format!("{sha256}/app"),
        format!("docker.io/{sha256}"),
        format!("app@sha256:{sha256}"),
        format!("app@SHA256:{sha256}"),
        format!("app@sha256:{}", sha256.to_uppercase()),
        format!("app:v1@sha256:{sha256}"),
        format!("r.example:5000/team/app:v1@sha256:{sha256}"),
        format!("foo_bar.x/app:v1@sha256:{sha256}"),
        format!("index.docker.io/library/app@sha256:{sha256}"),
        format!("app@sha384:{sha384}"),
        format!("app@sha512:{sha512}"),
        format!("app@sha512:{sha256}"),
        format!("app@sha384:{sha256}"),
        format!("app@sha256:{sha256}@sha256:{sha256}"),
        format!("app@blake3:{sha256}"),
        format!("app@sha256-x.y_z+w:{sha256}"),
        format!("@sha256:{sha256}"),
        format!("sha256:{sha256}"),
    ]);
    for length in [127, 128, 129, 246, 247, 248, 254, 255, 256, 4_096] {
        corpus.push("a".repeat(length));
        corpus.push(format!("app:{}", "t".repeat(length)));
        corpus.push(format!("r.example/{}", "a".repeat(length)));
        corpus.push(format!("{}.example/app", "a".repeat(length)));
        corpus.push(format!("r_x.example/{}", "a/".repeat(length / 2) + "a"));
    }
    corpus
}

/// One to four edits of a name from the corpus.
fn mutation(corpus: &[String], random: &mut StdRng) -> String {
    // Characters that mean something to the grammar, and some that must mean nothing.
    const CHARACTERS: &[char] = &[
        'a', 'b', 'z', 'f', 'g', '0', '5', '9', 'A', 'F', 'Z', '_', '-', '.', '/', ':', '@', '[',
        ']', '+', '%', '*', '?', '#', '\\', '"', '\'', '<', '&', ' ', '\t', '\n', '\r', '\0',
        '\u{7f}', '\u{85}', '\u{a0}', 'é', 'É', 'ß', 'İ', 'ſ', 'K', '٣', '。', '\u{200b}', '日',
        '\u{fffd}', '\u{feff}', '🦀',
    ];
    const PIECES: &[&str] = &[
        "/",
        "//",
        ":",
        "::",
        "@",
        "@sha256:",
        "@sha384:",
        "@sha512:",
        ":latest",
        "..",
        "__",
        "___",
        "--",
        "[::1]",
        "docker.io/",
        "index.docker.io/",
        "library/",
        "localhost/",
        "localhost",
        ":5000",
        ":5000/",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "0123456789abcdef0123456789abcdef",
        "https://",
        "example.com/",
    ];
    let pick = |random: &mut StdRng| corpus[random.random_range(0..corpus.len())].clone();
    let mut text: Vec<char> = pick(random).chars().collect();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=text.len());
        let end = (at + random.random_range(0..=3)).min(text.len());
        // Half of all characters are plain, or hardly any name would stay valid.
        let character = match random.random_range(0..4) {
            0 => CHARACTERS[random.random_range(0..CHARACTERS.len())],
            1 => CHARACTERS[random.random_range(11..17)],
            _ => CHARACTERS[random.random_range(0..8)],
        };
        match random.random_range(0..8) {
            0 | 1 => text.insert(at, character),
            2 => drop(text.drain(at..end)),
            3 if at < text.len() => text[at] = character,
            4 => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                drop(text.splice(at..at, piece.chars()));
            }
            5 => {
                let other: Vec<char> = pick(random).chars().collect();
                let from = random.random_range(0..=other.len());
                drop(text.splice(at.., other[from..].iter().copied()));
            }
            6 => {
                let slice = text[at..end].to_vec();
                let most = if random.random_bool(0.05) { 130 } else { 3 };
                let times = random.random_range(1..=most);
                drop(text.splice(at..at, slice.repeat(times)));
            }
            _ => {
                for character in &mut text[at..end] {
                    *character = if character.is_lowercase() {
                        character.to_ascii_uppercase()
                    } else {
                        character.to_ascii_lowercase()
                    };
                }
            }
        }
    }
    text.into_iter().collect()
}
