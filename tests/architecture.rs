//! The folder tree is the design: who may use whom, what stays free of I/O and clocks, and the
//! form that every source file has. Reads the sources' paths (`use` and in place) as tokens.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each part of the crate, and the parts that it may use beside itself. From top to bottom; what
/// two programs share moves down, never sideways.
const MAY_USE: &[(&str, &[&str])] = &[
    ("command", LOWER),
    ("webhook", LOWER),
    ("controller", LOWER),
    ("dispatch", STREAM),
    ("warmer", STREAM),
    ("cluster", DECISIONS),
    ("runtime", DECISIONS),
    ("telemetry", DECISIONS),
    ("plan", &["image", "api"]),
    ("image", &[]),
    ("api", &[]),
    ("protocol", &[]),
    ("settings", &["image"]),
];
const LOWER: &[&str] = &["cluster", "runtime", "telemetry", "plan", "image", "api", "settings"];
const STREAM: &[&str] =
    &["cluster", "runtime", "telemetry", "plan", "image", "api", "settings", "protocol"];
const DECISIONS: &[&str] = &["plan", "image", "api"];

/// Wiring: these may use everything.
const WIRING: &[&str] = &["main", "cli", "lib", "wiring"];

/// Files and folders of data and decisions: no I/O, no clock.
const PURE: &[&str] = &[
    "api",
    "image",
    "plan",
    "settings",
    "warmer/queue",
    "dispatch/index",
    "dispatch/grants",
    "dispatch/canaries",
];

/// What a pure file does not name, as the beginning of a path.
const IMPURE: &[&str] = &[
    "axum",
    "bollard",
    "hyper",
    "hyper_util",
    "rand",
    "tokio",
    "tokio_rustls",
    "tokio_stream",
    "tokio_util",
    "tonic",
    "tower",
    "kube::Api",
    "kube::Client",
    "kube::Config",
    "kube::api::Api",
    "kube::client",
    "kube::config",
    "kube::runtime",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
];
/// The same, as the end of a path.
const CLOCKS: &[&str] = &["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "manager", "misc"];

const LONGEST_FILE: usize = 600;

struct Source {
    /// Relative to `src/`, such as `plan/demand.rs`.
    name: String,
    text: String,
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let root = source_folder();
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(&root).expect("it is below src");
                let name = name.to_str().expect("file names are UTF-8").to_owned();
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                sources.push(Source { name, text });
            }
        }
    }
    assert!(sources.len() > 20, "the sources were not found: {}", sources.len());
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

/// A file that holds nothing but tests.
fn is_test_file(name: &str) -> bool {
    let mut folders: Vec<&str> = name.split('/').collect();
    let file = folders.pop().unwrap_or_default();
    file == "tests.rs" || file.ends_with("_tests.rs") || folders.contains(&"tests")
}

fn complain(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn parts_use_only_what_is_below_them() {
    let mut problems = Vec::new();
    for source in sources() {
        let part = source.name.split(['/', '.']).next().unwrap_or_default();
        if WIRING.contains(&part) || is_test_file(&source.name) {
            continue;
        }
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == part) else {
            problems.push(format!("src/{}: a part that the design does not know", source.name));
            continue;
        };
        let mut used: BTreeSet<String> = BTreeSet::new();
        for path in paths(&tokens(production_code(&source.text))) {
            used.extend(in_crate(&source.name, &path).and_then(|path| path.first().cloned()));
        }
        for other in used {
            let is_part = MAY_USE.iter().any(|(name, _)| *name == other);
            if is_part && other != part && !may_use.contains(&other.as_str()) {
                problems.push(format!("src/{}: {part} must not use {other}", source.name));
            }
        }
    }
    complain(problems);
}

#[test]
fn decisions_know_no_io_and_no_clock() {
    let mut problems = Vec::new();
    for source in sources() {
        let is_pure = PURE.iter().any(|pure| {
            let rest = source.name.strip_prefix(pure);
            rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
        });
        if !is_pure || is_test_file(&source.name) {
            continue;
        }
        for path in paths(&tokens(production_code(&source.text))) {
            let path = path.join("::");
            let begins = |name: &&&str| path == **name || path.starts_with(&format!("{name}::"));
            let ends = |name: &&&str| path == **name || path.ends_with(&format!("::{name}"));
            if IMPURE.iter().find(begins).or(CLOCKS.iter().find(ends)).is_some() {
                problems.push(format!("src/{}: pure code must not use {path}", source.name));
            }
        }
    }
    complain(problems);
}

#[test]
fn every_file_says_what_it_is_for() {
    let without = |source: &Source| !source.text.starts_with("//! ");
    let problems = sources().into_iter().filter(without);
    complain(
        problems.map(|source| format!("src/{} does not open with //!", source.name)).collect(),
    );
}

#[test]
fn files_are_of_a_size_to_be_read() {
    let mut problems = Vec::new();
    for Source { name, text } in sources() {
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            problems.push(format!("src/{name} has {lines} lines: split it by subject"));
        }
    }
    complain(problems);
}

