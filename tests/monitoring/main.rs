//! Alerts: each has a test that it fires in and one that it does not, which promtool runs; each has a runbook; the
//! overlay for the Prometheus operator and `docs/metrics.md` have the same rules.
//! `UPDATE_DOCS=1 cargo test --test monitoring` writes both.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use xtask::prerequisites::{self, Prerequisite};

const RULES: &str = "deploy/alerts/imagewarm.rules.yaml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read(RULES)).unwrap();
    let rules: Vec<Value> =
        list(&file["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect();
    assert!(rules.len() > 10, "{} rules", rules.len());
    rules
}

fn names() -> BTreeSet<String> {
    rules().iter().map(|rule| text(&rule["alert"]).to_owned()).collect()
}

/// The test of each alert, by its name.
fn test_files() -> Vec<(String, PathBuf)> {
    let files = fs::read_dir(root().join("tests/monitoring/alerts")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort_unstable();
    let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    files.into_iter().map(|path| (name(&path), path)).collect()
}

#[tokio::test]
async fn alerts_fire_and_are_silent_when_they_should() {
    let programs = prerequisites::ensure(&[Prerequisite::Promtool]).await.unwrap();
    let promtool = |arguments: &[&str], files: &[PathBuf]| {
        let program = programs.path(Prerequisite::Promtool).unwrap();
        let output = Command::new(program).args(arguments).args(files).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    };
    promtool(&["check", "rules"], &[root().join(RULES)]);
    let files: Vec<_> = test_files().into_iter().map(|(_, path)| path).collect();
    promtool(&["test", "rules"], &files);
    // The expressions of the dashboard, as rules, so that they are parsed.
    let recorded: Vec<_> = expressions_of_the_dashboard()
        .iter()
        .map(|expr| json!({"record": "panel", "expr": expr, "labels": {"expr": expr}}))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.yaml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": recorded}]}).to_string())
        .unwrap();
    promtool(&["check", "rules"], &[file]);
}

fn expressions_of_the_dashboard() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&read("overlays/monitoring/dashboard.json")).unwrap();
    let targets = list(&dashboard["panels"]).iter().flat_map(|panel| list(&panel["targets"]));
    // Grafana puts the range that is shown.
    let expressions: Vec<_> =
        targets.map(|target| text(&target["expr"]).replace("$__range", "1h")).collect();
    assert!(expressions.len() > 10 && expressions.iter().all(|one| !one.is_empty()));
    expressions
}

#[test]
fn every_alert_has_a_test_that_it_fires_in_and_one_that_it_does_not() {
    let tested: BTreeSet<_> = test_files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(tested, names());
    for (name, path) in test_files() {
        let file: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let wanted = format!("{{alertname=\"{name}\"}}");
        let (mut fires, mut is_silent) = (false, false);
        for test in list(&file["tests"]) {
            let checks = list(&test["promql_expr_test"]);
            for check in checks {
                assert_eq!(check["expr"], "count by (alertname) (ALERTS{alertstate=\"firing\"})");
            }
            let samples: Vec<_> =
                checks.iter().flat_map(|check| list(&check["exp_samples"])).collect();
            assert!(samples.iter().all(|sample| sample["labels"] == *wanted), "{name}");
            fires |= !samples.is_empty();
            is_silent |= !checks.is_empty() && samples.is_empty();
        }
        assert!(fires && is_silent, "{name}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let page = read("docs/runbooks.md");
    let headings: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect();
    assert_eq!(headings, names());
    for rule in rules() {
        let name = text(&rule["alert"]);
        let url = text(&rule["annotations"]["runbook_url"]);
        // As forges make an anchor of a heading that is one word.
        assert_eq!(url, format!("docs/runbooks.md#{}", name.to_lowercase()), "{name}");
        for annotation in ["summary", "description"] {
            assert!(rule["annotations"][annotation].is_string(), "{name} has no {annotation}");
        }
        let severity = text(&rule["labels"]["severity"]);
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity:?}");
    }
}

/// Compares a file with what it has to be, or writes it.
fn hold(path: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join(path), expected).unwrap();
        return;
    }
    assert!(
        read(path) == expected,
        "{path} differs from {RULES}; write it with\n    UPDATE_DOCS=1 cargo test --test monitoring"
    );
}

#[test]
fn the_overlay_has_the_same_rules() {
    let rules = read(RULES);
    let (_, groups) = rules.split_once("\ngroups:\n").unwrap();
    let mut expected = "# The rules of deploy/alerts, written by `UPDATE_DOCS=1 cargo test --test monitoring`.\n\
        apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: imagewarm\n  \
        namespace: imagewarm-system\n  labels:\n    app.kubernetes.io/part-of: imagewarm\n\
        spec:\n  groups:\n"
        .to_owned();
    for line in groups.lines() {
        writeln!(expected, "{}", format!("  {line}").trim_end()).unwrap();
    }
    let parsed: Value = serde_saphyr::from_str(&expected).unwrap();
    let original: Value = serde_saphyr::from_str(&rules).unwrap();
    assert_eq!(parsed["spec"], original, "indented YAML is the same");
    hold("overlays/monitoring/prometheus-rule.yaml", &expected);
}

#[test]
fn the_page_has_the_same_rules() {
    let mut table =
        "\n| alert | severity | expression | for | meaning |\n|---|---|---|---|---|\n".to_owned();
    for rule in rules() {
        let (name, summary) = (text(&rule["alert"]), text(&rule["annotations"]["summary"]));
        // A label of the series, in the place of its value.
        let summary = summary.replace("{{ $labels.", "*").replace(" }}", "*");
        let expression = text(&rule["expr"]).replace('|', "\\|");
        let (severity, lasts) =
            (text(&rule["labels"]["severity"]), rule["for"].as_str().unwrap_or("–"));
        let link = format!("[{name}](runbooks.md#{})", name.to_lowercase());
        writeln!(table, "| {link} | {severity} | `{expression}` | {lasts} | {summary} |").unwrap();
    }
    let page = read("docs/metrics.md");
    let (begin, end) = ("<!-- alerts: begin -->\n", "<!-- alerts: end -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    hold("docs/metrics.md", &format!("{before}{begin}{table}\n{end}{after}"));
}

#[test]
fn monitors_select_the_pods_and_their_port() {
    let objects = |path: &str| -> Vec<Value> { serde_saphyr::from_multiple(&read(path)).unwrap() };
    let monitors = objects("overlays/monitoring/pod-monitors.yaml");
    assert_eq!(monitors.len(), 2);
    for (monitor, path) in
        monitors.iter().zip(["deploy/controller/deployment.yaml", "deploy/warmer/daemonset.yaml"])
    {
        let workload = &objects(path)[0];
        let template = &workload["spec"]["template"];
        assert_eq!(monitor["metadata"]["namespace"], workload["metadata"]["namespace"]);
        let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
        assert!(!wanted.is_empty());
        for (label, value) in wanted {
            assert_eq!(template["metadata"]["labels"][label], *value, "{label}");
        }
        let [endpoint] = list(&monitor["spec"]["podMetricsEndpoints"]) else { panic!("one port") };
        let ports = list(&template["spec"]["containers"][0]["ports"]);
        assert!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{endpoint}");
    }
}
