//! Bar charts of the report, as SVG: for each row the bar of imagewarm above that of its baseline,
//! with a whisker from the fastest to the slowest round.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::row::{Row, percentile, shown};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 420.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const OURS: &str = "#2a6fbb";
const BASELINE: &str = "#b0b7bf";

/// One chart for each unit, by a file name: numbers of one unit share an axis.
pub fn pictures(rows: &[Row]) -> Vec<(String, String)> {
    let mut units: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.value.is_finite()) {
        units.entry(row.unit).or_default().push(row);
    }
    units.into_iter().map(|(unit, rows)| (file_name(unit), picture(unit, &rows))).collect()
}

fn file_name(unit: &str) -> String {
    let words = unit.replace('%', "percent").replace('/', " per ");
    let words: Vec<&str> = words.split_whitespace().collect();
    words.join("-").to_lowercase()
}

fn picture(unit: &str, rows: &[&Row]) -> String {
    let all = rows.iter().flat_map(|row| row.rounds.ours.iter().chain(&row.rounds.baseline));
    let largest = all.copied().fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| value / largest * (WIDTH - LEFT - 120.0);
    let mut body = String::new();
    let mut y = 44.0;
    for row in rows {
        let base = [(&row.rounds.ours, OURS), (&row.rounds.baseline, BASELINE)];
        let middle = y + BAR;
        let name = escaped(&row.name);
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{middle}" text-anchor="end">{name}</text>"#,
            LEFT - 8.0
        );
        for (rounds, colour) in base {
            if let Some(value) = percentile(rounds, 0.5) {
                bar(&mut body, y, (value, scale), rounds, colour);
                y += BAR;
            }
        }
        y += GAP;
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="20" font-size="14">{unit}: medians, from the least to the greatest round</text>
<rect x="{key}" y="8" width="12" height="12" fill="{OURS}"/><text x="{key_text}" y="18">imagewarm</text>
<rect x="{other}" y="8" width="12" height="12" fill="{BASELINE}"/><text x="{other_text}" y="18">baseline</text>
{body}</svg>
"#,
        height = y + 8.0,
        unit = escaped(unit),
        key = WIDTH - 220.0,
        key_text = WIDTH - 204.0,
        other = WIDTH - 110.0,
        other_text = WIDTH - 94.0,
    )
}

fn bar(
    body: &mut String,
    y: f64,
    (value, scale): (f64, impl Fn(f64) -> f64),
    rounds: &[f64],
    colour: &str,
) {
    let end = LEFT + scale(value);
    let (height, centre) = (BAR - 2.0, y + BAR / 2.0 - 1.0);
    let width = scale(value);
    let _ = writeln!(
        body,
        r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{height}" fill="{colour}"/>"#
    );
    let (least, most) = (percentile(rounds, 0.0), percentile(rounds, 1.0));
    let (from, to) = (LEFT + scale(least.unwrap_or(value)), LEFT + scale(most.unwrap_or(value)));
    if rounds.len() > 1 {
        let _ = writeln!(
            body,
            r#"<line x1="{from:.1}" x2="{to:.1}" y1="{centre}" y2="{centre}" stroke="black"/>"#
        );
    }
    let (at, below, text) = (end.max(to) + 6.0, centre + 4.0, shown(value));
    let _ = writeln!(body, r#"<text x="{at:.1}" y="{below}" font-size="11">{text}</text>"#);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
