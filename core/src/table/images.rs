//! Rows as text: the table with its summary and failures, and JSON. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::duration::duration;
use super::row::{Phase, Row, Summary};
use crate::api::{GROUP, Progress};
use crate::image::{Reference, quoted};

/// Nodes named for one failure; the rest are counted.
const NODES_NAMED: usize = 3;
/// Longest cell, in bytes: the longest message or image that is stored.
const CELL_MAX: usize = 1_024;
/// Seconds of a pull after which its rate is shown.
const SPEED_AFTER: i64 = 3;
/// Hex digits shown of a digest.
const DIGEST_SHOWN: usize = 12;

/// Table, summary line, and each failure with its message. `namespaces` adds a column, `wide`
/// adds digest and attempts.
pub fn render_table(rows: &[Row], namespaces: bool, wide: bool) -> String {
    let summary = Summary::of(rows).line();
    let failures = failures(rows);
    let table = lines(rows.iter(), namespaces, wide);
    format!("{table}\n\n{summary}\n{failures}")
}

/// How a wait ended: the summary, what has no ImageWarm, and each failure. `limit` is the time that was not enough.
pub fn render_outcome(rows: &[Row], missing: &[&Reference], limit: Option<Duration>) -> String {
    let mut text = format!("{}\n", Summary::of(rows).line());
    if let Some(limit) = limit {
        text.push_str(&format!("Not done within {}.\n", duration(limit.as_secs_f64())));
    }
    for image in missing {
        text.push_str(&format!(
            "No node is to hold {}: `imagewarm why {image}` says more.\n",
            shortened(image.as_str())
        ));
    }
    text + &failures(rows)
}

/// The table alone, without a line break after the last line.
pub fn lines<'a>(rows: impl Iterator<Item = &'a Row>, namespaces: bool, wide: bool) -> String {
    let mut header = vec!["NODE", "IMAGE", "STATE", "PROGRESS", "SIZE", "TOOK"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["TRIES", "DIGEST"]);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        let mut cells = vec![
            printable(&row.node),
            shortened(&printable(&row.image)),
            state(row),
            progress(row),
            row.size_bytes.map(bytes).unwrap_or_default(),
            row.took.as_deref().map(printable).unwrap_or_default(),
        ];
        if namespaces {
            cells.insert(0, printable(&row.namespace));
        }
        if wide {
            cells.push(row.attempts.map(|tries| tries.to_string()).unwrap_or_default());
            cells.push(row.digest.as_deref().map(printable).unwrap_or_default());
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// One JSON object: `summary` (counts) and `items` (one for each ImageWarm; absent is null).
pub fn render_json(rows: &[Row]) -> String {
    format!("{:#}\n", value(rows))
}

/// The same as YAML.
pub fn render_yaml(rows: &[Row]) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&value(rows))
}

/// One line for each ImageWarm, as kubectl names it.
pub fn render_names(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("imagewarm.{GROUP}/{}\n", printable(&row.name))).collect()
}

fn value(rows: &[Row]) -> Value {
    let summary = Summary::of(rows);
    let items = rows.iter().map(|row| {
        json!({
            "namespace": row.namespace,
            "name": row.name,
            "node": row.node,
            "image": row.image,
            "ready": row.phase == Phase::Ready,
            "reason": row.reason,
            "message": row.message,
            "downloadedBytes": row.progress.map(|progress| progress.downloaded_bytes),
            "totalBytes": row.progress.map(|progress| progress.total_bytes),
            "sizeBytes": row.size_bytes,
            "took": row.took,
            "digest": row.digest,
            "attempts": row.attempts,
        })
    });
    json!({
        "summary": {
            "total": summary.total,
            "ready": summary.ready,
            "pulling": summary.pulling,
            "queued": summary.queued,
            "waiting": summary.waiting,
            "failed": summary.failed,
        },
        "items": items.collect::<Vec<_>>(),
    })
}

/// Each failure once, with the nodes that have it.
pub(super) fn failures(rows: &[Row]) -> String {
    let mut nodes: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.phase == Phase::Failed) {
        let failure = (&row.namespace, &row.image, &row.reason, &row.message);
        nodes.entry(failure).or_default().push(&row.node);
    }
    let mut text = String::new();
    for ((namespace, image, reason, message), nodes) in nodes {
        let named = nodes.iter().take(NODES_NAMED).map(|node| printable(node));
        let mut on = named.collect::<Vec<_>>().join(", ");
        if nodes.len() > NODES_NAMED {
            on.push_str(&format!(" and {} more", nodes.len() - NODES_NAMED));
        }
        let (namespace, image) = (printable(namespace), shortened(&printable(image)));
        text.push_str(&format!("\n{image} ({namespace}) on {on}\n  {}", printable(reason)));
        if !message.is_empty() {
            text.push_str(&format!(": {}", printable(message)));
        }
        text.push('\n');
    }
    text
}

/// The state of a row, as the table shows it.
pub fn state(row: &Row) -> String {
    match row.reason.as_str() {
        "" => "(new)".into(),
        reason => printable(reason),
    }
}

pub(crate) fn progress(row: &Row) -> String {
    match (row.progress, row.running_seconds) {
        (Some(Progress { downloaded_bytes: done, total_bytes: total }), _) if total > 0 => {
            // 100 % is reserved for images on the node: unpacking follows the download.
            let percent = (i128::from(done.max(0)) * 100 / i128::from(total)).min(99);
            format!("{percent}% of {}{}", bytes(total), speed(row, done, total))
        }
        (Some(progress), _) if progress.downloaded_bytes > 0 => bytes(progress.downloaded_bytes),
        (_, Some(seconds)) => format!("for {seconds}s"),
        _ => String::new(),
    }
}

/// Rate and time left, by what the pull has come to so far: `, 10.5 MB/s, 3s left`. Nothing within the first
/// seconds, which say little.
fn speed(row: &Row, done: i64, total: i64) -> String {
    let Some(seconds) = row.running_seconds.filter(|seconds| *seconds >= SPEED_AFTER && done > 0)
    else {
        return String::new();
    };
    let rate = done as f64 / seconds as f64;
    let left = (total - done).max(0) as f64 / rate;
    format!(", {}/s, {} left", bytes(rate as i64), duration(left.ceil().max(1.0)))
}

/// Decimal units, as registries and `docker images` count.
pub(super) fn bytes(count: i64) -> String {
    let count = count.max(0) as f64;
    match count {
        c if c < 1e3 => format!("{c:.0} B"),
        c if c < 1e6 => format!("{:.1} kB", c / 1e3),
        c if c < 1e9 => format!("{:.1} MB", c / 1e6),
        c => format!("{:.2} GB", c / 1e9),
    }
}

/// Shortens a digest to its first digits, which are enough to distinguish images.
pub fn shortened(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, hex)) if hex.len() > DIGEST_SHOWN && hex.is_ascii() => {
            format!("{name}@sha256:{}…", &hex[..DIGEST_SHOWN])
        }
        _ => image.to_owned(),
    }
}

/// Registries choose some of this text: nothing in it may move the cursor or break a line.
pub fn printable(text: &str) -> String {
    quoted::printable(text, CELL_MAX)
}

#[cfg(test)]
mod tests;
