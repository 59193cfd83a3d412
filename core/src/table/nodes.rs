//! `--nodes`: one line for each node, with its runtime as the warmer reported it with the last
//! outcome. Pure.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::images::printable;
use super::row::{Row, Summary};
use crate::api::{ImageWarm, RUNTIME_KEY, RUNTIME_REPORTS_KEY};

/// The ImageWarms of one node, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRow {
    /// The node.
    pub node: String,
    /// Name and version of its runtime; empty while no outcome was reported.
    pub runtime: String,
    /// What the runtime reports by itself, such as `progress, removals`.
    pub reports: String,
    /// Number of images in each phase.
    pub summary: Summary,
    /// What the node gate waits for, where it holds the node.
    pub held: Option<Held>,
}

/// A node with the taint of the node gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whole seconds since the creation of the Node.
    pub seconds: i64,
    /// Images whose phase still changes, each with the reason of its condition; empty without one.
    pub waits_for: Vec<(String, String)>,
}

/// The nodes with the taint of the node gate, and when each Node was created.
pub type HeldNodes = BTreeMap<String, Timestamp>;

impl NodeRow {
    /// Reads all, sorted by node.
    pub fn from_all(warms: &[ImageWarm], held: &HeldNodes, now: Timestamp) -> Vec<NodeRow> {
        let mut nodes: BTreeMap<&str, Vec<&ImageWarm>> =
            held.keys().map(|node| (node.as_str(), Vec::new())).collect();
        for warm in warms {
            nodes.entry(&warm.spec.node_name).or_default().push(warm);
        }
        let row = |(node, warms): (&str, Vec<&ImageWarm>)| {
            let rows = Row::from_all(warms.iter().copied(), now);
            let latest = warms
                .iter()
                .filter_map(|warm| warm.status.as_ref())
                .filter(|status| status.annotations.contains_key(RUNTIME_KEY))
                .max_by_key(|status| status.finished_at.as_ref().map(|at| at.0));
            let fact = |key: &str| latest.and_then(|status| status.annotations.get(key)).cloned();
            NodeRow {
                node: node.to_owned(),
                runtime: fact(RUNTIME_KEY).unwrap_or_default(),
                reports: fact(RUNTIME_REPORTS_KEY).unwrap_or_default(),
                summary: Summary::of(&rows),
                held: held.get(node).map(|created| Held {
                    seconds: now.as_second().saturating_sub(created.as_second()).max(0),
                    waits_for: rows
                        .into_iter()
                        .filter(|row| !row.is_final)
                        .map(|row| (row.image, row.reason))
                        .collect(),
                }),
            }
        };
        nodes.into_iter().map(row).collect()
    }
}

impl Held {
    /// `42s, waits for app:v1 (Pulling) and 2 more`.
    fn line(&self) -> String {
        let Held { seconds, waits_for } = self;
        let Some((image, reason)) = waits_for.first() else { return format!("{seconds}s") };
        let mut line = format!("{seconds}s, waits for {}", printable(image));
        if !reason.is_empty() {
            line.push_str(&format!(" ({})", printable(reason)));
        }
        if waits_for.len() > 1 {
            line.push_str(&format!(" and {} more", waits_for.len() - 1));
        }
        line
    }
}

