//! What the pages say of settings, reasons and checks is what the program has, and their links lead somewhere.
#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use imagewarm::cli::Cli;
use imagewarm_core::api::Reason;
use imagewarm_core::check::Check;

/// Words of a README that is read in five minutes.
const WORDS: usize = 900;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All pages, by their path from the root.
fn pages() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = Vec::new();
    for folder in ["", "docs/"] {
        let entries = fs::read_dir(root.join(folder)).expect("the folder is there");
        let files = entries.map(|entry| entry.expect("it can be read").file_name());
        let files = files.filter_map(|name| name.into_string().ok());
        names.extend(
            files.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}{name}")),
        );
    }
    names.into_iter().map(|name| (name.clone(), page(&name))).collect()
}

/// Words in back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Cells of the rows of the table whose header begins with `first`.
fn table(readme: &str, first: &str) -> Vec<Vec<String>> {
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(&format!("| {first} |")));
    assert!(lines.next().is_some(), "no table of {first}");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|it| it.trim().into()).collect();
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn every_reason_is_explained() {
    let rows = table(&page("docs/troubleshooting.md"), "reason");
    let explained: Vec<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
    let mut sorted = explained.clone();
    sorted.sort_unstable();
    let mut all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    all.sort_unstable();
    assert_eq!(sorted, all);
}

#[test]
fn settings_exist_and_have_the_documented_default() {
    let mut defaults = BTreeMap::new();
    let mut flags = BTreeSet::new();
    for command in Cli::command().get_subcommands() {
        for flag in command.get_arguments() {
            flags.extend(flag.get_long().map(str::to_owned));
            let Some(variable) = flag.get_env().and_then(|name| name.to_str()) else { continue };
            let values: Vec<_> =
                flag.get_default_values().iter().filter_map(|value| value.to_str()).collect();
            defaults.insert(variable.to_owned(), values.join(","));
        }
    }
    for name in
        ["README", "docs/install", "docs/how-it-works", "docs/settings", "docs/troubleshooting"]
    {
        let text = page(&format!("{name}.md"));
        for word in text.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
            if word.starts_with("IMAGEWARM_") {
                assert!(defaults.contains_key(word), "{name}: {word} is no setting");
            }
        }
        for flag in quoted(&text).filter_map(|word| word.strip_prefix("--")) {
            let flag = flag.split([' ', '=']).next().unwrap_or_default();
            let own = flags.contains(flag);
            // Of `cargo xtask dist`.
            assert!(own || flag == "target", "{name}: --{flag} is no flag");
        }
    }
    for row in table(&page("docs/settings.md"), "variable") {
        let [variables, .., default] = row.as_slice() else { panic!("{row:?}") };
        let default = default.replace('`', "");
        let wanted: Vec<_> = quoted(variables).map(|name| defaults[name].as_str()).collect();
        assert_eq!(wanted.join(", "), default, "{variables}");
    }
}

#[test]
fn every_check_is_explained() {
    let page = page("docs/cli.md");
    for check in Check::ALL {
        let heading = format!("\n#### {}\n", check.as_str());
        assert!(page.contains(&heading), "no heading of {}", check.as_str());
    }
}

#[test]
fn the_readme_is_read_in_five_minutes() {
    let words = page("README.md").split_whitespace().count();
    assert!(words <= WORDS, "{words} words");
}

/// Text without fenced blocks, whose lines are neither headings nor links.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// The anchors of the headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages();
    let mut links = 0;
    for (name, text) in &pages {
        let folder = Path::new(name).parent().expect("a file has a folder");
        for link in prose(text).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => name.clone(),
                file => file
                    .strip_prefix("../")
                    .map_or_else(|| folder.join(file).display().to_string(), str::to_owned),
            };
            assert!(root.join(&target).exists(), "{name}: {link} leads nowhere");
            if !anchor.is_empty() {
                let text =
                    pages.get(&target).unwrap_or_else(|| panic!("{name}: {link} is no page"));
                assert!(anchors(text).contains(anchor), "{name}: {link} is no heading");
            }
        }
    }
    assert!(links > 50, "only {links} links");
}
