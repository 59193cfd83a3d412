//! `docs/metrics.md` lists the metrics that the code registers, with the labels and the values that
//! the code gives them. What the documentation and the alert rules name exists.
//! `UPDATE_DOCS=1 cargo test --test metrics` writes the lists.
#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use imagewarm::admission::WebhookMetrics;
use imagewarm::fan_out::FanOutMetrics;
use imagewarm::leader::{ControllerMetrics, StartMetrics};
use imagewarm::sessions::metrics::DispatchMetrics;
use imagewarm::telemetry::certificates::CertificateMetrics;
use imagewarm::telemetry::metrics;
use imagewarm::warmer::WarmerMetrics;
use prometheus_client::registry::Registry;

#[path = "metrics/declared.rs"]
mod declared;
#[path = "metrics/expressions.rs"]
mod expressions;

use declared::{Label, Labelled};

struct Metric {
    name: String,
    kind: String,
    help: String,
    labels: Vec<Label>,
}

/// The metrics of a registry, in the order of their registration.
fn described(registry: &Registry) -> Vec<Metric> {
    let declared = declared::metrics();
    let text = metrics::encode(registry).expect("metrics have a text form");
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    // The text form omits a metric with labels that has counted nothing. The registry's Debug has
    // all of them.
    let all = format!("{registry:?}");
    let metric = |descriptor: &str| {
        let (name, rest) = descriptor.split_once('"').expect("a name ends");
        let (_, help) = rest.split_once("help: \"").expect("help follows the name");
        let (help, _) = help.split_once("\", unit: ").expect("the unit follows the help");
        let full = format!("imagewarm_{name}");
        let (kind, labels) = match (declared.get(name), types.get(full.as_str())) {
            (Some(Labelled { kind, labels }), _) => (kind.clone(), labels.clone()),
            (None, Some(kind)) => ((*kind).to_owned(), vec![]),
            (None, None) => panic!("{full} has labels, but the sources declare no Family for it"),
        };
        Metric {
            name: if kind == "counter" { format!("{full}_total") } else { full },
            kind,
            help: help.trim_end_matches('.').to_owned(),
            labels,
        }
    };
    all.split("Descriptor { name: \"").skip(1).map(metric).collect()
}

fn controller() -> Vec<Metric> {
    let mut registry = metrics::registry();
    WebhookMetrics::register(&mut registry);
    FanOutMetrics::register(&mut registry);
    ControllerMetrics::register(&mut registry);
    StartMetrics::register(&mut registry);
    DispatchMetrics::register(&mut registry);
    CertificateMetrics::register(&mut registry);
    described(&registry)
}

fn warmer() -> Vec<Metric> {
    let mut registry = metrics::registry();
    WarmerMetrics::register(&mut registry);
    described(&registry)
}

fn all() -> Vec<Metric> {
    controller().into_iter().chain(warmer()).collect()
}

/// The metrics, then the values of their labels.
fn tables(metrics: &[Metric]) -> String {
    let mut text = "\n| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for metric in metrics {
        let labels: Vec<_> =
            metric.labels.iter().map(|label| format!("`{}`", label.name)).collect();
        let labels = labels.join(", ");
        let (name, kind, help) = (&metric.name, &metric.kind, &metric.help);
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").expect("a String has room");
    }
    text += "\n| label | of | value | meaning |\n|---|---|---|---|\n";
    let mut listed: Vec<(&Label, Vec<String>)> = vec![];
    for metric in metrics {
        for label in &metric.labels {
            let name = format!("`{}`", metric.name);
            match listed.iter_mut().find(|(same, _)| *same == label) {
                Some((_, names)) => names.push(name),
                None => listed.push((label, vec![name])),
            }
        }
    }
    for (label, names) in listed {
        let mut first = format!("`{}` | {}", label.name, names.join(", "));
        for (value, doc) in &label.values {
            let doc = doc.trim_end_matches('.').replace('|', "\\|");
            writeln!(text, "| {first} | `{value}` | {doc} |").expect("a String has room");
            " | ".clone_into(&mut first);
        }
    }
    text
}

/// `page` with the text between the marks of `part` replaced.
fn with_tables(page: &str, part: &str, tables: &str) -> String {
    let (begin, end) = (format!("<!-- {part}: begin -->\n"), format!("<!-- {part}: end -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{tables}\n{end}{after}")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `folder` whose names end in `.extension`.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn the_page_lists_all_metrics() {
    let path = root().join("docs/metrics.md");
    let page = read(&path);
    let expected = with_tables(&page, "controller", &tables(&controller()));
    let expected = with_tables(&expected, "warmer", &tables(&warmer()));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, expected).expect("the page can be written");
        return;
    }
    assert!(
        page == expected,
        "docs/metrics.md differs from the code; write its lists with\n    \
         UPDATE_DOCS=1 cargo test --test metrics"
    );
}

#[test]
fn documentation_and_alerts_name_what_exists() {
    let metrics = all();
    let alerts = files(&root().join("deploy/alerts"), "yaml");
    assert!(!alerts.is_empty());
    let pages = files(&root().join("docs"), "md").into_iter().chain([root().join("README.md")]);
    let dashboards = files(&root().join("overlays/monitoring"), "json");
    assert!(!dashboards.is_empty());
    for path in pages.chain(alerts).chain(dashboards) {
        // A cell of a table has `\|` for `|`, and JSON `\"` for `"`.
        let text = read(&path).replace("\\|", "|").replace("\\\"", "\"");
        if let Err(fault) = expressions::check(&text, &metrics) {
            panic!("{}: {fault}", path.display());
        }
    }
}

#[test]
fn alerts_use_labels_of_their_expression() {
    for path in files(&root().join("deploy/alerts"), "yaml") {
        let rules: serde_json::Value = serde_saphyr::from_str(&read(&path)).expect("YAML");
        let groups = rules["groups"].as_array().expect("groups");
        for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
            let expression = rule["expr"].as_str().expect("an expression");
            if let Err(fault) = expressions::check_templates(expression, &rule.to_string(), &all())
            {
                panic!("{}: {}: {fault}", path.display(), rule["alert"]);
            }
        }
    }
}

#[test]
fn names_are_unique_and_end_in_their_unit() {
    let mut seen = BTreeMap::new();
    for metric in all() {
        assert!(metric.name.starts_with("imagewarm_"), "{}", metric.name);
        assert!(!metric.help.is_empty(), "{}", metric.name);
        // A gauge may be an age or a time.
        let in_seconds = metric.name.ends_with("_seconds");
        let fits = match metric.kind.as_str() {
            "histogram" => in_seconds,
            "gauge" => true,
            _ => !in_seconds,
        };
        assert!(fits, "{} is a {}", metric.name, metric.kind);
        assert!(seen.insert(metric.name.clone(), metric.kind).is_none(), "{} twice", metric.name);
    }
}

#[test]
fn every_value_of_a_label_has_a_meaning() {
    for metric in all() {
        for label in metric.labels {
            assert!(
                label.values.len() > 1 || label.name == "node",
                "{} {}",
                metric.name,
                label.name
            );
            for (value, doc) in label.values {
                assert!(!doc.is_empty(), "{} {} {value}", metric.name, label.name);
            }
        }
    }
}