/// The table, and the summary of all nodes. `wide` adds what the runtimes report. Where nodes are held,
/// there is a column for it.
pub fn render_nodes(nodes: &[NodeRow], all: &Summary, wide: bool) -> String {
    let any_held = nodes.iter().any(|node| node.held.is_some());
    let mut header = vec!["NODE", "RUNTIME", "IMAGES"];
    if any_held {
        header.push("HELD");
    }
    if wide {
        header.push("REPORTS");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for node in nodes {
        let mut cells = vec![printable(&node.node), printable(&node.runtime), node.summary.line()];
        if any_held {
            cells.push(node.held.as_ref().map(Held::line).unwrap_or_default());
        }
        if wide {
            cells.push(printable(&node.reports));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n\n{}\n", table.trim_fmt(), all.line())
}

/// One JSON object: `summary` (counts) and `nodes` (one for each node).
pub fn render_nodes_json(nodes: &[NodeRow], all: &Summary) -> String {
    format!("{:#}\n", value(nodes, all))
}

/// The same as YAML.
pub fn render_nodes_yaml(
    nodes: &[NodeRow],
    all: &Summary,
) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&value(nodes, all))
}

fn value(nodes: &[NodeRow], all: &Summary) -> Value {
    let counts = |summary: &Summary| {
        json!({
            "total": summary.total,
            "ready": summary.ready,
            "pulling": summary.pulling,
            "queued": summary.queued,
            "waiting": summary.waiting,
            "failed": summary.failed,
        })
    };
    let held = |held: &Held| {
        let image = |(image, reason): &(String, String)| json!({"image": image, "reason": reason});
        let waits_for: Vec<_> = held.waits_for.iter().map(image).collect();
        json!({"seconds": held.seconds, "waitsFor": waits_for})
    };
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            json!({
                "node": node.node,
                "runtime": node.runtime,
                "runtimeReports": node.reports,
                "images": counts(&node.summary),
                "held": node.held.as_ref().map(held),
            })
        })
        .collect();
    json!({"summary": counts(all), "nodes": nodes})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn warm(node: &str, reason: &str, runtime: Option<&str>, finished: i64) -> ImageWarm {
        let annotations = match runtime {
            Some(runtime) => json!({RUNTIME_KEY: runtime, RUNTIME_REPORTS_KEY: "progress"}),
            None => json!({}),
        };
        let ready = if reason == "Pulled" { "True" } else { "False" };
        serde_json::from_value(json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"name": format!("{node}-{reason}-{finished}")},
            "spec": {"image": "app", "nodeName": node},
            "status": {
                "annotations": annotations,
                "conditions": [{"type": "Ready", "status": ready, "reason": reason}],
                "finishedAt": Timestamp::from_second(finished).unwrap().to_string(),
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_one_line_with_its_newest_runtime() {
        let warms = [
            warm("node-b", "NotFound", None, 9),
            warm("node-a", "Pulled", Some("containerd 2.2.3"), 5),
            warm("node-a", "Pulled", Some("containerd 1.6.20"), 2),
            warm("node-a", "DiskPressure", None, 9),
        ];
        let rows = NodeRow::from_all(&warms, &HeldNodes::new(), Timestamp::UNIX_EPOCH);
        let all = Summary::of(&Row::from_all(&warms, Timestamp::UNIX_EPOCH));
        insta::assert_snapshot!(render_nodes(&rows, &all, true), @"
        NODE    RUNTIME           IMAGES                                REPORTS
        node-a  containerd 2.2.3  2 of 3 ready, 1 failed: DiskPressure  progress
        node-b                    0 of 1 ready, 1 failed: NotFound

        2 of 4 ready, 2 failed: 1 DiskPressure, 1 NotFound
        ");
        let value: serde_json::Value =
            serde_json::from_str(&render_nodes_json(&rows, &all)).unwrap();
        assert_eq!(value["nodes"][0]["runtime"], "containerd 2.2.3");
        assert_eq!(value["nodes"][0]["images"]["failed"]["DiskPressure"], 1);
        assert_eq!(value["summary"]["total"], 4);
    }

    #[test]
    fn a_held_node_shows_what_it_waits_for() {
        let now = Timestamp::from_second(100).unwrap();
        let warms = [
            warm("held", "Pulled", None, 5),
            warm("held", "NotFound", None, 5),
            warm("held", "RegistryUnreachable", None, 5),
            warm("held", "DiskPressure", None, 5),
            warm("other", "Pulled", None, 5),
        ];
        let created = |second| Timestamp::from_second(second).unwrap();
        let held = [("held", created(58)), ("new", created(101))];
        let held = held.map(|(node, created)| (node.to_owned(), created)).into();
        let rows = NodeRow::from_all(&warms, &held, now);
        let all = Summary::of(&Row::from_all(&warms, now));
        insta::assert_snapshot!(render_nodes(&rows, &all, false), @"
        NODE   RUNTIME  IMAGES                                                                     HELD
        held            1 of 4 ready, 3 failed: 1 DiskPressure, 1 NotFound, 1 RegistryUnreachable  42s, waits for app (RegistryUnreachable) and 1 more
        new             0 of 0 ready                                                               0s
        other           1 of 1 ready

        2 of 5 ready, 3 failed: 1 DiskPressure, 1 NotFound, 1 RegistryUnreachable
        ");
        let value: serde_json::Value =
            serde_json::from_str(&render_nodes_json(&rows, &all)).unwrap();
        let waits_for = &value["nodes"][0]["held"]["waitsFor"];
        assert_eq!(waits_for.as_array().unwrap().len(), 2);
        assert_eq!(value["nodes"][1]["held"], json!({"seconds": 0, "waitsFor": []}));
        assert!(value["nodes"][2]["held"].is_null());
    }
}
