//! `docs/metrics.md` lists the metrics that the code registers, with the labels it gives them.
//! `UPDATE_DOCS=1 cargo test --test metrics` writes the lists anew.
#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use imagewarm::admission::WebhookMetrics;
use imagewarm::fan_out::FanOutMetrics;
use imagewarm::leader::ControllerMetrics;
use imagewarm::programs::certificates::CertificateMetrics;
use imagewarm::sessions::metrics::DispatchMetrics;
use imagewarm::telemetry::metrics;
use imagewarm::warmer::WarmerMetrics;
use prometheus_client::registry::Registry;

/// Labels by metric. A registry shows none before something was counted, so they are told here, and
/// checked against what the sources declare.
const LABELS: &[(&str, &[&str])] = &[
    ("imagewarm_repairs_total", &["kind"]),
    ("imagewarm_deletes_total", &["cause"]),
    ("imagewarm_image_warms", &["reason"]),
    ("imagewarm_dispatch_streams_ended_total", &["reason"]),
    ("imagewarm_dispatch_connections_refused_total", &["reason"]),
    ("imagewarm_dispatch_status_writes_total", &["result"]),
    ("imagewarm_warmer_outcomes_total", &["reason"]),
    ("imagewarm_webhook_requests_total", &["path", "verdict"]),
    ("imagewarm_webhook_duration_seconds", &["path"]),
    ("imagewarm_webhook_handshake_failures_total", &["fault"]),
    ("imagewarm_fan_out_image_warms_total", &["outcome"]),
    ("imagewarm_certificate_expiry_timestamp_seconds", &["kind"]),
    ("imagewarm_certificate_faults_total", &["reason"]),
];

struct Metric {
    name: String,
    kind: String,
    help: String,
}

/// The metrics of a registry, in the order in which they were registered.
fn described(registry: &Registry) -> Vec<Metric> {
    let text = metrics::encode(registry).expect("metrics have a text form");
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    // The text form leaves out a metric with labels that has counted nothing; the registry's own
    // description has all of them.
    let all = format!("{registry:?}");
    let metric = |descriptor: &str| {
        let (name, rest) = descriptor.split_once('"').expect("a name ends");
        let (_, help) = rest.split_once("help: \"").expect("help follows the name");
        let (help, _) = help.split_once("\", unit: ").expect("the unit follows the help");
        let name = format!("imagewarm_{name}");
        let labelled = LABELS.iter().map(|(name, _)| *name);
        let labelled = labelled.map(|full| (full, full.trim_end_matches("_total")));
        match (types.get(name.as_str()), labelled.clone().find(|(_, bare)| *bare == name)) {
            (Some(&kind), _) => Metric {
                name: if kind == "counter" { format!("{name}_total") } else { name },
                kind: kind.to_owned(),
                help: help.trim_end_matches('.').to_owned(),
            },
            (None, Some((full, _))) => Metric {
                name: full.to_owned(),
                kind: kind_by_name(full).to_owned(),
                help: help.trim_end_matches('.').to_owned(),
            },
            (None, None) => panic!("{name} has labels: name them in LABELS"),
        }
    };
    all.split("Descriptor { name: \"").skip(1).map(metric).collect()
}

fn kind_by_name(name: &str) -> &'static str {
    match name {
        _ if name.ends_with("_total") => "counter",
        // A point in time is no duration.
        _ if name.ends_with("_timestamp_seconds") => "gauge",
        _ if name.ends_with("_seconds") => "histogram",
        _ => "gauge",
    }
}

fn controller() -> Vec<Metric> {
    let mut registry = metrics::registry();
    WebhookMetrics::register(&mut registry);
    FanOutMetrics::register(&mut registry);
    ControllerMetrics::register(&mut registry);
    DispatchMetrics::register(&mut registry);
    CertificateMetrics::register(&mut registry);
    described(&registry)
}

fn warmer() -> Vec<Metric> {
    let mut registry = metrics::registry();
    WarmerMetrics::register(&mut registry);
    described(&registry)
}

