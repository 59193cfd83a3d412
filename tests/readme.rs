//! What the README says of settings and reasons is what the program has.
#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use imagewarm::cli::Cli;
use imagewarm_core::api::Reason;
use imagewarm_core::check::Check;

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).expect("the README is there")
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
    let readme = readme();
    let rows = table(&readme, "reason");
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
    let readme = readme();
    for word in readme.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
        if word.starts_with("IMAGEWARM_") {
            assert!(defaults.contains_key(word), "{word} is no setting");
        }
    }
    for flag in quoted(&readme).filter_map(|word| word.strip_prefix("--")) {
        let flag = flag.split([' ', '=']).next().unwrap_or_default();
        let own = flags.contains(flag);
        // Those of `cargo xtask`.
        let xtask =
            ["keep", "knative", "nodes", "runtime", "binary", "filter", "no-skips", "target"];
        assert!(own || xtask.contains(&flag), "--{flag} is no flag");
    }
    for row in table(&readme, "variable") {
        let [variables, .., told] = row.as_slice() else { panic!("{row:?}") };
        let told = told.replace('`', "");
        let wanted: Vec<_> = quoted(variables).map(|name| defaults[name].as_str()).collect();
        assert_eq!(wanted.join(", "), told, "{variables}");
    }
}

#[test]
fn every_check_is_explained() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let page = fs::read_to_string(path).expect("the page is there");
    for check in Check::ALL {
        let heading = format!("\n#### {}\n", check.as_str());
        assert!(page.contains(&heading), "no heading of {}", check.as_str());
    }
}
