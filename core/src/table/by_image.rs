//! One line for each image: what a large cluster's thousands of rows come to. Pure.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};

use super::images::{failures, printable, shortened};
use super::row::{Row, Summary};

/// The table, the summary of all, and each failure. `namespaces` adds a column.
pub fn render_by_image(rows: &[Row], namespaces: bool) -> String {
    let mut images: BTreeMap<(&str, &str), Vec<Row>> = BTreeMap::new();
    for row in rows {
        images.entry((&row.namespace, &row.image)).or_default().push(row.clone());
    }
    let mut header = vec!["IMAGE", "READY", "PULLING", "QUEUED", "WAITING", "FAILED", "SIZE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for ((namespace, image), rows) in &images {
        let summary = Summary::of(rows);
        let count = |count: usize| if count == 0 { String::new() } else { count.to_string() };
        let reasons: Vec<String> = summary
            .failed
            .iter()
            .map(|(reason, count)| format!("{count} {}", printable(reason)))
            .collect();
        let size = rows.iter().filter_map(|row| row.size_bytes).max();
        let mut cells = vec![
            shortened(&printable(image)),
            format!("{} of {}", summary.ready, summary.total),
            count(summary.pulling),
            count(summary.queued),
            count(summary.waiting),
            reasons.join(", "),
            size.map(super::images::bytes).unwrap_or_default(),
        ];
        if namespaces {
            cells.insert(0, printable(namespace));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n\n{}\n{}", table.trim_fmt(), Summary::of(rows).line(), failures(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::row::Phase;

    fn row(node: usize, image: &str, phase: Phase, reason: &str) -> Row {
        Row {
            node: format!("node-{node:04}"),
            message: if phase == Phase::Failed { "manifest unknown".into() } else { String::new() },
            size_bytes: (phase == Phase::Ready).then_some(52_428_800),
            ..Row::sample("shop", image, phase, reason)
        }
    }

    #[test]
    fn thousands_of_rows_are_a_line_for_each_image() {
        let mut rows = Vec::new();
        for node in 0..5_000 {
            let app = match node {
                0..4_990 => row(node, "r.example/app:v1", Phase::Ready, "Pulled"),
                4_990..4_995 => row(node, "r.example/app:v1", Phase::Pulling, "Pulling"),
                _ => row(node, "r.example/app:v1", Phase::Failed, "NotFound"),
            };
            rows.push(app);
            rows.push(row(node, "r.example/side:v1", Phase::Ready, "AlreadyPresent"));
        }
        insta::assert_snapshot!(render_by_image(&rows, true), @"
        NAMESPACE  IMAGE              READY         PULLING  QUEUED  WAITING  FAILED      SIZE
        shop       r.example/app:v1   4990 of 5000  5                         5 NotFound  52.4 MB
        shop       r.example/side:v1  5000 of 5000                                        52.4 MB

        9990 of 10000 ready, 5 pulling, 5 failed: NotFound

        r.example/app:v1 (shop) on node-4995, node-4996, node-4997 and 2 more
          NotFound: manifest unknown
        ");
    }
}