fn labels(metric: &Metric) -> &'static [&'static str] {
    LABELS.iter().find(|(name, _)| *name == metric.name).map_or(&[], |(_, labels)| *labels)
}

fn table(metrics: &[Metric]) -> String {
    let mut text = "\n| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for metric in metrics {
        let labels: Vec<_> = labels(metric).iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        let (name, kind, help) = (&metric.name, &metric.kind, &metric.help);
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").expect("a String has room");
    }
    text
}

/// `page` with what stands between the marks of `part` replaced.
fn with_table(page: &str, part: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {part}: begin -->\n"), format!("<!-- {part}: end -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{table}\n{end}{after}")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_page_lists_all_metrics() {
    let path = root().join("docs/metrics.md");
    let page = fs::read_to_string(&path).expect("the page exists");
    let wanted = with_table(&page, "controller", &table(&controller()));
    let wanted = with_table(&wanted, "warmer", &table(&warmer()));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).expect("the page can be written");
        return;
    }
    assert!(
        page == wanted,
        "docs/metrics.md differs from the code; write its lists anew with\n    \
         UPDATE_DOCS=1 cargo test --test metrics"
    );
}

#[test]
fn the_page_names_no_metric_that_does_not_exist() {
    let all: Vec<String> = controller().into_iter().chain(warmer()).map(|one| one.name).collect();
    for file in ["docs/metrics.md", "README.md"] {
        let text = fs::read_to_string(root().join(file)).expect("the page exists");
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        for word in words.filter(|word| word.starts_with("imagewarm_")) {
            let known = all.iter().any(|name| {
                let parts = ["_bucket", "_count", "_sum"];
                word == name || parts.iter().any(|part| word.strip_suffix(part) == Some(name))
            });
            assert!(known, "{file}: {word}");
        }
    }
}

#[test]
fn names_are_told_once_and_end_in_their_unit() {
    let mut seen = BTreeMap::new();
    for metric in controller().into_iter().chain(warmer()) {
        assert!(metric.name.starts_with("imagewarm_"), "{}", metric.name);
        assert!(!metric.help.is_empty(), "{}", metric.name);
        assert_eq!(
            metric.kind == "histogram",
            metric.name.ends_with("_seconds") && !metric.name.ends_with("_timestamp_seconds"),
            "{}",
            metric.name
        );
        assert!(seen.insert(metric.name.clone(), metric.kind).is_none(), "{} twice", metric.name);
    }
    for (name, _) in LABELS {
        assert!(seen.contains_key(*name), "{name} does not exist");
    }
}

/// Labels and type of every metric with labels in the sources, as they are declared.
fn families(folder: &Path, found: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(folder).expect("the sources can be read") {
        let path: PathBuf = entry.expect("the sources can be read").path();
        if path.is_dir() {
            families(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).expect("the sources can be read");
        for family in text.split(": Family<").skip(1) {
            let (set, rest) = family.split_once(',').expect("a family has a type");
            let kind = rest.trim_start().split([',', '>']).next().unwrap_or_default();
            let set =
                text.split_once(&format!("struct {set} {{")).and_then(|(_, it)| it.split_once('}'));
            let (fields, _) = set.expect("the set of labels is a struct of the same file");
            let fields = fields.split(',').filter_map(|field| field.split_once(':'));
            let fields = fields.map(|(name, _)| name.trim().trim_start_matches("pub ").to_owned());
            found.push((fields.collect(), kind.to_lowercase()));
        }
    }
}

#[test]
fn labels_are_those_of_the_code() {
    let mut declared = Vec::new();
    families(&root().join("src"), &mut declared);
    let told = |(name, labels): &(&str, &[&str])| {
        let labels: Vec<_> = labels.iter().map(|&label| label.to_owned()).collect();
        (labels, kind_by_name(name).to_owned())
    };
    let mut told: Vec<_> = LABELS.iter().map(told).collect();
    declared.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, declared, "LABELS, and what the code declares");
}