#[test]
fn names_say_what_is_inside() {
    let mut problems = Vec::new();
    for source in sources() {
        let mut words = source.name.split(['/', '_', '.']);
        if let Some(word) = words.find(|word| EMPTY_NAMES.contains(word)) {
            problems.push(format!("src/{}: {word} says nothing about its content", source.name));
        }
    }
    complain(problems);
}

/// The text before the tests at its end.
fn production_code(text: &str) -> &str {
    let mut end = 0;
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        // An inline module; `mod tests;` has a file of its own and ends nothing.
        let opens = |next: &&str| next.starts_with("mod ") && next.trim_end().ends_with('{');
        if line.trim_end() == "#[cfg(test)]" && lines.peek().is_some_and(opens) {
            return &text[..end];
        }
        end += line.len();
    }
    text
}

/// Identifiers, `::` and single characters; comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let c = rest.chars().next().unwrap_or(' ');
        at += if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(&rest[..end]);
            end
        } else if rest.starts_with("::") {
            tokens.push("::");
            2
        } else {
            if !c.is_whitespace() {
                tokens.push(&rest[..c.len_utf8()]);
            }
            c.len_utf8()
        };
    }
    tokens
}

/// Length of a block comment, with those inside it.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Length of a string or character literal at the text's beginning.
fn literal(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - body.len();
    if prefix > 2 {
        return None;
    }
    let hashes = body.len() - body.trim_start_matches('#').len();
    if text[..prefix].contains('r') && body[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let inside = &body[hashes + 1..];
        let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
        return Some(prefix + hashes + 1 + length);
    }
    let quote = body.chars().next().filter(|c| *c == '"' || *c == '\'')?;
    // 'a is a lifetime, 'a' a character.
    let mut inside = body[1..].chars();
    if quote == '\'' && inside.next() != Some('\\') && inside.next() != Some('\'') {
        return None;
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(prefix + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// Every path in the code, with the groups of `use` spelled out.
fn paths(tokens: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = is_word(tokens[at]) && tokens.get(at + 1) == Some(&"::");
        at = if begins { path(tokens, at, &[], &mut found) } else { at + 1 };
    }
    found
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one path or `use` tree, and returns the place after it.
fn path(tokens: &[&str], mut at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| **token != "}") {
                    let is_tree = is_word(token) && *token != "as";
                    at = if is_tree { self::path(tokens, at, &path, found) } else { at + 1 };
                    if tokens.get(at) == Some(&"as") {
                        at += 2;
                    }
                }
                return at + 1;
            }
            Some(word) if is_word(word) => path.push((*word).to_owned()),
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

/// The path from the crate's root, where it leads there; `file` is relative to `src/`.
fn in_crate(file: &str, path: &[String]) -> Option<Vec<String>> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "super" => {
            let up = path.iter().take_while(|word| *word == "super").count();
            module.truncate(module.len().checked_sub(up)?);
            let from_root = module.into_iter().map(str::to_owned);
            Some(from_root.chain(path[up..].iter().cloned()).collect())
        }
        _ => None,
    }
}

#[test]
fn paths_are_read_as_rust_reads_them() {
    let cases: &[(&str, &[&str])] = &[
        ("use crate::api::Reason;", &["crate::api::Reason"]),
        (
            "use crate::{api, image::{self, Reference as R}};",
            &["crate::image::self", "crate::image::Reference"],
        ),
        ("let now = jiff::Timestamp::now();", &["jiff::Timestamp::now"]),
        ("// crate::a::b\n/* crate::c /* d */ crate::e */ x", &[]),
        (r##"f("crate::a::b", r#"crate::"c""#, b"crate::d", '"', '\'')"##, &[]),
        ("fn f<'a>(x: &'a super::Row) -> &'a super::Row", &["super::Row", "super::Row"]),
        ("Vec::<crate::api::Reason>::new()", &["crate::api::Reason"]),
    ];
    for (code, wanted) in cases {
        let found: Vec<String> = paths(&tokens(code)).iter().map(|path| path.join("::")).collect();
        for path in *wanted {
            assert!(found.iter().any(|found| found == path), "{code}: {found:?}");
        }
        let of_crate = found.iter().filter(|path| path.starts_with("crate::")).count();
        let wanted_of_crate = wanted.iter().filter(|path| path.starts_with("crate::")).count();
        assert!(of_crate >= wanted_of_crate, "{code}: {found:?}");
        assert!(!wanted.is_empty() || found.is_empty(), "{code}: {found:?}");
    }
    let up = ["super", "super", "cluster", "Client"].map(str::to_owned);
    assert_eq!(in_crate("command/status.rs", &up).unwrap_or_default(), ["cluster", "Client"]);
    assert_eq!(in_crate("webhook/mod.rs", &up[1..]).unwrap_or_default(), ["cluster", "Client"]);
    assert_eq!(production_code("a\n#[cfg(test)]\nmod tests {\nb\n"), "a\n");
    assert_eq!(
        production_code("#[cfg(test)]\nmod tests;\n\nb\n"),
        "#[cfg(test)]\nmod tests;\n\nb\n"
    );
}
